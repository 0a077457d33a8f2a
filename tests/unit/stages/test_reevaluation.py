"""Who gets into the last round, and what is expected of it then."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tune.results.goals import parse_bounds
from tune.results.schema import EarlierStudy, EarlierTrial, Learned, Reevaluated, Run, TrialRecord
from tune.results.writer import StudyFolder
from tune.space.portfolio import shipped
from tune.stages.choice import CALIBRATIONS, EMBEDDED, UNKNOWN, believed
from tune.stages.reevaluation import _chosen, _judged, _slow, contenders, run_last_round
from tune.study_spec import StudySpec

from prometar.config.settings import configure
from prometar.errors import WorkError
from tests.support.driver import small_spec
from tune.space.spaces import load_space

KNOWN = shipped().choose(without=["cells"])[0]


@pytest.fixture
def spec() -> StudySpec:
    config = configure("prometar", {"data.name": "cells", "backbone.name": "mini", "train.epochs": 5})
    return small_spec(config=config, space=load_space("recipe"), objective="drift", top=2)


def trial(number: int, score: float | None, settings: Mapping[str, Any]) -> TrialRecord:
    state = "FAIL" if score is None else "COMPLETE"
    return TrialRecord(
        number=number, state=state, reference=number == 0, origin="sampled", settings=dict(settings),
        given={}, objective=score, base=score, new=score, epoch=5, epochs=(), runs=(), seconds=1.0, cpus=1.0,
        gpus=0.0, notes=(), reason="", started=None, ended=None,
    )  # fmt: skip


def drawn(seed: float) -> dict[str, Any]:
    return {**KNOWN, "optim.lr": 0.001 * seed}


def numbers(spec: StudySpec, *trials: TrialRecord) -> list[int]:
    return [found.number for found in contenders(trials, spec)]


TRIALS = (
    trial(0, 60.0, drawn(1)),
    trial(1, 61.0, KNOWN),
    trial(2, 64.0, drawn(2)),
    trial(3, 62.0, drawn(3)),
    trial(4, None, drawn(4)),
)


def test_settings_that_did_well_elsewhere_come_before_those_with_a_slightly_better_score(
    spec: StudySpec,
) -> None:
    assert numbers(spec, *TRIALS) == [0, 2, 1]


def test_on_its_own_evidence_alone_each_is_ranked_by_its_score(spec: StudySpec) -> None:
    other = spec.config.override({"backbone.name": "ViT-B-16", "backbone.pretrained": "openai"})
    assert numbers(replace(spec, config=other), *TRIALS) == [0, 2, 3]
    assert numbers(replace(spec, objective="base_val"), *TRIALS) == [0, 2, 3]


def test_where_the_released_settings_have_failed_the_best_scores_are_taken(spec: StudySpec) -> None:
    assert numbers(spec, trial(0, None, drawn(1)), *TRIALS[1:]) == [2, 3]


def test_without_a_last_round_the_best_is_alone(spec: StudySpec) -> None:
    assert numbers(replace(spec, top=0), *TRIALS) == [2]


def test_what_breaks_a_bound_gets_into_no_last_round(spec: StudySpec) -> None:
    assert numbers(replace(spec, bounds=parse_bounds([], ["base=63"])), *TRIALS) == [0, 1, 3]
    assert numbers(replace(spec, bounds=parse_bounds(["base=63"], [])), *TRIALS) == [0, 2]
    assert numbers(replace(spec, bounds=parse_bounds(["base=70"], []), top=0), *TRIALS) == [0]


def again(number: int, base: float, probability: float | None) -> Reevaluated:
    run = Run("cells", 1000, base=base, new=60.0, objective=60.0, seconds=1.0)
    expected = None if probability is None else 10 * probability
    return Reevaluated(number, number == 0, {}, 60.0, base, (run,), expected, probability)


@pytest.mark.parametrize(
    ("at_least", "chosen"),
    [
        (50, 1),  # all keep it: the one with the highest gain
        (62, 3),  # of those that keep it
        (66, 4),  # the released settings break it: the best of what keeps it, however unsure
        (70, 0),  # nothing keeps it
    ],
)
def test_what_breaks_a_bound_is_not_chosen(at_least: int, chosen: int) -> None:
    rows = [again(0, 65.0, None), again(1, 61.0, 0.9), again(2, 62.0, 0.5), again(3, 63.0, 0.85),
            again(4, 67.0, 0.3)]  # fmt: skip
    assert _chosen(rows, parse_bounds([f"base={at_least}"], ["seconds=0.5"]), judged=True) == chosen


def test_released_settings_that_were_too_slow_in_the_search_are_not_kept() -> None:
    rows = [again(0, 65.0, None), again(1, 61.0, 0.3)]
    bounds = parse_bounds([], ["seconds=4"])
    assert _chosen(rows, bounds, judged=True) == 0
    assert _chosen(rows, bounds, judged=True, slow={0}) == 1
    trials = [replace(trial(number, 60.0, {}), seconds=seconds) for number, seconds in enumerate([9.0, 3.0])]
    assert _slow(trials, replace(small_spec(), bounds=bounds)) == {0}


def fresh(number: int, searched: float | None, *scores: float) -> Reevaluated:
    """A row of the last round: the search's score, and those of fresh seeds."""
    runs = tuple(
        Run("cells", 1000 + k, base=x, new=x, objective=x, seconds=1.0) for k, x in enumerate(scores)
    )
    return Reevaluated(number, number == 0, drawn(number), searched, sum(scores) / len(scores), runs)


