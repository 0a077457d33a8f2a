"""Databases and trial stores of studies."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from prometar.io.yamltext import parse_yaml
from tune.config import StudyConfig
from tune.records.folder import StudyFolder
from tune.records.schema import EpochReport, RunScore
from tune.space.ranges import Settings
from tune.space.space import Space, build_space
from tune.store.storage import open_storage
from tune.store.trial_store import TrialStore

NAME = "s"
"""Name of the study."""
PLAIN = """
regularizer.text_weight: {type: float, low: 1.0, high: 100.0, log: true}
augment.jitter: {type: float, low: 0.0, high: 0.5}
"""
"""A space of two settings."""
BASELINE = {"regularizer.text_weight": 50.0, "augment.jitter": 0.0}
"""ProMetaR's default values of `PLAIN`."""


def new_database(folder: Path) -> str:
    """Return the URL of FOLDER/study.db, which is created if it does not exist.

    It is a copy of an empty database, because Optuna needs forty statements to create one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.db"
    if not path.exists():
        path.write_bytes(_empty())
    return f"sqlite:///{path}"


@cache
def _empty() -> bytes:
    """Return the content of a new database of Optuna."""
    with TemporaryDirectory() as folder:
        storage = RDBStorage(f"sqlite:///{folder}/study.db")
        storage.engine.dispose()
        return Path(folder, "study.db").read_bytes()


def open_study(url: str, name: str = NAME) -> optuna.Study:
    """Load an Optuna study, as another process would."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.load_study(storage=url, study_name=name)


def space_from(text: str, name: str = "mine") -> Space:
    """Return a space, given its YAML text."""
    return build_space(parse_yaml(text, where=name), name=name)


def study_config(out: Path, *, space: str = PLAIN, **options: Any) -> StudyConfig:
    """Return the configuration of a study in OUT/s.

    Args:
        out: Parent of the study's folder.
        space: YAML text of the space.
        options: Options of `StudyConfig.of`.
    """
    options = {"trials": 100, "pruner": "none", "seed": 3, "study": NAME, **options}
    return StudyConfig.of(space=space_from(space), out=out, **options)


def open_store(
    out: Path, *, url: str = "", storage: BaseStorage | None = None, concurrency: int = 1, **options: Any
) -> TrialStore:
    """Return the trial store of a study in OUT/s.

    Args:
        out: Parent of the study's folder.
        url: URL of the database. Default: OUT/s/study.db.
        storage: Open storage, in place of `url`.
        concurrency: Number of trials that run at the same time.
        options: Arguments of `study_config`.
    """
    config = study_config(out, storage=url, **options)
    folder = out / NAME
    storage = storage or open_storage(url or new_database(folder))
    return TrialStore(config, storage, StudyFolder(folder), {"weights": "abc"}, concurrency=concurrency)


def score(settings: Settings) -> float:
    """Return the objective of settings of `PLAIN`. It is highest at a text_weight of 10 and a jitter of 0."""
    weight = float(settings["regularizer.text_weight"])
    jitter = float(settings["augment.jitter"])
    return 60.0 - abs(weight - 10) / 10 - 10 * jitter


def report(trial: FrozenTrial, epoch: int = 1, *, of: int = 1, objective: float | None = None) -> EpochReport:
    """Return the report of an epoch.

    Args:
        trial: The trial.
        epoch: Number of the epoch.
        of: Number of epochs of the trial.
        objective: Value of the objective. Default: the `score` of the trial's settings plus the epoch.
    """
    if objective is None:
        objective = score(trial.params) + epoch
    run = RunScore(
        dataset="textures",
        seed=3,
        base=objective,
        new=100 - objective,
        objective=objective,
        seconds=float(epoch),
        cpus=2.0,
        gpus=0.5,
    )
    return EpochReport(epoch, (run,), finished=epoch == of)


Samples = list[tuple[int, dict[str, Any]]]
"""Numbers and settings of trials."""


def sample(trial: FrozenTrial | None) -> tuple[int, dict[str, Any]]:
    """Return the number and the settings of a trial."""
    assert trial is not None
    return trial.number, trial.params


def run(store: TrialStore, value: Callable[[Any], float] = score, most: int = 10**6) -> Samples:
    """Complete trials in sequence, at most `most`. Return their numbers and settings.

    Args:
        store: The trial store.
        value: Function that returns the objective of settings.
        most: Maximum number of trials. Default: until the store has no more.
    """
    completed: Samples = []
    while len(completed) < most:
        trial = store.ask()
        if trial is None:
            break
        continues = store.report(trial.number, report(trial, objective=value(trial.params)))
        assert not continues  # the report is that of the last epoch
        completed.append(sample(trial))
    return completed
