"""How much memory the way through a decoder takes, counted before it begins."""

from dataclasses import dataclass

from nxmiformer.blockwise.decoder import Decoder
from nxmiformer.blockwise.settings import Blockwise
from nxmiformer.blockwise.survey import SEEN
from nxmiformer.sets.base import Shape

DOUBLE, SINGLE = 8, 4  # bytes

# What a layer (m, n) takes while it is reconstructed, beside its weight and its moment. The eigenvectors of a matrix
# (n, n) in float64: the matrix, its damped and its scaled copy, and LAPACK's (or cuSOLVER's) own three. Then, in
# iterations, the eigenvectors in float32 and so many matrices (m, n): see `nxmiformer.optim.reconstruct.Problem`.
EIGEN, MATRICES = 6 * DOUBLE, 14 * SINGLE
# Of a forward pass without gradients, times the widths of the block and of its widest layer, a token; and with them,
# times the inputs and outputs of all layers: what is kept for the backward pass, and the gradients of one layer.
PASSING, KEPT = 4, 1.5
STATES = 5  # of a block that trains, times its size: what it was, its gradient, Adam's two, the points that are seen
PROCESS = 15 * 10**6  # of a CPU's: code that is first used here, and what the allocator keeps; found by a tiny model
LOGITS = 3  # copies of them at the end of a score, in float32: the model's, those of the tokens scored, their losses


@dataclass(frozen=True)
class Predicted:
    """Bytes at the most demanding moment of each kind of work; one is done at a time.

    Attributes:
        around: what is in no block, beside the first block: it is what begins.
        moments: a block, the moments of its layers' inputs, and a batch on its way through.
        reconstruction: a block, the moments that are still to be used, and the work on one layer.
        training: a block with its gradients and the optimizer's state, and what a batch leaves for the backward pass.
        scoring: what is in no block, and the logits of a batch.
        disk: of the hidden states of calibration, in files: it is no memory. Scoring takes two files of all scored
            tokens.
    """

    around: int
    moments: int
    reconstruction: int
    training: int
    scoring: int
    disk: int

    @property
    def blocks(self) -> int:
        """The most that is taken until all blocks are compressed."""
        return max(self.around, self.moments, self.reconstruction, self.training)

    @property
    def survey(self) -> int:
        """The most that a survey takes, which compares logits at its end."""
        return max(self.blocks, self.scoring)


def predict(decoder: Decoder, settings: Blockwise, tokens: int, scored: int, surveyed: bool = False) -> Predicted:
    """Count what the way takes.

    Args:
        tokens: of a window.
        scored: tokens of a batch that is scored.
        surveyed: whether the way is that of a survey: nothing is trained, layers are kept as they were and in their
            anchors, and windows come out of each block in both.
    """
    model, item = decoder.model, decoder.model.dtype.itemsize
    (words, width), batch = decoder.embedding, settings.batch * tokens
    fixed = sum(buffer.numel() * buffer.element_size() for _, buffer in model.named_non_persistent_buffers())
    fixed += PROCESS if decoder.device.type == "cpu" else 0
    sizes = [_bytes(decoder, index) for index in range(len(decoder.blocks))]
    around, block = _bytes(decoder, None), max(sizes)
    shapes = {index: [decoder.plan.layers[name].shape for name in decoder.layers(index)] for index in range(len(sizes))}
    passing = item * PASSING * batch * (width + max((max(s) for each in shapes.values() for s in each), default=width))
    kept = round(item * KEPT * batch * max(sum(map(sum, each)) for each in shapes.values()))
    flows = (2 if settings.steps and not surveyed else 1) * 2 * settings.windows
    if surveyed:
        flows += (2 * len(sizes) - 1) * min(SEEN * settings.batch, settings.windows)
        block *= 2
    return Predicted(
        around=fixed + around + block + passing,
        moments=fixed + block + max(_moments(each) for each in shapes.values()) + passing,
        reconstruction=fixed + block + max(_reconstruction(each) for each in shapes.values()),
        training=fixed + block * (1 + STATES) + kept if settings.steps and not surveyed else 0,
        scoring=fixed + around + max(block + passing, LOGITS * SINGLE * scored * words),
        disk=flows * tokens * width * item,
    )


def _bytes(decoder: Decoder, index: int | None) -> int:
    state = decoder.model.state_dict()
    return sum(state[name].numel() * state[name].element_size() for name in decoder.tensors(index))


def _moments(shapes: list[Shape]) -> int:
    """Of all layers, and one product on its way to them."""
    squares = [columns**2 for _, columns in shapes]
    return SINGLE * (sum(squares) + 2 * max(squares, default=0))


def _reconstruction(shapes: list[Shape]) -> int:
    """The most that a layer takes, with the moments of those after it."""
    left = SINGLE * sum(columns**2 for _, columns in shapes)
    most = 0
    for rows, columns in shapes:
        eigen, iterations = EIGEN * columns**2, SINGLE * columns**2 + MATRICES * rows * columns
        most = max(most, left + max(eigen, iterations))
        left -= SINGLE * columns**2
    return most
