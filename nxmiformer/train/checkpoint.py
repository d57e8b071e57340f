"""What a run needs to continue as if it had never stopped."""

import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nxmiformer.errors import RefusedError, telling
from nxmiformer.files import digests_of, replacing, tidy, write_text

NAMES = ("latest", "best")
WEIGHTS, STATE, IDENTITY, DIGESTS = "model.safetensors", "state.pt", "identity.json", "digests.json"
REMEDY = "It cannot be continued: start the run again, with overwrite=true"


@dataclass(frozen=True)
class Position:
    """The position of a run.

    Attributes:
        phase: index of the phase in the recipe.
        step: optimizer steps taken in it.
        total_step: optimizer steps taken in the run.
        seconds: time spent on the run's training.
        phase_seconds: time spent on the phase.
    """

    phase: int = 0
    step: int = 0
    total_step: int = 0
    seconds: float = 0.0
    phase_seconds: float = 0.0

    def after_phase(self) -> "Position":
        """The start of the next phase."""
        return replace(self, phase=self.phase + 1, step=0, phase_seconds=0.0)


class Checkpoints:
    """The checkpoints `latest` and `best` of a run, in `<run>/checkpoints`.

    Each is a directory of its own, written beside the old one under another name. Then a one-line file that names it is
    replaced. A kill at any moment leaves a complete checkpoint. `digests.json` has the SHA-256 of its other files: A
    checkpoint that has changed since is not used.

    Args:
        directory: the run's.
        identity: what the run is (configuration, plan, model), as JSON values; a checkpoint of another is refused.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self.root = directory / "checkpoints"
        self.identity = json.loads(json.dumps(identity))
        # In the name, so that what another run left at the same step is not taken for this one's.
        self._mark = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]

    def path(self, name: str) -> Path | None:
        """The directory of checkpoint `latest` or `best`, if there is one.

        Raises:
            ValueError: the file that names it is damaged.
        """
        pointer = self.root / name
        if not pointer.exists():
            return None
        target = pointer.read_text(errors="replace").strip()
        if not re.fullmatch(rf"{name}-\d+-\d+-[0-9a-f]{{8}}", target):
            raise ValueError(f"{pointer} is damaged: it names no checkpoint. {REMEDY}")
        return self.root / target

    def save(self, name: str, model: nn.Module, position: Position, state: Mapping[str, Any]) -> None:
        """Write checkpoint `name`: the model's tensors, the position, and further state (tensors and plain values).

        Raises:
            FileError: the disk is full, or the run's directory is gone. The checkpoint before is unchanged.
        """
        old = self.path(name)
        target = self.root / f"{name}-{position.phase}-{position.step}-{self._mark}"
        if target == old:
            return
        with telling(self.root):
            self.root.mkdir(exist_ok=True)
        with replacing(target, lambda _: True, "a checkpoint") as directory:
            save_file(distinct(model), directory / WEIGHTS)
            with (directory / STATE).open("wb") as file:
                torch.save({**state, "rng": rng_state(), "position": vars(position)}, file)
            write_text(directory / IDENTITY, json.dumps(self.identity, indent=1))
            write_text(directory / DIGESTS, json.dumps(digests_of(directory), indent=1))
        write_text(self.root / name, target.name)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what a kill left behind: half a checkpoint, or one that another had replaced."""
        tidy(self.root)
        kept = {self.path(name) for name in NAMES}
        for name in NAMES:
            for left in {*self.root.glob(f"{name}-*"), *self.root.glob(f".{name}-*")} - kept:
                shutil.rmtree(left, ignore_errors=True)

    def load(self, name: str, model: nn.Module) -> tuple[Position, dict[str, Any]]:
        """Put checkpoint `name` into the model; give its position and state. `restore_rng` is the caller's last act.

        Raises:
            ValueError: there is no such checkpoint, it is damaged (the message names the file), or it is that of
                another run (the message shows the difference).
        """
        directory = self.path(name)
        if directory is None:
            raise ValueError(f"there is no checkpoint {name!r} in {self.root} to resume from")
        _check(directory)
        differences = difference(json.loads((directory / IDENTITY).read_text()), self.identity)
        if differences:
            raise RefusedError(f"{directory} is a checkpoint of another run:\n  " + "\n  ".join(differences))
        missing, unexpected = model.load_state_dict(load_file(directory / WEIGHTS), strict=False)
        shared = {key for key in missing if key not in distinct(model)}
        if unexpected or set(missing) - shared:
            raise ValueError(f"{directory} does not fit the model: it lacks {missing}, and has {unexpected} besides")
        state = torch.load(directory / STATE, map_location="cpu", weights_only=True)
        return Position(**state.pop("position")), state


def _check(directory: Path) -> None:
    """Raise a ValueError that names a file of the checkpoint which is not what was saved."""
    try:
        expected = {**json.loads((directory / DIGESTS).read_text()), DIGESTS: None}
        found = {**digests_of(directory), DIGESTS: None}
    except (OSError, ValueError, TypeError):
        expected, found = {DIGESTS: ""}, {}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise ValueError(f"{directory / name} is missing or damaged: it is not what was saved. {REMEDY}")


def difference(theirs: Any, ours: Any, where: str = "", whose: str = "the checkpoint") -> list[str]:
    """One line for each leaf in which two trees of JSON values differ; `whose` says what theirs is in."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted({*theirs, *ours})
        pairs = [(theirs.get(k), ours.get(k), f"{where}.{k}".lstrip(".")) for k in keys]
        return [line for pair in pairs for line in difference(*pair, whose)]
    return [] if theirs == ours else [f"{where}: {theirs!r} in {whose}, {ours!r} now"]


def distinct(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with each shared tensor once, as safetensors wants it, without learned scales and factors: a
    method's state has those."""
    seen: dict[int, str] = {}
    learned = (".quantizer.scales", ".quantizer.factors.left", ".quantizer.factors.right")
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith(learned)}
    for key, tensor in state.items():
        seen.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), key)
    return {key: state[key].contiguous() for key in seen.values()}


def rng_state() -> dict[str, Any]:
    """The global generators' states, in types that a load without pickle accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set the global generators to what `Checkpoints.save` found."""
    torch.set_rng_state(state["torch"])
    for index, each in enumerate(state["cuda"][: torch.cuda.device_count()]):  # of the devices that are here too
        torch.cuda.set_rng_state(each, index)
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
