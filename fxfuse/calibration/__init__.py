"""Calibration: inputs the user gives, in a part to fit on and a part held out, and what is kept of them."""
