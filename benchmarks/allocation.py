"""Compare search spaces, and plans: ways to spend about the same number of runs on a search.

Replay recorded runs:

    python benchmarks/allocation.py [--replays 4000] [--doc docs/measurements.md]

Run real searches first, for hours. Ray's workers import the datasets `suite:...`, so `benchmarks` must be on
PYTHONPATH:

    PYTHONPATH=benchmarks python benchmarks/allocation.py --train [--sets cells ...] [--out DIR]

Replays train nothing. `objectives.json` and `photographs.json` record 25 settings with three seeds each on
five datasets: the search score, and H (harmonic mean of base and new accuracy) on test images. Means over the
three seeds still contain noise, so they are shrunk towards the mean over all settings. A replay draws
settings from these means, each with a small random shift (smoothed bootstrap). The score of a run is the mean
of its settings plus noise, whose standard deviation is that between the recorded seeds. The plan then decides
which settings are selected. The default settings are the first trial and always a candidate. The gain is the
mean test H of the selected settings minus that of the default settings. `space_full.json` and
`space_recipe.json` record the same for two other spaces.

One plan has trials of half the epochs. Half of five epochs is 2.5, so epoch 5 of recorded learning curves
(`curves.json`) is predicted from the mean of epochs 2 and 3. The error of this prediction is added to the
scores of these trials.

Real searches: each development dataset is searched twice, with 30 trials of five epochs and with 40 trials of
three epochs. A plan with fewer trials uses the first ones. Plans share confirmation runs, which have as many
epochs as the trials. Selected and default settings are then trained for ten epochs, the published number, and
tested with the same three fresh seeds. The file `allocation.json` contains the results. Rerun the same
command to resume.
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
from objectives import Results, drift_score, read_evidence
from objectives import train as train_and_record

from prometar.config.settings import configure
from prometar.io.files import write_atomically
from tune.records.schema import TrialRecord, rank_completed
from tune.study import Study

Floats = NDArray[np.float64]
EVIDENCE = Path(__file__).with_suffix(".json")
SEED = 7000
TEST_SEEDS = (SEED + 501, SEED + 502, SEED + 503)
FILES = ("objectives.json", "photographs.json")
"""Files with the runs from which plans are compared."""

SPACE_FILES = ("objectives.json", "space_full.json", "space_recipe.json")
"""Files with the runs of one space each."""


class Stage(NamedTuple):
    """Stage of a plan, which runs the best `num_settings` settings with `num_seeds` new seeds each.

    The default settings are one of the settings of the first stage, and are added to those of later stages.

    Args:
        num_settings: Number of settings.
        num_seeds: Number of seeds of each setting.
        epoch_share: Length of a run as a fraction of the epochs of a trial.
    """

    num_settings: int
    num_seeds: int
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
"""Plans in real searches.

