"""Calibration: inputs the user gives, in a part to fit on and a part held out, and what is kept of them."""

from fxfuse.calibration.records import Calibration
from fxfuse.calibration.store import Activations

__all__ = ["Activations", "Calibration"]
