"""What other studies' trials promise of settings."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tune.results.schema import EarlierStudy, EarlierTrial
from tune.stages.learned import Promises, propose

from tune.space.spaces import Space, load_space

SPACE = Space.of(
    {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
        "prompts.text_depth": {"type": "int", "low": 1, "high": 12},
        "regularizer.kind": {"type": "choice", "choices": ["l1", "none"]},
        "regularizer.text_weight": {
            "type": "float", "low": 1.0, "high": 100.0, "when": {"regularizer.kind": "l1"},
        },
    }
)  # fmt: skip


def study_of(settings: list[dict[str, Any]], scores: list[float], objective: str = "drift") -> EarlierStudy:
    """Trials with these settings, by their scores."""
    trials = tuple(map(EarlierTrial, settings, scores))
    return EarlierStudy("out/other", ("other",), objective, trials)


def drawn(rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
    """Settings of `SPACE`."""
    return [
        {
            "optim.lr": float(np.exp(rng.uniform(np.log(1e-4), np.log(0.1)))),
            "prompts.text_depth": int(rng.integers(1, 13)),
            "regularizer.kind": kind,
            **({"regularizer.text_weight": float(rng.uniform(1, 100))} if kind == "l1" else {}),
        }
        for kind in rng.choice(["l1", "none"], number)
    ]


def scored(
    settings: list[dict[str, Any]], rng: np.random.Generator, *, noise: float = 1.0, objective: str = "drift"
) -> EarlierStudy:
    """Deep prompts and no regularizer are better, by more than the noise."""
    return study_of(
        settings,
        [
            each["prompts.text_depth"] / 2 + 5 * (each["regularizer.kind"] == "none") + rng.normal(0, noise)
            for each in settings
        ],
        objective,
    )


def test_what_was_ahead_on_other_data_sets_is_proposed() -> None:
    rng = np.random.default_rng(0)
    studies = [scored(drawn(rng, 24), rng) for _ in range(3)]
    best, *others = propose(SPACE, studies, 5, seed=0)
    assert best["regularizer.kind"] == "none"
    assert best["prompts.text_depth"] >= 11
    assert "regularizer.text_weight" not in best  # it has no effect there
    assert len({str(each) for each in (best, *others)}) == 5


def test_scales_of_objectives_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    one, other = (scored(drawn(rng, 24), rng, objective=name) for name in ("drift", "my:own"))
    percent = study_of(other.settings, [50 + 100 * score for score in other.scores], other.objective)
    assert propose(SPACE, [one, percent], 5, seed=0) == propose(SPACE, [one, other], 5, seed=0)


def test_a_study_whose_settings_all_do_alike_does_not_outweigh_another() -> None:
    """Its scores differ by noise alone, here by a thousandth of what the other's do, the other way round."""
    rng = np.random.default_rng(3)
    settings = drawn(rng, 24)
    one = scored(settings, rng)
    alike = study_of(settings, [-score / 1000 for score in one.scores])
    assert propose(SPACE, [one, alike], 1, seed=0)[0]["regularizer.kind"] == "none"


def test_more_studies_find_a_small_effect_in_noise() -> None:
    """One trial tells nothing of it, 96 do."""
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        studies = [scored(drawn(rng, 24), rng, noise=6.0) for _ in range(4)]
        found.append(propose(SPACE, studies, 1, seed=0)[0])
    assert np.mean([each["regularizer.kind"] == "none" for each in found]) >= 0.75
    assert np.mean([each["prompts.text_depth"] for each in found]) > 8


RATES = [10.0 ** -(k / 8) for k in range(8, 33)]  # 0.1 to 0.0001


def of_rates(rates: list[float], by_decade: float, *, level: float = 0.0) -> EarlierStudy:
    """A study whose scores rise so much with each decade of the rate."""
    return study_of([{"optim.lr": x} for x in rates], [level + by_decade * np.log10(x) for x in rates])


def promised(studies: list[EarlierStudy], *rates: float) -> list[float]:
    return [float(x) for x in Promises.of(SPACE, studies).leads([{"optim.lr": x} for x in rates])]


