"""Simulated concurrency of a search: regret and wall time by number of concurrent trials.

    python benchmarks/sampler.py [--seeds 10] [--samplers tpe random] [--budgets 40 200] [--jobs 2]
        [--json FILE] [--plot docs/concurrency.svg] [--quick]
    python benchmarks/sampler.py --samplers gp --budgets 40 --seeds 3     # half a minute per search

Nothing is trained. The trial store of a study samples and stores trials of simulated duration. As in
a real study, the first concurrent trials are thus sampled without any result. There are three problems:

- quadratic: a quadratic function on the space `default`. Few settings matter, and the optimum depends on
  the seed.
- hartmann: the Hartmann function of six settings.
- recorded: the score of the recorded trial (curves.json) with the nearest settings, on the spaces
  `regularizer` and `augmentation` together.

If the number of epochs is searched, the duration of a trial is proportional to it. Scores are noisy. At the
end of a search, the settings with the highest noisy score are evaluated without noise. Regret is their
distance to the optimum: 0 is the optimum, and 100 is the median of random samples. Wall time is in units of
the mean duration of a trial.

Results are written to --json after each search. Rerun the same command to resume.
"""

import argparse
import heapq
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, variance
from typing import Any, NamedTuple

import optuna
from common import parser_of, table
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage

from prometar.io.files import write_atomically
from tune.config import StudyConfig
from tune.records.folder import StudyFolder
from tune.records.schema import EpochReport, RunScore
from tune.space.ranges import Choice, Range
from tune.space.space import EPOCHS_KEY, Space, load_space
from tune.store.trial_store import TrialStore

CONCURRENCY = (1, 2, 4, 8, 16, 40)
EPOCHS = 10
"""Number of epochs of a trial of mean duration. If the number is not searched, all trials have it."""
NOISE = 8.0
"""Standard deviation of the noise of a score, in units of regret.

About as large as differences between seeds on validation images.
"""
HARTMANN = (
    "optim.lr",
    "prompts.text_depth",
    "prompts.vision_depth",
    "augment.crop_scale_min",
    "augment.flip",
    EPOCHS_KEY,
)
"""Settings of the problem `hartmann`."""
RECORDED = json.loads(Path(__file__).with_name("curves.json").read_text("utf-8"))["trials"]
"""Trials of a real search, with their settings and the score of each epoch."""
Objective = Callable[[Mapping[str, Any]], float]
"""Function of settings. A higher value is better, except for a regret."""


def unit(entry: Range, value: Any) -> float:
    """Return the position of a value in its range, from 0 to 1."""
    if isinstance(entry, Choice):
        return entry.choices.index(value) / max(1, len(entry.choices) - 1)
    scale = math.log if entry.log else float
    return (scale(value) - scale(entry.low)) / (scale(entry.high) - scale(entry.low))


class Term(NamedTuple):
    """Loss of a setting in `quadratic`, with its weight."""

    weight: float
    best: float
    """Position of the best value in a range, from 0 to 1."""
    order: list[int]
    """Ranks of up to nine choices. The choice with the lowest rank is the best."""

    def loss(self, entry: Range, value: Any) -> float:
        if not isinstance(entry, Choice):
            return self.weight * (unit(entry, value) - self.best) ** 2
        ranks = self.order[: len(entry.choices)]
        rank = ranks[entry.choices.index(value)]
        num_better = sum(other < rank for other in ranks)
        return self.weight * num_better / len(ranks)


def quadratic(space: Space, seed: int) -> tuple[Objective, float]:
    """Return a quadratic function and its maximum.

    The seed determines the optimum, and the order of the settings by weight: the k-th weight is 0.6^k.
    """
    rng = random.Random(seed)
    names = rng.sample(list(space.ranges), len(space.ranges))
    terms: dict[str, Term] = {}
    for k, name in enumerate(names):
        terms[name] = Term(weight=0.6**k, best=rng.random(), order=rng.sample(range(9), 9))

    def value(settings: Mapping[str, Any]) -> float:
        return -sum(terms[name].loss(space.ranges[name], setting) for name, setting in settings.items())

    return value, 0.0


