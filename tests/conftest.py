"""Settings for every test, a second device to run on, and what is read and parsed once for all of them."""

import gc
import pickle
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import foreign
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Before the first backward pass, for which autograd starts a thread for each device that it knows. Not beside a GPU:
# torch would take it for the accelerator, in CUDA's place.
if not torch.cuda.is_available():
    foreign.register()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage while modules are imported, nor among what they are made of afterwards.

    Those are half a million objects that stay, and every look at them takes some tenths of a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA")


@pytest.fixture(scope="session", autouse=True)
def _read_once() -> Iterator[None]:
    """Hydra reads a file of the configuration again only if it was written again, and parses a word once.

    Some thousand compositions read the same thirty files and words, by parsers in pure Python. Each gets copies.
    """
    Plugins.instance()  # it imports the sources anew, and registers them
    packaged, parse = SourcesRegistry.instance().resolve("pkg"), OverridesParser.parse_rule
    read, kept = packaged._read_config, dict[Hashable, bytes]()

    def copy(key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in kept:
            kept[key] = pickle.dumps(make())
        return pickle.loads(kept[key])

    def read_once(self: Any, file: Path) -> Any:
        return copy((self.provider, self.path, file, file.stat().st_mtime_ns), lambda: read(self, file))

    def parse_once(self: Any, word: str, rule: str) -> Any:
        return copy((word, rule), lambda: parse(self, word, rule))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packaged, "_read_config", read_once)
        patch.setattr(OverridesParser, "parse_rule", parse_once)
        yield
