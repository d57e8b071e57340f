"""The sets that a compressed weight can be a point of. Which weight is a point of which is in plan."""

from nxmiformer.sets.base import ConstraintSet, Piece, SparsitySet, Storage, ValueSet
from nxmiformer.sets.block import Block
from nxmiformer.sets.grid import Grid
from nxmiformer.sets.kronecker import Kronecker
from nxmiformer.sets.nm import NM
from nxmiformer.sets.products import Products
from nxmiformer.sets.quantized_kronecker import QuantizedKronecker
from nxmiformer.sets.then import Then
from nxmiformer.sets.transposed import Transposed
from nxmiformer.sets.unstructured import Unstructured

__all__ = [
    "NM",
    "Block",
    "ConstraintSet",
    "Grid",
    "Kronecker",
    "Piece",
    "Products",
    "QuantizedKronecker",
    "SparsitySet",
    "Storage",
    "Then",
    "Transposed",
    "Unstructured",
    "ValueSet",
]
