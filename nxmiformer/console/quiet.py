"""Silence the progress output of libraries, which would mix with ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import huggingface_hub.utils
from transformers.utils import logging


@contextmanager
def barless() -> Iterator[None]:
    """Without the progress bars of `transformers` and `datasets`. Their warnings stay, and so do the bars of
    downloads."""
    models, data = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    downloads = not huggingface_hub.utils.are_progress_bars_disabled()
    logging.disable_progress_bar()  # and that of downloads
    datasets.disable_progress_bars()
    if downloads:
        huggingface_hub.utils.enable_progress_bars()
    try:
        yield
    finally:
        if models:
            logging.enable_progress_bar()
        if data:
            datasets.enable_progress_bars()


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, and without the report of a newly initialized head, where that is expected."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with barless():
            yield
    finally:
        logging.set_verbosity(level)
