"""Contracts of all samplers and pruners.

Sampled settings lie in the space, and depend only on the seed, the trial's number and earlier results.
"""

import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage, InMemoryStorage

from prometar.errors import InfrastructureError, UserError
from tests.support.databases import open_store, report, space_from
from tune.store.samplers import STARTUP_TRIALS
from tune.store.trial_store import TrialStore

SAMPLERS = ("tpe", "random", "gp")
PRUNERS = ("percentile", "median", "asha", "hyperband", "none")
SPACES = {
    "plain": """
optim.lr: {type: float, low: 0.001, high: 1.0, log: true}
augment.jitter: {type: float, low: 0.0, high: 0.5}
data.shots: {type: int, low: 1, high: 16, log: true}
regularizer.kind: {type: choice, choices: [l1, l2, none]}
""",
    "conditional": """
regularizer.kind: {type: choice, choices: [l1, l2, none]}
regularizer.text_weight: {type: float, low: 1.0, high: 100.0, log: true, when: {regularizer.kind: [l1, l2]}}
optim.lr: {type: float, low: 0.001, high: 1.0, log: true}
""",
}
BASELINE: dict[str, dict[str, Any]] = {
    "plain": {"optim.lr": 0.0025, "augment.jitter": 0.0, "data.shots": 16, "regularizer.kind": "l1"},
    "conditional": {"regularizer.kind": "l1", "regularizer.text_weight": 50.0, "optim.lr": 0.0025},
}
TRIALS = STARTUP_TRIALS + 2
"""Number of trials. The first ones are random, and the sampler's model chooses the last two."""


def store_of(
    folder: Path, sampler: str, space: str, storage: BaseStorage | None = None, **options: Any
) -> TrialStore:
    """Return a trial store in memory, which is ten times as fast as a database.

    Args:
        folder: Parent of the study's folder.
        sampler: Name of the sampler.
        space: Name of the space, a key of `SPACES`.
        storage: Storage of another store, to resume its study. Default: an empty one.
        options: Options of `open_store`.
    """
    options = {"trials": TRIALS, **options}
    if storage is None:
        storage = InMemoryStorage()
    return open_store(folder, storage=storage, sampler=sampler, space=SPACES[space], **options)


def objective_of(settings: dict[str, Any]) -> float:
    """Return an objective in percent. It is highest at a learning rate of 0.05 and a low text weight."""
    distance = abs(settings["optim.lr"] - 0.05)
    weight = settings.get("regularizer.text_weight", 3.0)
    return 60.0 - 10 * distance - weight / 10


def run(
    store: TrialStore, *, concurrent: int = 1, order: random.Random | None = None
) -> list[dict[str, Any]]:
    """Complete all trials of a store.

    Args:
        store: The trial store.
        concurrent: Number of trials that run at the same time.
        order: Random generator that chooses which running trial ends next. Default: the oldest one.

    Returns:
        Settings of the trials, ordered by number.
    """
    sampled: dict[int, dict[str, Any]] = {}
    running: list[Any] = []
    while True:
        while len(running) < concurrent:
            trial = store.ask()
            if trial is None:
                break
            running.append(trial)
            sampled[trial.number] = trial.params
        if not running:
            return [sampled[number] for number in sorted(sampled)]
        position = 0
        if order is not None:
            position = order.randrange(len(running))
        ended = running.pop(position)
        store.report(ended.number, report(ended, objective=objective_of(ended.params)))


