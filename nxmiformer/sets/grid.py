"""Low-bit uniform grids."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nxmiformer.sets.base import Piece, Shape, Storage, ValueSet, expect
from nxmiformer.sets.bits import pack_bits, unpack_bits
from nxmiformer.sets.chunks import chunks, parts
from nxmiformer.sets.fields import check_fields
from nxmiformer.sets.fused import fused
from nxmiformer.sets.recover import recovered

CANDIDATES = 16  # clipping ratios tried by the coarse part of the scale search
REFINEMENTS = 2  # least-squares steps after it
LEAST_RATIO = {2: 0.1, 3: 0.2, 4: 0.3, 5: 0.5, 6: 0.6, 7: 0.8, 8: 0.8}  # the fewer the levels, the more is clipped
SWEEP = {
    bits: torch.logspace(0, 1, CANDIDATES + 1, base=least, device="cpu")[1:].tolist()
    for bits, least in LEAST_RATIO.items()
}


@dataclass(frozen=True)
class Grid(ValueSet):
    """The symmetric uniform grid { scale * code } with one float32 scale for each row, or each `group` of its columns.

    Codes are the integers -q ... q with q = 2**(bits-1) - 1. In this narrow range zero is a level and the grid is
    symmetric, so a sparse weight stays sparse. bits=2 is therefore ternary, {-s, 0, s}. bits=1 is the sign with a
    scale, {-s, s}, the only grid without zero (Rastegari et al. 2016, arXiv 1603.05279).

    The nearest point for a given scale rounds and clamps. The scale is max|w| / q (scale="absmax"), or is searched for
    the least squared error (scale="mse"). The search tries clipping ratios, and then least-squares steps, s <- <w, c> /
    <c, c>. absmax is one of its candidates, and is replaced only by a smaller error. A weight that lies on a grid
    already keeps that grid. Groups whose maximum is below the smallest normal number become zero.
    """

    bits: int
    group: int | None = None
    scale: Literal["mse", "absmax"] = "mse"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.bits <= 8:
            raise ValueError(f"Grid needs 1 <= bits <= 8, not bits={self.bits}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"Grid needs a group of at least one column, not group={self.group}")
        if self.scale not in ("mse", "absmax"):
            raise ValueError(f"Grid knows the scales 'mse' and 'absmax', not {self.scale!r}")

    def __str__(self) -> str:
        return f"int{self.bits}" + (f"g{self.group}" if self.group else "")

    @property
    def top(self) -> int:
        """The largest code, q."""
        return max(1, 2 ** (self.bits - 1) - 1)

    def rejects(self, shape: Shape) -> str | None:
        if self.group and shape[1] % self.group:
            return f"in_features {shape[1]} is not a multiple of the scale group {self.group}"
        return None

    def groups(self, shape: Shape) -> int:
        """Scales in each row."""
        return shape[1] // self.group if self.group else 1

    def rows(self, w: Tensor) -> Tensor:
        """`w` (out, in) with one row for each scale."""
        groups = self.groups((w.shape[0], w.shape[1]))
        return w.contiguous().view(w.shape[0] * groups, w.shape[1] // groups if groups else 0)

    def piece(
        self, w: Tensor, importance: Tensor | None = None, mask: Tensor | None = None, recover: bool = True
    ) -> Piece:
        if w.numel() == 0:
            return Piece(scales=torch.zeros(w.shape[0], self.groups((w.shape[0], w.shape[1])), device=w.device))
        weight = importance
        if mask is not None and (importance is not None or self.bits == 1):
            weight = mask.float() if importance is None else importance * mask  # zeros are off the sign grid
        rows, weights = self.rows(w), None if weight is None else self.rows(weight)
        scales = [self._scales(x, f, recover) for x, f in chunks(rows, weights)]
        return Piece(scales=torch.cat(scales).view(w.shape[0], -1))

    def apply(self, w: Tensor, piece: Piece) -> Tensor:
        assert piece.scales is not None
        return self._apply(w, piece.scales)

    @fused
    def _apply(self, w: Tensor, scales: Tensor) -> Tensor:
        return self.rounded(self.rows(w), scales.flatten()).view(w.shape)

    def codes(self, w: Tensor, scales: Tensor) -> Tensor:
        """The nearest codes (rows, columns), float32 or w's own float64, for `rows(w)` and scales (rows,)."""
        return self._signed(w, scales).add_(0.0)  # -0 + 0 is 0

    def _signed(self, w: Tensor, scales: Tensor) -> Tensor:
        """The codes, of which a 0 may have a sign."""
        x = w if w.dtype == torch.float64 else w.float()
        if self.bits == 1:
            return torch.where(x < 0, -1.0, 1.0).to(x.dtype)
        safe = torch.where(scales > 0, scales, torch.inf)[:, None]
        return (x / safe).round_().clamp_(-self.top, self.top)

    def rounded(self, x: Tensor, scales: Tensor) -> Tensor:
        """The points on the grids of `scales` (rows,) nearest to x (rows, columns)."""
        points = self.codes(x, scales).mul_(scales[:, None])
        return (points.add_(0.0) if self.bits == 1 else points).to(x.dtype)  # the sign of a row of zeros

    def _scales(self, x: Tensor, weight: Tensor | None, recover: bool) -> Tensor:
        """The scale (rows,) of each row of x (rows, columns), squared errors weighed by `weight`."""
        if weight is not None:  # a row where nothing is important is weighed evenly
            weight = weight.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
            weight = torch.where(weight.amax(1, keepdim=True) > 0, weight, 1)
        if not recover:
            return self._found(x, weight)
        known, found = recovered(self, x, None if weight is None else weight > 0)
        return known if bool(found.all()) else torch.where(found, known, self._found(x, weight))

    def _found(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """The scales (rows,) of least error, or absmax's, of rows that need not lie on any grid."""
        counted = x if weight is None else torch.where(weight > 0, x, 0)
        peak = counted.abs().amax(1).to(weight.dtype if weight is not None else _compute(x))
        alive = peak >= self._floor(x.dtype)
        scales = self._canonical(peak * (torch.ones_like(peak) / self.top), x.dtype)
        if self.scale == "mse":
            searched = self._canonical(peak * (self._search(counted, peak, weight) / self.top), x.dtype)
            scales = searched if _compute(x) == x.dtype else self._better(counted, weight, searched, scales)
        return torch.where(alive, scales, 0)

    def _better(self, x: Tensor, weight: Tensor | None, scales: Tensor, other: Tensor) -> Tensor:
        """Of two scales for each row the one of less error, now that scales and points are rounded to x's dtype."""

        def error(scales: Tensor) -> Tensor:
            squares = (x.float() - self.rounded(x, scales).float()).square_()
            return (squares if weight is None else squares * weight).sum(1)

        return torch.where(error(scales) < error(other), scales, other)

    @fused
    def _search(self, x: Tensor, peak: Tensor, weight: Tensor | None) -> Tensor:
        """The scale in units of absmax's, (rows,), that has the least squared error."""
        u = x.to(peak.dtype) * (self.top / peak.clamp(min=torch.finfo(peak.dtype).tiny))[:, None]
        if weight is not None:
            weight = weight / weight.amax(1, keepdim=True)

        def mean(values: Tensor) -> Tensor:
            return (values if weight is None else values * weight).sum(1)

        if self.bits == 1:
            return mean(u.abs()) / (float(x.shape[1]) if weight is None else weight.sum(1))
        best = refined = torch.ones_like(peak)
        # A sum of n squares is wrong by a few units in the last place; only a real gain moves the scale off absmax.
        least = mean((u - self._signed(u, best)).square_()) * (1 - 1e-5)
        for step in range(CANDIDATES + REFINEMENTS):
            ratio = torch.full_like(best, SWEEP[self.bits][step]) if step < CANDIDATES else refined
            codes = self._signed(u, ratio)
            error = mean(codes.mul_(ratio[:, None]).sub_(u).square_())
            best, least = torch.where(error < least, ratio, best), torch.minimum(error, least)
            if step >= CANDIDATES - 1:
                codes = self._signed(u, best)
                refined = mean(u * codes) / mean(codes.square()).clamp(min=torch.finfo(peak.dtype).tiny)
                refined = torch.where(refined > 0, refined, best).clamp(max=1)  # the top code stays in use
        return best

    def _floor(self, dtype: torch.dtype) -> float:
        """The least maximum of a row that still has a scale: scale and maximum must be normal numbers."""
        return max(torch.finfo(torch.float32).tiny * self.top, torch.finfo(dtype).tiny)

    def _canonical(self, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """The scales, float32, moved to where a member's maximum tells them: top * scale is a number of `dtype`."""
        most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max) * (1 - 1e-6)
        peak = (scales * self.top).clamp(max=most)
        if dtype in (torch.bfloat16, torch.float16):
            peak = peak.to(dtype).clamp(max=torch.finfo(dtype).max).to(scales.dtype)
        return (peak / self.top).float()

    def contains(self, w: Tensor) -> bool:
        return self.fits(w) and self.explains(w, None)

    def explains(self, w: Tensor, support: Tensor | None) -> bool:
        """Whether the elements of `w` in `support` (all where None) lie on grids of one scale a group."""
        return all(
            bool(recovered(self, x, None if f is None else f > 0)[1].all()) for x, f in self._supported(w, support)
        )

    def _supported(self, w: Tensor, support: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        return chunks(self.rows(w), None if support is None else self.rows(support))

    def storage(self, shape: Shape, dtype: torch.dtype = torch.float32) -> Storage:
        return Storage(values=shape[0] * shape[1] * self.bits, scales=shape[0] * self.groups(shape) * 32)

    def pack(self, w: Tensor) -> dict[str, Tensor]:
        if not self.contains(w):
            raise ValueError(f"the weight is not a point of {self}, so it cannot be packed as one: project it first")
        return self.pack_codes(w, None)

    def unpack(self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
        codes = self.unpack_codes(tensors, shape[0] * shape[1]).view(shape)
        return self.scale_codes(codes, tensors, torch.empty_like(codes, dtype=dtype))

    def unpack_into(self, out: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        return self.scale_codes(self.unpack_codes(tensors, out.numel()).view(out.shape), tensors, out)

    def unpack_rows(self, tensors: dict[str, Tensor], shape: Shape, rows: Tensor, dtype: torch.dtype) -> Tensor:
        if shape[1] * self.bits % 8:  # a byte with codes of two rows
            return super().unpack_rows(tensors, shape, rows, dtype)
        parts = {name: tensors[name].view(shape[0], -1)[rows].flatten() for name in ("values", "scales")}
        return self.unpack(parts, (len(rows), shape[1]), dtype)

    def pack_codes(self, w: Tensor, support: Tensor | None) -> dict[str, Tensor]:
        """`values` (codes of the elements in `support`, all where None, shifted to be >= 0) and `scales`."""
        found = [recovered(self, x, None if f is None else f > 0)[0] for x, f in self._supported(w, support)]
        scales = torch.cat(found) if found else torch.zeros(0, device=w.device)
        codes = self.codes(self.rows(w), scales).view(w.shape)
        codes = codes.flatten() if support is None else codes[support]
        shifted = codes > 0 if self.bits == 1 else codes + self.top
        return {"values": pack_bits(shifted, self.bits), "scales": scales}

    def unpack_codes(self, tensors: dict[str, Tensor], n: int) -> Tensor:
        """The n codes (int8) that `pack_codes` was given; a ValueError where they cannot be codes."""
        packed = expect(tensors, "values", -(-n * self.bits // 8), torch.uint8)
        shifted = unpack_bits(packed, self.bits, n)
        if self.bits == 1:
            return (shifted * 2 - 1).view(torch.int8)
        if n and int(shifted.amax()) > 2 * self.top:
            raise ValueError(f"the values hold codes above {2 * self.top}, which {self} does not have")
        return (shifted - self.top).view(torch.int8)  # below zero it wraps around to what int8 reads as negative

    def scale_codes(self, codes: Tensor, tensors: dict[str, Tensor], out: Tensor) -> Tensor:
        """`out`, contiguous, with the codes (out, in), int8, times the packed scales."""
        scales = expect(
            tensors, "scales", codes.shape[0] * self.groups((codes.shape[0], codes.shape[1])), torch.float32
        )
        if not scales.isfinite().all() or (scales < 0).any():
            raise ValueError("the scales hold values that are negative or not finite")
        rows, points = self.rows(codes), self.rows(out)
        for part in parts(rows):
            points[part].copy_(rows[part]).mul_(scales[part, None]).add_(0.0)  # codes are exact; -0 + 0 is 0
        return out


def _compute(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
