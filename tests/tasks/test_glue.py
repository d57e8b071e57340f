from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from glue_tasks import TASKS, glue

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "glue"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What `datasets` makes of a directory is written to the tests' own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def one_hot(predicted, classes=2):
    return np.eye(classes)[predicted]


def draws(count=200, seed=0):
    """Labels, and predictions that are right more often than not."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(int)
    predicted = np.where(rng.random(count) < 0.7, labels, 1 - labels)
    return labels, predicted


def counts(labels, predicted):
    pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (0, 0), (0, 1), (1, 0))]  # tp, tn, fp, fn


def correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / ((x * x).sum() * (y * y).sum()) ** 0.5


def test_cola_is_scored_by_matthews_correlation():
    labels, predicted = draws()
    tp, tn, fp, fn = counts(labels, predicted)
    matthews = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    found = glue("cola").score(one_hot(predicted), labels)
    assert (found["matthews"], found["accuracy"]) == pytest.approx((matthews, (tp + tn) / 200))
    assert next(iter(found)) == glue("cola").metric == "matthews"
    assert glue("cola").score(one_hot(1 - labels), labels)["matthews"] == pytest.approx(-1)


@pytest.mark.parametrize("name", ["mrpc", "qqp"])
def test_paraphrases_are_scored_by_the_f1_of_the_positive_class(name):
    labels, predicted = draws(seed=1)
    tp, tn, fp, fn = counts(labels, predicted)
    found = glue(name).score(one_hot(predicted), labels)
    assert (found["f1"], found["accuracy"]) == pytest.approx((2 * tp / (2 * tp + fp + fn), (tp + tn) / 200))
    assert next(iter(found)) == glue(name).metric == "f1"


def test_sts_b_is_scored_by_both_correlations():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 20, 100) / 4  # with ties
    logits = (labels + rng.normal(size=100))[:, None]

    def ranks(values):
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    found = glue("stsb").score(logits, labels)
    assert found["pearson"] == pytest.approx(correlation(logits[:, 0], labels))
    assert found["spearman"] == pytest.approx(correlation(ranks(logits[:, 0]), ranks(labels)))


@pytest.mark.parametrize("name", ["sst2", "mnli", "qnli", "rte", "wnli"])
def test_the_others_are_scored_by_the_share_of_right_answers(name):
    task = glue(name)
    labels = np.arange(12) % task.outputs
    predicted = labels.copy()
    predicted[:3] = (predicted[:3] + 1) % task.outputs
    assert task.score(one_hot(predicted, task.outputs), labels)["accuracy"] == 0.75
    assert task.metric == "accuracy"


@pytest.mark.parametrize("name", TASKS)
def test_a_constant_prediction_scores_a_number(name):
    task = glue(name)
    labels = np.arange(12) % 2
    found = task.score(np.zeros((12, task.outputs)), labels if task.labels else labels.astype(np.float32))
    assert all(np.isfinite(value) for value in found.values())
    assert task.metric in found
    if task.metric != "accuracy":
        assert found[task.metric] == 0


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.0}, {"most": 0}])
def test_an_impossible_holdout_is_refused(options):
    with pytest.raises(ValueError, match="the holdout needs a share"):
        glue("rte", **options)


def validation(name):
    return TASKS[name].get("validation_split", "validation")


def write_local(root, name="rte", sizes=(40, 6, 5), drop=(), mark=""):
    """A directory in the hub's layout: a folder of parquet files for the task, and a card that tells where they are."""
    task = glue(name)
    splits = ("train", validation(name), "test")
    lines = ["---", "configs:", f"- config_name: {name}", "  data_files:"]
    (root / name).mkdir(parents=True)
    features = {column: datasets.Value("string") for column in task.columns} | {"idx": datasets.Value("int32")}
    features["label"] = datasets.ClassLabel(names=list(task.labels)) if task.labels else datasets.Value("float32")
    for split, size in zip(splits, sizes, strict=True):
        rows = {column: [f"{split} {column} {i}{mark}" for i in range(size)] for column in task.columns}
        rows |= {"idx": list(range(size)), "label": [i % 2 for i in range(size)]}
        kept = {key: value for key, value in features.items() if key not in drop}
        data = datasets.Dataset.from_dict({key: rows[key] for key in kept}, features=datasets.Features(kept))
        data.to_parquet(root / name / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))
    return root