A real trial of five epochs cannot train for half of them. So here, `HALF` has 40 trials of three epochs,
which cost as much: 40 * 3/5 = 48 * 1/2.
"""


def cost_in_runs(plan: Sequence[Stage]) -> float:
    """Return the cost of a plan, in runs of all epochs."""
    cost = 0.0
    for number, stage in enumerate(plan):
        num_settings = stage.num_settings
        if number > 0:
            num_settings += 1  # later stages also run the default settings
        cost += num_settings * stage.num_seeds * stage.epoch_share
    return cost


class Model(NamedTuple):
    """Expected results of each setting on a dataset. The default settings come first.

    Args:
        scores: Expected score of each setting.
        tests: Expected H of each setting on test images.
        noise: Standard deviation of the score of a run around the expected score.
        correlation: Correlation of the scores and `tests` over random settings.
    """

    scores: Floats
    tests: Floats
    noise: float
    correlation: float


def fit(found: Results) -> Model:
    """Estimate the model. Means over seeds are shrunk towards their overall mean, to remove seed noise."""

    def shrunk(values: Floats) -> tuple[Floats, float]:
        """Return the shrunk mean of each row, and the standard deviation between seeds."""
        means = values.mean(1)
        overall = means.mean()
        variance = means.var(ddof=1)
        noise = float(np.sqrt(values.var(1, ddof=1).mean()))
        variance_without_noise = max(0.0, variance - noise**2 / values.shape[1])
        shrinkage = np.sqrt(variance_without_noise / variance)
        return overall + shrinkage * (means - overall), noise

    runs = drift_score(found)
    expected, noise = shrunk(runs)
    tests, _ = shrunk(found.tests)
    # These means are not shrunk. Shrinking would not change the correlation, but if all scores became equal,
    # the correlation would not exist.
    random_scores = runs[1:].mean(1)
    random_tests = found.tests[1:].mean(1)
    correlation = np.corrcoef(random_scores, random_tests)[0, 1]
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
    """Simulate one search and return its gain in H. `short_error`: the result of `half_length_error`."""
    # Sample settings. The default settings follow them.
    num_sampled = plan[0].num_settings - 1
    default = num_sampled
    spread = model.scores[1:].std()
    rows = rng.integers(1, len(model.scores), num_sampled)
    shift = rng.normal(0, 0.2, num_sampled)  # so that no two sampled settings are the same
    sampled_scores = model.scores[rows] + shift * spread
    sampled_tests = model.tests[rows] + model.correlation * shift * model.tests[1:].std()
    scores = np.append(sampled_scores, model.scores[0])
    tests = np.append(sampled_tests, model.tests[0])

    # Run the stages, each with the settings whose mean score over all their runs is highest.
    sums = np.zeros(num_sampled + 1)
    runs = np.zeros(num_sampled + 1)
    alive = np.arange(num_sampled + 1)
    for number, stage in enumerate(plan):
        if number > 0:
            order = alive[np.argsort(-sums[alive] / runs[alive])]
            alive = np.union1d(order[: stage.num_settings], [default])
        error_of_settings: Floats | float = 0.0
        if stage.epoch_share < 1:
            error_of_settings = rng.normal(0, short_error * spread, len(alive))
        new_scores = rng.normal(scores[alive], model.noise, (stage.num_seeds, len(alive)))
        sums[alive] += (new_scores + error_of_settings).sum(0)
        runs[alive] += stage.num_seeds
    best = alive[np.argmax(sums[alive] / runs[alive])]
    return float(tests[best] - tests[default])


def replay_gains(model: Model, plan: Sequence[Stage], replays: int, short_error: float) -> Floats:
    """Return the gain of each of `replays` simulated searches."""
    rng = np.random.default_rng(0)
    return np.array([replay(model, plan, rng, short_error) for _ in range(replays)])


def gain_cells(models: Iterable[Model], plan: Sequence[Stage], replays: int, short_error: float) -> list[str]:
    """Return cells of a table: the mean gain over datasets, the share of losses, and the gain per dataset."""
    gains = [replay_gains(model, plan, replays, short_error) for model in models]
    means = [float(each.mean()) for each in gains]
    share_of_losses = np.mean([np.mean(each < WORSE) for each in gains])
    gains_by_dataset = [f"{each:+.2f}" for each in means]
    return [mean_and_interval(means), f"{100 * share_of_losses:.0f} %", *gains_by_dataset]


class Search(NamedTuple):
    """A finished search, and what is needed for more runs with its settings.

    Args:
        trials: Its trials.
        dataset: Name of its dataset.
        epochs: Number of epochs of its trials.
        args: Options of this script.
        pool: Processes that train further runs.
    """

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
        folder = args.out / f"{dataset.replace(':', '.')}-{epochs}"
        study = Study(folder, dataset=dataset, backbone="mini", trials=trials, epochs=epochs, seed=SEED)
        study.search()
        return cls(study.records.trials, dataset, epochs, args, pool)

    def train(self, runs: Iterable[tuple[TrialRecord, int]], epochs: int) -> list[dict[str, Any]]:
        """Return the records of trials, each with a seed. Train those that are missing."""
        paths = []
        running = []
        for trial, seed in runs:
            name = "default"
            if not trial.is_baseline:
                name = f"trial{trial.number}-of-{self.epochs}-epoch-search"
            path = self.args.out / f"{self.dataset}-{name}-epochs{epochs}-seed{seed}.json"
            paths.append(path)
            if not path.exists():
                settings = {
                    **trial.settings,
                    "data.name": self.dataset,
                    "backbone.name": "mini",
                    "train.epochs": epochs,
                    "train.seed": seed,
                }
                config = configure("prometar", settings)
                running.append(self.pool.submit(train_and_record, config, path))
        for each in running:
            each.result()  # waits, and raises the error of a failed run
        return [json.loads(path.read_text("utf-8")) for path in paths]

    def select(self, plan: Sequence[Stage]) -> tuple[TrialRecord, TrialRecord]:
        """Return the trial that a plan selects, and the baseline, whose settings are the default ones."""
        alive = rank_completed(self.trials[: plan[0].num_settings])
        baseline = next(trial for trial in alive if trial.is_baseline)
        scores = {trial.number: [trial.objective or 0.0] for trial in alive}
        seed = SEED + 100
        for stage in plan[1:]:
            ranked = sorted(alive, key=lambda trial: -mean(scores[trial.number]))
            others = [trial for trial in ranked if trial is not baseline]
            alive = [baseline, *others[: stage.num_settings]]
            seeds = range(seed, seed + stage.num_seeds)
            runs = [(trial, each) for trial in alive for each in seeds]
            records = self.train(runs, self.epochs)
            for (trial, _), record in zip(runs, records, strict=True):
                # The score of a search: H of validation accuracy and predicted new accuracy.
                scores[trial.number].append(record["seen objective"])
            seed += stage.num_seeds
        # The baseline wins ties.
        selected = max(alive, key=lambda trial: (mean(scores[trial.number]), trial.is_baseline))
        return selected, baseline

    def test(self, trial: TrialRecord) -> list[float]:
        """Return H on test images after ten epochs, the published number, for each of `TEST_SEEDS`."""
        runs = [(trial, seed) for seed in TEST_SEEDS]
        return [record["H"] for record in self.train(runs, epochs=10)]


def measure(dataset: str, args: argparse.Namespace, pool: Executor) -> dict[str, list[float]]:
    """Return the gains in H of each plan, one per seed of `TEST_SEEDS`."""
    whole = Search.run(30, dataset, 5, args, pool)
    short = Search.run(40, dataset, 3, args, pool)
    gains: dict[str, list[float]] = {}
    for name, plan in REAL_PLANS.items():
        search = short if name == HALF else whole
        selected, baseline = search.select(plan)
        pairs = zip(search.test(selected), search.test(baseline), strict=True)
        gains[name] = [round(h_selected - h_default, 4) for h_selected, h_default in pairs]
        print(f"{dataset}, {name}: {mean(gains[name]):+.2f}", flush=True)
    return gains


def run_searches(real: dict[str, Any], args: argparse.Namespace) -> None:
    """Run real searches. Add their gains to `real` and, after each dataset, to `allocation.json`."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for dataset in args.sets:
            real["gains"][dataset] = measure(dataset, args, pool)
            write_atomically(EVIDENCE, json.dumps({**real, "machine": describe(threads=1)}).encode())


