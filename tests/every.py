"""Every set, method and sensitivity: whatever is in these lists is held to the laws of its kind, on each device."""

from nxmiformer.methods import kronecker
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.admm_paper import AdmmPaper
from nxmiformer.methods.base import Method
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.group_lasso import GroupLasso
from nxmiformer.methods.movement import Movement
from nxmiformer.methods.obert import Obert
from nxmiformer.methods.one_shot import OneShot
from nxmiformer.methods.prune_once import PruneOnce
from nxmiformer.methods.sr_ste import SrSte
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.methods.taylor import Taylor
from nxmiformer.search.anchored import Anchored
from nxmiformer.search.sensitivity import LossChange, Measured, OutputError, Sensitivity, WeightError
from nxmiformer.sets import (
    NM,
    Block,
    ConstraintSet,
    Grid,
    Kronecker,
    QuantizedKronecker,
    SparsitySet,
    Then,
    Unstructured,
)

SPARSE: list[SparsitySet] = [
    *(NM(*pair) for pair in [(1, 4), (2, 4), (4, 4), (1, 1), (8, 16), (5, 64), (64, 64)]),
    *(NM(*pair, "dense") for pair in [(2, 4), (1, 1), (8, 16), (32, 64)]),
    *(Unstructured(density) for density in (0.1, 0.5, 1.0)),
    *(Unstructured(density, "entropy") for density in (0.05, 0.2, 1.0)),
    *(Block(*shape) for shape in [(4, 4, 0.5), (1, 8, 0.25), (8, 32, 0.3), (2, 2, 1.0)]),
]
GRIDS = [
    *(Grid(bits) for bits in range(1, 9)),
    *(Grid(bits, scale="absmax") for bits in (1, 2, 8)),
    *(Grid(bits, group=16) for bits in (1, 4)),
    *(Grid(bits, group=32, scale="absmax") for bits in (3, 8)),
    Grid(3, group=1),
]
JOINT = [
    *(Then(NM(2, 4), Grid(bits)) for bits in (1, 2, 3, 8)),
    Then(NM(2, 4), Grid(8, scale="absmax")),
    Then(NM(4, 4), Grid(4)),
    Then(NM(1, 1), Grid(1)),
    Then(NM(8, 16), Grid(4, group=16)),
    Then(NM(5, 64), Grid(6, group=64)),
    Then(NM(1, 4), Grid(1, group=32)),
    Then(NM(8, 16, "dense"), Grid(4)),
    Then(Unstructured(0.5), Grid(8)),
    Then(Unstructured(0.1, "entropy"), Grid(1)),
    Then(Unstructured(0.1), Grid(3, group=32)),
    Then(Block(4, 4, 0.5), Grid(4, group=32, scale="absmax")),
    Then(Block(1, 8, 0.25), Grid(1, scale="absmax")),
    Then(Block(8, 32, 0.3), Grid(2)),
]
FACTORED = [Kronecker(2, 4), Kronecker(4, 16, 2), QuantizedKronecker(8, 2, 4)]
SETS: list[ConstraintSet] = [*SPARSE, *GRIDS, *JOINT, *FACTORED]

METHODS: dict[str, type[Method]] = {
    "admm": Admm,
    "admm_paper": AdmmPaper,
    "ste_qat": SteQat,
    "fixed_mask": FixedMask,
    "sr_ste": SrSte,
    "obert": Obert,
    "one_shot": OneShot,
    "group_lasso": GroupLasso,
    "movement": Movement,
    "prune_once": PruneOnce,
    "taylor": Taylor,
    "kronecker": kronecker.Kronecker,
}

SENSITIVITIES: list[Sensitivity] = [
    WeightError(),
    OutputError(),
    OutputError(weighted=False),
    OutputError(rows=5, iterations=0),
    LossChange(order=1),
    LossChange(order=2),
    Measured(),
    Measured(what="divergence"),
    Measured(what="loss"),
    Measured(iterations=3),
    Measured(examples=5),
    Anchored(OutputError(), Measured(iterations=2, examples=8), ("2:4+int4", "1:8+int4")),
]
