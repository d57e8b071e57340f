import json
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from nxmiformer import cli, conf
from nxmiformer.jobs import work
from nxmiformer.jobs.job import Job
from nxmiformer.methods.base import Method
from nxmiformer.plan.origin import Planning
from nxmiformer.search.budget import Budget
from nxmiformer.search.search import Search
from nxmiformer.tasks.task import Task
from nxmiformer.train.recipe import Recipe

ROOT = Path(next(iter(conf.__path__)))


def options(group):
    """The options of a group that are whole."""
    return sorted(path.stem for path in (ROOT / group).glob("*.yaml") if path.stem not in ("base", "common"))


OTHERS = [
    f"{group}={name}"
    for group in ("bench", "blockwise", "budget", "format", "job", "model", "tracker", "train")
    for name in options(group)
]


def compose(*overrides):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return hydra.compose("config", list(overrides))


def build(*overrides):
    config = compose("name=run", *overrides)
    return cli.build(config, Path("nowhere"))


GROUPS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and list(path.glob("*.yaml")))


def test_every_group_is_known_here():
    assert GROUPS == [
        "bench",
        "blockwise",
        "budget",
        "experiment",
        "format",
        "job",
        "method",
        "model",
        "phase",
        "plan",
        "recipe",
        "search",
        "sensitivity",
        "task",
        "tracker",
        "train",
    ]


SOME = {"name": "cola", "path": "nowhere", "columns": "[en,de]"}  # of what a task must be given


@pytest.mark.parametrize("task", options("task"))
def test_every_task_builds_a_job_and_reads_nothing_yet(task):
    missing = OmegaConf.missing_keys(compose("name=run", f"task={task}").task)
    job = build(f"task={task}", *(f"{key}={SOME[key.rpartition('.')[2]]}" for key in missing))
    assert isinstance(job.task, Task)
    assert job.task.name == (SOME["name"] if "task.name" in missing else task)


BLOCKS = {
    "block": "32x32@0.5",
    "hybrid": "32x32@0.5",
    "kronecker": "kron2x2",
    "kronecker_int8": "kron2x2+int8",
}  # whose names do not tell their sets
WORDS = {
    "fullyqt": "int8",
    "int8_static": "int8",
    "structured": "32x32@0.5",
    "unstructured": "0.1dense",
    "unstructured_int8": "0.1dense_int8",
}  # nor do these


def together(first, second):
    """The options of two groups that know nothing of each other: each at least once."""
    one, other = options(first), options(second)
    return [(one[i % len(one)], other[i % len(other)]) for i in range(max(len(one), len(other)))]


@pytest.mark.parametrize(("recipe", "plan"), together("recipe", "plan"))
def test_every_recipe_and_every_plan_builds_a_job(recipe, plan):
    job = build(f"recipe={recipe}", f"plan={plan}")
    assert isinstance(job, Job)
    assert isinstance(job.recipe, Recipe)
    dense, compressing, *_ = job.recipe.phases
    assert dense == "dense"
    assert recipe.startswith(compressing)
    assert job.recipe.phases[compressing].relative == recipe.endswith("_relative")
    assert isinstance(job.planning, Planning)
    assert job.planning.name == plan
    if plan in BLOCKS:
        assert str(job.planning.weight) == BLOCKS[plan]
        assert job.planning.activations is None
        return
    layers = str(job.planning.weight).replace(":", "of").replace("c+", "+").replace("+", "_")  # c: another coding
    assert f"{layers}{'_whole' if job.planning.embeddings and job.planning.head else ''}" == WORDS.get(plan, plan)
    assert (job.planning.activations is None) == ("int" not in plan)


@pytest.mark.parametrize("choice", OTHERS)
def test_every_option_of_the_other_groups_builds_a_job(choice):
    assert isinstance(build(choice), Job)


@pytest.mark.parametrize(("search", "sensitivity"), together("search", "sensitivity"))
def test_every_search_and_every_sensitivity_builds_a_job(search, sensitivity):
    job = build(f"search={search}", f"sensitivity@search.sensitivity={sensitivity}", "budget.ratio=0.1")
    assert isinstance(job.search, Search)
    assert type(job.search.sensitivity).__name__.lower() == sensitivity.replace("_", "")
    assert job.budget == Budget(ratio=0.1)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_builds_a_job(experiment):
    job = cli.build(compose(f"experiment={experiment}"), Path("nowhere"))
    assert job.name == experiment


