"""Which Transformers of `transformers` can be compressed, and how far each goes.

A tiny random model of each architecture is converted to 2:4 + INT4 with 8-bit inputs, trained one step of ADMM by every
objective, projected, packed, read back in three ways, whose logits must be equal bit for bit, and exported to ONNX. A
row of results.csv says for each step yes, or why not. A cell that is there is not run again.

    python experiments/architectures/run.py [NAME ...]    # the table at the end goes to docs/architectures.md
"""

import argparse
import copy
import csv
import re
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import nxmiformer as nx
from nxmiformer.applied.convert import verify
from nxmiformer.export.format import compared
from nxmiformer.export.onnx import Onnx
from nxmiformer.layers.examples import made_up
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.base import Length
from nxmiformer.tasks.units import Units, place_units, whole_units
from nxmiformer.train.attention import check_scores
from nxmiformer.train.hidden import check_every_layer_runs
from nxmiformer.train.objective import Objective

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "results.csv", HERE.parents[1] / "docs" / "architectures.md"
SEED, BATCH, LENGTH = 0, 4, 8
SET = nx.Then(nx.NM(2, 4), nx.Grid(4))
OBJECTIVES = {
    "task": Objective(),
    "logits": Objective(task=0.0, logits=1.0),
    "hidden": Objective(task=0.0, hidden=1.0),
    "attention": Objective(task=0.0, attention=1.0),
}
STEPS = (
    "converts",
    *(f"trains: {name}" for name in OBJECTIVES),
    "packs",
    "loads",
    "loads lazily",
    "from_pretrained",
    "onnx",
)

# Small sizes, by the names that the configurations of `transformers` have for them.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "dim", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads",), 4),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "n_inner", "hidden_dim", "ffn_dim", "d_inner", "ffn_hidden_size"), 64
    ),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("vocab_size", "n_words"), 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "rotary_dim": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
