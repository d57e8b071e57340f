"""What a compressed weight matrix is a point of."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, int]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of so many bytes


@dataclass(frozen=True)
class Storage:
    """Size of one packed matrix in bits: the remaining values, their positions, and their scales."""

    values: int = 0
    indices: int = 0
    scales: int = 0

    @property
    def total(self) -> int:
        """All of it, in bits."""
        return self.values + self.indices + self.scales

    @property
    def nbytes(self) -> int:
        """Bytes of the packed tensors: each part starts on a byte of its own."""
        return sum(-(-bits // 8) for bits in (self.values, self.indices, self.scales))

    def __add__(self, other: "Storage") -> "Storage":
        return Storage(self.values + other.values, self.indices + other.indices, self.scales + other.scales)


class Piece(NamedTuple):
    """One easy piece of a set: the weights with this support (`mask`, bool, of the weight's shape) and on the grid with
    these `scales` (float32, (rows, groups)). None means no constraint."""

    mask: Tensor | None = None
    scales: Tensor | None = None


class ConstraintSet(abc.ABC):
    """A set of (out_features, in_features) matrices, of which the weight of a compressed layer is a point.

    Every set here is a union of easy pieces: the matrices with one support, the grid of one scale. `piece` chooses the
    piece nearest to a weight, `apply` projects onto it, and `project` is the two together. Training with a fixed mask,
    or with a scale from some steps ago, keeps a piece and calls `apply`.

    Sets are immutable, hashable, hold no tensors, and draw no random numbers.
    """

    @abc.abstractmethod
    def rejects(self, shape: Shape) -> str | None:
        """Why the set has no matrix of this shape, or None if it has."""

    @abc.abstractmethod
    def piece(
        self, w: Tensor, importance: Tensor | None = None, mask: Tensor | None = None, recover: bool = True
    ) -> Piece:
        """The piece with the point nearest to `w`, among those with support `mask` if one is given.

        `importance` (of w's shape, >= 0) weights the squared error of each element. With `recover`, weights that lie on
        a grid already keep it, bit for bit. Without it this is not checked, and a GPU need not be waited for: this is
        for weights that a step has just moved.
        """

    @abc.abstractmethod
    def apply(self, w: Tensor, piece: Piece) -> Tensor:
        """The point of `piece` nearest to `w`, in w's dtype."""

    @abc.abstractmethod
    def contains(self, w: Tensor) -> bool:
        """Whether `w` is a point of the set, without any tolerance."""

    @abc.abstractmethod
    def storage(self, shape: Shape, dtype: torch.dtype = torch.float32) -> Storage:
        """Size in bits of a packed matrix of this shape; `dtype` is that of values that are not quantized."""

    @abc.abstractmethod
    def pack(self, w: Tensor) -> dict[str, Tensor]:
        """A member as its parts `values`, `indices`, `scales` (those there are), flat and byte-packed.

        Raises:
            ValueError: `w` is not a member.
        """

    @abc.abstractmethod
    def unpack(self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
        """The member that `pack` was given, bit for bit.

        Raises:
            ValueError: the tensors are not what `pack` makes of a member of this shape.
        """

    def unpack_into(self, out: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """`out` (contiguous), filled with what `unpack` gives in its shape and dtype."""
        return out.copy_(self.unpack(tensors, (out.shape[0], out.shape[1]), out.dtype))

    def unpack_rows(self, tensors: dict[str, Tensor], shape: Shape, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows (n, in) with these numbers (n,) of what `unpack` gives."""
        return self.unpack(tensors, shape, dtype)[rows]

    @property
    def rowwise(self) -> bool:
        """Whether rows are independent, so that they may be projected separately."""
        return True

    @property
    def sparsity(self) -> "SparsitySet | None":
        """The part of the set that constrains the support, if any."""
        return None

    @property
    def grid(self) -> "ValueSet | None":
        """The part of the set that constrains the values, if any."""
        return None

    def project(self, w: Tensor, importance: Tensor | None = None) -> Tensor:
        """The point of the set nearest to `w` (out, in), in w's dtype. It is deterministic: ties go to the lower index.

        Raises:
            ValueError: the shape is rejected, the dtype is not a float of 16 to 64 bits, or `w` or `importance` has a
                value that is not finite.
        """
        self.check(w, importance)
        return self.apply(w, self.piece(w, importance))

    def fits(self, w: Tensor) -> bool:
        """Whether `w` is a finite matrix of a shape that the set does not reject."""
        return w.ndim == 2 and self.rejects((w.shape[0], w.shape[1])) is None and is_finite(w)

    def check(self, w: Tensor, importance: Tensor | None = None) -> None:
        """Raise the ValueError of `project`, without projecting."""
        reason = f"it has {w.ndim} dimensions, not 2" if w.ndim != 2 else self.rejects((w.shape[0], w.shape[1]))
        if reason:
            raise ValueError(f"{self} rejects a weight of shape {tuple(w.shape)}: {reason}")
        if w.dtype not in DTYPES:
            raise ValueError(f"{self} projects float weights of 16 to 64 bits, not {w.dtype}")
        check_finite(w, "weight")
        if importance is not None:
            if importance.shape != w.shape:
                raise ValueError(f"importance has shape {tuple(importance.shape)}, the weight {tuple(w.shape)}")
            check_finite(importance, "importance")
            if (importance < 0).any():
                raise ValueError(f"importance must not be negative, its least value is {importance.min().item():g}")


class SparsitySet(ConstraintSet):
    """A set that constrains which elements may be non-zero, and leaves their values free."""

    elementwise = True  # elements are chosen one by one, so that their order alone decides which

    @property
    def tile(self) -> Shape:
        """Rows and columns of the blocks that remain or are pruned together, tiled from the top left corner."""
        return 1, 1

    @abc.abstractmethod
    def mask(self, score: Tensor) -> Tensor:
        """The allowed support (bool, of the score's shape) with the largest sum of `score`; ties go to the
        lower index, so the count is exact whatever the scores are."""

    @abc.abstractmethod
    def kept(self, shape: Shape) -> int:
        """How many elements of a matrix of this shape a support holds."""

    @abc.abstractmethod
    def pack_mask(self, mask: Tensor) -> dict[str, Tensor]:
        """The support as byte-packed `indices`; no entry where nothing needs to be stored."""

    @abc.abstractmethod
    def unpack_mask(self, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        """The support that `pack_mask` was given; a ValueError where the indices cannot be one."""

    def place(self, values: Tensor, tensors: dict[str, Tensor], shape: Shape) -> Tensor:
        """The matrix with these values (kept,) on the packed support, in its order, and zeros elsewhere."""
        w = torch.zeros(shape, dtype=values.dtype, device=values.device)
        return w.masked_scatter_(self.unpack_mask(tensors, shape), values)

    @property
    def run(self) -> int:
        """How many consecutive elements of a row `cheapest` prices together."""
        return self.tile[1]

    def cheapest(self, w: Tensor, inverse: Callable[[int], Tensor]) -> Tensor:
        """The support whose pruned elements cost least, where the loss is a quadratic of Hessian H around `w`.

        `inverse(length)` gives H^-1 between the elements of each run of `length` consecutive elements of a row, (out,
        in / length, length, length). Here each element is priced alone, w^2 / (2 diag H^-1) (Hassibi and Stork 1992).
        """
        return self.mask(self.prices(w, inverse))

    @abc.abstractmethod
    def keeping(self, density: float) -> "SparsitySet":
        """The set of this kind with this density, or the next larger one possible, and at least the density of this
        set: a stage on the way to it."""

    def prices(self, w: Tensor, inverse: Callable[[int], Tensor]) -> Tensor:
        """The cost of each element of `w` in `cheapest`, if elements are chosen by that alone."""
        return w.double().square() / (2 * inverse(1).double().view_as(w))

    @property
    def sparsity(self) -> "SparsitySet":
        return self

    def piece(
        self, w: Tensor, importance: Tensor | None = None, mask: Tensor | None = None, recover: bool = True
    ) -> Piece:
        return Piece(mask=self.mask(energy(w, importance)) if mask is None else mask)

    def apply(self, w: Tensor, piece: Piece) -> Tensor:
        assert piece.mask is not None
        return masked(w, piece.mask)

    def contains(self, w: Tensor) -> bool:
        return self.fits(w) and bool((self.mask(w.abs()) | (w == 0)).all())

    def storage(self, shape: Shape, dtype: torch.dtype = torch.float32) -> Storage:
        return Storage(values=self.kept(shape) * dtype.itemsize * 8, indices=self.index_bits(shape))

    @abc.abstractmethod
    def index_bits(self, shape: Shape) -> int:
        """Bits of the packed support."""

    def pack(self, w: Tensor) -> dict[str, Tensor]:
        if not self.contains(w):
            raise ValueError(f"the weight is not a point of {self}, so it cannot be packed as one: project it first")
        mask = self.mask(w.abs())
        return {"values": w[mask], **self.pack_mask(mask)}

    def unpack(self, tensors: dict[str, Tensor], shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.place(expect(tensors, "values", self.kept(shape), dtype), tensors, shape)


class ValueSet(ConstraintSet):
    """A set that constrains the values of all elements, by a scale for each group of a row."""

    @property
    @abc.abstractmethod
    def top(self) -> int:
        """The largest code: codes are the integers -top ... top."""

    @abc.abstractmethod
    def rows(self, w: Tensor) -> Tensor:
        """`w` (out, in) with one row for each scale."""

    @property
    def grid(self) -> "ValueSet":
        return self


def energy(w: Tensor, importance: Tensor | None) -> Tensor:
    """The value of keeping an element: importance * w^2, or |w|, which has the same order where all are equally
    important.

    Squares are float64, where those of float32's smallest and largest weights neither vanish nor overflow.
    """
    if importance is None:
        return w.abs()
    return importance.double() * w.double().square()


def masked(w: Tensor, mask: Tensor) -> Tensor:
    """`w` where `mask`, and 0 elsewhere: `torch.where(mask, w, 0)`, bit for bit, which has no vector code on a CPU.
    Not a product: -1 * False is -0."""
    plain = w.device.type != "cpu" or torch.compiler.is_compiling() or (w.requires_grad and torch.is_grad_enabled())
    if plain or w.itemsize not in WORDS or w.shape != mask.shape:
        return torch.where(mask, w, 0)
    word = WORDS[w.itemsize]
    kept = mask.view(torch.int8).neg().to(word)  # True is a word of ones
    return kept.bitwise_and_(w.detach().view(word)).view(w.dtype)


def is_finite(w: Tensor) -> bool:
    """Whether every value is; a NaN is both the least and the greatest."""
    return w.numel() == 0 or bool(torch.stack(torch.aminmax(w)).isfinite().all())


def check_finite(w: Tensor, what: str) -> None:
    """Raise a ValueError that counts the NaN and infinite values of `w`, if there are any."""
    if not is_finite(w):
        raise ValueError(f"{what} holds {int(w.isnan().sum())} NaN and {int(w.isinf().sum())} infinite values")


def expect(tensors: dict[str, Tensor], key: str, numel: int, dtype: torch.dtype) -> Tensor:
    """`tensors[key]`, after checking that it is flat, of `numel` elements and of `dtype`."""
    found = tensors.get(key)
    if found is None:
        raise ValueError(f"the packed weight has no {key!r}, only {sorted(tensors)}")
    if found.shape != (numel,) or found.dtype != dtype:
        raise ValueError(f"{key!r} should be {numel} elements of {dtype}, but is {tuple(found.shape)} of {found.dtype}")
    return found
