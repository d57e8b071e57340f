"""No compression: ordinary fine-tuning, the phase that makes the dense model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.projection import Moved
from nxmiformer.methods.base import Method


@dataclass(kw_only=True)
class Dense(Method):
    """Train the model as it is, with every quantizer off."""

    def prepare(self, layer: Compressed) -> None:
        layer.quantizer.seen = None

    def _activate(self, active: bool) -> None:
        super()._activate(False)

    @contextmanager
    def as_finished(self) -> Iterator[None]:
        yield

    def finalize(self) -> Moved:
        """Nothing is compressed, and nothing is moved."""
        return Moved({}, 0.0)
