"""The reports' plots, and the importance of settings, from made-up trials."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FixedTrial, create_trial
from pydantic import TypeAdapter

from prometar.metrics import Interval
from tests.support.report_study import RANGES as TREE
from tests.support.report_study import RELEASED, SCRIPT, description, ranges_of, record
from tests.support.report_study import trial as content
from tune.reporting.importance import MIN_COMPLETE, TOP, importances
from tune.reporting.plots import course, goals, settings
from tune.reporting.plots.finals import Row, forest
from tune.results.reader import Records
from tune.results.schema import StudyRecord, TrialRecord
from tune.space.spaces import Choice, Space

RANGES = ranges_of()


def trial(number: int, state: str = "COMPLETE", **changes: Any) -> TrialRecord:
    return record(content(number, state, **changes))


TRIALS = [trial(n, "PRUNED" if n % 5 == 4 else "FAIL" if n == 7 else "COMPLETE") for n in range(30)]


def records(trials: Sequence[TrialRecord], **changes: Any) -> Records:
    """A study of these trials; `changes` as of `description`."""
    study = TypeAdapter(StudyRecord).validate_json(json.dumps(description(**changes)))
    return Records("a-study", study, tuple(trials), None, None)


def drawn(fragment: str | None) -> list[dict[str, Any]]:
    """The traces of a plot, as the browser gets them."""
    assert fragment is not None
    match = re.search(r"Plotly\.newPlot\(\s*\"[\w-]+\",\s*(\[.*?\]),\s*\{", fragment, re.DOTALL)
    assert match
    return json.loads(match.group(1))


def named(fragment: str | None, name: str) -> dict[str, Any]:
    return next(trace for trace in drawn(fragment) if trace.get("name") == name)


def test_history_follows_the_best_upwards_and_seconds_downwards() -> None:
    trials = [trial(n, objective=o, seconds=s) for n, (o, s) in enumerate([(50, 90), (60, 99), (55, 80)])]
    plot = course.history(records(trials, goals=["objective", "seconds"]))
    best = [trace["y"] for trace in drawn(plot) if trace["name"] == "best so far"]
    assert best == [[50, 60, 60, 60], [90, 90, 80, 80]]
    kept = course.history(records(trials, bounds=[{"figure": "seconds", "limit": 95.0, "least": False}]))
    assert named(kept, "best so far")["y"] == [50, 55, 55], "trial 1 takes too long"


def test_history_of_trials_without_figures() -> None:
    assert drawn(course.history(records([trial(0, "FAIL")]))) == []


def test_curves_end_in_a_cross_where_they_were_pruned() -> None:
    pruned = named(course.curves(records(TRIALS)), "pruned")
    assert pruned["marker"]["symbol"][:3] == ["circle", "x", "circle"]
    assert pruned["x"][:3] == [1, 2, None]
    assert course.curves(records([trial(0, "FAIL")])) is None


def test_trade_off_needs_both_figures() -> None:
    found = records(TRIALS)
    assert found.chosen is not None
    assert named(goals.trade_off(found), "best")["x"] == [found.chosen.base]
    assert goals.trade_off(records([trial(0, new=None)])) is None


def test_the_front_is_joined_and_the_others_are_faint() -> None:
    trials = [trial(n, base=b, new=w) for n, (b, w) in enumerate([(70, 60), (60, 70), (50, 50)])]
    found = records(trials, goals=["base", "new"])
    plot = goals.front(found, [trials[0], trials[1]])
    lines = [t for t in drawn(plot) if t.get("mode") == "lines" and t["name"] == "front"]
    assert [(line["x"], line["y"]) for line in lines] == [([70, 60], [60, 70])]
    assert named(plot, "not on the front")["opacity"] < 0.5
    assert goals.front(found, []) is None


def test_slices_are_of_finished_trials_that_have_the_setting() -> None:
    panels = settings.slices(records(TRIALS))
    assert len(panels) == len(RANGES)
    done = [t for t in TRIALS if t.state == "COMPLETE"]
    with_weight = [t.settings["regularizer.text_weight"] for t in done if len(t.settings) == len(RANGES)]
    place = list(RANGES).index("regularizer.text_weight")
    assert drawn(panels[place])[0]["x"] == with_weight
    assert f"in {len(with_weight)} of {len(done)} trials" in panels[place]
    assert '"type":"log"' in panels[place]
    assert '"type":"log"' not in panels[list(RANGES).index("augment.flip")]
    assert settings.slices(records(TRIALS[:1])) == []


def test_the_surface_passes_near_the_trials_and_within_their_figures() -> None:
    high = trial(1, objective=80.0, settings={**RELEASED, "optim.lr": 0.1, "inner.lr": 1.0})
    low = trial(2, objective=60.0, settings={**RELEASED, "optim.lr": 1e-4, "inner.lr": 1e-5})
    surface, points = drawn(settings.contour(records([high, low]), ("optim.lr", "inner.lr")))
    assert surface["z"][-1][-1] == pytest.approx(80, abs=0.1)
    assert surface["z"][0][0] == pytest.approx(60, abs=0.1)
    assert surface["z"][0][-1] == pytest.approx(70, abs=0.1), "as far from one as from the other"
    assert (surface["x"][0], surface["x"][-1]) == pytest.approx((1e-4, 0.1))
    assert points["marker"]["color"] == [80.0, 60.0]
    keys = ("inner.lr", "regularizer.text_weight")
    common = {key: value for key, value in RELEASED.items() if key not in keys}
    trials = [trial(number, settings={**common, key: 1.0}) for number, key in enumerate(keys)]
    assert settings.contour(records(trials), keys) is None, "no trial has both"


def test_parallel_coordinates_have_a_place_for_what_was_not_drawn() -> None:
    axes = drawn(settings.parallel(records(TRIALS)))[0]["dimensions"]
    assert [axis["label"] for axis in axes] == [*RANGES, "H"]
    weight = axes[list(RANGES).index("regularizer.text_weight")]
    assert weight["ticktext"] == ["not set", "0.5", "1", "10", "100", "200"]
    assert weight["tickvals"] == sorted(weight["tickvals"])
    absent = [t for t in TRIALS if t.state == "COMPLETE" and len(t.settings) < len(RANGES)]
    assert weight["values"].count(weight["tickvals"][0]) == len(absent) > 0
    depth = axes[list(RANGES).index("prompts.text_depth")]
    assert depth["ticktext"] == ["0", "3", "6", "9", "12"]
    assert depth["values"][0] == 9 / 12
    assert settings.parallel(records(TRIALS[:1])) is None


def test_parallel_coordinates_of_equal_trials() -> None:
    axes = drawn(settings.parallel(records([trial(0), trial(1, objective=trial(0).objective)])))
    low, high = axes[0]["dimensions"][-1]["range"]
    assert low < high


def test_forest_greys_what_holds_0() -> None:
    rows = [
        Row("a", Interval(2.0, 1.0, 3.0, 3), (1.5, 2.5)),
        Row("b", Interval(1.0, -1.0, 3.0, 3)),
        Row("c", Interval(-2.0, -3.0, -1.0, 3), total=True),
        Row("none", None),
    ]
    means = [t for t in drawn(forest(rows, title="H")) if "error_x" in t]
    assert [t["x"] for t in means] == [[2.0], [1.0], [-2.0]]
    assert [t["error_x"]["arrayminus"] for t in means] == [[1.0], [2.0], [1.0]]
    assert len({t["marker"]["color"] for t in means}) == 3
    assert [t["marker"]["symbol"] for t in means] == ["square", "square", "diamond"]
    assert forest([Row("a", None, (1.0,))], title="H") is None


def test_labels_are_escaped_for_plotly() -> None:
    ranges = {**TREE, SCRIPT: {"type": "choice", "choices": [SCRIPT, "b"]}}
    trials = [trial(n, settings={**t.settings, SCRIPT: SCRIPT}) for n, t in enumerate(TRIALS[:4])]
    hostile = records(trials, ranges=ranges)
    hostile = replace(hostile, study=replace(hostile.study, asked=replace(hostile.asked, score=SCRIPT)))
    plots = [
        course.history(hostile),
        settings.importance({SCRIPT: 1.0}),
        *settings.slices(hostile),
        forest([Row(SCRIPT, Interval(2.0, 1.0, 3.0, 3))], title=SCRIPT),
    ]
    for plot in plots:
        assert plot is not None
        assert "<script>alert" not in plot
        assert "\\u003cscript" not in plot, "Plotly would read it as HTML"


def test_importance_finds_the_setting_that_matters() -> None:
    rng = random.Random(1)
    trials = [
        trial(n, objective=80.0 - abs(n % 13 - 6), settings={
            **RELEASED, "optim.lr": rng.uniform(0.001, 0.1), "prompts.text_depth": n % 13,
        })
        for n in range(26)
    ]  # fmt: skip
    found = importances(trials, RANGES)
    assert found.ranked[0] == "prompts.text_depth"
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert (found.left_out, found.num_trials) == ((), 26)
    assert not importances(trials[:7], RANGES).ranked
    assert settings.importance(importances(trials[:7], RANGES).shares) is None


def test_importance_is_close_to_optuna_s() -> None:
    """The same measure, with another estimate of the densities; Optuna's evens out those of choices more."""
    numbers = {k: entry for k, entry in RANGES.items() if not (isinstance(entry, Choice) or entry.when)}
    done = [t for t in TRIALS if t.state == "COMPLETE"]
    study = optuna.create_study(direction="maximize")
    for one in done:
        fixed = FixedTrial({key: one.settings[key] for key in numbers})
        Space("a space", numbers).draw(fixed)
        params, distributions = fixed.params, fixed.distributions
        study.add_trial(create_trial(value=one.objective, params=params, distributions=distributions))
    theirs = PedAnovaImportanceEvaluator(target_quantile=TOP).evaluate(study)
    ours = importances(TRIALS, numbers).shares
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value / sum(theirs.values()), abs=0.05), key


