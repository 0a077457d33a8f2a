"""Studies enacted from figures that are there: what each rule of choosing settings would have gained.

A study on a development set sees one seed in its search and another in its last round; what it chooses is
tested with those that are left. What a lead is worth, the portfolio and its gains are of the other sets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import isfinite
from statistics import mean, stdev
from typing import Any

import numpy as np
from common import WORSE, table
from scoring import DRIFT, WAYS, Floats, Table, calibration, over_released

from tune.results.schema import EarlierStudy, EarlierTrial
from tune.space.portfolio import Known, Portfolio
from tune.space.spaces import Space
from tune.stages.choice import KEEP_UNLESS, Belief, Calibration, Promise, belief, believed
from tune.stages.learned import Promises
from tune.stages.warm_start import promised

TOP = 3  # settings in the last round
REDRAWN = 50  # times that the settings of a smaller study are drawn


@dataclass(frozen=True)
class Enacted:
    """Leads and gains of settings over the released ones, and what is known of them from elsewhere.

    Args:
        searched: By setting, the lead in the search. again: In the last round. gain: On the test.
        portfolio: Settings that are tried first, the best first. known: Their gains elsewhere, by setting.
        points: Settings as points of the unit cube.
        promised: The gain that a linear model of the other sets' scores promises of each.
    """

    searched: Floats
    again: Floats
    gain: Floats
    portfolio: Sequence[int]
    known: Mapping[int, Sequence[float]]
    calibration: Calibration
    draws: Belief
    points: Floats
    promised: Sequence[Belief]

    def before(self, setting: int, *, elsewhere: bool, learned: bool) -> Belief:
        """What is believed of it before it is trained."""
        known = self.known[setting] if elsewhere and setting in self.portfolio else []
        return belief(known, self.promised[setting] if learned else self.draws)


Rule = Callable[[Enacted], int | None]
"""The settings that are chosen, None for the released ones."""


def highest(study: Enacted) -> int:
    return int(study.searched.argmax())


def highest_mean(study: Enacted) -> int:
    """Of the best-scored, by both seeds."""
    top = np.argsort(-study.searched)[:TOP]
    return int(top[(study.searched + study.again)[top].argmax()])


def best_elsewhere(study: Enacted) -> int:
    return study.portfolio[0]


def most_promising(study: Enacted) -> int:
    return max(range(len(study.gain)), key=lambda k: study.promised[k].mean)


def expected(
    study: Enacted,
    *,
    own: bool = False,
    elsewhere: bool = True,
    learned: bool = False,
    search_counts: bool = True,
) -> int | None:
    """The highest expected gain, if it is probably one.

    Args:
        own: Only settings that are not of the portfolio. elsewhere: Gains on other data sets are known.
        learned: Scores on other data sets are.
        search_counts: The score that picked settings for the last round is a measurement too.
    """
    tried = [k for k in range(len(study.gain)) if not own or k not in study.portfolio]
    before = {k: study.before(k, elsewhere=elsewhere, learned=learned) for k in tried}
    first = {k: believed([study.searched[k]], study.calibration, before[k]) for k in tried}
    top = sorted(tried, key=lambda k: -first[k].mean)[:TOP]
    last = {
        k: believed(
            [*([study.searched[k]] if search_counts else []), study.again[k]], study.calibration, before[k]
        )
        for k in top
    }
    best = max(top, key=lambda k: last[k].mean)
    return best if last[best].probability >= KEEP_UNLESS else None


def smooth(study: Enacted) -> int:
    """The highest expected gain, where settings that are near each other gain alike (a Gaussian process)."""
    known, c = study.draws, study.calibration
    squares = ((study.points[:, None] - study.points[None]) ** 2).sum(axis=-1)
    prior = known.sd**2 * (0.5 * np.exp(-squares / 2) + 0.5 * np.eye(len(squares)))
    noise = np.full(len(squares), c.spread**2 + c.noise**2)
    lead = study.searched.copy()
    for _ in range(2):  # after the search, and after the last round
        seen = c.slope**2 * prior + np.diag(noise)
        gains = known.mean + c.slope * prior @ np.linalg.solve(seen, lead - c.offset - c.slope * known.mean)
        top = np.argsort(-gains)[:TOP]
        lead[top] = (study.searched[top] + study.again[top]) / 2
        noise[top] = c.spread**2 + c.noise**2 / 2
    return int(top[gains[top].argmax()])


def race(study: Enacted, once: int, twice: int) -> float:
    """The mean gain of the best of `once` settings, `twice` of which meet both seeds."""
    rng, gains = np.random.default_rng(0), []
    for _ in range(REDRAWN):
        tried = rng.permutation(len(study.gain))[:once]
        top = tried[np.argsort(-study.searched[tried])[:twice]]
        scores = study.searched[top] + (study.again[top] if twice > 1 else 0)
        gains.append(study.gain[top[scores.argmax()]])
    return float(np.mean(gains))


RULES: dict[str, Rule] = {
    "the highest score": highest,
    "of the three best-scored, the highest mean of search and last round": highest_mean,
    "the portfolio's best, without a search": best_elsewhere,
    "what scores on the other sets promise most of, without a search": most_promising,
    "expected gain, by the last round": lambda study: expected(study, search_counts=False),
    "expected gain, by search and last round (the default)": expected,
    "the same, of the search's own draws alone": lambda study: expected(study, own=True),
    "the same, nothing known from elsewhere": lambda study: expected(study, elsewhere=False),
    "the same, after searches on the other sets": lambda study: expected(
        study, elsewhere=False, learned=True
    ),
    "the same, and settings near each other gain alike": smooth,
    "the best there is": lambda study: int(study.gain.argmax()),
}
RACES = {
    "24 settings once": (24, 1),
    "21 settings once, the best 3 twice": (21, 3),
    "18 settings once, the best 6 twice": (18, 6),
    "12 settings twice": (12, 12),
}
"""24 runs each: settings that meet one seed, and how many of them meet a second one too."""


def studies(
    t: Table, others: Sequence[Table], settings: Sequence[Mapping[str, Any]], space: Space
) -> list[Enacted]:
    """One for each way to hand out the seeds."""
    worth, draws = calibration(WAYS[DRIFT], others)
    gains = np.array([o.gains.mean(axis=1) for o in others]).T
    names = [o.dataset for o in others]
    known = tuple(
        Known({"number": k}, dict(zip(names, map(float, row), strict=True))) for k, row in enumerate(gains)
    )
    portfolio = Portfolio(space.name, "", "", 0, 0, known).choose(without=())
    points = np.array(
        [
            [entry.unit(each[key]) if key in each else 0.5 for key, entry in space.ranges.items()]
            for each in settings
        ]
    )
    lead, gain = over_released(WAYS[DRIFT](t)), t.gains
    point = promise(others, settings, space)
    return [
        Enacted(
            lead[:, a], lead[:, b], gain[:, rest].mean(axis=1),
            [each["number"] for each in portfolio], dict(enumerate(map(list, gains))), worth, draws, points,
            promised(
                settings, [searched(o, settings, a) for o in others], space, worth=point,
                calibration=worth, before=draws,
            ),
        )
        for a, b, *rest in permutations(range(t.tests.shape[1]))
    ]  # fmt: skip


def searched(
    t: Table,
    settings: Sequence[Mapping[str, Any]],
    seed: int,
    which: Sequence[int] | None = None,
) -> EarlierStudy:
    """A search on a set that has scored the released settings and all others, or `which`."""
    released, *scores = map(float, WAYS[DRIFT](t)[:, seed])
    found = range(len(settings)) if which is None else which
    trials = tuple(EarlierTrial(settings[k], scores[k]) for k in found if isfinite(scores[k]))
    return EarlierStudy("", (t.dataset,), DRIFT, trials, released if isfinite(released) else None)


def promise(tables: Sequence[Table], settings: Sequence[Mapping[str, Any]], space: Space) -> Promise:
    """Points gained on a set for a point that the other sets' scores promise, of settings not tried there.

    Halves of the settings in turn: one is tried on the other sets, of the other one gains are foretold. The
    spread is over sets, noise of their slopes included.
    """
    rng, pairs = np.random.default_rng(0), {t.dataset: list[tuple[float, float]]() for t in tables}
    for turn in range(REDRAWN):
        order = rng.permutation(len(settings)).tolist()
        middle, seed = len(order) // 2, turn % tables[0].tests.shape[1]
        for tried, asked in ((order[:middle], order[middle:]), (order[middle:], order[:middle])):
            for t in tables:
                others = [searched(o, settings, seed, tried) for o in tables if o is not t]
                leads = Promises.of(space, others).leads([settings[k] for k in asked])
                gains = np.delete(t.gains, seed, axis=1)[asked].mean(axis=1)
                pairs[t.dataset] += [each for each in zip(leads, gains, strict=True) if isfinite(each[1])]
    slope = _slope([pair for of_set in pairs.values() for pair in of_set])
    return Promise(round(slope, 2), round(stdev(map(_slope, pairs.values())), 2))


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    lead, gain = np.array(pairs).T
    return float(np.polyfit(lead, gain, 1)[0])


def choices(
    tables: Sequence[Table],
    settings: Sequence[Mapping[str, Any]],
    space: Space,
    elsewhere: Sequence[Table] = (),
) -> str:
    """What each rule gains on each set, and how often it does harm.

    What is known on a set is of the other ones and of those `elsewhere`, which have no column.
    """
    enacted = {
        t.dataset: studies(t, [o for o in (*tables, *elsewhere) if o is not t], settings, space)
        for t in tables
    }
    rows = []
    for name, rule in RULES.items():
        found = {
            dataset: [0.0 if (k := rule(study)) is None else float(study.gain[k]) for study in of_set]
            for dataset, of_set in enacted.items()
        }
        means = [mean(gains) for gains in found.values()]
        worse = mean(gain < WORSE for gains in found.values() for gain in gains)
        rows.append((name, *(f"{gain:+.2f}" for gain in (*means, mean(means))), f"{100 * worse:.0f} %"))
    for title, (once, twice) in RACES.items():
        means = [mean(race(study, once, twice) for study in of_set) for of_set in enacted.values()]
        rows.append((f"{title}: the highest mean", *(f"{gain:+.2f}" for gain in (*means, mean(means))), ""))
    return table(("chosen", *enacted, "mean", "worse"), rows)