def hartmann(space: Space, seed: int) -> tuple[Objective, float]:
    """Return the six-dimensional Hartmann function, with coordinates permuted by seed, and its maximum.

    f(x) = sum_i c_i exp(-sum_j a_ij (x_j - p_ij)^2) for x in [0, 1]^6 and i from 1 to 4. The numbers in the
    table `p` are p_ij times 10,000.
    Source: Dixon and Szegő, "The global optimization problem: an introduction" (1978).
    """
    c = (1.0, 1.2, 3.0, 3.2)
    a = (
        (10, 3, 17, 3.5, 1.7, 8),
        (0.05, 10, 17, 0.1, 8, 14),
        (3, 3.5, 1.7, 10, 17, 8),
        (17, 8, 0.05, 10, 0.1, 14),
    )
    p = (
        (1312, 1696, 5569, 124, 8283, 5886),
        (2329, 4135, 8307, 3736, 1004, 9991),
        (2348, 1451, 3522, 2883, 3047, 6650),
        (4047, 8828, 8732, 5743, 1091, 381),
    )
    names = random.Random(seed).sample(HARTMANN, len(HARTMANN))

    def value(settings: Mapping[str, Any]) -> float:
        x = [unit(space.ranges[name], settings[name]) for name in names]
        total = 0.0
        for c_i, a_i, p_i in zip(c, a, p, strict=True):
            distance = 0.0
            for a_ij, p_ij, x_j in zip(a_i, p_i, x, strict=True):
                distance += a_ij * (x_j - p_ij / 1e4) ** 2
            total += c_i * math.exp(-distance)
        return total

    return value, 3.32237


