"""Every sampler and pruner: settings lie in the space, and depend on seed, number and results alone."""

import random
import sys
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
TRIALS = STARTUP_TRIALS + 2  # a model samples the last two


def store_of(
    folder: Path, sampler: str, space: str, storage: BaseStorage | None = None, **options: Any
) -> TrialStore:
    """A store in memory: a database takes ten times as long."""
    options = {"trials": TRIALS, **options}
    return open_store(
        folder, storage=storage or InMemoryStorage(), sampler=sampler, space=SPACES[space], **options
    )


def value_of(settings: dict[str, Any]) -> float:
    return 60.0 - 10 * abs(settings["optim.lr"] - 0.05) - settings.get("regularizer.text_weight", 3.0) / 10


def run(
    store: TrialStore, *, concurrent: int = 1, order: random.Random | None = None
) -> list[dict[str, Any]]:
    """Settings by number. Concurrent trials end in a random order."""
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
        ended = running.pop(order.randrange(len(running)) if order else 0)
        store.report(ended.number, report(ended, objective=value_of(ended.params)))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_settings_lie_in_the_space_and_are_reproducible(tmp_path: Path, sampler: str, space: str) -> None:
    whole = run(store_of(tmp_path, sampler, space))
    parsed = space_from(SPACES[space])
    assert len({repr(each) for each in whole}) == TRIALS
    assert whole[0] == BASELINE[space]
    for each in whole:
        assert parsed.check(each, where="a sample") == each
        assert set(each) == {key for key, entry in parsed.ranges.items() if entry.is_active(each)}
    storage = InMemoryStorage()
    parts = []
    for trials in (3, STARTUP_TRIALS, TRIALS - 1, TRIALS):
        parts += run(store_of(tmp_path, sampler, space, storage, trials=trials))
    assert parts == whole
    assert run(store_of(tmp_path, sampler, space, seed=6, trials=4))[1:] != whole[1:4]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_concurrent_trials_are_sampled_as_reproducibly(tmp_path: Path, sampler: str) -> None:
    four = [run(store_of(tmp_path, sampler, "plain"), concurrent=4, order=random.Random(1)) for _ in range(2)]
    assert four[0] == four[1]
    same = TRIALS if sampler == "random" else STARTUP_TRIALS
    assert four[0][:same] == run(store_of(tmp_path, sampler, "plain", trials=same))


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_waits_for_the_first_wave(tmp_path: Path, sampler: str) -> None:
    chance = run(store_of(tmp_path, "random", "plain", trials=12))

    def modelled(concurrency: int) -> int:
        sampled = run(store_of(tmp_path, sampler, "plain", trials=12, concurrency=concurrency))
        return next(number for number in range(12) if sampled[number] != chance[number])

    assert [modelled(1), modelled(10)] == [STARTUP_TRIALS, 10]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_keeps_the_baseline_and_the_best(tmp_path: Path, pruner: str) -> None:
    store = store_of(
        tmp_path, "random", "plain", pruner=pruner, trials=30, settings={"train.epochs": 9}, concurrency=9
    )
    pruned: list[int] = []
    for number in range(30):
        trial = store.ask()
        assert trial is not None
        if number == 0:
            quality = 1.0
        elif number % 3 == 0:
            quality = float(100 + number)
        else:
            quality = number % 3 - number / 100
        for epoch in range(1, 10):
            figures = report(trial, epoch, of=9, objective=quality * epoch)
            if not store.report(number, figures) and epoch < 9:
                pruned.append(number)
                assert epoch >= 2, "the first epoch decides nothing"
                assert number > 0
                assert quality < 100
                break
    assert bool(pruned) == (pruner != "none")
    if pruner in ("percentile", "median"):
        assert min(pruned) >= 9, "the first wave finishes"


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
    (tmp_path / "own_choices.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_choices", raising=False)


@pytest.mark.usefixtures("custom")
def test_custom_samplers_and_pruners_that_fail_are_named(tmp_path: Path) -> None:
    store = store_of(tmp_path, "own_choices:sampler", "plain", pruner="own_choices:pruner")
    first = store.ask()
    second = store.ask()
    assert first is not None
    assert second is not None
    with pytest.raises(UserError, match=r"own_choices:sampler fails: ZeroDivisionError"):
        store.ask()
    assert store.report(0, report(first, of=2, objective=50.0)), "the baseline is never pruned"
    with pytest.raises(UserError, match=r"own_choices:pruner fails: IndexError: no curve \(own_choices.py"):
        store.report(1, report(second, of=2, objective=50.0))
    expected = "--sampler own_choices:nothing must return an Optuna sampler, got None"
    with pytest.raises(UserError, match=expected):
        store_of(tmp_path, "own_choices:nothing", "plain").ask()


@pytest.mark.usefixtures("custom")
def test_a_lost_storage_is_no_error_of_a_custom_pruner(tmp_path: Path) -> None:
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
    assert len(storage.get_all_trials(storage.get_study_id_from_name("s"))) == 1
