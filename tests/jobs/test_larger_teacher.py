"""A compact model is trained on by the larger dense model that it came of."""

import json
import shutil

import hydra
import pytest
import transformers

from nxmiformer import cli, load_packed
from nxmiformer.jobs import compress, export, search
from nxmiformer.runs.many import load_runs

DISTIL = "recipe.phases.ste_qat.objective={task: 0.0, logits: 1.0, hidden: 10.0}"
DATA = ["task=grammar", "task.train=48", "task.holdout=24", "task.validation=24", "train.batch_size=24"]
DATA += ["train.max_length=64", "train.cpu=true", "train.threads=1", "train.evaluate_every=0"]


def job(directory, *overrides):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return cli.build(hydra.compose("config", [f"name={directory.name}", *DATA, *overrides]), directory)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    """A run whose `compact` has half of the heads and dimensions of its `dense`."""
    run = tmp_path_factory.mktemp("larger") / "run"
    sizes = ["model=embedded", "model.hidden=64", "model.layers=2", "model.intermediate=128"]
    phases = ["recipe.phases.dense.steps=4", "recipe.phases.admm.steps=2", "recipe.phases.finish.steps=2"]
    compress.run(job(run, *sizes, "plan=structured", *phases, "recipe.phases.admm.method.calibration=2"))
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        words = ["job=export", "format=compact", f"path={run}"]
        export.export(cli.build(hydra.compose("config", words), run))
    return run


def filled(directory, run, *overrides):
    model = ["model=pretrained", f"model.path={run / 'compact'}", "model.finetuned=true"]
    steps = ["recipe=ste_qat", "plan=int8", "recipe.phases.ste_qat.steps=3", DISTIL]
    return job(directory, *model, f"model.teacher={run / 'dense'}", *steps, *overrides)


def test_a_compact_model_is_filled_by_its_dense_one_and_measured_against_it(smaller, tmp_path):
    report = compress.run(filled(tmp_path / "filled", smaller))
    (first,) = load_runs(smaller).to_dict("records")
    assert report["scores"]["dense"]["accuracy"] == first["dense"]
    assert report["storage"]["bytes"]["dense_model"] > 1.2 * report["storage"]["dense_bits"] / 8
    found, compact, dense = (
        load_packed(tmp_path / "filled" / "packed"),
        load_packed(smaller / "compact"),
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "filled" / "dense"),
    )
    sizes = [{n: p.shape for n, p in model.named_parameters()} for model in (found, compact, dense)]
    assert sizes[0] == sizes[1]
    query, first = "bert.encoder.layer.1.attention.self.query.weight", "bert.encoder.layer.1.intermediate.dense.weight"
    assert [tuple(sizes[0][each]) for each in (query, first)] == [(32, 64), (64, 64)]
    assert [tuple(sizes[2][each]) for each in (query, first)] == [(64, 64), (128, 64)]
    assert {layer["error"] for layer in report["layers"].values()} == {None}  # no layer of the teacher is this one's
    assert all(0 < layer["projection_error"] < 1e-3 for layer in report["layers"].values())
    assert (tmp_path / "filled" / "report.html").is_file()


def test_learning_rates_in_proportion_to_a_layers_distance_are_those_from_where_it_began(smaller, tmp_path):
    relative = ["recipe=admm_relative", "recipe.phases.admm.steps=2", "recipe.phases.finish.steps=2"]
    words = [f"model.path={smaller / 'compact'}", "model=pretrained", "model.finetuned=true", "plan=2of4_int4"]
    words += [f"model.teacher={smaller / 'dense'}", *relative, "recipe.phases.admm.method.calibration=2"]
    report = compress.run(job(tmp_path / "relative", *words))
    assert all(layer["projection_error"] > 0.01 for layer in report["layers"].values())


