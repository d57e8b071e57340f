"""Tune values of a run on the holdout, with Optuna's TPE:

python experiments/tune/run.py outputs/tune/rte --trials 20 --seeds 2 task=rte model=pretrained model.path=my-bert \\
    'recipe.phases.admm.method.rho=tag(log,interval(1e-4,1e-1))' recipe.phases.admm.method.course=constant,ramp

What has several values is searched, in Hydra's words: interval(a,b) between two numbers, integers where both are, on a
logarithmic scale with tag(log,interval(a,b)); a,b,c or range(a,b,c) for choices. The rest is given to every trial. The
same command continues a study that was killed, and with more --trials extends it.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import hydra
import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from nxmiformer import cli

OURS = {"report_on": "holdout", "resume": "true"}  # nobody chooses anything by looking at validation


def main() -> None:
    parser, arguments = _arguments()
    try:
        space, fixed = _split(arguments.overrides)
        _check(space, fixed)
        study = _study(
            arguments.directory, {"searched": sorted(space), "fixed": sorted(fixed), "seeds": arguments.seeds}
        )
    except ValueError as error:
        parser.error(str(error))
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # a kill left it
        if trial.params.keys() == space.keys():
            _finish(study, trial, fixed, arguments)
        else:  # before it had all its values
            study.tell(trial.number, state=TrialState.FAIL)
    while len(study.trials) < arguments.trials:
        # Seeded by the trial, so that a study that was killed asks what it would have asked.
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
        _finish(study, study.ask(space), fixed, arguments)
    if not study.get_trials(states=[TrialState.COMPLETE]):
        sys.exit(f"all trials failed; those that began have a failed.json below {arguments.directory}")
    print(f"best on the holdout: {study.best_value:.4f} of trial {study.best_trial.number}:")
    print("  " + " ".join(_words(study.best_params)))


def _finish(study: optuna.Study, trial: Any, fixed: list[str], arguments: argparse.Namespace) -> None:
    """Run or resume the trial's jobs, one a seed, as a sweep in its directory, and tell the study their mean score."""
    place, seeds = arguments.directory / str(trial.number), range(arguments.seeds)
    ours = {"hydra.sweep.dir": place, "seed": ",".join(map(str, seeds)), **OURS}
    sys.argv = ["nxmiformer", "-m", *fixed, *_words(trial.params), *_words(ours)]
    try:
        cli.main()  # not as a process of its own: a kill ends both
    except SystemExit:
        study.tell(trial.number, state=TrialState.FAIL)
        return
    reports = [json.loads((place / str(job) / "report.json").read_text()) for job in seeds]
    assert all(report["report_on"] == "holdout" for report in reports)
    score = statistics.mean(report["scores"]["packed"][report["task"]["metric"]] for report in reports)
    study.tell(trial.number, score)
    print(f"trial {trial.number}: {score:.4f} with {' '.join(_words(trial.params))}", flush=True)


def _words(values: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _split(overrides: list[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """What is searched, and what is given to every trial."""
    space: dict[str, BaseDistribution] = {}
    fixed = []
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except hydra.errors.HydraException as error:
        raise ValueError(str(error)) from error
    for override in parsed:
        key, value = override.get_key_element(), override.value()
        if key == "seed":
            raise ValueError(f"{override.input_line}: give --seeds; a trial's score is their mean")
        if key in OURS and (override.is_sweep_override() or str(value).lower() != OURS[key]):
            raise ValueError(f"{override.input_line}: a study always has {key}={OURS[key]}")
        if override.is_interval_sweep():
            ends = (value.start, value.end)
            kind = IntDistribution if all(isinstance(end, int) for end in ends) else FloatDistribution
            space[key] = kind(*ends, log="log" in value.tags)
        elif override.is_sweep_override():
            space[key] = CategoricalDistribution(list(override.sweep_string_iterator()))
        elif key not in OURS:
            fixed.append(override.input_line)
    if not space:
        raise ValueError("nothing is searched: give a value an interval, or several choices")
    return space, fixed


def _check(space: dict[str, BaseDistribution], fixed: list[str]) -> None:
    """Refuse what describes no job before a study is made of it."""
    first = {
        key: each.choices[0] if isinstance(each, CategoricalDistribution) else each.low for key, each in space.items()
    }
    try:
        with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
            cli.build(hydra.compose("config", ["name=trial", *fixed, *_words(first)]), Path("trial"))
    except hydra.errors.HydraException as error:
        raise ValueError(str(error)) from error


def _study(directory: Path, about: dict[str, Any]) -> optuna.Study:
    """The study that is kept in the directory, a new one where there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{directory / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="tune", direction="maximize", load_if_exists=True)
    if study.user_attrs.setdefault("about", about) != about:
        raise ValueError(f"{directory} holds a study of {study.user_attrs['about']}, not of {about}; name another")
    study.set_user_attr("about", about)
    return study


def _arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the study and the runs of its trials are kept")
    parser.add_argument("overrides", nargs="+", help="as nxmiformer takes them, some with several values")
    parser.add_argument("--trials", type=int, default=20, help="in all, failed ones too (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on, a trial runs (default: %(default)s)")
    return parser, parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