@pytest.mark.parametrize("name", ["rte", "mnli", "stsb"])
def test_a_local_directory_in_the_hubs_layout_loads(name, tmp_path):
    splits = glue(name, path=str(write_local(tmp_path / "glue", name))).splits()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 36, "holdout": 4, "validation": 6}
    column = glue(name).columns[0]
    assert splits["validation"][column][0] == f"{validation(name)} {column} 0"


def test_the_holdout_is_cut_from_the_training_data_and_is_the_same_every_time(tmp_path):
    path = str(write_local(tmp_path / "glue"))
    splits, again = (glue("rte", path=path, share=0.25).splits() for _ in range(2))
    train, holdout = set(splits["train"]["sentence1"]), set(splits["holdout"]["sentence1"])
    assert (len(train), len(holdout)) == (30, 10)
    assert train | holdout == {f"train sentence1 {i}" for i in range(40)}
    assert all(text.startswith("train") for text in splits["holdout"]["sentence1"])
    assert {name: rows.to_list() for name, rows in again.items()} == {n: rows.to_list() for n, rows in splits.items()}


def test_the_holdout_has_at_most_so_many_examples_and_training_can_be_cut_without_touching_it(tmp_path):
    path = str(write_local(tmp_path / "glue"))
    splits = glue("rte", path=path, share=0.5, most=3).splits()
    assert len(splits["holdout"]) == 3
    few = glue("rte", path=path, share=0.5, most=3, train_examples=7).splits()
    assert few["train"].to_list() == splits["train"].to_list()[:7]
    assert few["holdout"].to_list() == splits["holdout"].to_list()
    assert len(glue("rte", path=path, train_examples=10**6).splits()["train"]) == 36


def test_each_of_two_directories_of_one_name_gives_its_own_data_and_a_changed_one_its_new_data(tmp_path):
    paths = [write_local(tmp_path / str(i) / "glue", mark=f" of {i}") for i in range(2)]
    texts = [glue("rte", path=str(path)).splits()["validation"]["sentence1"][0] for path in paths]
    assert texts == ["validation sentence1 0 of 0", "validation sentence1 0 of 1"]
    new = write_local(tmp_path / "new", mark=" anew")
    (new / "rte" / "validation-00000-of-00001.parquet").replace(paths[0] / "rte" / "validation-00000-of-00001.parquet")
    again = glue("rte", path=str(paths[0])).splits()
    assert again["validation"]["sentence1"][0] == "validation sentence1 0 anew"


def test_a_data_set_without_the_tasks_columns_is_refused(tmp_path):
    path = write_local(tmp_path / "glue", drop=("sentence2",))
    with pytest.raises(ValueError, match=r"the training split has no column \['sentence2'\]"):
        glue("rte", path=str(path)).splits()


SIZES = {
    "cola": (8551, 1043),
    "mrpc": (3668, 408),
    "rte": (2490, 277),
    "sst2": (67349, 872),
    "stsb": (5749, 1500),
    "wnli": (635, 71),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="the GLUE data are not beside the repository")
@pytest.mark.parametrize("name", SIZES)
def test_the_real_data_have_the_columns_the_sizes_and_the_labels_that_the_task_says(name):
    task = glue(name, path=str(REAL))
    splits = task.splits()
    train, validation = SIZES[name]
    holdout = min(2000, round(0.1 * train))
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": train - holdout,
        "holdout": holdout,
        "validation": validation,
    }
    label = splits["train"].features["label"]
    if task.labels:
        assert tuple(label.names) == task.labels
        assert set(splits["validation"]["label"]) == set(range(len(task.labels)))
    else:
        assert label.dtype.startswith("float")
        assert 0 <= min(splits["validation"]["label"]) <= max(splits["validation"]["label"]) <= 5
    for column in task.columns:
        assert all(isinstance(text, str) and text for text in splits["validation"][column])
    whole = datasets.load_dataset(str(REAL), name, split="train")
    train, holdout, _, all_of_them = (
        Counter(zip(*(rows[column][:] for column in task.reads), strict=True)) for rows in (*splits.values(), whole)
    )
    assert train + holdout == all_of_them
