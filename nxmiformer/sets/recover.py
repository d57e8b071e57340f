"""The scale of rows that lie on a grid already."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nxmiformer.sets.grid import Grid

PROBES = 8  # columns that a scale must explain before the whole row is looked at
OFFSETS = (0.0, 0.0, -0.5, 0.5, -0.25, 0.25)  # in units of eps, where the scale of 16-bit weights is looked for
CENTRINGS = 3  # steps to the middle of the scales that explain all of a row of 16-bit weights


def recovered(grid: "Grid", x: Tensor, support: Tensor | None) -> tuple[Tensor, Tensor]:
    """The scales (rows,) of the rows of x that lie on a grid already, and which rows those are (bool).

    The largest element is some code m times the scale, but for its rounding. Every m is tried: first on the
    smallest element, then on a few columns, both by whether they are near a multiple of the scale, and what is
    left on the whole row, exactly.
    """
    known = torch.zeros(x.shape[0], device=x.device)
    if x.numel() == 0:
        return known, torch.ones_like(known, dtype=torch.bool)
    counted = x.abs() if support is None else torch.where(support, x.abs(), 0)
    peak = counted.amax(1)
    found = peak == 0
    info, half = torch.finfo(x.dtype), x.dtype in (torch.bfloat16, torch.float16)
    probe = counted[:, :: max(1, x.shape[1] // (PROBES * (16 if half else 1)))]
    least = _least(probe)
    blind = least >= peak
    peak = peak.double()
    near = max(1.1 * info.eps, 8 * torch.finfo(torch.float32).eps)  # two roundings, of the peak and the element
    steps = torch.arange(grid.top, 0, -1, device=x.device)
    slack = (info.tiny * info.eps / peak).float()[:, None]  # and what subnormal numbers are rounded by

    def fit(ratio: Tensor, m: Tensor, slack: Tensor) -> Tensor:
        multiple = ratio * m
        return (multiple - multiple.round()).abs_() <= multiple * near + slack * m

    fits = fit((least / peak).float()[:, None], steps, slack) & ~found[:, None]
    if not bool((fits.any(1) | blind).any()):  # as most often: no row can be on a grid
        return known, found
    least[blind] = _least(counted[blind])
    fits = fit((least / peak).float()[:, None], steps, slack) & ~found[:, None]
    row, attempt = fits.nonzero(as_tuple=True)
    ratio = (probe / peak[:, None]).float()
    fits[row, attempt] = fit(ratio[row], steps[attempt, None], slack[row]).all(1)
    for kind in range(len(OFFSETS) if half else 3):
        left = fits & ~found[:, None]
        while (row := left.any(1).nonzero().flatten()).numel():
            attempt = left[row].byte().argmax(1)  # the first
            left[row, attempt] = False
            rows, mask = x[row], None if support is None else support[row]
            scales = _attempt(grid, kind, rows, mask, (peak[row] / steps[attempt]).float())
            exact = grid.rounded(rows, scales) == rows
            good = (exact if mask is None else exact | ~mask).all(1)
            known[row[good]], found[row[good]] = scales[good], True
            left[row[good]] = False
    return known, found


def _attempt(grid: "Grid", kind: int, x: Tensor, support: Tensor | None, scales: Tensor) -> Tensor:
    """The scale (rows,) that a grid through x may have, near `scales`, which are off by a rounding of the peak:
    that of float32 is made good by a unit in the last place, a coarser one by the roundings of all elements."""
    if kind == 0:
        return scales
    if x.dtype not in (torch.bfloat16, torch.float16):
        return scales.nextafter(torch.full_like(scales, torch.inf if kind == 1 else 0))
    size = x.abs()
    less, more = (size.view(torch.int16) + step for step in (-1, 1))
    low, high = ((size.double() + other.view(x.dtype).double()) / 2 for other in (less, more))
    scales = scales * (1 + OFFSETS[kind] * torch.finfo(x.dtype).eps)
    for _ in range(CENTRINGS):
        codes = grid.codes(x, scales).abs_()
        unbound = codes == 0 if support is None else (codes == 0) | ~support
        lower = torch.where(unbound, 0, low / codes).amax(1)
        upper = torch.where(unbound, torch.inf, high / codes).amin(1)
        scales = torch.where(upper.isfinite(), (lower + upper) / 2, scales).float()
    return scales


def _least(x: Tensor) -> Tensor:
    """The least positive element of each row of x >= 0, inf where there is none."""
    return torch.where(x > 0, x, torch.inf).amin(1)
