"""ONNX files, which ONNX Runtime reads.

The graph has standard operators only. Weights are integers with the scales of their sets. A pattern of zeros is stored
as zero codes, as ONNX has no shorter form. Sums of Kronecker products are their factors, in float32, and the graph has
the two products. What the plan leaves dense stays float32.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxmiformer.export.format import Format, Outputs, Run, compared, no_tokens
from nxmiformer.export.saturation import saturates
from nxmiformer.export.symbolic import CODES, SymbolicRange, stand_in_for
from nxmiformer.layers.everything import hand_on, range_quantizers
from nxmiformer.layers.examples import inputs_of, made_up
from nxmiformer.layers.factored import factor
from nxmiformer.layers.found import compressed_layers, foreign
from nxmiformer.layers.padding import unwatch
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Products

if TYPE_CHECKING:
    import onnx_ir as ir

FILE = "model.onnx"
DATA = "model.onnx.data"  # beside it, the weights of a model that is too large for one file
LARGEST = 2**31 - 2**24  # bytes of weights in one file: protobuf ends at 2 GiB, and the graph needs some
OPSET = 21  # the first with 4-bit integers
LEAST, MOST = -8, 7  # of a 4-bit integer


@dataclass(frozen=True)
class Onnx(Format):
    """An ONNX file with integer weights, for any batch and length; above 2 GiB the weights are in a second file.

    Attributes:
        tolerance: the share of predictions that may differ.
        int4: store codes of at most 4 bits as INT4, which a runtime casts to INT8 when it reads the file. False: all
            are INT8.
    """

    name: ClassVar[str] = "onnx"
    extra: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript")

    int4: bool = True

    def refusals(self, model: PreTrainedModel, plan: CompressionPlan) -> Iterator[str]:
        yield from foreign(model)
        for name, spec in plan.layers.items():
            if spec.weight.grid is None and not isinstance(spec.weight, Products):
                advice = "" if spec.weight.sparsity is None else "; give it a grid too"
                yield (
                    f"{name}: {spec.weight} has float values, and ONNX has no smaller form of floats that a "
                    f"runtime computes with{advice}"
                )
        if model.dtype != torch.float32:
            yield f"the model computes in {model.dtype}, and its ONNX form in float32: pack it in float32"
        for name, quantizer in range_quantizers(model).items():
            if not quantizer.seen:
                yield (
                    f"{name}: it has seen no input, and so has no ends: train the model for a step at least, or "
                    f"calibrate it by recipe=one_shot"
                )
        yield from no_tokens(model)

    def write(self, model: PreTrainedModel, plan: CompressionPlan, directory: Path) -> None:
        self._save(traced(model), directory)

    def write_layer(self, layer: nn.Module, inputs: Tensor, directory: Path) -> None:
        """Write a single linear layer, compressed or plain, that maps "x", of the shape of `inputs`, to "y"."""
        holder = nn.Sequential(layer)
        _symbolic(holder)
        self._save(_exported(holder, (inputs,), ["x"], ["y"], None), directory)

    def _save(self, graph: "ir.Model", directory: Path) -> None:
        """Write a graph, with what is narrow stored so."""
        import onnx_ir as ir
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass

        for node in graph.graph:
            producer = node.inputs[0].producer() if node.op_type == "LayerNormalization" and node.inputs[0] else None
            if producer is not None and producer.op_type == "Add":
                producer.op_type = "Sum"  # ONNX Runtime fuses Add and this, to what takes 30 times as long on a CPU
        _add_zeros(graph)
        if self.int4:
            _narrow(graph)
        ClearMetadataAndDocStringPass()(graph)  # stack traces, with paths of this machine
        tensors = [value.const_value for value in graph.graph.initializers.values()]
        nbytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        ir.save(graph, directory / FILE, external_data=DATA if nbytes > LARGEST else None)

    def read(self, directory: Path, threads: int | None = None) -> Run:
        self.check_packages()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors
        if saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(directory / FILE, options, providers=["CPUExecutionProvider"])
        names, outputs = ([each.name for each in side] for side in (session.get_inputs(), session.get_outputs()))

        def run(batch: Mapping[str, Tensor]) -> Outputs:
            given = dict(batch)
            if "input_ids" in given:  # of one type where nothing is said, as models of `transformers` take it
                given.setdefault("token_type_ids", torch.zeros_like(given["input_ids"]))
            if missing := [name for name in names if name not in given]:
                raise ValueError(f"{directory / FILE} takes {', '.join(names)}, and was not given {', '.join(missing)}")
            found = session.run(None, {name: given[name].cpu().numpy() for name in names})
            return dict(zip(outputs, map(torch.from_numpy, found), strict=True))

        return run


class _InOrder(nn.Module):
    """A model that takes its inputs, and gives those of its outputs that are compared, in order."""

    def __init__(self, model: nn.Module, names: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.names, inputs, strict=True)))
        return tuple(found[name] for name in self.outputs)


def traced(model: PreTrainedModel) -> "ir.Model":
    """The graph of the model, compressed layers as `symbolic` has them; the model stays as it is, and where it is."""
    model = copy.deepcopy(model).to("cpu").eval().requires_grad_(False)  # type: ignore[arg-type]
    names, given = inputs_of(model), made_up(model, 2, 4)
    if "decoder_input_ids" in given:  # of a length of its own
        given["decoder_input_ids"] = given["decoder_input_ids"][:, :-1]
    with torch.no_grad():
        outputs = list(compared(model(**given)))  # while it can still be run
    _symbolic(model)
    if ranges := range_quantizers(model):
        unwatch(model)
        for name, quantizer in ranges.items():
            model.set_submodule(name, SymbolicRange(quantizer))
    else:  # of the attentions of `transformers`, the one whose graph is the shortest: the other guards against NaN
        model.config._attn_implementation = "eager"
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    lengths = {"decoder_input_ids": torch.export.Dim("target")}
    dynamic = {"inputs": tuple({0: batch, 1: lengths.get(name, length)} for name in names)}
    return _exported(_InOrder(model, names, outputs), tuple(given[name] for name in names), names, outputs, dynamic)


def _symbolic(model: nn.Module) -> None:
    """Put in the place of each compressed layer what computes in ONNX operators."""
    factor(model)
    for name, layer in compressed_layers(model).items():
        stand_in = stand_in_for(layer)
        hand_on(layer, stand_in)
        model.set_submodule(name, stand_in)


def _exported(
    model: nn.Module,
    given: tuple[Tensor, ...],
    names: Sequence[str],
    outputs: Sequence[str],
    dynamic: dict[str, Any] | None,
) -> "ir.Model":
    """The graph of a module from these inputs to its outputs, some axes of any length."""
    with _quiet():
        program = torch.onnx.export(
            model,
            given,
            input_names=names,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            dynamic_shapes=dynamic,
        )
    assert program is not None
    return program.model


def _add_zeros(model: "ir.Model") -> None:
    """Give what dequantizes weights and biases a zero point each, which may be left out by the standard.

    ONNX Runtime makes one operator only of those that have it, and cannot shift the codes of two weights that share it.
    """
    import onnx_ir as ir

    graph = model.graph
    for node in graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) != 2:
            continue
        codes, scales = (None if each is None else each.const_value for each in node.inputs)
        if codes is None or scales is None:
            continue
        zeros = ir.tensor(np.zeros_like(scales.numpy(), codes.numpy().dtype), name=f"{codes.name}.zero")
        value = ir.Value(name=zeros.name, shape=ir.Shape(scales.numpy().shape), type=ir.TensorType(zeros.dtype))
        value.const_value = zeros
        graph.register_initializer(value)
        node.resize_inputs(3)
        node.replace_input_with(2, value)


def _narrow(model: "ir.Model") -> None:
    """Store the codes that 4 bits hold as INT4; the graph casts them to INT8, once, when it is read."""
    import ml_dtypes
    import onnx_ir as ir

    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if not name.endswith(f".{CODES}") or value.const_value is None:
            continue
        codes = value.const_value.numpy()
        if codes.size == 0 or codes.min() < LEAST or codes.max() > MOST:
            continue
        tensor = ir.tensor(codes.astype(ml_dtypes.int4), name=f"{name}_int4")
        narrow = ir.Value(name=tensor.name, shape=ir.Shape(codes.shape), type=ir.TensorType(tensor.dtype))
        narrow.const_value = tensor
        cast = ir.node("Cast", [narrow], {"to": ir.DataType.INT8.value})
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        cast.outputs[0].name = name
        graph.register_initializer(narrow)
        graph.insert_before(graph[0], cast)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter warns of: operators of packages that are not here, names of axes, its own old calls."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
