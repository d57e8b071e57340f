"""Which dtypes of weights can be trained."""

from collections.abc import Mapping

import torch
from torch import Tensor

NARROW = (torch.float16, torch.bfloat16)


def too_narrow(weights: Mapping[str, Tensor]) -> str | None:
    """Why weights that require gradients cannot be trained well, and what to do; None if they can.

    In bfloat16 a step of less than 2^-9 of a weight is rounded away, and most steps are (Micikevicius et al. 2018,
    arXiv 1710.03740, section 3.1). In float16 Adam's eps and its squared gradients are zero too, and training ends in
    NaN.
    """
    found = {name: w.dtype for name, w in weights.items() if w.requires_grad and not w.is_meta and w.dtype in NARROW}
    if not found:
        return None
    name, dtype = next(iter(found.items()))
    return (
        f"{len(found)} weights that want gradients are of 16 bits ({name} is {dtype}), in which training rounds small "
        f"steps away or ends in NaN: load the model with dtype=torch.float32, or call model.float() first, and train "
        f"under torch.autocast; a model that is not to be trained says so by model.requires_grad_(False)"
    )