@pytest.mark.parametrize("phase", options("phase"))
def test_every_phase_can_be_added_to_a_recipe(phase):
    job = build(f"+phase@recipe.phases.more={phase}")
    assert list(job.recipe.phases) == ["dense", "admm", "finish", "more"]
    assert isinstance(job.recipe.phases["more"].method, Method)


@pytest.mark.parametrize("method", options("method"))
def test_every_method_can_be_that_of_a_phase(method):
    job = build(f"method@recipe.phases.finish.method={method}")
    assert type(job.recipe.phases["finish"].method).__name__.lower() == method.replace("_", "")


def test_wandb_is_off_unless_asked_for():
    assert build().wandb is None
    assert build("tracker=wandb", "tracker.wandb.mode=offline").wandb == {
        "project": "nxmiformer",
        "name": "run",
        "group": None,
        "mode": "offline",
    }


def test_a_job_keeps_its_whole_configuration_as_plain_values():
    overrides = ["name=run", "seed=3", "plan.weight.second.bits=3"]
    job = cli.build(compose(*overrides), Path("nowhere"))
    assert job.config == OmegaConf.to_container(compose(*overrides), resolve=True)
    assert json.loads(json.dumps(job.config)) == job.config
    assert (job.seed, job.planning.weight.second.bits, job.directory) == (3, 3, Path("nowhere"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.clip=null"],
        ["train.clip=2"],
        ["recipe.phases.admm.steps=7"],
        ["recipe.phases.admm.epochs=2"],
        ["recipe.phases.admm.optimizer._target_=torch.optim.SGD"],
        ["+recipe.phases.admm.optimizer.betas=[0.8,0.9]"],
        ["plan.include=['*.query']"],
        ["plan.activations=null"],
        ["plan.weight.second.group=8"],
        ["recipe.phases.admm.method.importance=second_moment"],
        ["++recipe.phases.admm.method.refresh=4"],
        ["recipe.phases.admm.schedule=warmup_stable_decay", "+recipe.phases.admm.schedule_options.num_decay_steps=2"],
        ["recipe.phases.admm.schedule=cosine_with_min_lr", "+recipe.phases.admm.schedule_options.min_lr_rate=0.1"],
    ],
    ids=str,
)
def test_what_may_be_set_is_let_through(overrides):
    assert isinstance(build(*overrides), Job)