@pytest.mark.parametrize("choices", ["ab", "abc", "abcd", "abcdef"])
def test_choices_are_found_as_ranges_are(choices: str) -> None:
    """Which of two is ranked first in 30 studies of 24 trials: what decides, and each where nothing does."""
    kinds = Choice(type="choice", choices=list(choices))
    ranges = {"optim.lr": RANGES["optim.lr"], "regularizer.kind": kinds}
    firsts = dict[str, int]()
    for deciding in ("rate", "kind", "nothing"):
        for seed in range(30):
            rng, trials = random.Random(seed), []
            for number in range(24):
                rate, kind = rng.random(), rng.randrange(len(choices))
                worth = {"rate": 3 * rate, "kind": 3 * kind / (len(choices) - 1), "nothing": 0}[deciding]
                settings = {"optim.lr": 1e-4 * 1000**rate, "regularizer.kind": choices[kind]}
                value = 50 + worth + rng.gauss(0, 0.5)
                trials.append(trial(number, objective=value, settings={**RELEASED, **settings}))
            is_kind = importances(trials, ranges).ranked[0] == "regularizer.kind"
            firsts[deciding] = firsts.get(deciding, 0) + is_kind
    assert firsts["rate"] <= 3
    assert firsts["kind"] >= 22
    assert 5 <= firsts["nothing"] <= 20


