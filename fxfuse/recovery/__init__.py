"""Recovery: correct the weights of fused groups on calibration data, without training end to end."""

from fxfuse.recovery.records import GroupRecovery, Recovered, RecoveryOptions, Trial
from fxfuse.recovery.recover import recover

__all__ = ["GroupRecovery", "Recovered", "RecoveryOptions", "Trial", "recover"]
