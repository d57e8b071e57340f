"""The loss as a quadratic in one weight, by its empirical Fisher information in blocks, and the best weights to prune.

Near its minimum the loss rises by 1/2 d^T F d for a change d of the weights, with F = damping I + 1/m sum_i g_i g_i^T
of m gradients g_i (Kurtic et al. 2022, arXiv 2203.07259, section 3). F is taken as block-diagonal: blocks of B
consecutive weights of the row-major matrix.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nxmiformer.sets import SparsitySet

CHUNK = 1 << 24  # elements of the blocks that are inverted or solved at a time


class Fisher:
    """The Gram matrices of a weight's gradients, block by block; gradients themselves are not kept.

    Args:
        shape: of the weight, (out, in).
        size: weights of a block, B. The last block may be padded.
        device: where the Gram matrices are.
    """

    def __init__(self, shape: tuple[int, int], size: int, device: torch.device | str) -> None:
        if size < 1:
            raise ValueError(f"a block of the Fisher information has at least 1 weight, not {size}")
        self.shape, self.size, self.count = shape, size, 0
        self.gram = torch.zeros(-(-shape[0] * shape[1] // size), size, size, dtype=torch.float32, device=device)

    @staticmethod
    def nbytes(shape: tuple[int, int], size: int) -> int:
        """Bytes of the Gram matrices of a weight of this shape: about 4 B bytes a weight."""
        return -(-shape[0] * shape[1] // size) * size * size * 4

    @torch.no_grad()
    def add(self, gradient: Tensor) -> None:
        """Add one gradient, of the weight's shape.

        Raises:
            ValueError: it is not finite.
        """
        if not gradient.isfinite().all():
            raise ValueError("a gradient of the loss is not finite")
        blocks = _blocks(gradient.float(), self.size)
        self.gram.baddbmm_(blocks[:, :, None], blocks[:, None, :])
        self.count += 1

    @torch.no_grad()
    def inverse(self, damping: float) -> Tensor:
        """F^-1, (blocks, B, B), float32, by Cholesky factors in float64.

        Raises:
            ValueError: damping is not positive, or there are no gradients.
        """
        if damping <= 0:
            raise ValueError(f"the damping of the Fisher information must be positive, not {damping:g}")
        if not self.count:
            raise ValueError("there are no gradients to take the Fisher information from")
        eye = damping * torch.eye(self.size, dtype=torch.float64, device=self.gram.device)

        def invert(gram: Tensor) -> Tensor:
            return torch.cholesky_inverse(torch.linalg.cholesky(gram.double() / self.count + eye)).float()

        return _in_chunks(invert, self.size, self.gram)


def check_run(size: int, length: int) -> None:
    """Raise a ValueError unless blocks of so many weights hold whole runs of so many."""
    if size % length:
        raise ValueError(f"blocks of {size} weights cut groups of {length} in two: give a block that {length} divides")


class Surgeon:
    """The cost of pruning a weight, and how the remaining weights compensate (Hassibi and Stork 1992).

    Args:
        w: the weight, (out, in).
        inverse: F^-1 of its blocks, (blocks, B, B), as `Fisher.inverse` gives it.
    """

    def __init__(self, w: Tensor, inverse: Tensor) -> None:
        self.w, self.blocks, self.size = w.contiguous(), inverse, inverse.shape[-1]

    @torch.no_grad()
    def support(self, sparsity: SparsitySet) -> Tensor:
        """The support of a set whose pruned weights cost least, group by group. Joint costs of several groups are
        ignored, as in the paper (section 3.2.1).

        Raises:
            ValueError: a group of the set lies in two blocks.
        """
        sparsity.check(self.w)
        return sparsity.cheapest(self.w, self._parts)

    @torch.no_grad()
    def prices(self, sparsity: SparsitySet) -> Tensor:
        """How much the loss rises by pruning each element of a set of single elements or blocks, spread over a block,
        (out, in).

        Raises:
            ValueError: as `support`.
        """
        sparsity.check(self.w)
        return sparsity.prices(self.w, self._parts)

    def _parts(self, length: int) -> Tensor:
        """F^-1 between the elements of each run of so many consecutive weights of a row, (out, in / length, length,
        length)."""
        check_run(self.size, length)
        runs = self.size // length
        parts = self.blocks.reshape(-1, runs, length, runs, length).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        rows, columns = self.w.shape
        return parts.reshape(-1, length, length)[: rows * columns // length].view(rows, -1, length, length)

    @torch.no_grad()
    def prune(self, mask: Tensor) -> tuple[Tensor, float]:
        """The weight (out, in) that is zero outside the mask, with the remaining weights where the quadratic is least,
        and its increase.

        d = -F^-1 E^T (E F^-1 E^T)^-1 E w, with E the rows of the identity that are pruned. This is exact for all pruned
        weights of a block together; the paper adds up the changes of each alone.
        """

        def solve(inverse: Tensor, w: Tensor, pruned: Tensor) -> Tensor:
            cut, inverse = pruned.double(), inverse.double()
            system = cut[:, :, None] * inverse * cut[:, None, :] + torch.diag_embed(1 - cut)
            multiplier = torch.linalg.solve(system, cut * w.double())
            change = -(inverse @ multiplier[:, :, None])[:, :, 0]
            return torch.stack([change, multiplier * cut * w.double() / 2], 1)

        w, pruned = _blocks(self.w, self.size), _blocks(~mask, self.size)
        change, rise = _in_chunks(solve, self.size, self.blocks, w, pruned).unbind(1)
        kept = (w.double() + change).flatten()[: mask.numel()].view(mask.shape)
        return torch.where(mask, kept, 0.0).to(self.w.dtype), rise.sum().item()


def _blocks(x: Tensor, size: int) -> Tensor:
    """The elements of a matrix in blocks (blocks, size), the last padded with zeros."""
    flat = x.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _in_chunks(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """What a function gives of tensors that share their first dimension, in parts that fit into memory."""
    chunks = zip(*(each.split(max(1, CHUNK // size**2)) for each in tensors), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks])