def recorded(space: Space, seed: int) -> tuple[Objective, float]:
    """Return a function and its maximum: the last score of the recorded trial with the nearest settings."""

    def distance(settings: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        return sum(
            _squared_distance(entry, settings.get(name), other.get(name))
            for name, entry in space.ranges.items()
        )

    def value(settings: Mapping[str, Any]) -> float:
        nearest = min(RECORDED, key=lambda trial: distance(settings, trial["settings"]))
        return float(nearest["objective"][-1])

    return value, max(trial["objective"][-1] for trial in RECORDED)


def _squared_distance(entry: Range, one: Any, other: Any) -> float:
    if one is None or other is None or isinstance(entry, Choice):
        return float(one != other)
    return (unit(entry, one) - unit(entry, other)) ** 2


PROBLEMS = {"quadratic": quadratic, "hartmann": hartmann, "recorded": recorded}


@cache
def space_of(problem: str) -> Space:
    """Return the search space of a problem."""
    if problem == "recorded":
        ranges = {**load_space("regularizer").ranges, **load_space("augmentation").ranges}
        return Space(name=problem, ranges=ranges)
    whole = load_space("default")
    if problem == "quadratic":
        return whole
    return Space(name=problem, ranges={name: whole.ranges[name] for name in HARTMANN})


@cache
def regret_function(problem: str, seed: int) -> Objective:
    """Return the regret as a function of settings: 0 at the optimum, 100 for a median random sample."""
    space = space_of(problem)
    function, optimum = PROBLEMS[problem](space, seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=RandomSampler(seed))
    typical = median(function(space.sample(study.ask())) for _ in range(300))

    def regret(settings: Mapping[str, Any]) -> float:
        return 100 * (optimum - function(settings)) / (optimum - typical)

    return regret


class Scored(NamedTuple):
    """Noisy score and true regret of a trial."""

    score: float
    regret: float


def simulate(options: Mapping[str, Any]) -> dict[str, Any]:
    """Simulate one search. Return `options`, the regret of the best-scored settings and the wall time."""
    warnings.simplefilter("ignore")
    problem = options["problem"]
    seed = options["seed"]
    slots = options["concurrency"]
    space = space_of(problem)
    regret_of = regret_function(problem, seed)
    config = StudyConfig.of(
        space=space,
        trials=options["budget"],
        sampler=options["sampler"],
        pruner="none",
        seed=seed,
        epochs=EPOCHS,
    )
    store = TrialStore(config, InMemoryStorage(), StudyFolder(Path("nowhere")), {}, concurrency=slots)
    running: list[tuple[float, int, dict[str, Any]]] = []  # a heap of end, number and settings of each trial
    scored: list[Scored] = []
    now = 0.0  # simulated time
    while True:
        while len(running) < slots:
            trial = store.ask()
            if trial is None:
                break
            rng = random.Random(f"{seed} {trial.number}")
            duration = rng.uniform(0.7, 1.3) * trial.params.get(EPOCHS_KEY, EPOCHS) / EPOCHS
            heapq.heappush(running, (now + duration, trial.number, trial.params))
        if not running:
            # All trials have ended.
            best = max(scored, key=lambda each: each.score)
            return {**options, "regret": round(best.regret, 3), "wall": round(now, 3)}
        now, number, settings = heapq.heappop(running)
        regret = regret_of(settings)
        score = random.Random(f"{seed} {number} noise").gauss(100 - regret, NOISE)
        scored.append(Scored(score, regret))
        run = RunScore("textures", seed, objective=score)
        store.report(number, EpochReport(1, (run,), finished=True))


def all_searches(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the options of all searches, seed by seed, so that partial results are balanced."""
    for seed, budget, problem, sampler, slots in product(
        range(args.seeds), args.budgets, PROBLEMS, args.samplers, CONCURRENCY
    ):
        yield {"problem": problem, "sampler": sampler, "budget": budget, "concurrency": slots, "seed": seed}


class Searches(NamedTuple):
    """What searches have in common that are summarized together."""

    sampler: str
    budget: int
    concurrency: int


class Figures(NamedTuple):
    """Mean regret, its standard error and mean wall time of searches."""

    regret: float
    error: float
    wall: float


Summary = dict[Searches, Figures]


def summarize(rows: list[dict[str, Any]]) -> Summary:
    """Return the figures of all searches.

    The mean regret is over problems. So its standard error contains the differences between seeds only.
    """
    groups: dict[Searches, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        searches = Searches(row["sampler"], row["budget"], row["concurrency"])
        by_problem = groups.setdefault(searches, {})
        by_problem.setdefault(row["problem"], []).append(row)
    summary: Summary = {}
    for searches, by_problem in groups.items():
        regrets: list[float] = []  # mean by problem
        squared_errors: list[float] = []  # squared standard error of each of these means
        walls: list[float] = []
        for group in by_problem.values():
            values = [row["regret"] for row in group]
            regrets.append(mean(values))
            squared_errors.append(variance(values) / len(values) if len(values) > 1 else 0.0)
            walls.append(mean(row["wall"] for row in group))
        error = math.sqrt(sum(squared_errors)) / len(regrets)
        summary[searches] = Figures(regret=mean(regrets), error=error, wall=mean(walls))
    return summary


# Sizes and positions in the plot, in SVG units.
WIDTH = 860
HEIGHT = 360
PANEL_WIDTH = 340
PANEL_DISTANCE = 70
LEFT_MARGIN = 60
TOP_MARGIN = 50
BOTTOM_MARGIN = 80  # ticks, wall times and the label of the axis
COLORS = {"tpe": "#0b6e99", "gp": "#b8860b", "random": "#777777"}
"""Color of each sampler."""


def plot(summary: Summary, path: Path) -> None:
    """Plot regret against concurrency, one panel per budget. Wall times are below the ticks."""
    highest = 1.1 * max(figures.regret + figures.error for figures in summary.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    budgets = sorted({searches.budget for searches in summary})
    for number, budget in enumerate(budgets):
        left = LEFT_MARGIN + number * (PANEL_WIDTH + PANEL_DISTANCE)
        parts += _axes(summary, budget, left, highest)
        for sampler in COLORS:
            parts += _curve(summary, budget, sampler, left, highest)
    parts.append("</svg>")
    write_atomically(path, ("\n".join(parts) + "\n").encode())


def _text(x: float, y: float, words: str, *, anchor: str = "middle", fill: str = "") -> str:
    color = f'fill="{fill}" ' if fill else ""
    return f'<text {color}x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _y_of(regret: float, highest: float) -> float:
    """Return the vertical position of a regret. `highest` is at the top of the panel."""
    return TOP_MARGIN + (HEIGHT - TOP_MARGIN - BOTTOM_MARGIN) * (1 - regret / highest)


def _tick_positions(left: float) -> dict[int, float]:
    """Return the horizontal position of each number of concurrent trials, in equal distances."""
    distance = (PANEL_WIDTH - 60) / (len(CONCURRENCY) - 1)
    return {slots: left + 30 + k * distance for k, slots in enumerate(CONCURRENCY)}


def _axes(summary: Summary, budget: int, left: float, highest: float) -> list[str]:
    """Return title, axes and wall times of a panel."""
    center = left + PANEL_WIDTH / 2
    parts = [
        _text(center, 20, f"{budget} trials: regret (0 optimum, 100 random setting)"),
        f'<path d="M{left} {_y_of(0, highest):.1f} h{PANEL_WIDTH}" stroke="#999"/>',
    ]
    step = next(step for step in (2, 5, 10, 20, 50) if highest / step < 8)  # at most eight ticks
    for tick in range(0, int(highest) + 1, step):
        parts.append(_text(left - 8, _y_of(tick, highest) + 4, str(tick), anchor="end"))
    for slots, x in _tick_positions(left).items():
        walls = [
            figures.wall
            for searches, figures in summary.items()
            if searches.budget == budget and searches.concurrency == slots
        ]
        parts.append(_text(x, HEIGHT - 60, str(slots)))
        parts.append(_text(x, HEIGHT - 40, f"{mean(walls):.0f}" if walls else ""))
    parts.append(_text(center, HEIGHT - 12, "concurrent trials; below: wall time in trials"))
    return parts


def _curve(summary: Summary, budget: int, sampler: str, left: float, highest: float) -> list[str]:
    """Return the curve of a sampler in a panel, with its error bars and its name. Without results, [].

    Curves are shifted, so that error bars do not hide each other.
    """
    number = list(COLORS).index(sampler)
    color = COLORS[sampler]
    shift = 5 * (number - 1)
    points: list[tuple[float, Figures]] = []
    for slots, x in _tick_positions(left).items():
        figures = summary.get(Searches(sampler, budget, slots))
        if figures is not None:
            points.append((x + shift, figures))
    if not points:
        return []
    line = " L".join(f"{x:.1f} {_y_of(figures.regret, highest):.1f}" for x, figures in points)
    parts = [
        f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="2"/>',
        _text(left + 40 + 70 * number, 42, sampler, fill=color),
    ]
    for x, figures in points:
        low = _y_of(max(0.0, figures.regret - figures.error), highest)
        high = _y_of(figures.regret + figures.error, highest)
        parts.append(f'<path d="M{x:.1f} {low:.1f} V{high:.1f}" stroke="{color}"/>')
        y = _y_of(figures.regret, highest)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
    return parts


def _cell(figures: Figures | None) -> str:
    if figures is None:
        return "-"
    return f"{figures.regret:.1f} ± {figures.error:.1f} ({figures.wall:.0f})"


def minus_random(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the searches of other samplers. Each regret is minus that of the same search at random."""

    def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("problem", "budget", "concurrency", "seed"))

    random_regrets = {key_of(row): row["regret"] for row in rows if row["sampler"] == "random"}
    differences: list[dict[str, Any]] = []
    for row in rows:
        if row["sampler"] != "random" and key_of(row) in random_regrets:
            differences.append({**row, "regret": row["regret"] - random_regrets[key_of(row)]})
    return differences


def show(summary: Summary) -> str:
    """Return a table of regrets with standard errors and wall times."""
    budgets = sorted({searches.budget for searches in summary})
    simulated = {searches.sampler for searches in summary}
    samplers = [name for name in COLORS if name in simulated]
    head = ("trials", "sampler", *(f"{slots} concurrent" for slots in CONCURRENCY))
    rows = []
    for budget, sampler in product(budgets, samplers):
        cells = [_cell(summary.get(Searches(sampler, budget, slots))) for slots in CONCURRENCY]
        rows.append((budget, sampler, *cells))
    return table(head, rows)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="simulated searches per configuration")
    parser.add_argument("--samplers", nargs="+", choices=COLORS, default=["tpe", "random"], help="samplers")
    parser.add_argument("--budgets", type=int, nargs="+", default=[40, 200], help="numbers of trials")
    parser.add_argument("--jobs", type=int, default=2, help="concurrent searches")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("concurrency.json"))
    parser.add_argument("--plot", type=Path, help="SVG file to write, such as docs/concurrency.svg")
    parser.add_argument("--quick", action="store_true", help="one seed, ten trials, no stored results")
    args = parser.parse_args()
    if args.quick:
        args.seeds = 1
        args.budgets = [10]
    rows: list[dict[str, Any]] = []
    if args.json.exists() and not args.quick:
        rows = json.loads(args.json.read_text())
    results = ("regret", "wall")
    done = [{key: value for key, value in row.items() if key not in results} for row in rows]
    missing = [options for options in all_searches(args) if options not in done]
    with get_context("spawn").Pool(args.jobs) as pool:
        for number, row in enumerate(pool.imap_unordered(simulate, missing), start=1):
            rows.append(row)
            if not args.quick:
                lines = ",\n".join(json.dumps(row) for row in rows)
                write_atomically(args.json, f"[\n{lines}\n]\n".encode())
            print(f"{number} of {len(missing)} searches", end="\r", flush=True)
    print("Regret ± standard error (wall time in trial durations)", show(summarize(rows)), sep="\n\n")
    print("\nMinus that of random sampling", show(summarize(minus_random(rows))), sep="\n\n")
    if args.plot:
        plot(summarize(rows), args.plot)


if __name__ == "__main__":
    main()