def test_promises_are_points_above_a_draw_of_the_space() -> None:
    """24 trials of the whole range tell most of a slope that 240 tell nearly all of."""
    low, middle, high = promised([of_rates(RATES * 10, 2.0)], 1e-4, 10**-2.5, 0.1)
    assert middle == pytest.approx(0.0, abs=1e-9)
    assert high == pytest.approx(-low) == pytest.approx(3.0, rel=0.15)
    assert 1.2 < promised([of_rates(RATES, 2.0)], 0.1)[0] < high


def test_a_narrow_corner_promises_little_beyond_it() -> None:
    """Noise among rates that hardly differ is no slope over three decades."""
    rng = np.random.default_rng(0)
    for width in (1e-10, 1e-3, 0.1):
        rates = [float(0.002 * (1 + width * x)) for x in rng.uniform(size=24)]
        noise = study_of([{"optim.lr": x} for x in rates], [float(x) for x in rng.normal(size=24)])
        assert np.abs(promised([noise], 1e-4, 0.1)).max() < 0.5


def test_a_study_elsewhere_in_the_space_or_without_a_setting_takes_nothing_away() -> None:
    """Two that agree on the slope promise more of it together than each alone, whatever their levels."""
    slow, fast = of_rates(RATES[12:], 2.0, level=70.0), of_rates(RATES[:12], 2.0, level=20.0)
    (one,), (other,), (both,) = promised([slow], 0.1), promised([fast], 0.1), promised([slow, fast], 0.1)
    assert 0 < min(one, other) <= max(one, other) < both < 3.0
    silent = study_of([{"prompts.text_depth": k} for k in range(1, 13)], [0.0] * 12)
    assert promised([slow, silent], 0.1) == pytest.approx([one])


def test_one_trial_of_a_choice_promises_little() -> None:
    """It leads by 3, 71 others by nothing."""
    settings = [{"regularizer.kind": "none"}, *[{"regularizer.kind": "l1"}] * 71]
    promises = Promises.of(SPACE, [study_of(settings, [3.0] + [0.0] * 71)])
    assert 0 < promises.leads([{"regularizer.kind": "none"}])[0] < 0.5


def test_what_a_draw_would_have_scored_is_told_where_all_trials_are_in_a_good_corner() -> None:
    study = of_rates(RATES[:12] * 40, 2.0)  # 0.8 decades above the middle, in the mean
    draw = Promises.of(SPACE, [study]).of_a_draw(study)
    assert np.mean(study.scores) - draw == pytest.approx(2 * 0.8125, rel=0.3)


def test_equal_scores_promise_nothing_and_still_give_settings() -> None:
    settings = drawn(np.random.default_rng(2), 6)
    assert len(propose(SPACE, [study_of(settings, [1.0] * 6)], 5, seed=0)) == 5


def test_a_space_with_less_than_is_asked_for_gives_what_it_has() -> None:
    space = Space.of({"regularizer.kind": {"type": "choice", "choices": ["l1", "none"]}})
    study = study_of([{"regularizer.kind": "l1"}, {"regularizer.kind": "none"}], [1.0, 2.0])
    assert propose(space, [study], 5, seed=0) == [{"regularizer.kind": "none"}, {"regularizer.kind": "l1"}]


@pytest.mark.parametrize("value", ["l2", True, None, [1]])
def test_values_of_another_space_tell_nothing(value: Any) -> None:
    """Of a study whose space had another kind of setting under the same name."""
    settings = [{"optim.lr": value, "regularizer.kind": value}, {"optim.lr": 0.01}, {"optim.lr": 0.02}]
    assert len(propose(SPACE, [study_of(settings, [1.0, 2.0, 3.0])], 2, seed=0)) == 2


@settings(max_examples=3)
@given(seed=st.integers(0, 1000), number=st.integers(1, 2), trials=st.integers(2, 12))
def test_proposals_are_settings_of_the_space_and_the_same_each_time(
    seed: int, number: int, trials: int
) -> None:
    space, rng = load_space("recipe"), np.random.default_rng(seed)
    studies = [study_of(drawn(rng, trials), [float(x) for x in rng.normal(size=trials)])]
    found = propose(space, studies, number, seed)
    assert [space.checked(each, what="it") for each in found] == found
    assert len({str(each) for each in found}) == number
    assert found == propose(space, studies, number, seed)
