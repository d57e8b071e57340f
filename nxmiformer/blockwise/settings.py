"""How the blocks of a decoder are compressed, one after another."""

from dataclasses import dataclass

from nxmiformer.sets.fields import check_fields


@dataclass(frozen=True)
class Blockwise:
    """How each block is reconstructed, and trained on its own output.

    Attributes:
        windows: of `train.max_length` tokens, drawn from the training texts, that the blocks are calibrated on.
        batch: windows of one forward pass.
        iterations: of ADMM, in each stage of a layer's reconstruction; see `nxmiformer.optim.reconstruct`.
        damping: of a layer's moment; see there.
        steps: optimizer steps of a block after its reconstruction, on the mean squared error of its output; 0: none.
        lr: learning rate of the first of them, of Adam, in units of each parameter's root mean square; it falls
            linearly to nothing.
    """

    windows: int = 128
    batch: int = 1
    iterations: int = 20
    damping: float = 0.01
    steps: int = 0
    lr: float = 5e-3

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("windows", 1), ("batch", 1), ("iterations", 1), ("steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"blockwise.{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("damping", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"blockwise.{name} must be positive, not {getattr(self, name):g}")
