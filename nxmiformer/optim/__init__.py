"""ADMM of a layer and around an optimizer, with its schedules, and the other mathematics of methods."""

from nxmiformer.optim.admm import ADMM
from nxmiformer.optim.reconstruct import Problem, Reconstruction, reconstruct
from nxmiformer.optim.residuals import Residuals
from nxmiformer.optim.schedule import Balanced, Constant, Ramp, Schedule, SupportChange, Warmup

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