@pytest.mark.parametrize("ranges", ["ema", "static"])
def test_a_compact_model_gets_fixed_ranges_and_then_is_no_teacher_but_its_dense_one_is(ranges, smaller, tmp_path):
    compact = ["model=pretrained", f"model.path={smaller / 'compact'}", "model.finetuned=true"]
    fixed = f"plan.activations.ranges={ranges}"
    first = compress.run(job(tmp_path / "small", *compact, "recipe=one_shot", "plan=int8", fixed))
    assert first["scores"]["packed"] == first["scores"]["final"]
    words = ["recipe=ste_qat", "plan=int4", "recipe.phases.ste_qat.steps=2", DISTIL]
    with pytest.raises(ValueError, match=r"model\.teacher is a compressed model.*such as model\.teacher=RUN/dense"):
        compress.run(job(tmp_path / "run", *compact, f"model.teacher={tmp_path / 'small' / 'packed'}", *words))
    teacher = f"model.teacher={tmp_path / 'small' / 'dense'}"
    second = compress.run(job(tmp_path / "taught", *compact, teacher, *words))
    assert second["scores"]["dense"] == first["scores"]["dense"]


REFUSED = {
    "attention scores of more heads": (
        ["recipe.phases.ste_qat.objective.attention=1.0"],
        r"the student's attention scores are \[\(2, 1, 32, 32\).*and the teacher's \[\(2, 2, 32, 32\)",
    ),
    "a plan to be searched": (["budget.ratio=0.2"], r"model\.teacher: a search goes on from the dense model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_larger_teacher_cannot_teach_is_refused_before_the_first_step(smaller, tmp_path, case):
    words, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        compress.run(search.planned(filled(tmp_path / "run", smaller, *words)))
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_deeper_teacher_gives_its_logits_and_no_hidden_states(smaller, tmp_path):
    words = [
        "model=pretrained",
        f"model.path={smaller / 'dense'}",
        "recipe.phases.dense.steps=2",
        "model.keep_layers=[1]",
    ]
    words += [f"model.teacher={smaller / 'dense'}", "recipe=ste_qat", "plan=int8", "recipe.phases.ste_qat.steps=2"]
    with pytest.raises(ValueError, match=r"phase ste_qat is to distil hidden states, but the student's hidden states"):
        compress.run(job(tmp_path / "hidden", *words, DISTIL))
    objective = "recipe.phases.ste_qat.objective={task: 0.0, logits: 1.0, hidden: 0.0}"
    report = compress.run(job(tmp_path / "logits", *words, objective))
    assert report["phases"]["ste_qat"]["steps"] == 2


def test_a_teacher_of_other_words_or_another_architecture_is_refused_by_name(smaller, tmp_path):
    config = transformers.AutoConfig.from_pretrained(smaller / "dense")
    smaller_words = transformers.AutoModelForSequenceClassification.from_pretrained(smaller / "dense")
    smaller_words.resize_token_embeddings(config.vocab_size - 3)
    smaller_words.save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match=r"model\.teacher has \d+ words, and the model that it is to teach \d+"):
        compress.run(filled(tmp_path / "run", smaller, f"model.teacher={tmp_path / 'words'}"))
    tokens = json.loads((smaller / "dense" / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    last = list(vocabulary)[-2:]
    vocabulary[last[0]], vocabulary[last[1]] = vocabulary[last[1]], vocabulary[last[0]]
    shutil.copytree(smaller / "dense", tmp_path / "tokens")
    (tmp_path / "tokens" / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match=r"has another tokenizer than model\.path"):
        compress.run(filled(tmp_path / "run", smaller, f"model.teacher={tmp_path / 'tokens'}"))
    other = transformers.DistilBertConfig(
        vocab_size=config.vocab_size, dim=64, n_layers=1, n_heads=2, hidden_dim=64, pad_token_id=config.pad_token_id
    )
    other.id2label, other.label2id = config.id2label, config.label2id
    transformers.DistilBertForSequenceClassification(other).save_pretrained(tmp_path / "other")
    for file in (smaller / "dense").glob("token*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"model\.teacher is a DistilBert.*, and the model that it is to teach a Bert"):
        compress.run(filled(tmp_path / "run", smaller, f"model.teacher={tmp_path / 'other'}"))
