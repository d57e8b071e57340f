"""Learning rates of phases that prune: rewound at each pruning, or held while masks move."""

from bisect import bisect_right

import torch
from torch.optim.lr_scheduler import LambdaLR

from nxmiformer.optim.cubic import occasions


def rewound(
    optimizer: torch.optim.Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    times: int = 1,
    before: float = 0.0,
    after: float = 0.0,
    least: float = 0.1,
) -> LambdaLR:
    """A linear decay to `least` of the learning rate, which restarts at each pruning (Kurtic et al. 2022, arXiv
    2203.07259, appendix), after a linear warm-up.

    Args:
        times, before, after: as the method prunes; see `occasions`.
    """
    starts = sorted({0, *occasions(times, num_training_steps, before, after)})
    ends = [*starts[1:], max(num_training_steps, starts[-1] + 1)]

    def factor(step: int) -> float:
        part = bisect_right(starts, step) - 1
        done = min(1.0, (step - starts[part]) / (ends[part] - starts[part]))
        return min(1.0, (step + 1) / (num_warmup_steps + 1)) * (1 - (1 - least) * done)

    return LambdaLR(optimizer, factor)


def held(
    optimizer: torch.optim.Optimizer, num_warmup_steps: int, num_training_steps: int, moving: float = 0.8
) -> LambdaLR:
    """A linear warm-up, then a constant learning rate for the share of the steps in which masks are `moving`, and then
    a linear decay to zero. The code of Zafrir et al. 2021 (arXiv 2111.05754) holds it while the sparsity grows."""
    still = moving * num_training_steps

    def factor(step: int) -> float:
        left = 1.0 if step < still else (num_training_steps - step) / max(1.0, num_training_steps - still)
        return min(1.0, (step + 1) / (num_warmup_steps + 1)) * max(0.0, left)

    return LambdaLR(optimizer, factor)
