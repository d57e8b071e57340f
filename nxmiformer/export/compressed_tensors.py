"""Checkpoints of the package compressed-tensors, which `transformers` reads where that is installed.

Its form `pack-quantized` packs the codes of a weight at their own width, beside the scales; `int-quantized`, one int8 a
weight, is the usual form of 8-bit weights with quantized inputs. It is also the only form in which `transformers` reads
embeddings, whatever their bits. Codes times scales are our weights, bit for bit. A pattern of zeros is carried as zero
codes: releases after 0.14 have no sparse forms.

Inputs with dynamic scales, for each token or tensor, follow the package's convention, which is not ours. With q =
2**(bits-1) - 1, its scale is the maximum over q + 1/2 and its codes are -q - 1 ... q. Our scale is the maximum over q,
and our codes are -q ... q. So with such inputs the logits are near, not equal. A fixed range is exported unchanged; of
`ema` only the additional code below -q differs.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxmiformer.applied.convert import strip
from nxmiformer.export.format import Format, Run, checkpoint, no_everything, no_tokens
from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.embedding import CompressedEmbedding
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.inputs import ActivationQuantizer
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import Grid, Products

LEAST_BITS = 2  # with a code of each sign: one bit there is {-1, 0}, and two hold our sign with a scale, {-1, 1}


@dataclass(frozen=True)
class CompressedTensors(Format):
    """A checkpoint that `from_pretrained` reads with the package compressed-tensors, and without this one.

    Attributes:
        tolerance: the share of predictions that may differ.
        activations: export the quantization of inputs. False: inputs stay floats, and the logits are those of the
            packed model with its activation quantizers off.
    """

    name: ClassVar[str] = "compressed_tensors"
    extra: ClassVar[str] = "compressed-tensors"
    packages: ClassVar[tuple[str, ...]] = ("compressed_tensors",)

    activations: bool = True

    def refusals(self, model: PreTrainedModel, plan: CompressionPlan) -> Iterator[str]:
        for name, spec in plan.layers.items():
            if isinstance(spec.weight, Products):
                yield f"{name}: {spec.weight} is stored as factors, and the format has none"
            elif spec.weight.grid is None:
                advice = "" if spec.weight.sparsity is None else "; give it a grid too"
                yield f"{name}: {spec.weight} has float values, which are not packed{advice}"
            if spec.transposed:
                yield f"{name}: it is a Conv1D; the format has only Linear and Embedding"
            if spec.aliases:
                yield f"{name}: {', '.join(spec.aliases)} share its weight, and packed weights cannot be shared"
        if model.dtype != torch.float32:
            yield f"the model is in {model.dtype}, and its scales must be float32: pack it in float32"
        yield from no_everything(plan)
        yield from no_tokens(model)

    def write(self, model: PreTrainedModel, plan: CompressionPlan, directory: Path) -> None:
        from compressed_tensors.compressors import ModelCompressor, compress_module
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

        config = QuantizationConfig.model_validate(_config(model, plan, self.activations))
        plain = copy.deepcopy(model)
        apply_quantization_config(strip(plain), config, show_progress=False)
        with torch.no_grad():
            for name, ours in distinct_layers(model).items():
                theirs, quantizer = plain.get_submodule(name), _quantizer(ours)
                scales = ours.quantizer.constraint.pack(ours.matrix.cpu())["scales"]
                blank = theirs.get_parameter("weight_scale")
                blank.copy_(scales.where(scales > 0, 1).view(blank.shape))  # zeros have any
                if self.activations and quantizer is not None:
                    _fix_range(theirs, quantizer)
                compress_module(theirs)
        plain.save_pretrained(directory)
        ModelCompressor(config).update_config(str(directory))

    def read(self, directory: Path, threads: int | None = None) -> Run:
        self.check_packages()
        return checkpoint(directory, threads)


def _config(model: PreTrainedModel, plan: CompressionPlan, activations: bool) -> dict[str, Any]:
    """The quantization in `config.json`: a group for each way that layers are quantized, by their names."""
    ranks = _ranks(model) if activations else {}
    groups: list[dict[str, Any]] = []
    for name, layer in distinct_layers(model).items():
        spec = plan.layers[name]
        quantizer = _quantizer(layer) if activations else None
        inputs = None if quantizer is None else _inputs(quantizer, spec, ranks[name])
        weights = _weights(spec)
        whole = isinstance(layer, CompressedEmbedding) or (weights["num_bits"] == 8 and inputs is not None)
        form = "int-quantized" if whole else "pack-quantized"
        scheme = {"format": form, "weights": weights, "input_activations": inputs}
        group = next((group for group in groups if scheme.items() <= group.items()), None)
        if group is None:
            group = {**scheme, "targets": []}
            groups.append(group)
        group["targets"].append(name)
    forms = {group["format"] for group in groups}
    return {
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed",
    }


def _weights(spec: LayerSpec) -> dict[str, Any]:
    """How a weight is quantized."""
    grid = spec.weight.grid
    assert isinstance(grid, Grid)
    bits = {"num_bits": max(grid.bits, LEAST_BITS)}
    return bits | ({"strategy": "channel"} if grid.group is None else {"strategy": "group", "group_size": grid.group})


def _inputs(quantizer: ActivationQuantizer, spec: LayerSpec, rank: int) -> dict[str, Any]:
    """How a layer's inputs are quantized, which have so many dimensions."""
    ranges: dict[str, Any] = {"strategy": "tensor"}
    if quantizer.spec.ranges == "token":
        # For "token" the first two dimensions are batch and tokens, whatever they are: of (batch, features), as of a
        # head, it takes one range for all. A group of all features is the range of a row, whatever the dimensions.
        ranges = {"strategy": "token"} if rank == 3 else {"strategy": "group", "group_size": spec.shape[1]}
    symmetric = {} if quantizer.ends is None else {"symmetric": False}
    return {"num_bits": quantizer.spec.bits, "dynamic": not _seen(quantizer), **symmetric, **ranges}


def _quantizer(layer: Compressed) -> ActivationQuantizer | None:
    """Of a layer's inputs."""
    return layer.inputs if isinstance(layer, CompressedLinear) else None


def _seen(quantizer: ActivationQuantizer) -> bool:
    """Whether the range of the inputs is known, from training; else each pass takes its own."""
    return quantizer.spec.fixed and (quantizer if quantizer.ends is None else quantizer.ends).seen


def _fix_range(theirs: nn.Module, quantizer: ActivationQuantizer) -> None:
    """Give a layer of theirs the range of its inputs, if it is known."""
    if not _seen(quantizer):
        return
    if quantizer.ends is None:
        theirs.get_parameter("input_scale").copy_(quantizer.peak / quantizer.top)
        return
    levels = quantizer.ends.levels()
    theirs.get_parameter("input_scale").copy_(levels.scale)
    theirs.get_parameter("input_zero_point").copy_(-levels.least - 2 ** (quantizer.spec.bits - 1))


@torch.no_grad()
def _ranks(model: PreTrainedModel) -> dict[str, int]:
    """How many dimensions the inputs of each compressed layer have, by what a forward pass gives them."""
    layers = distinct_layers(model)
    ranks = dict.fromkeys(layers, 3)  # of what is not called, any

    def seen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: ranks.update({name: inputs[0].ndim})

    hooks = [layer.register_forward_pre_hook(seen(name)) for name, layer in layers.items()]
    try:
        model(input_ids=torch.tensor([[1, 2]], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return ranks