def test_importance_judges_conditional_settings_by_the_trials_that_have_them() -> None:
    found = importances(TRIALS, RANGES)
    assert found.left_out == ()
    assert found.num_trials == sum(t.state == "COMPLETE" for t in TRIALS)
    assert importances([*TRIALS, *(trial(n, "PRUNED") for n in range(30, 60))], RANGES) == found
    conditional = "regularizer.text_weight"
    having = [t for t in TRIALS if t.state == "COMPLETE" and conditional in t.settings]
    unset = {k: value for k, value in RELEASED.items() if k != conditional} | {"regularizer.kind": "none"}
    few = [*having[: MIN_COMPLETE - 1], *(trial(n, settings=unset) for n in range(40, 44))]
    assert importances(few, RANGES).left_out == (conditional,)
    assert importances([*few, having[MIN_COMPLETE]], RANGES).left_out == ()


def test_importance_leaves_out_what_is_outside_the_range() -> None:
    outside = trial(99, settings={**RELEASED, "optim.lr": 5.0})
    assert importances([*TRIALS, outside], RANGES) == importances(TRIALS, RANGES)


def test_equal_trials_have_no_importance() -> None:
    assert not importances([trial(n, objective=50.0, settings=RELEASED) for n in range(12)], RANGES).ranked
    nearly = [trial(n, objective=33.75 + 2e-7 * (n % 3)) for n in range(12)]  # other orders of sums
    assert not importances(nearly, RANGES).ranked