def plans_table(real: Mapping[str, Any], replays: int, short_error: float) -> str:
    """Return a table with one row per plan: its cost, its replayed gains and its real gains."""
    models: dict[str, Model] = {}
    for file in FILES:
        _, tables = read_evidence(Path(__file__).with_name(file))
        for each in tables:
            models[each.dataset] = fit(each)
    rows = []
    for name, plan in PLANS.items():
        cells = gain_cells(models.values(), plan, replays, short_error)
        real_gains = " ".join(f"{mean(each[name]):+.1f}" for each in real["gains"].values())
        rows.append((name, f"{cost_in_runs(plan):g}", *cells, real_gains))
    head = ("plan", "runs", "gain in H", "worse", *models, f"real: {', '.join(real['gains'])}")
    return table(head, rows)


def spaces_table(replays: int, short_error: float) -> str:
    """Return a table with one row per space: the replayed gains of the default plan."""
    rows = []
    for file in SPACE_FILES:
        options, tables = read_evidence(Path(__file__).with_name(file))
        recorded_runs = f"{1 + options['settings']} x {len(options['seeds'])}"
        cells = gain_cells(map(fit, tables), PLANS[DEFAULT], replays, short_error)
        rows.append((f"`{options['space']}`", recorded_runs, *cells))
    return table(("space", "recorded runs", "gain in H", "worse", *DEVELOPMENT), rows)


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
        run_searches(real, args)
    short_error = half_length_error()
    replays = 100 if args.quick else args.replays
    publish(plans_table(real, replays, short_error), args.doc, "allocation")
    publish(spaces_table(replays, short_error), args.doc, "spaces")


if __name__ == "__main__":
    main()
