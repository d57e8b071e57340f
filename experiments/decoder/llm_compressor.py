"""Compress a decoder with llm-compressor, on the very windows that ours is calibrated on.

    python experiments/decoder/llm_compressor.py --model MODEL --windows WINDOWS --way sparsegpt_gptq --out OUT

It runs in an environment of its own (requirements.txt here), without nxmiformer. WINDOWS is what run.py writes. OUT
becomes a checkpoint of plain floats, which run.py scores. seconds.json beside it has the time.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGETS, DENSE = ["Linear"], ["re:.*lm_head.*"]
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    windows = json.loads(arguments.windows.read_text())
    data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(each) for each in windows]})
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    began = time.perf_counter()
    oneshot(
        model=model,
        dataset=data,
        recipe=_recipe(arguments.way),
        num_calibration_samples=len(windows),
        max_seq_length=len(windows[0]),
    )
    seconds = time.perf_counter() - began
    _floats(model).save_pretrained(arguments.out)
    AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.out)
    (arguments.out / "seconds.json").write_text(json.dumps(seconds))


def _recipe(way: str) -> list[object]:
    sparse = {"sparsity": 0.5, "mask_structure": "2:4", "targets": TARGETS, "ignore": DENSE}
    groups = {"all": {"targets": TARGETS, "weights": WEIGHTS}}
    found: list[object] = []
    for name in way.split("_"):
        if name == "sparsegpt":
            found.append(SparseGPTModifier(**sparse))
        elif name == "wanda":
            found.append(WandaPruningModifier(**sparse))
        else:
            found.append(GPTQModifier(config_groups=groups, ignore=DENSE))
    return found


def _floats(model: torch.nn.Module) -> torch.nn.Module:
    """A plain model with the weights as the compressed one computes with them."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    weights = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            zero, group = getattr(module, "weight_zero_point", None), getattr(module, "weight_g_idx", None)
            weights[f"{name}.weight"] = fake_quantize(module.weight, module.weight_scale, zero, scheme.weights, group)
    plain = AutoModelForCausalLM.from_config(model.config)
    state = {name: weights.get(name, each) for name, each in model.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.float()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--way", choices=("sparsegpt", "wanda", "gptq", "sparsegpt_gptq", "wanda_gptq"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