ENCODERS = """
    albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm
    flaubert fnet funnel ibert layoutlm longformer luke megatron-bert mobilebert modernbert mpnet mra
    nystromformer rembert roberta roberta-prelayernorm roc_bert roformer squeezebert xlm xlm-roberta
    xlm-roberta-xl xlnet yoso
"""
DECODERS = """
    bloom codegen falcon gemma gemma2 gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite llama mistral mpt olmo
    olmo2 opt phi phi3 qwen2 qwen3 smollm3 stablelm starcoder2
"""
SEQ2SEQ = "bart blenderbot fsmt led longt5 m2m_100 marian mbart mt5 pegasus prophetnet t5 umt5"
KINDS = {
    **dict.fromkeys(ENCODERS.split(), "AutoModelForSequenceClassification"),
    **dict.fromkeys(DECODERS.split(), "AutoModelForCausalLM"),
    **dict.fromkeys(SEQ2SEQ.split(), "AutoModelForSeq2SeqLM"),
}
# What an architecture wants besides.
OWN: dict[str, dict[str, Any]] = {
    "albert": {"num_hidden_groups": 1},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "distilbert": {"dim": 32, "hidden_dim": 64},
    "funnel": {"block_sizes": [1, 1], "d_head": 8},
    "fsmt": {"langs": ["en", "de"], "src_vocab_size": 96, "tgt_vocab_size": 96},
    "led": {"attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "longformer": {"attention_window": 4},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32, "embedding_size": 32},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2},
    "bloom": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "longt5": {"local_radius": 3},
    "xlnet": {"d_head": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures to run again; none: those that have no row yet")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    known = read()
    for name in arguments.names or [each for each in KINDS if each not in known]:
        known[name] = {"architecture": name, "kind": KINDS[name], **look(name)}
        write(known)
        print(name, *(f"{step}: {known[name][step]}" for step in STEPS), sep="\n  ", flush=True)
    TABLE.write_text(table(known), encoding="utf-8")


def read() -> dict[str, dict[str, str]]:
    """The rows that there are, by architecture."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return {row["architecture"]: row for row in csv.DictReader(file)}


def write(rows: Mapping[str, Mapping[str, str]]) -> None:
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["architecture", "kind", *STEPS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in KINDS if name in rows)


def look(name: str) -> dict[str, str]:
    """For each of STEPS "yes", or why not."""
    found = dict.fromkeys(STEPS, "-")
    for step, outcome in _steps(name):
        found[step] = outcome
    return found


def _steps(name: str) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            model = small(name)
            dense, inputs = copy.deepcopy(model).eval(), _inputs(model)
            targets = nx.find_targets(model)
            plan = nx.CompressionPlan.uniform(model, targets, SET, nx.Activations(8))
            if not plan.layers:
                raise ValueError("; ".join(sorted({*plan.skipped.values()})))
            nx.convert(model, plan, inputs)
        except Exception as error:  # whatever an architecture does: it is told
            yield "converts", _reason(error)
            return
        yield "converts", f"yes, {len(plan.layers)} layers"
        for objective in OBJECTIVES:
            yield f"trains: {objective}", _tried(lambda o=objective: _train(model, dense, inputs, OBJECTIVES[o]))
        nx.project(model)
        verify(model, plan)
        path = Path(scratch) / "packed"
        yield "packs", _tried(lambda: _pack(model, plan, path))
        ours = _logits(model, inputs)
        readers: dict[str, Callable[[], PreTrainedModel]] = {
            "loads": lambda: nx.load_packed(path),
            "loads lazily": lambda: nx.load_packed(path, lazy=True),
            "from_pretrained": lambda: type(model).from_pretrained(path),
        }
        for step, reader in readers.items():
            yield step, _tried(lambda r=reader: _equal(_logits(r(), inputs), ours))
        yield "onnx", _tried(lambda: _onnx(nx.load_packed(path), plan, inputs, Path(scratch)))


def small(name: str) -> PreTrainedModel:
    """The tiny random model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        blank = transformers.AutoConfig.for_model(name).to_dict()
        sizes = {key: value for key, value in SIZES.items() if key in blank or key.endswith("_token_id")}
        config = transformers.AutoConfig.for_model(name, **{**sizes, **OWN.get(name, {})})
        model: PreTrainedModel = getattr(transformers, KINDS[name]).from_config(config)
    return model.float()


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    return made_up(model, BATCH, LENGTH)


def _units(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Units:
    if batch["labels"].ndim == 1:
        return whole_units(outputs, batch)
    return place_units(outputs["logits"], batch["labels"])


def _train(model: PreTrainedModel, dense: PreTrainedModel, inputs: Mapping[str, Tensor], objective: Objective) -> None:
    """One step of ADMM, after which every weight of the plan has moved and is finite."""
    if objective.hidden:
        check_every_layer_runs(model.config, "its layerdrop is 0")
    if objective.attention:
        check_scores(model, inputs)
    ids = inputs.get("decoder_input_ids", inputs["input_ids"])
    whole = "SequenceClassification" in type(model).__name__
    labels = torch.arange(BATCH, device="cpu") % 2 if whole else ids.clone()
    method = Admm(interval=1, calibration=0)
    method.attach(model.train(), Length(1, 1))
    optimizer = method.optimizer(torch.optim.AdamW([p for _, p in method.parameters()], lr=1e-3))
    method.before_step(0)
    loss = objective(model, dense, {**inputs, "labels": labels}, _units)
    loss.backward()
    method.before_clip()
    optimizer.step()
    optimizer.zero_grad()
    if not loss.isfinite() or not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise ValueError(f"the loss is {loss.item()}, or a weight is not finite after it")


def _pack(model: PreTrainedModel, plan: nx.CompressionPlan, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no tokenizer
        nx.save_packed(model.eval(), plan, path)


@torch.no_grad()
def _logits(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    return next(iter(compared(model.eval()(**inputs)).values()))


def _equal(found: Tensor, expected: Tensor) -> None:
    if not torch.equal(found, expected):
        raise ValueError(f"logits differ by up to {(found - expected).abs().max():.1g}")


def _onnx(model: PreTrainedModel, plan: nx.CompressionPlan, inputs: Mapping[str, Tensor], scratch: Path) -> None:
    form, directory = Onnx(), scratch / "onnx"
    if refused := list(form.refusals(model, plan)):
        raise ValueError(refused[0])
    directory.mkdir()
    form.write(model.eval(), plan, directory)
    found = next(iter(form.read(directory, threads=1)(inputs).values()))
    expected = _logits(model, inputs)
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(f"logits differ by up to {(found - expected).abs().max():.1g}")


def _tried(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:  # see above
        return _reason(error)
    return "yes"


def _reason(error: BaseException) -> str:
    """What is wrong, in a line: the first of the errors that led to one another."""
    kind = type(error).__name__
    while error.__cause__ is not None and not isinstance(error, ValueError):
        error = error.__cause__
    lines = str(error).strip().splitlines() or traceback.format_exception_only(error)
    words = re.sub(r"\x1b\[\d+m|/\S*/", "", "; ".join(line.strip().rstrip(":") for line in lines[:2]))
    words = textwrap.shorten(words, 220, placeholder=" ...")
    return f"no: {words}" if isinstance(error, ValueError) else f"no: {kind}: {words}"


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """docs/architectures.md: a mark a step, and a note for every no."""
    lines = [
        "# Architectures",
        "",
        "`experiments/architectures/run.py` takes a tiny random model of each through these steps:",
        "",
        "- it is converted to 2:4 + INT4 with 8-bit inputs;",
        "- it trains one step by the task's loss, and by distilled logits, hidden states and attention scores;",
        "- it is packed, and read by `load_packed`, `load_packed(lazy=True)` and `from_pretrained`, with equal bits;",
        "- it is exported to ONNX.",
        "",
        "| architecture | head | converts | task | logits | hidden | attention | packs | loads | lazily | "
        "from_pretrained | ONNX |",
        "|---" * 12 + "|",
    ]
    notes: dict[str, int] = {}
    for name in (name for name in KINDS if name in rows):
        row = rows[name]
        cells = [_cell(row[step], notes) for step in STEPS]
        lines.append(f"| {name} | {row['kind'].removeprefix('AutoModelFor')} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}" for note, number in notes.items())]
    return "\n".join(lines) + "\n"


def _cell(outcome: str, notes: dict[str, int]) -> str:
    if outcome.startswith("yes"):
        return "yes"
    if outcome == "-":
        return ""
    note = re.sub(r"\b[A-Z]\w*(?:For[A-Z]\w+|MTModel)\b", "model", outcome.removeprefix("no: "))  # one for all alike
    return f"no ({notes.setdefault(note, len(notes) + 1)})"


if __name__ == "__main__":
    main()