Sampled = Callable[[str, str], list[dict[str, Any]]]
"""Function that returns the settings of a study's trials, given the names of its sampler and its space."""


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """A function that runs a study without interruption, once for all tests."""

    @cache
    def run_study(sampler: str, space: str) -> list[dict[str, Any]]:
        return run(store_of(tmp_path_factory.mktemp("whole"), sampler, space))

    return run_study


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_baseline_is_first_and_samples_are_distinct_and_lie_in_the_space(
    sampler: str, space: str, sampled: Sampled
) -> None:
    samples = sampled(sampler, space)

    assert samples[0] == BASELINE[space]
    assert len({repr(settings) for settings in samples}) == TRIALS, "no settings are repeated"
    parsed = space_from(SPACES[space])
    for settings in samples:
        assert parsed.check(settings, where="a sample") == settings
        active = {key for key, entry in parsed.ranges.items() if entry.is_active(settings)}
        assert settings.keys() == active


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_is_resumed_several_times_samples_the_same_settings(
    tmp_path: Path, sampler: str, space: str, sampled: Sampled
) -> None:
    storage = InMemoryStorage()
    resumed = []
    for trials in (3, STARTUP_TRIALS, TRIALS - 1, TRIALS):
        resumed += run(store_of(tmp_path, sampler, space, storage, trials=trials))

    assert resumed == sampled(sampler, space)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_samples_other_settings(
    tmp_path: Path, sampler: str, space: str, sampled: Sampled
) -> None:
    _, *with_other_seed = run(store_of(tmp_path, sampler, space, seed=6, trials=4))
    _, *with_default_seed = sampled(sampler, space)
    assert with_other_seed != with_default_seed[: len(with_other_seed)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_concurrent_trials_that_end_in_the_same_order_have_the_same_settings(
    tmp_path: Path, sampler: str
) -> None:
    first = run(store_of(tmp_path, sampler, "plain"), concurrent=4, order=random.Random(1))
    second = run(store_of(tmp_path, sampler, "plain"), concurrent=4, order=random.Random(1))
    assert first == second

    # Random samples equal those of a sequential study. Samples of a model depend on which trials have ended.
    num_independent = TRIALS if sampler == "random" else STARTUP_TRIALS
    sequential = run(store_of(tmp_path, sampler, "plain", trials=num_independent))
    assert first[:num_independent] == sequential


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_waits_for_as_many_results_as_trials_are_concurrent(tmp_path: Path, sampler: str) -> None:
    random_settings = run(store_of(tmp_path, "random", "plain", trials=12))

    def first_modelled(concurrency: int) -> int:
        """Return the number of the first trial whose settings are not random."""
        sampled = run(store_of(tmp_path, sampler, "plain", trials=12, concurrency=concurrency))
        return next(number for number in range(12) if sampled[number] != random_settings[number])

    assert first_modelled(concurrency=1) == STARTUP_TRIALS
    assert first_modelled(concurrency=10) == 10


def quality_of(number: int) -> float:
    """Return the objective of a trial in its first epoch. Every third trial is far better than the rest."""
    if number == 0:
        return 1.0  # the baseline is poor, so a pruner would prune it
    if number % 3 == 0:
        return float(100 + number)
    return number % 3 - number / 100


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_keeps_the_baseline_and_the_best_trials(tmp_path: Path, pruner: str) -> None:
    num_epochs = 9
    num_trials = 30
    concurrency = 9
    store = store_of(
        tmp_path,
        "random",
        "plain",
        pruner=pruner,
        trials=num_trials,
        settings={"train.epochs": num_epochs},
        concurrency=concurrency,
    )
    last_epoch_of_pruned: dict[int, int] = {}  # by number of the trial
    for number in range(num_trials):
        trial = store.ask()
        assert trial is not None
        for epoch in range(1, num_epochs + 1):
            objective = quality_of(number) * epoch
            continues = store.report(number, report(trial, epoch, of=num_epochs, objective=objective))
            if not continues and epoch < num_epochs:
                last_epoch_of_pruned[number] = epoch
                break

    is_active = len(last_epoch_of_pruned) > 0
    assert is_active == (pruner != "none")
    for number, epoch in last_epoch_of_pruned.items():
        assert number > 0, "the baseline is kept"
        assert quality_of(number) < 100, "the best trials are kept"
        assert epoch >= 2, "the first epoch decides nothing"
    if pruner in ("percentile", "median"):
        assert min(last_epoch_of_pruned) >= concurrency, "the trials that start without any result are kept"


# Module of a user. Its functions `sampler`, `outside` and `nothing` are values of --sampler, and `pruner` and
# `lost` are values of --pruner.
CUSTOM = """
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler


class Sampler(RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        if trial.number == 2:
            return 1 / 0
        return super().sample_independent(study, trial, name, distribution)


class Outside(RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        value = super().sample_independent(study, trial, name, distribution)
        return 17 if name == "data.shots" and trial.number == 1 else value


class Pruner(BasePruner):
    def prune(self, study, trial):
        raise IndexError("no curve")


class Lost(BasePruner):
    def prune(self, study, trial):
        raise StorageInternalError("the server is gone")


def sampler(space, seed):
    return Sampler(seed)


def outside(space, seed):
    return Outside(seed)


def nothing(space, seed):
    return None


def pruner(epochs):
    return Pruner()


def lost(epochs):
    return Lost()
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `CUSTOM` importable as `own_choices`."""
    (tmp_path / "own_choices.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_choices", raising=False)


@pytest.mark.usefixtures("custom")
def test_a_custom_sampler_that_fails_is_named(tmp_path: Path) -> None:
    store = store_of(tmp_path, "own_choices:sampler", "plain")
    assert store.ask() is not None
    assert store.ask() is not None
    with pytest.raises(UserError, match=r"own_choices:sampler fails: ZeroDivisionError"):
        store.ask()


@pytest.mark.usefixtures("custom")
def test_a_custom_pruner_that_fails_is_named(tmp_path: Path) -> None:
    store = store_of(tmp_path, "own_choices:sampler", "plain", pruner="own_choices:pruner")
    baseline = store.ask()
    second = store.ask()
    assert baseline is not None
    assert second is not None

    assert store.report(0, report(baseline, of=2, objective=50.0)), "the baseline is never pruned"
    with pytest.raises(UserError, match=r"own_choices:pruner fails: IndexError: no curve \(own_choices.py"):
        store.report(1, report(second, of=2, objective=50.0))


@pytest.mark.usefixtures("custom")
def test_a_custom_sampler_that_is_none_is_refused(tmp_path: Path) -> None:
    expected = "--sampler own_choices:nothing must return an Optuna sampler, got None"
    with pytest.raises(UserError, match=expected):
        store_of(tmp_path, "own_choices:nothing", "plain").ask()


@pytest.mark.usefixtures("custom")
def test_a_lost_storage_is_not_reported_as_an_error_of_a_custom_pruner(tmp_path: Path) -> None:
    store = store_of(tmp_path, "random", "plain", pruner="own_choices:lost")
    store.ask()
    trial = store.ask()
    assert trial is not None
    with pytest.raises(InfrastructureError, match=r"The study storage .* failed: the server is gone"):
        store.report(1, report(trial, of=2, objective=50.0))


@pytest.mark.usefixtures("custom")
def test_a_sample_outside_the_space_is_refused_and_not_stored(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    store = store_of(tmp_path, "own_choices:outside", "plain", storage)
    store.ask()
    with pytest.raises(UserError, match=r"own_choices:outside sampled data.shots = 17, outside 1 \.\. 16"):
        store.ask()

    study_id = storage.get_study_id_from_name("s")
    assert len(storage.get_all_trials(study_id)) == 1, "only the baseline"
