"""How long a linear layer takes with the factors of its weight, of what it takes with the weight, on one CPU thread.

    python experiments/kronecker/layers.py

Forward of 1,024 tokens, and forward and backward, in float32, at the shapes of BERT-base in the two configurations of
Tahaei et al. 2022. The time is that of the processor, the least of ROUNDS, in which dense and factored take turns. It
writes `layers.csv` beside this file.
"""

import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nxmiformer.layers.kronecker import multiply

TOKENS, ROUNDS = 1024, 15
# Name, then left and right factor.
LAYERS = [
    ("attention, 7.7 times", (384, 384), (2, 2)),
    ("attention, 21 times", (384, 48), (2, 16)),
    ("feed-forward, 7.7 times", (8, 2), (384, 384)),
    ("feed-forward, 21 times", (16, 2), (192, 384)),
]


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def passes(compute: Callable[..., Tensor], *tensors: Tensor) -> list[Callable[[], object]]:
    """The forward pass, and the forward and the backward pass, of a function of these tensors."""
    trained = [tensor.clone().requires_grad_() for tensor in tensors]
    return [lambda: compute(*tensors), lambda: torch.autograd.grad(compute(*trained).sum(), trained)]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (m1, n1), (m2, n2) in LAYERS:
        x, weight = torch.randn(TOKENS, n1 * n2), torch.randn(m1 * m2, n1 * n2)
        left, right = torch.randn(1, m1, n1), torch.randn(1, m2, n2)
        runs = passes(F.linear, x, weight) + passes(multiply, x, left, right)
        found = [[seconds(run) for run in runs] for _ in range(ROUNDS + 1)][1:]
        dense, dense_both, ours, both = (min(each) for each in zip(*found, strict=True))
        rows.append(
            {
                "layer": name,
                "out": m1 * m2,
                "in": n1 * n2,
                "left": f"{m1}x{n1}",
                "right": f"{m2}x{n2}",
                "dense_ms": f"{dense * 1e3:.1f}",
                "factored_ms": f"{ours * 1e3:.1f}",
                "forward": f"{dense / ours:.1f}",
                "dense_both_ms": f"{dense_both * 1e3:.1f}",
                "factored_both_ms": f"{both * 1e3:.1f}",
                "forward_backward": f"{dense_both / both:.1f}",
            }
        )
        print(rows[-1])
    with Path(__file__).with_name("layers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
