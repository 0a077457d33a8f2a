"""Contracts of every sampler: settings lie in the space, and are a function of seed, number and results."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from prometar.errors import UserError
from tests.support.databases import new_database, remembered
from tests.support.texts import ANY
from tune.optimizer import ask_tell
from tune.optimizer.ask_tell import Memory
from tune.optimizer.choices import Search
from tune.optimizer.optuna_private import Remembered
from tune.optimizer.pruners import PRUNERS
from tune.optimizer.samplers import SAMPLERS, STARTUP_TRIALS
from tune.space.point_sets import GRID_LEVELS, at, grid_points, levels, quasirandom_point
from tune.space.spaces import Choice, FloatRange, IntRange, parse_space

PLAIN = """
optim.lr: {type: float, low: 0.001, high: 1.0, log: true}
augment.jitter: {type: float, low: 0.0, high: 0.5}
data.shots: {type: int, low: 1, high: 16, log: true}
regularizer.kind: {type: choice, choices: [l1, l2, none]}
"""
CONDITIONAL = """
regularizer:
  kind: {type: choice, choices: [l1, l2, none]}
  text_weight: {type: float, low: 1.0, high: 100.0, log: true, when: {regularizer.kind: [l1, l2]}}
optim.lr: {type: float, low: 0.001, high: 1.0, log: true}
"""
SPACES = {"plain": PLAIN, "conditional": CONDITIONAL}
REFERENCE: dict[str, dict[str, Any]] = {
    "plain": {"optim.lr": 0.0025, "augment.jitter": 0.0, "data.shots": 16, "regularizer.kind": "l1"},
    "conditional": {"regularizer.kind": "l1", "regularizer.text_weight": 25.0, "optim.lr": 0.0025},
}
TARGET = STARTUP_TRIALS + 2  # a model draws the last two

STATELESS = ("random", "grid", "quasirandom")  # they look at no results
SINGLE_GOAL = tuple(name for name, sampler in SAMPLERS.items() if sampler.plain)


def memory(
    folder: Path,
    sampler: str,
    space: str,
    *,
    kept: bool = False,
    seed: int = 5,
    epochs: int = 100,
    **changes: Any,
) -> Memory:
    """A study of such a sampler; `kept`: in a database, which takes ten times as long."""
    ranges = parse_space(space, SPACES[space])
    search = Search(space=ranges, seed=seed, sampler=sampler, **{"pruner": "none", **changes})
    storage = new_database(folder) if kept else remembered(folder)
    return Memory(storage, "s", search, reference=REFERENCE[space], epochs=epochs)


def score(drawn: dict[str, Any]) -> dict[str, Any]:
    value = 60.0 - 10 * abs(drawn["optim.lr"] - 0.05) - drawn.get("regularizer.text_weight", 3.0) / 10
    return {
        "epoch": 1,
        "objective": value,
        "base": value,
        "new": 100 - value,
        "seconds": 1.0,
        "finished": True,
    }


def run(study: Memory, target: int, *, at_a_time: int = 1, order: random.Random | None = None) -> list[dict]:
    """Settings by number; `at_a_time` trials run at once, and end in a random order."""
    drawn: dict[int, dict[str, Any]] = {}
    running: list[Any] = []
    while True:
        while len(running) < at_a_time and (asked := study.next(target)) is not None:
            running.append(asked)
            drawn[asked.number] = asked.settings
        if not running:
            return [drawn[number] for number in sorted(drawn)]
        ended = running.pop(order.randrange(len(running)) if order else 0)
        study.observe(ended.number, score(ended.settings))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_settings_lie_in_the_space_and_none_comes_twice(tmp_path: Path, sampler: str, space: str) -> None:
    drawn = run(memory(tmp_path, sampler, space), TARGET)
    assert len(drawn) == TARGET
    assert drawn[0] == REFERENCE[space]
    parsed = parse_space(space, SPACES[space])
    for each in drawn:
        assert parsed.checked(each, what="a draw") == each
        open_ = {key for key, entry in parsed.ranges.items() if entry.active(each)}
        assert set(each) == open_, "exactly the settings whose conditions hold"
    assert len({repr(each) for each in drawn}) == TARGET


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_at_a_time_is_reproducible_also_where_it_was_restarted(
    tmp_path: Path, sampler: str, space: str
) -> None:
    whole = run(memory(tmp_path / "a", sampler, space), TARGET)
    for target in (3, STARTUP_TRIALS, TARGET - 1, TARGET):
        parts = run(memory(tmp_path / "b", sampler, space, kept=True), target)
    again = memory(tmp_path / "b", sampler, space, kept=True)
    assert [t.params for t in again.trials()] == whole
    assert parts == whole[TARGET - 1 :]
    assert run(memory(tmp_path / "c", sampler, space, seed=6), 4)[1:] != whole[1:4]


@pytest.mark.parametrize("sampler", STATELESS)
def test_settings_do_not_depend_on_how_many_run_at_a_time(tmp_path: Path, sampler: str) -> None:
    one = run(memory(tmp_path / "1", sampler, "conditional"), TARGET)
    four = run(memory(tmp_path / "4", sampler, "conditional"), TARGET, at_a_time=4, order=random.Random(1))
    assert four == one


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - set(STATELESS) - {"cmaes"}))
def test_with_more_at_a_time_the_first_draws_are_the_same_and_equal_orders_give_equal_draws(
    tmp_path: Path, sampler: str
) -> None:
    one = run(memory(tmp_path / "1", sampler, "plain"), TARGET)
    four = [
        run(memory(tmp_path / f"4-{k}", sampler, "plain"), TARGET, at_a_time=4, order=random.Random(1))
        for k in range(2)
    ]
    assert four[0] == four[1]
    assert four[0][:STARTUP_TRIALS] == one[:STARTUP_TRIALS]


def test_models_search_better_than_chance(tmp_path: Path) -> None:
    def best(sampler: str, seed: int) -> float:
        drawn = run(memory(tmp_path / f"{sampler}{seed}", sampler, "conditional", seed=seed), 12)
        return max(score(each)["objective"] for each in drawn)

    chance = sum(best("random", seed) for seed in range(2))
    for sampler in ("tpe", "gp"):
        assert sum(best(sampler, seed) for seed in range(2)) > chance


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - set(SINGLE_GOAL)))
def test_several_goals(tmp_path: Path, sampler: str) -> None:
    study = memory(tmp_path, sampler, "plain", goals=("base", "new"))
    drawn = run(study, TARGET)
    assert len(drawn) == TARGET
    assert [t.values for t in study.trials()] == [[score(d)["base"], score(d)["new"]] for d in drawn]
    best = study.best()
    assert best is not None
    assert score(best.settings)["objective"] == max(score(d)["objective"] for d in drawn)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_spares_the_reference_and_what_is_best(tmp_path: Path, pruner: str) -> None:
    study = memory(tmp_path, "random", "plain", pruner=pruner, epochs=9)
    pruned = 0
    for number in range(30):
        asked = study.next(30)
        assert asked is not None
        quality = (
            1.0 if number == 0 else float(100 + number) if number % 3 == 0 else number % 3 - number / 100
        )
        for epoch in range(1, 10):
            result = {"epoch": epoch, "objective": quality * epoch, "finished": epoch == 9}
            if study.observe(asked.number, result):
                pruned += epoch < 9
                assert epoch == 9 or epoch >= 2, "none is judged by its first epoch"
                assert epoch == 9 or quality < 100
                break
    assert study.trials()[0].state.name == "COMPLETE"
    assert (pruned > 0) == (pruner != "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "magic"}, "unknown sampler 'magic': choose one of tpe, random, gp"),
        ({"sampler": "cmaes", "goals": ("base", "new")}, "--sampler cmaes has one goal"),
        ({"goals": ("base", "new"), "pruner": "asha"}, "--pruner asha judges by one goal"),
        ({"goals": ("base", "fame")}, "choose different ones of objective, base, new, seconds"),
        ({"goals": ("base", "base")}, "choose different ones"),
        ({"goals": ("new",)}, "one goal alone is the objective"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        memory(tmp_path, **{"sampler": "tpe", "space": "plain", **changes})


def test_a_grid_that_is_too_large_is_refused() -> None:
    many = "\n".join(f"a{k}: {{type: float, low: 0, high: 1}}" for k in range(9))
    with pytest.raises(UserError, match="more than 100,000 points"):
        grid_points(parse_space("many", many), 0)


def test_a_grid_is_searched_through_and_then_over(tmp_path: Path) -> None:
    study = memory(tmp_path, "grid", "conditional")
    drawn = run(study, 1000)
    points = grid_points(parse_space("conditional", CONDITIONAL), 5)
    assert len(points) == (2 * GRID_LEVELS + 1) * GRID_LEVELS
    assert study.exhausted
    assert sorted(map(repr, drawn[1:])) == sorted(map(repr, points))


FINITE = """
regularizer.kind: {type: choice, choices: [l1, l2, none]}
data.shots: {type: int, low: 1, high: 3}
inner.order: {type: choice, choices: [first, second], when: {data.shots: [1, 2]}}
"""


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"grid"}))
def test_a_space_of_choices_is_searched_through_to_its_last_point(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask_tell, "REDRAWS", 5)  # each of the last trials takes as many draws
    space = parse_space("finite", FINITE)
    reference = {"regularizer.kind": "l1", "data.shots": 2, "inner.order": "second"}

    def again() -> Memory:
        search = Search(space=space, seed=1, pruner="none", sampler=sampler)
        return Memory(remembered(tmp_path), "s", search, reference=reference)

    def finish(study: Memory, target: int) -> int:
        count = 0
        while (asked := study.next(target)) is not None:
            value = 50.0 + 10 * (asked.settings["regularizer.kind"] == "l2")  # a favourite to propose again
            study.observe(asked.number, {"epoch": 1, "objective": value, "finished": True})
            count += 1
        return count

    study = again()
    assert finish(study, 9) == 9
    assert not study.exhausted
    assert finish(study, 100) == 3 * (2 * 2 + 1) - 9
    assert study.exhausted
    study = again()
    assert study.enqueue([{"regularizer.kind": "none"}], "enqueued") == 1
    assert study.wants(100), "what is given is run, if only to be found a repeat"
    assert finish(study, 100) == 0
    assert study.exhausted


def test_a_grid_with_a_given_start_that_leaves_settings_open(tmp_path: Path) -> None:
    study = memory(tmp_path, "grid", "conditional")
    study.enqueue([{"regularizer.kind": "l1"}], "enqueued")
    drawn = run(study, 1000)
    points = grid_points(parse_space("conditional", CONDITIONAL), 5)
    assert drawn[1]["regularizer.kind"] == "l1"
    assert {repr(point) for point in points} <= set(map(repr, drawn)), "no point is left out"


RANGES = st.one_of(
    st.tuples(st.floats(1e-6, 1e3), st.floats(1e-3, 1e3), st.booleans()).map(
        lambda t: FloatRange(type="float", low=t[0], high=t[0] + t[1], log=t[2])
    ),
    st.tuples(st.integers(1, 50), st.integers(1, 50), st.booleans()).map(
        lambda t: IntRange(type="int", low=t[0], high=t[0] + t[1], log=t[2])
    ),
    st.lists(st.text(ANY, max_size=3), min_size=1, max_size=4, unique=True).map(
        lambda names: Choice(type="choice", choices=tuple(names))
    ),
)


@given(entry=RANGES, u=st.floats(0, 1, exclude_max=True))
@example(entry=IntRange(type="int", low=5, high=6, log=True), u=0.0)
def test_points_lie_in_their_range(entry: Any, u: float) -> None:
    assert entry.holds(at(entry, u))
    assert all(map(entry.holds, levels(entry)))
    assert len(set(levels(entry))) == len(levels(entry))
    ends = entry.choices if isinstance(entry, Choice) else (entry.low, entry.high)
    assert set(ends) <= set(levels(entry))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_a_quasirandom_sequence_covers_more_evenly_than_chance(seed: int) -> None:
    space = parse_space("two", "a: {type: float, low: 0, high: 1}\nb: {type: float, low: 0, high: 1}")
    points = [quasirandom_point(space, seed, number) for number in range(16)]
    for key in ("a", "b"):
        assert sorted(int(16 * point[key]) for point in points) == list(range(16)), "one in each sixteenth"


def test_a_model_of_many_trials_is_made_of_the_latest_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = memory(tmp_path, "random", "plain")
    for number in range(12):
        asked = study.next(100)
        assert asked is not None
        value = float(-number if number % 2 else number)
        study.observe(number, {"epoch": 1, "objective": value, "finished": True})
    seen = Remembered(study._study)
    assert seen._get_trials() == study._study.trials, "few are all seen"
    monkeypatch.setattr("tune.optimizer.optuna_private.LATEST", 4)
    monkeypatch.setattr("tune.optimizer.optuna_private.BEST", 3)
    assert [t.number for t in seen._get_trials()] == [2, 4, 6, 8, 9, 10, 11]
    assert [t.number for t in seen._get_trials(states=(TrialState.RUNNING,))] == []
    assert seen.study_name == study._study.study_name


@pytest.mark.parametrize("space", SPACES)
def test_tpe_draws_from_what_it_remembers(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Noted(Remembered):
        def _get_trials(self, *args: Any, **named: Any) -> list[FrozenTrial]:
            trials = super()._get_trials(*args, **named)
            seen.append(len(trials))
            return trials

    monkeypatch.setattr("tune.optimizer.optuna_private.Remembered", Noted)
    monkeypatch.setattr("tune.optimizer.optuna_private.LATEST", 4)
    monkeypatch.setattr("tune.optimizer.optuna_private.BEST", 3)
    run(memory(tmp_path, "tpe", space), 10)
    assert max(seen) == 4 + 3


OWN = """
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler


