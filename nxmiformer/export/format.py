"""The interface of an export format."""

import abc
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.tasks.units import Outputs

Run = Callable[[Mapping[str, Tensor]], Outputs]  # (batch, tokens) inputs by name -> a model's outputs


@dataclass(frozen=True)
class Format(abc.ABC):
    """A format in which other software runs a packed model.

    Attributes:
        name: name of the directory that it is written to.
        extra: of this package, which installs
        packages: that writing and reading take.
        tolerance: the share of predictions that may differ from those of the packed model.
    """

    name: ClassVar[str]
    extra: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"format.tolerance is a share of the predictions in [0, 1), not {self.tolerance}")

    @abc.abstractmethod
    def refusals(self, model: PreTrainedModel, plan: CompressionPlan) -> Iterator[str]:
        """What the format cannot represent, a line each: the layer, its set or activations, and why."""

    @abc.abstractmethod
    def write(self, model: PreTrainedModel, plan: CompressionPlan, directory: Path) -> None:
        """Write the model, as `load_packed` gives it and with nothing to refuse, into a directory.

        Only the model's `config.json` is there already, and may be replaced.
        """

    @abc.abstractmethod
    def read(self, directory: Path, threads: int | None = None) -> Run:
        """A function that computes logits from the written files with the other software, on so many CPU threads."""

    def check_packages(self) -> None:
        """Raise a ValueError that names the packages which are missing, and what installs them."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"the format {self.name} needs {', '.join(missing)}: pip install 'nxmiformer[{self.extra}]'"
            )


def checkpoint(directory: Path, threads: int | None = None) -> Run:
    """What runs a directory that `transformers` reads by itself, on so many CPU threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    (architecture,) = AutoConfig.from_pretrained(directory, trust_remote_code=False).architectures
    model = getattr(transformers, architecture).from_pretrained(directory).eval()

    @torch.no_grad()
    def run(batch: Mapping[str, Tensor]) -> Outputs:
        outputs: Outputs = model(**batch)
        return outputs

    return run


COMPARED = ("logits", "start_logits", "end_logits")  # outputs that an artefact carries


def compared(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a model that an artefact has; its hidden states if it has no head."""
    named = {name: outputs[name] for name in COMPARED if name in outputs}
    return named or {"last_hidden_state": outputs["last_hidden_state"]}


def no_quantized_inputs(plan: CompressionPlan) -> Iterator[str]:
    """What an ordinary checkpoint, which the next run quantizes, cannot say of a plan."""
    for name, spec in plan.layers.items():
        if spec.activations is not None:
            yield f"{name}: its inputs are quantized: leave that to the run that starts from this model"


def no_everything(plan: CompressionPlan) -> Iterator[str]:
    """The refusal of a plan that quantizes more than layers and their inputs."""
    if plan.everything is not None:
        yield (
            f"the plan quantizes everything ({plan.everything}), and this format carries weights and the inputs of "
            f"layers alone: load_packed reads the packed model, and format=onnx carries all of it"
        )


def no_tokens(model: PreTrainedModel) -> Iterator[str]:
    """The refusal of a model whose inputs are not tokens."""
    if "input_ids" not in inspect.signature(model.forward).parameters:
        yield f"{type(model).__name__} takes no input_ids"
