"""The ADMM optimizer and its schedules."""

from nxmiformer.optim.admm import ADMM
from nxmiformer.optim.reconstruct import Problem, Reconstruction, reconstruct
from nxmiformer.optim.schedule import Balanced, Constant, Ramp, Residuals, Schedule, SupportChange, Warmup

__all__ = [
    "ADMM",
    "Balanced",
    "Constant",
    "Problem",
    "Ramp",
    "Reconstruction",
    "Residuals",
    "Schedule",
    "SupportChange",
    "Warmup",
    "reconstruct",
]