class Sampler(RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        if trial.number == 2:
            return float("nan") if name == "optim.lr" else 1 / 0
        return super().sample_independent(study, trial, name, distribution)


class Pruner(BasePruner):
    def prune(self, study, trial):
        raise IndexError("no curve")


class Outside(RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        value = super().sample_independent(study, trial, name, distribution)
        return 17 if name == "data.shots" and trial.number == 1 else value


class Early(RandomSampler):
    def before_trial(self, study, trial):
        raise IndexError("no luck")


def early(draw):
    return Early(draw.own_seed)


def sampler(draw):
    return Sampler(draw.own_seed)


def outside(draw):
    return Outside(draw.own_seed)


def pruner(epochs):
    return Pruner()
"""


def test_own_samplers_and_pruners_that_fail_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_choices.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    study = memory(tmp_path, "own_choices:sampler", "plain", pruner="own_choices:pruner", epochs=9)
    with pytest.raises(UserError, match=r"own_choices:sampler (fails: ZeroDivisionError: |draws nan of)"):
        [study.next(9) for _ in range(3)]
    told = {"epoch": 1, "objective": 50.0, "finished": False}
    assert not study.observe(0, told), "the released settings are never pruned"
    with pytest.raises(UserError, match=r"own_choices:pruner fails: IndexError: no curve \(own_choices.py"):
        study.observe(1, told)
    study.close()
    with pytest.raises(UserError, match=r"own_choices:early fails: IndexError: no luck \(own_choices.py"):
        memory(tmp_path / "early", "own_choices:early", "plain").next(9)


def test_what_an_own_sampler_draws_outside_the_space_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_choices.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_choices", raising=False)
    study = memory(tmp_path, "own_choices:outside", "plain")
    study.next(9)
    said = r"^own_choices:outside draws 17 of data\.shots, whose range is 1 \.\. 16 \(log\)$"
    with pytest.raises(UserError, match=said):
        study.next(9)
    study.close()
    asked = memory(tmp_path, "random", "plain")  # as mended
    assert [asked.next(2).settings["data.shots"] <= 16 for _ in range(2)] == [True, True]  # type: ignore[union-attr]
