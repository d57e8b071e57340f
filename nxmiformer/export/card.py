"""The model card of a packed model."""

from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from nxmiformer.plan.compression import FLOAT, CompressionPlan
from nxmiformer.sets import Storage

HEADER = """---
library_name: transformers
tags:
- nxmiformer
- sparse
- quantized
---

# {architecture}, sparse and low-bit
"""
USE = """## Use

`transformers` reads this model with the package nxmiformer: `pip install nxmiformer`, and `import nxmiformer` first.

```python
import nxmiformer
import transformers

model = nxmiformer.load_packed("this/directory")
model = transformers.{architecture}.from_pretrained("this/directory")  # the same; it needs the first import too
tokenizer = transformers.AutoTokenizer.from_pretrained("this/directory")  # where one was saved
```
"""


def card(
    plan: CompressionPlan, architecture: str, dtype: torch.dtype, file: int, results: Mapping[str, str] | None = None
) -> str:
    """The card: Markdown under the hub's YAML header. The same arguments give the same text.

    Args:
        architecture: the model's class in `transformers`.
        dtype: dtype of the weights that are not quantized.
        file: bytes of the file of weights on disk.
        results: further results, by name.
    """
    parts = [HEADER, _sets(plan), _sizes(plan, dtype, file), _results(results or {}), USE]
    return "\n".join(part for part in parts if part).format(architecture=architecture)


def _sets(plan: CompressionPlan) -> str:
    """How many layers are points of which set."""
    count = Counter((str(spec.weight), str(spec.activations or "as they are")) for spec in plan.layers.values())
    rows = [(weights, inputs, str(layers)) for (weights, inputs), layers in sorted(count.items())]
    more = "" if plan.everything is None else f"Everything that is multiplied is quantized: {plan.everything}.\n"
    return _section("Plan", ("weights", "inputs", "layers"), rows) + f"\n{more}`plan.json` has the set of each layer.\n"


def _sizes(plan: CompressionPlan, dtype: torch.dtype, file: int) -> str:
    """Bytes of the compressed layers by what they are made of, and of the file that they are in."""
    total = sum((spec.weight.storage(spec.shape, dtype) for spec in plan.layers.values()), Storage())
    bits = {
        "values": total.values,
        "indices": total.indices,
        "scales": total.scales,
        "compressed layers": total.total,
        "the same in float32": plan.storage().dense,
        "the whole model in float32": plan.storage().dense + plan.rest * FLOAT,
    }
    rows = [(name, f"{-(-count // 8)}") for name, count in bits.items()]
    return _section("Size", ("", "bytes"), [*rows, ("file of weights, on disk", f"{file}")])


def _results(results: Mapping[str, str]) -> str:
    return _section("Results", ("", ""), results.items()) if results else ""


def _section(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table under its title; braces and bars in a cell stand for themselves."""
    lines = [head, ("---",) * len(head), *rows]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([f"## {title}", "", *table, ""]).replace("{", "{{").replace("}", "}}")
