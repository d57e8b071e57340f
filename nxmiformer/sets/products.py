"""Sets of Kronecker products."""

import abc
from collections.abc import Iterator

import torch
from torch import Tensor

from nxmiformer.sets.base import ConstraintSet, Piece, Shape

WEIGHINGS = 10  # steps towards the nearest point by importance


class Products(ConstraintSet):
    """A set of sums of Kronecker products A_k (x) B_k, B_k of rows x cols, of which the factors are stored.

    A layer whose set it is can compute with the factors in place of the weight.
    """

    rows: int
    cols: int

    @property
    def rowwise(self) -> bool:
        return False

    @abc.abstractmethod
    def factors(self, w: Tensor) -> tuple[Tensor, Tensor] | None:
        """The factors of a member in their normal form, (terms, out / rows, in / cols) and (terms, rows, cols), in w's
        dtype; None for what is no member."""

    @abc.abstractmethod
    def unpack_factors(
        self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """The packed factors, as `factors` gives them.

        Raises:
            ValueError: the tensors are not what `pack` makes of a member of this shape.
        """

    @abc.abstractmethod
    def rounded(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The factors that training sees in place of these, of the same shapes: near ones that the set allows."""

    @abc.abstractmethod
    def nearest(self, w: Tensor) -> Tensor:
        """The point nearest to `w`, which has elements, or one near it; a member stays as it is."""

    def rejects(self, shape: Shape) -> str | None:
        if shape[0] % self.rows or shape[1] % self.cols:
            return f"it does not divide into blocks of {self.rows} x {self.cols}, the shape of the right factor"
        return None

    def piece(
        self, w: Tensor, importance: Tensor | None = None, mask: Tensor | None = None, recover: bool = True
    ) -> Piece:
        """Nothing binds: the set is no union of easy pieces, and `apply` finds the point."""
        return Piece()

    def apply(self, w: Tensor, piece: Piece) -> Tensor:
        return self.nearest(w.detach()) if w.numel() else w.clone()

    def project(self, w: Tensor, importance: Tensor | None = None) -> Tensor:
        """The nearest point, as far as `nearest` finds it. With `importance`, a point that is not farther in the
        weighted distance (Srebro and Jaakkola 2003): no closed form is known, and a step that comes no nearer is the
        last."""
        self.check(w, importance)
        point = self.apply(w, Piece())
        if importance is None or not importance.numel() or not importance.any():
            return point
        share = (importance / importance.amax()).double()
        best, least = point, float("inf")
        for _ in range(WEIGHINGS):
            error = (share * (w.double() - point.double()).square()).sum().item()
            if error >= least:
                break
            best, least = point, error
            point = self.nearest((point.double() + share * (w.double() - point.double())).to(w.dtype))
        return best

    def contains(self, w: Tensor) -> bool:
        return self.fits(w) and self.factors(w) is not None

    def unpack(self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
        return kron(*self.unpack_factors(tensors, shape, dtype))

    def unpack_rows(self, tensors: dict[str, Tensor], shape: Shape, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return kron_rows(*self.unpack_factors(tensors, shape, dtype), rows)

    def member_factors(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of a member; a ValueError for what is no member."""
        found = self.factors(w) if self.fits(w) else None
        if found is None:
            raise ValueError(f"the weight is not a point of {self}, so it cannot be packed as one: project it first")
        return found

    def arranged(self, w: Tensor) -> Tensor:
        """The matrix with a row for each block, (blocks, rows * cols)."""
        blocks = w.reshape(w.shape[0] // self.rows, self.rows, w.shape[1] // self.cols, self.cols).transpose(1, 2)
        return blocks.reshape(w.numel() // (self.rows * self.cols), self.rows * self.cols).contiguous()


def kron(left: Tensor, right: Tensor) -> Tensor:
    """The sum over k of the Kronecker products of left[k] (m1, n1) and right[k] (m2, n2): (m1 m2, n1 n2).

    The products of numbers of up to 32 bits are exact in float64, and summed there, in order: every device comes to
    the same bits, as no order of operations is left to it.
    """
    shape = (left.shape[1] * right.shape[1], left.shape[2] * right.shape[2])
    table = outer(left.flatten(1).t(), right.flatten(1))
    blocks = table.view(left.shape[1], left.shape[2], right.shape[1], right.shape[2])
    return blocks.transpose(1, 2).reshape(shape)


def kron_rows(left: Tensor, right: Tensor, rows: Tensor) -> Tensor:
    """The rows (n, n1 n2) with these numbers (n,) of what `kron` gives, bit for bit."""
    above, below = rows // right.shape[1], rows % right.shape[1]
    products = (a[above].double()[:, :, None] * b[below].double()[:, None, :] for a, b in zip(left, right, strict=True))
    return _summed(products).flatten(1).to(left.dtype)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """left (n, terms) times right (terms, m), in the dtype of both."""
    if not left.shape[1]:
        return left.new_zeros(left.shape[0], right.shape[1])
    terms = (left[:, k].double()[:, None] * right[k].double() for k in range(left.shape[1]))
    return _summed(terms).to(left.dtype)


def _summed(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total += term
    return total.add_(0.0)  # -0 + 0 is 0


def none(table: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (n, 0) and (0, m) of a product (n, m) of no terms."""
    return table.new_zeros(table.shape[0], 0), table.new_zeros(0, table.shape[1])


def truncated(table: Tensor, terms: int) -> Tensor:
    """The nearest matrix of this rank: the projection onto its leading singular vectors of the shorter side."""
    if table.shape[0] < table.shape[1]:
        return truncated(table.t(), terms).t()
    peak = table.abs().amax().clamp(min=torch.finfo(table.dtype).tiny)  # squares neither vanish nor overflow
    scaled = table / peak
    vectors = torch.linalg.eigh(scaled.t() @ scaled).eigenvectors[:, -terms:]
    return (scaled @ vectors) @ vectors.t() * peak
