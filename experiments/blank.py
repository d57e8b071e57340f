"""The model that plans are made for: no weights of it are read."""

import argparse
from pathlib import Path

from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel


def blank(study: Path, description: str | None) -> tuple[PreTrainedModel, Path]:
    """all-MiniLM-L6-v2 with random weights, and the directory for the plans, by the arguments of the script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="directory with all-MiniLM-L6-v2; without it, from the hub")
    parser.add_argument("--out", type=Path, default=Path("outputs") / study.name, help="(default: %(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = f"{arguments.models or 'sentence-transformers'}/all-MiniLM-L6-v2"
    return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(source)), arguments.out
