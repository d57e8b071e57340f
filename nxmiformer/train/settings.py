"""How training runs, whatever is trained by whatever method."""

from dataclasses import dataclass
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from nxmiformer.errors import unknown
from nxmiformer.sets.fields import check_fields
from nxmiformer.tasks.batches import batches_per_epoch


@dataclass(frozen=True)
class Settings:
    """How training runs, whatever the method.

    Attributes:
        batch_size: examples of one forward pass, on all processes together; each takes its share.
        accumulation: forward passes of one optimizer step.
        eval_batch_size: examples of one forward pass in an evaluation.
        max_length: tokens that an example is truncated to.
        group_by_length: put training examples of like length together, for less padding.
        clip: largest norm of the gradient; None leaves it.
        precision: "no" (float32) or "bf16" (autocast).
        compile: train the model, and project it, by code that `torch.compile` makes: worth its minutes in a long run.
        evaluate_every: optimizer steps between two scores on the holdout; 0: at the end of a phase only.
        checkpoint_every: optimizer steps between two checkpoints; 0: at the end of a phase only.
        log_every: optimizer steps between two rows of figures.
        cpu: stay on the CPU where there is an accelerator.
        threads: CPU threads of torch; None leaves torch's choice.
    """

    batch_size: int = 32
    accumulation: int = 1
    eval_batch_size: int = 64
    max_length: int = 128
    group_by_length: bool = True
    clip: float | None = 1.0
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    evaluate_every: int = 0
    checkpoint_every: int = 0
    log_every: int = 1
    cpu: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("batch_size", "accumulation", "eval_batch_size", "max_length", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"train.threads must be at least 1, or null for torch's choice, not {self.threads}")
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must not be negative, not {getattr(self, name)}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"train.clip must be positive, or null for none, not {self.clip}")
        if self.precision not in ("no", "bf16"):
            raise unknown("precision", self.precision, ("no", "bf16"))

    def accelerator(self) -> Accelerator:
        """The `accelerate` that the loop runs on."""
        plugin = GradientAccumulationPlugin(num_steps=self.accumulation, sync_with_dataloader=False)
        return Accelerator(cpu=self.cpu, mixed_precision=self.precision, gradient_accumulation_plugin=plugin)

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps of one pass over so many training examples."""
        return max(1, batches_per_epoch(examples, self.batch_size) // self.accumulation)
