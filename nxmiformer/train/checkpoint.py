"""What a run needs to go on as if it had never stopped."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

IDENTITY = "identity.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands.

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

    Each is a directory of its own, written beside the old one under another name and then put in its place by
    replacing a one-line file that names it: a kill at any moment leaves a whole checkpoint behind.

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
        """The directory of checkpoint `latest` or `best`, if there is one."""
        pointer = self.root / name
        return self.root / pointer.read_text().strip() if pointer.exists() else None

    def save(self, name: str, model: nn.Module, position: Position, state: Mapping[str, Any]) -> None:
        """Write checkpoint `name`: the model's tensors, the position, and further state (tensors and plain values)."""
        old = self.path(name)
        target = self.root / f"{name}-{position.phase}-{position.step}-{self._mark}"
        if target == old:
            return
        temporary = self.root / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_distinct(model), temporary / "model.safetensors")
        torch.save({**state, "rng": _rng_state(), "position": vars(position)}, temporary / "state.pt")
        (temporary / IDENTITY).write_text(json.dumps(self.identity, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        write_text(self.root / name, target.name)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, name: str, model: nn.Module) -> tuple[Position, dict[str, Any]]:
        """Put checkpoint `name` into the model; give its position and state. `restore_rng` is the caller's last act.

        Raises:
            ValueError: there is no such checkpoint, or it is that of another run; the message shows the difference.
        """
        directory = self.path(name)
        if directory is None:
            raise ValueError(f"there is no checkpoint {name!r} in {self.root} to resume from")
        differences = difference(json.loads((directory / IDENTITY).read_text()), self.identity)
        if differences:
            raise ValueError(f"{directory} is a checkpoint of another run:\n  " + "\n  ".join(differences))
        missing, unexpected = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
        shared = {key for key in missing if key not in _distinct(model)}
        if unexpected or set(missing) - shared:
            raise ValueError(f"{directory} does not fit the model: it lacks {missing}, and has {unexpected} besides")
        state = torch.load(directory / "state.pt", map_location="cpu", weights_only=True)
        return Position(**state.pop("position")), state


def difference(theirs: Any, ours: Any, where: str = "", whose: str = "the checkpoint") -> list[str]:
    """One line for each leaf in which two trees of JSON values differ; `whose` says what theirs is in."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = sorted({*theirs, *ours})
        pairs = [(theirs.get(k), ours.get(k), f"{where}.{k}".lstrip(".")) for k in keys]
        return [line for pair in pairs for line in difference(*pair, whose)]
    return [] if theirs == ours else [f"{where}: {theirs!r} in {whose}, {ours!r} now"]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _distinct(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with each shared tensor once, as safetensors wants it, without learned scales: a method's state
    has those."""
    seen: dict[int, str] = {}
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith(".quantizer.scales")}
    for key, tensor in state.items():
        seen.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), key)
    return {key: state[key].contiguous() for key in seen.values()}


def _rng_state() -> dict[str, Any]:
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
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