def expected_of(spec: StudySpec, *rows: Reevaluated) -> list[float]:
    judged, known = _judged(rows, spec)
    assert known
    return [row.expected for row in judged if row.expected is not None]


def test_the_score_of_the_search_is_one_more_measurement(spec: StudySpec) -> None:
    rows = [fresh(0, 60.0, 60.0, 60.0), fresh(1, 66.0, 62.0, 61.0), fresh(2, 63.0, 62.0, 61.0)]
    more, less = expected_of(spec, *rows)
    assert more > less
    calibration = CALIBRATIONS["drift"]
    assert more == pytest.approx(believed([6.0, 2.0, 1.0], calibration, EMBEDDED).mean)
    three = replace(spec, seeds_per_trial=3)
    assert expected_of(three, *rows)[0] == pytest.approx(
        believed([6.0, 6.0, 6.0, 2.0, 1.0], calibration, EMBEDDED).mean
    )


def earlier(*studies: list[tuple[float, float]]) -> Learned:
    """Other studies by learning rate and score."""
    return Learned(
        tuple(
            EarlierStudy(
                "out/other", ("other",), "drift", tuple(EarlierTrial({"optim.lr": x}, y) for x, y in pairs)
            )
            for pairs in studies
        )
    )


def test_what_other_studies_promise_is_known_before(spec: StudySpec) -> None:
    """Of two with the same scores, more is expected of the one whose rate was ahead elsewhere."""
    spec = replace(spec, datasets=("dtd",))  # where the portfolio tells nothing
    slow, fast = {**KNOWN, "optim.lr": 0.001}, {**KNOWN, "optim.lr": 0.02}
    rows = [fresh(0, 60.0, 60.0, 60.0), fresh(1, 62.0, 62.0, 61.0), fresh(2, 62.0, 62.0, 61.0)]
    rows = [replace(row, settings=each) for row, each in zip(rows, (slow, slow, fast), strict=True)]
    rates = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016]
    learned = earlier(*([(rate, 50 + 100 * rate) for rate in rates] for _ in range(8)))
    judged, known = _judged(tuple(rows), spec, learned)
    assert known
    _, one, other = judged
    assert (one.expected or 0.0) < (other.expected or 0.0)
    assert (one.probability or 0.0) < (other.probability or 0.0)
    without, _ = _judged(tuple(rows), spec)
    assert without[1].expected == without[2].expected == pytest.approx(
        believed([2.0, 2.0, 1.0], CALIBRATIONS["drift"], UNKNOWN).mean
    )  # fmt: skip
    assert without[1].expected < (other.expected or 0.0)


@pytest.mark.parametrize(("objective", "dataset"), [("base_val", "other"), ("drift", "dtd")])
def test_studies_of_another_objective_or_of_the_same_images_are_not_weighed(
    spec: StudySpec, objective: str, dataset: str
) -> None:
    spec = replace(spec, datasets=("dtd",))
    rows = tuple(fresh(number, 60.0 + number, 60.0, 61.0) for number in range(3))
    learned = earlier([(x, 50 + 1000 * x) for x in (0.0005, 0.001, 0.002, 0.004, 0.008)])
    other = Learned((replace(learned.studies[0], objective=objective, datasets=(dataset,)),))
    without, _ = _judged(rows, spec)
    assert _judged(rows, spec, other)[0] == without != _judged(rows, spec, learned)[0]


def test_what_other_studies_promise_opens_the_last_round(spec: StudySpec) -> None:
    rates = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016]
    learned = earlier(*([(rate, 50 + 100 * rate) for rate in rates] for _ in range(8)))
    spec = replace(spec, datasets=("dtd",), top=1)
    trials = (
        trial(0, 60.0, {**KNOWN, "optim.lr": 0.001}),
        trial(1, 61.2, {**KNOWN, "optim.lr": 0.0005}),
        trial(2, 61.0, {**KNOWN, "optim.lr": 0.02}),
    )
    assert [found.number for found in contenders(trials, spec)] == [0, 1]
    assert [found.number for found in contenders(trials, spec, learned)] == [0, 2]


def test_where_the_released_settings_failed_in_the_search_the_last_round_is_all_there_is(
    spec: StudySpec,
) -> None:
    (only,) = expected_of(spec, fresh(0, None, 60.0, 60.0), fresh(1, 66.0, 62.0, 61.0))
    assert only == pytest.approx(believed([2.0, 1.0], CALIBRATIONS["drift"], EMBEDDED).mean)


def test_where_nothing_is_left_to_choose_one_line_says_so(spec: StudySpec, tmp_path: Path) -> None:
    bounded = replace(spec, bounds=parse_bounds(["base=99"], []))
    trials = [trial(0, None, drawn(1)), *TRIALS[1:]]
    with pytest.raises(
        WorkError, match="no finished trial keeps base at least 99, and the released settings"
    ):
        next(run_last_round(StudyFolder(tmp_path, "x"), bounded, trials, Mock()))


def test_with_nobody_beside_the_released_settings_there_is_nobody_to_weigh(spec: StudySpec) -> None:
    learned = earlier([(x, 50 + 1000 * x) for x in (0.0005, 0.001, 0.002, 0.004, 0.008)])
    high = replace(spec, datasets=("dtd",), bounds=parse_bounds(["base=95"], []))
    assert [found.number for found in contenders(TRIALS, high, learned)] == [0]
    only = _judged((fresh(0, 60.0, 60.0, 60.0),), high, learned)
    assert only == ((fresh(0, 60.0, 60.0, 60.0),), True)