# Mistakes.


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run the console script up to where the job would start: exit status, and what it wrote to stderr."""

    def call(*words):
        def started(job):
            raise AssertionError("the job was started")

        monkeypatch.setattr(work, "run", started)
        monkeypatch.setattr(sys, "argv", ["nxmiformer", *words])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as error:
            cli.main()
        return error.value.code, capsys.readouterr().err

    return call


def test_one_of_several_processes_that_nobody_has_started_is_refused_before_it_touches_anything(
    command, monkeypatch, tmp_path
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, message = command("name=demo")
    assert code == 2
    assert "WORLD_SIZE=2, and RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set" in message
    assert list(tmp_path.iterdir()) == []


ADMM = "recipe.phases.admm"
FINISH = "recipe.phases.finish"
AT_ONCE = [
    {
        "+train.batchsize=1": "unknown key of train 'batchsize': did you mean batch_size",
        "+plan.weight.second.bit=1": "unknown key of plan.weight.second 'bit': did you mean bits?",
        "seed=abc": "seed=abc: its value must be of type int",
        "resume=maybe": "resume=maybe: its value must be of type bool",
        f"{ADMM}.method.rho=abc": f"{ADMM}.method.rho=abc: its value must be of type float",
        f"{ADMM}.steps=1.5": f"{ADMM}.steps=1.5: its value must be of type int",
        f"{ADMM}.epochs=long": f"{ADMM}.epochs=long: its value must be of type float",
        f"{ADMM}.weight_decay=nan": f"{ADMM}.weight_decay=nan: its value must be a finite number",
        f"{ADMM}.schedule=3": f"{ADMM}.schedule=3: its value must be of type str",
        f"{ADMM}.objective.logits=true": f"{ADMM}.objective.logits=True: its value must be of type float",
        f"{ADMM}.objective.temperature=nan": f"{ADMM}.objective.temperature=nan: its value must be a finite number",
        f"{ADMM}.optimizer.lr=abc": f"{ADMM}.optimizer.lr=abc: its value must be like 0.001",
        f"+{ADMM}.optimizer.betas=[]": f"{ADMM}.optimizer.betas=[]: its value must be like (0.9, 0.999)",
        f"{FINISH}.steps=1{'0' * 30}": "its value must be a number that fits into 64 bits",
        f"{FINISH}.epochs=inf": f"{FINISH}.epochs=inf: its value must be a finite number",
        f"{FINISH}.method=ramp": f"{FINISH}.method=ramp: its value must be of type Method",
        f"{FINISH}.optimizer.lr=true": f"{FINISH}.optimizer.lr=True: its value must be like 0.001",
        "plan.exclude=[3]": "plan.exclude[0]=3: its value must be of type str",
        "plan.weight.first.coding=3": "plan.weight.first.coding=3: its value must be one of hardware, dense",
        "train.batch_size=abc": "train.batch_size=abc: its value must be of type int",
        "train.clip=abc": "train.clip=abc: its value must be of type float",
        "model.hidden=wide": "model.hidden=wide: its value must be of type int",
        "budget.ratio=nan": "budget.ratio=nan: its value must be a finite number",
        "bench.lengths=8": "bench.lengths=8: its value must be of type list",
        "tracker.wandb=3": "tracker.wandb=3: its value must be of type mapping",
    },
    {
        "seed=1.5": "seed=1.5: its value must be of type int",
        f"{ADMM}=null": f"{ADMM}=null: its value must be of type Phase",
        f"{FINISH}.optimizer._target_=torch.optim.Adan": f"{FINISH}.optimizer._target_='torch.optim.Adan': there is no",
        "plan.exclude=classifier": "plan.exclude=classifier: its value must be of type list",
    },
    {
        "seed=null": "seed=null: its value must be of type int",
        f"{ADMM}._target_=torch.optim.SGD": "it is not a Phase",
        f"{FINISH}.optimizer.lr=nan": f"{FINISH}.optimizer.lr=nan: its value must be a finite number",
    },
]
MISTAKES = {
    "plan.weight.second.bit=4": "there is no plan.weight.second.bit: did you mean plan.weight.second.bits?",
    "train.batchsize=3": "train.batch_size",
    "planx=int4": "did you mean plan",
    "recipe.phases.finsh.steps=3": "did you mean recipe.phases.finish",
    f"{ADMM}.method.roh=1": f"did you mean {ADMM}.method.rho",
    f"{ADMM}.optimizer.lrr=1": f"did you mean {ADMM}.optimizer.lr?",
    "+sed=1": "unknown key 'sed': did you mean seed",
    "hydra.run.dirr=3": "did you mean hydra.run.dir?",
    "plan=2of4_int5": "unknown option of plan '2of4_int5': did you mean 2of4_int",
    "recipe=adm": "unknown option of recipe 'adm': did you mean admm",
    "task=rtee": "unknown option of task 'rtee': did you mean rte",
    "tracker=foo": "there are jsonl, wandb",
    "experiment=demoo": "did you mean demo?",
    "hydra/launcher=foo": "unknown option of hydra/launcher 'foo'",
    "model=pretrained model.path=/nowhere/bert": "model.path=/nowhere/bert: there is no such directory",
    "plan.path=nowhere.json": "plan.path=nowhere.json: there is no such file",
    "report_on=test": "report_on is 'validation' or 'holdout', not 'test'",
    f"{ADMM}.method.rho=-1": "rho must be a positive number",
    f"{ADMM}.method.interval=0": "interval must be at least one optimizer step, not 0",
    f"{ADMM}.method.course=rampp": "unknown course of rho 'rampp': did you mean ramp",
    f"{ADMM}.schedule=linaer": "unknown schedule of the learning rate 'linaer': did you mean linear",
    f"{ADMM}.optimizer.lr=-1": f"{ADMM}: optimizer: Invalid learning rate: -1",
    f"+{ADMM}.optimizer.beta=1": f"{ADMM}: optimizer: AdamW.__init__() got an unexpected keyword argument 'beta'",
    f"{ADMM}.optimizer._target_=torch.optim.LBFGS": f"{ADMM}: optimizer: LBFGS doesn't support",
    f"{ADMM}.weight_decay=-1": f"{ADMM}: weight_decay must not be negative, not -1",
    f"{ADMM}.schedule=reduce_lr_on_plateau": "schedule=reduce_lr_on_plateau follows a score; a phase takes one of",
    f"{ADMM}.schedule=warmup_stable_decay": f"{ADMM}: schedule=warmup_stable_decay needs more than its name: "
    "schedule_options.num_decay_steps=...",
    f"{ADMM}.schedule=cosine_with_min_lr": f"{ADMM}: schedule=cosine_with_min_lr, schedule_options={{}}: One of min_lr",
    f"+{ADMM}.schedule_options.cycles=2": "unknown option of schedule=constant_with_warmup 'cycles': there are none",
    "seed=-1": "seed=-1: a seed is at least 0",
    "task=null": "cola, embeddings, grammar, imdb",
    "model=null": "model=null: choose one of embedded, pretrained",
    "plan=null": "plan=null: choose one of 1of4_int4",
    "recipe=3": "recipe=3: choose one of admm",
    "train=null search=true job=null": "train=null: choose one of default\n  search=True: choose one of base",
    "~budget": "these values must be given: budget=...",
    "~resume": "these values must be given: resume=...",
    "plan.weight.second.bits=9": "plan.weight.second: Grid needs 1 <= bits <= 8, not bits=9",
    "plan.weight.first.keep=5": "plan.weight.first: NM needs 1 <= keep <= group <= 64",
    "plan.activations.bits=16": "plan.activations: activations take 2 to 8 bits, not 16",
    "plan.embeddings=int": "plan: 'int' is not a set",
    "plan.weight=null": "a plan needs plan.weight or plan.path",
    "job=serch": "unknown option of job 'serch': did you mean search or bench?",
    "budget.ratio=1.5": "budget.ratio=1.5: it must be above 0 and at most 1",
    "budget.ratio=0.1 budget.bytes=5": "a budget has one limit, not budget.ratio=0.1 and budget.bytes=5",
    "budget.accounting=al": "unknown accounting of a budget 'al': did you mean all",
    "job=search": "a search needs a budget: budget.ratio=..., budget.bytes=... or",
    "search.candidates.sets=[int9]": "search.candidates: Grid needs 1 <= bits <= 8, not bits=9",
    "search.candidates.sets=[2x4]": "search.candidates: '2x4' is not a set",
    "search.candidates.hardware=cpu": "unknown hardware 'cpu': did you mean cpu_int8?",
    "search.keep=0": "search.keep=0: it must be at least 1",
    "search.candidate.tie=free": "did you mean search.candidates",
    "sensitivity@search.sensitivity=measure": "did you mean measured",
    "bench.batches=[0]": "bench.batches=[0]: whole numbers of at least 1",
    "bench.repeats=1": "bench.repeats=1: a median takes at least 3 rounds",
    "bench.repeat=9": "did you mean bench.repeats",
    "train.batch_size=0": "train.batch_size must be at least 1, not 0",
    "train.precision=fp16": "unknown precision 'fp16': did you mean bf16?",
    "task.train=13": "train must be a positive multiple of 12",
    "task=text": "these values must be given: task.path=...",
    "task=text task.path=a.csv task.pth=b": "there is no task.pth: did you mean task.path",
    "task=text task.path=a.csv task.columns=text": "task.columns=text: its value must be of type list",
    "task=text task.path=a.csv task.label=3": "task.label=3: its value must be of type str",
    "task=text task.path=a.csv task.kind=class": "unknown task.kind 'class': did you mean classes",
    "task=text task.path=a.csv task.columns=[a,b,c]": "name one text column, or two",
    "seed=[": "'seed=[' cannot be read",
    "seed": "'seed' sets nothing: write NAME=VALUE, such as seed=1",
    "search": "'search' sets nothing: write NAME=VALUE, such as job=search",
    "name=a=b": "'name=a=b' cannot be read: mismatched input '=' expecting <EOF>\nquote a value that has other ",
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_ends_with_status_2_and_what_is_valid_before_the_job_starts(words, message, command):
    status, told = command(*words.split())
    assert status == 2
    assert message in told
    assert "Traceback" not in told


@pytest.mark.parametrize("mistakes", AT_ONCE, ids=range(len(AT_ONCE)))
def test_all_values_that_are_not_of_their_type_are_told_at_once(mistakes, command):
    status, told = command(*mistakes)
    assert status == 2
    assert [message for message in mistakes.values() if message not in told] == []
    assert "Traceback" not in told
