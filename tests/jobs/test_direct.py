"""From Python a model is compressed as by the command."""

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

import nxmiformer as nx
from nxmiformer.applied.convert import verify
from nxmiformer.jobs.direct import compress
from nxmiformer.models import embedded
from nxmiformer.tasks.grammar import Grammar
from nxmiformer.tasks.tokens import Tokens

TASK = Grammar(train=96, holdout=24, validation=48)
TOKENIZER = embedded.tokenizer(TASK.vocabulary)
FEW = ["train.batch_size=12", "train.cpu=true", "train.max_length=64"]
FEW += ["recipe.phases.admm.steps=3", "recipe.phases.finish.steps=2"]
PAIR = {"columns": ["premise", "hypothesis"], "label": "label"}


def model(seed=0):
    return embedded.model(TOKENIZER, 2, seed=seed, hidden=32, layers=1, heads=2, intermediate=64)


def loader(split):
    encoded = TOKENIZER(list(split["premise"]), list(split["hypothesis"]))
    rows = [
        {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "labels": label}
        for ids, mask, types, label in zip(
            encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"], split["label"], strict=True
        )
    ]
    return DataLoader(rows, 16, collate_fn=lambda some: dict(TOKENIZER.pad(some, return_tensors="pt")))


@pytest.fixture(scope="module")
def splits():
    return TASK.splits()


def test_rows_are_compressed_into_the_sets_and_the_files_have_the_models_bits(splits, tmp_path):
    given = model()
    found = compress(
        given, splits["train"], tokenizer=TOKENIZER, eval_data=splits["validation"], directory=tmp_path / "run",
        overrides=FEW, **PAIR,
    )  # fmt: skip
    assert found.model is given
    verify(found.model, found.plan)
    packed = nx.load_packed(found.directory / "packed").state_dict()
    assert all(torch.equal(packed.pop(name), weight) for name, weight in given.state_dict().items())
    assert not packed
    assert found.report["task"]["validation"] == 48
    assert found.report["phases"]["dense"]["steps"] == 0
    assert [line.split("  ")[0] for line in str(found).splitlines()][:1] == ["dense accuracy"]


def test_a_task_that_has_its_own_data_is_compressed_too():
    found = compress(model(), TASK, tokenizer=TOKENIZER, overrides=FEW)
    verify(found.model, found.plan)
    assert found.directory is None
    assert found.report["task"]["name"] == "grammar"


def test_batches_are_compressed_as_the_rows_that_they_are_of(splits):
    found = compress(model(), loader(splits["train"]), tokenizer=TOKENIZER, eval_data=loader(splits["validation"]),
                     plan=nx.Grid(4), overrides=FEW)  # fmt: skip
    verify(found.model, found.plan)
    assert found.report["task"]["name"] == "batches"
    assert found.report["task"]["validation"] == 48
    assert {str(spec.weight) for spec in found.plan.layers.values()} == {"int4"}


def batch(**changed):
    return [{"input_ids": torch.ones(4, 3, dtype=torch.int64), "labels": torch.zeros(4, dtype=torch.int64), **changed}]


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        (TASK, PAIR, "task grammar has data and fields of its own: leave out columns, label"),
        (batch(), PAIR, "batches are tokenised and labelled already: leave out columns, label"),
        (batch(), {"task": Tokens}, "task=Tokens: of batches only one label an example is understood: give rows"),
        (batch(labels=torch.zeros(4, 3)), {}, r"train_data, batch 0 .*: labels are \(4, 3\), but one an example"),
        (batch(labels=torch.full((4,), 7)), {}, "label 7 is none of the 2 classes"),
        (datasets.Dataset.from_dict({"a": ["b"] * 9, "label": [0, 1, 2] * 3}), {}, r"no column .*text"),
    ],
    ids=["a task with fields", "batches with fields", "batches of tokens", "labels of tokens", "no class", "no column"],
)
def test_data_that_do_not_fit_are_refused_before_any_training(data, fields, message):
    with pytest.raises(ValueError, match=message):
        compress(model(), data, tokenizer=TOKENIZER, overrides=FEW, **fields)


def test_a_directory_with_a_run_in_it_is_not_taken(tmp_path):
    compress(model(), TASK, tokenizer=TOKENIZER, directory=tmp_path, overrides=FEW)
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(ValueError, match=r"has a run already: .*overwrite=true"):
        compress(model(), TASK, tokenizer=TOKENIZER, directory=tmp_path, overrides=FEW)
    assert (tmp_path / "report.json").read_bytes() == before
