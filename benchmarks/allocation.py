"""Compare search spaces, and ways to spend the same number of runs on a search, replayed and for real.

    python benchmarks/allocation.py [--replays 4000] [--doc docs/measurements.md]
    PYTHONPATH=benchmarks python benchmarks/allocation.py --train [--sets cells ...] [--out DIR]  # hours

Replays train nothing. `objectives.json` and `photographs.json` record 25 settings with three seeds each on
five datasets: the search score, and H on test images. Each replay samples settings with a smoothed bootstrap
from the recorded means, which are shrunk by the noise of three seeds. It adds recorded noise to the scores
and selects settings according to the plan. The default settings are the first trial and always a candidate.
The gain is the mean test H of the selected settings minus that of the default settings. Trials with half the
epochs have an additional error: that of predicting epoch 5 of recorded learning curves (`curves.json`) from
the mean of epochs 2 and 3. `space_full.json` and `space_recipe.json` record the same for two other spaces.

Real searches: per development dataset, one of 30 trials of five epochs, and one of 40 trials of three epochs.
A plan with fewer trials uses the first ones. Plans share confirmation runs, which have as many epochs as the
trials. Selected and default settings are tested as published, after ten epochs, with the same three fresh
seeds. The results are in `allocation.json`. Rerun the same command to resume.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from common import DEVELOPMENT, WORSE, describe, mean_and_interval, parser_of, publish, table
from numpy.typing import NDArray
from objectives import Table, drift, read_evidence, train

from prometar.config.settings import configure
from prometar.io.files import write_atomically
from tune.records.schema import TrialRecord, rank_completed
from tune.study import Study

Floats = NDArray[np.float64]
EVIDENCE = Path(__file__).with_suffix(".json")
SEED = 7000
FILES = ("objectives.json", "photographs.json")
SPACE_FILES = ("objectives.json", "space_full.json", "space_recipe.json")


class Stage(NamedTuple):
    """Stage of a plan: the best `settings` settings are run with `seeds` new seeds.

    The default settings are one of the settings of the first stage, and are added to those of later stages.

    `epoch_share`: fraction of the epochs of a trial.
    """

    settings: int
    seeds: int
    epoch_share: float = 1.0


DEFAULT = "24 x 1, best 3 x 2 (default)"
HALF = "48 x 1 of half the epochs, best 3 x 2"
PLANS: Mapping[str, Sequence[Stage]] = {
    DEFAULT: (Stage(24, 1), Stage(3, 2)),
    "30 x 1": (Stage(30, 1),),
    "18 x 1, best 6 x 2": (Stage(18, 1), Stage(6, 2)),
    "16 x 1, best 6 x 1, best 3 x 3": (Stage(16, 1), Stage(6, 1), Stage(3, 3)),
    "successive halving: 16, 8, 4, 2 x 1": (Stage(16, 1), Stage(8, 1), Stage(4, 1), Stage(2, 1)),
    HALF: (Stage(48, 1, 0.5), Stage(3, 2)),
}
REAL_PLANS = {**PLANS, HALF: (Stage(40, 1), Stage(3, 2))}
"""Plans in real searches. The trials of `HALF` have three epochs."""


class Model(NamedTuple):
    """Expected score and test H of each setting of a dataset, and the noise (SD) of a run's score.

    `correlation`: of expected scores and test H, over random settings.
    """

    scores: Floats
    tests: Floats
    noise: float
    correlation: float


def fit(found: Table) -> Model:
    """Estimate the model. Means over seeds are shrunk towards their overall mean, to remove seed noise."""

    def shrunk(values: Floats) -> tuple[Floats, float]:
        means = values.mean(1)
        noise = float(np.sqrt(values.var(1, ddof=1).mean()))
        true = max(0.0, means.var(ddof=1) - noise**2 / values.shape[1])
        return means.mean() + np.sqrt(true / means.var(ddof=1)) * (means - means.mean()), noise

    runs = drift(found)
    expected, noise = shrunk(runs)
    tests, _ = shrunk(found.tests)
    # Shrinking would not change the correlation, but it may set one of the two to a constant.
    correlation = np.corrcoef(runs[1:].mean(1), found.tests[1:].mean(1))[0, 1]
    return Model(expected, tests, noise, float(correlation))


def half_length_error() -> float:
    """Return the error of a score after half the epochs, in standard deviations over settings."""
    curves = json.loads(Path(__file__).with_name("curves.json").read_text("utf-8"))["trials"]
    whole = np.array([trial["objective"] for trial in curves if len(trial["objective"]) == 5])
    half = whole[:, 1:3].mean(1)
    end = whole[:, 4]
    slope, offset = np.polyfit(half, end, 1)
    return float((end - slope * half - offset).std() / end.std())


def replay(model: Model, plan: Sequence[Stage], rng: np.random.Generator, short_error: float) -> float:
    """Simulate one search and return its gain. `short_error`: the result of `half_length_error`."""
    total = plan[0].settings - 1
    spread = model.scores[1:].std()
    rows = rng.integers(1, len(model.scores), total)
    jitter = rng.normal(0, 0.2, total)  # a smoothed bootstrap: no two sampled settings are the same
    scores = np.append(model.scores[rows] + jitter * spread, model.scores[0])
    tests = model.tests[rows] + model.correlation * jitter * model.tests[1:].std()
    tests = np.append(tests, model.tests[0])
    sums = np.zeros(total + 1)
    runs = np.zeros(total + 1)
    alive = np.arange(total + 1)
    for number, stage in enumerate(plan):
        if number:
            order = alive[np.argsort(-sums[alive] / runs[alive])]
            alive = np.union1d(order[: stage.settings], [total])  # the default settings remain a candidate
        extra = rng.normal(0, short_error * spread, len(alive)) if stage.epoch_share < 1 else 0.0
        new_scores = rng.normal(scores[alive], model.noise, (stage.seeds, len(alive))) + extra
        sums[alive] += new_scores.sum(0)
        runs[alive] += stage.seeds
    best = alive[np.argmax(sums[alive] / runs[alive])]
    return float(tests[best] - tests[total])


class Search(NamedTuple):
    """A finished search, and what is needed for more runs with its settings."""

    trials: Sequence[TrialRecord]
    dataset: str
    epochs: int
    args: argparse.Namespace
    pool: Executor

    @classmethod
    def run(
        cls, trials: int, dataset: str, epochs: int, args: argparse.Namespace, pool: Executor
    ) -> "Search":
        """Run the first stage of a study."""
        where = {"folder": args.out / f"{dataset.replace(':', '.')}-{epochs}", "dataset": dataset}
        study = Study(**where, backbone="mini", trials=trials, epochs=epochs, seed=SEED)
        study.search()
        return cls(study.records.trials, dataset, epochs, args, pool)

    def train(self, runs: Iterable[tuple[TrialRecord, int]], epochs: int) -> list[dict[str, Any]]:
        """Return the records of trials, each with a seed. Train those that are missing."""
        paths = []
        running = []
        for trial, seed in runs:
            prefix = "default" if trial.is_baseline else f"{trial.number}-of-{self.epochs}"
            paths.append(self.args.out / f"{self.dataset}-{prefix}-epochs{epochs}-seed{seed}.json")
            where = {"data.name": self.dataset, "backbone.name": "mini"}
            budget = {"train.epochs": epochs, "train.seed": seed}
            config = configure("prometar", {**trial.settings, **where, **budget})
            if not paths[-1].exists():
                running.append(self.pool.submit(train, config, paths[-1]))
        for each in running:
            each.result()
        return [json.loads(path.read_text("utf-8")) for path in paths]

    def select(self, plan: Sequence[Stage]) -> tuple[TrialRecord, TrialRecord]:
        """Return the trial that a plan selects, and the baseline."""
        alive = rank_completed(self.trials[: plan[0].settings])
        baseline = next(trial for trial in alive if trial.is_baseline)
        scores = {trial.number: [trial.objective or 0.0] for trial in alive}
        seed = SEED + 100
        for stage in plan[1:]:
            ranked = sorted(alive, key=lambda trial: -mean(scores[trial.number]))
            alive = [baseline, *[trial for trial in ranked if trial is not baseline][: stage.settings]]
            runs = [(trial, seed + k) for trial in alive for k in range(stage.seeds)]
            for (trial, _), record in zip(runs, self.train(runs, self.epochs), strict=True):
                scores[trial.number].append(record["seen objective"])
            seed += stage.seeds
        return max(alive, key=lambda trial: (mean(scores[trial.number]), trial.is_baseline)), baseline


def measure(dataset: str, args: argparse.Namespace, pool: Executor) -> dict[str, list[float]]:
    """Return the gains of each plan, by seed."""
    whole = Search.run(30, dataset, 5, args, pool)
    short = Search.run(40, dataset, 3, args, pool)
    gains = {}
    for name, plan in REAL_PLANS.items():
        search = short if name == HALF else whole
        sides = [[(trial, SEED + k) for k in range(501, 504)] for trial in search.select(plan)]
        tests = [[record["H"] for record in search.train(runs, epochs=10)] for runs in sides]
        gains[name] = [round(a - b, 4) for a, b in zip(*tests, strict=True)]
        print(f"{dataset}, {name}: {mean(gains[name]):+.2f}", flush=True)
    return gains


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--train", action="store_true", help="run real searches")
    parser.add_argument("--sets", nargs="+", default=DEVELOPMENT, help="datasets of real searches")
    parser.add_argument("--out", type=Path, default=Path("out/allocation"), help="folder of real searches")
    parser.add_argument("--replays", type=int, default=4000, help="simulated searches per plan and dataset")
    parser.add_argument("--doc", type=Path, help="document with blocks `allocation` and `spaces`")
    parser.add_argument("--quick", action="store_true", help="run 100 replays only")
    args = parser.parse_args()
    real = json.loads(EVIDENCE.read_text("utf-8"))
    if args.train:
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            for dataset in args.sets:
                real["gains"][dataset] = measure(dataset, args, pool)
                write_atomically(EVIDENCE, json.dumps({**real, "machine": describe(threads=1)}).encode())
    evidence = {name: read_evidence(Path(__file__).with_name(name)) for name in {*FILES, *SPACE_FILES}}
    models = {each.dataset: fit(each) for name in FILES for each in evidence[name][1]}
    short_error = half_length_error()
    replays = 100 if args.quick else args.replays

    def gains(plan: Sequence[Stage], model: Model) -> Floats:
        rng = np.random.default_rng(0)
        return np.array([replay(model, plan, rng, short_error) for _ in range(replays)])

    def cells(plan: Sequence[Stage], models: Iterable[Model]) -> list[str]:
        found = [gains(plan, model) for model in models]
        means = [float(each.mean()) for each in found]
        worse = f"{100 * np.mean([np.mean(each < WORSE) for each in found]):.0f} %"
        return [mean_and_interval(means), worse, *(f"{m:+.2f}" for m in means)]

    rows = []
    for name, plan in PLANS.items():
        runs = sum(
            (stage.settings + (k > 0)) * stage.seeds * stage.epoch_share for k, stage in enumerate(plan)
        )
        gains_found = " ".join(f"{mean(each[name]):+.1f}" for each in real["gains"].values())
        rows.append((name, f"{runs:g}", *cells(plan, models.values()), gains_found))
    head = ("plan", "runs", "gain in H", "worse", *models, f"real: {', '.join(real['gains'])}")
    publish(table(head, rows), args.doc, "allocation")
    rows = []
    for how, tables in (evidence[name] for name in SPACE_FILES):
        runs = f"{1 + how['settings']} x {len(how['seeds'])}"
        rows.append((f"`{how['space']}`", runs, *cells(PLANS[DEFAULT], [fit(t) for t in tables])))
    columns = ("space", "recorded runs", "gain in H", "worse", *DEVELOPMENT)
    publish(table(columns, rows), args.doc, "spaces")


if __name__ == "__main__":
    main()
