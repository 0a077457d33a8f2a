"""Measure what settings of other datasets are worth: enqueued in a search, and averaged to new defaults.

Replay recorded runs (minutes), run real searches (hours), print the tables of the real searches, or compare
models that predict gains:

    python benchmarks/transfer.py [--replays 2000] [--doc docs/measurements.md]
    python benchmarks/transfer.py --train [--sets cells ...] [--budgets 8 12] [--out DIR]
    python benchmarks/transfer.py --show [--doc docs/measurements.md]
    python benchmarks/transfer.py --surrogates

Protocol, fixed before the first run. Both parts leave one dataset out (the target). Other datasets (sources)
have finished studies.

**Replays** train nothing. `objectives.json` records the default settings and the same 24 random settings of
the space `default` on four datasets with three seeds each: the score `drift` and H on test images, after five
epochs. `space_full.json` and `space_recipe.json` record 24 settings of two other spaces each. A replayed run
is a recorded run, without a model of noise.

- Source study: 12 settings, drawn at random, and the default settings are scored with one seed. The best
  three and the default settings are scored with the two other seeds. The best mean is selected, and the
  default settings win ties.
- Search on the target with 8, 12 or 24 trials: the default settings, then the settings that `--enqueue` takes
  from the three source studies in its order, then random ones. One seed scores the trials. A second one
  confirms the best three and the default settings. The third gives the gain: H of the selected settings minus
  H of the default settings. The control replaces the enqueued settings with as many random ones.
- With 24 trials, a search tries nearly all of the 24 recorded settings, so that both searches are the same.
  Therefore the replay is repeated with the 72 recorded settings of the three spaces. They share two seeds, so
  one seed scores and confirms, and the other one tests.
- The gain of a target is the mean over the replays. Intervals are over the four targets.
- Defaults: `find_average_best`, the function behind `prometar defaults`, chooses settings from the source
  studies, here with 12 or with all 24 settings. Their gain is mean H on the target over its three seeds,
  minus that of the default settings. For comparison: the selected settings of one source, drawn at random; a
  random setting; and the best of the 24 settings on the target's test images, which no method can exceed.

**Real searches** (`--train`) are those of `tune/search.py` on nine rendered datasets, with the default space
and five epochs per trial. The studies of 24 trials are the sources. For each target and number of trials
there are three searches: nothing is enqueued, the other eight studies are enqueued, or random settings are
enqueued, as many as a search with settings of eight studies tries. They share the seed of the sampler and the
five seed pairs of the final test.
`prometar defaults` then writes a recipe from the eight other studies, and `prometar reproduce` trains it and
the published settings on the target with five seeds. Every outcome is a line of transfer.jsonl. Rerun the
command to resume.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import optuna
import yaml
from common import (
    CLOSED,
    DEVELOPMENT,
    describe,
    machine,
    mean_and_interval,
    parser_of,
    publish,
    run_python,
    table,
)
from numpy.typing import NDArray
from objectives import drift_score, read_evidence
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.preprocessing import MinMaxScaler

from prometar.config.settings import configure
from tune.config import EPOCHS_KEY
from tune.defaults import MeasuredGain, find_average_best, predict_gains, settings_features
from tune.records.folder import StudyFolder, read_records
from tune.records.schema import FinalTest, paired_differences
from tune.space.ranges import Settings
from tune.space.space import Space, load_space

Floats = NDArray[np.float64]
RECORDS = Path(__file__).with_suffix(".jsonl")
SPACE_FILES = ("objectives.json", "space_full.json", "space_recipe.json")
BUDGETS = (8, 12, 24)
SOURCE_TRIALS = 12
TOP = 3
DEFAULT = 0
"""Number of the default settings among the recorded ones."""


# Replays


class Recorded(NamedTuple):
    """Recorded runs of a dataset, settings x seeds. The default settings come first."""

    scores: Floats
    tests: Floats


def read_recorded(*files: str) -> dict[str, Recorded]:
    """Return the recorded runs by dataset. Several files are joined, with the seeds that all have."""
    joined: dict[str, Recorded] = {}
    for file in files:
        for found in read_evidence(Path(__file__).with_name(file))[1]:
            assert not found.num_diverged  # else the rows would be those of other settings
            new = Recorded(drift_score(found), found.tests)
            if found.dataset in joined:
                old = joined[found.dataset]
                num_seeds = min(old.tests.shape[1], new.tests.shape[1])
                scores, tests = (
                    np.concatenate([ours[:, :num_seeds], theirs[1:, :num_seeds]])
                    for ours, theirs in zip(old, new, strict=True)
                )
                new = Recorded(scores, tests)
            joined[found.dataset] = new
    return joined


def replay_study(
    recorded: Recorded, trials: Sequence[int], score_seed: int, confirmation_seeds: Sequence[int]
) -> list[int]:
    """Return the candidates of a study of these trials and the default settings: the selected one first."""
    ranked = sorted(trials, key=lambda number: -recorded.scores[number, score_seed])
    seeds = [score_seed, *confirmation_seeds]
    means = {number: recorded.scores[number, seeds].mean() for number in (DEFAULT, *ranked[:TOP])}
    return sorted(means, key=lambda number: (-means[number], number != DEFAULT))


def enqueued_from(sources: Sequence[Sequence[int]]) -> list[int]:
    """Return the settings that `--enqueue` takes from studies with these candidates, in its order."""
    given = [[number for number in candidates if number != DEFAULT] for candidates in sources]
    in_turn = (number for turn in zip_longest(*given) for number in turn if number is not None)
    return list(dict.fromkeys(in_turn))


def replay_search(
    recorded: Mapping[str, Recorded], target: str, trials: int, enqueue: bool, rng: np.random.Generator
) -> float:
    """Return the gain of a replayed search on the target."""
    num_settings, num_seeds = recorded[target].tests.shape
    first: list[int] = []
    if enqueue:
        sources = []
        for name, source in recorded.items():
            if name != target:
                drawn = rng.permutation(np.arange(1, num_settings))[:SOURCE_TRIALS]
                score_seed, *others = rng.permutation(num_seeds)
                sources.append(replay_study(source, list(map(int, drawn)), score_seed, others))
        first = enqueued_from(sources)
    others = [
        number for number in map(int, rng.permutation(np.arange(1, num_settings))) if number not in first
    ]
    tried = [*first, *others][: trials - 1]
    score_seed, *confirmation_seeds, test_seed = rng.permutation(num_seeds)
    selected = replay_study(recorded[target], tried, score_seed, confirmation_seeds)[0]
    tests = recorded[target].tests[:, test_seed]
    return float(tests[selected] - tests[DEFAULT])


def replays_table(recorded: Mapping[str, Recorded], replays: int, budgets: Sequence[int]) -> str:
    """Return a table with the mean gain of searches with and without settings of other datasets."""
    rows = []
    for trials in budgets:
        gains: dict[bool, list[float]] = {}
        for enqueue in (False, True):
            rng = np.random.default_rng(trials)
            gains[enqueue] = [
                mean(replay_search(recorded, target, trials, enqueue, rng) for _ in range(replays))
                for target in recorded
            ]
        differences = [ours - control for ours, control in zip(gains[True], gains[False], strict=True)]
        cells = [mean_and_interval(values) for values in (gains[False], gains[True], differences)]
        rows.append((trials, *cells, *(f"{value:+.2f}" for value in differences)))
    head = ("trials", "random settings (control)", "settings of other datasets", "difference", *recorded)
    return table(head, rows)


def recorded_settings() -> tuple[Space, list[Settings]]:
    """Return the space and the settings of `objectives.json`, the default settings first."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = configure("prometar", {"backbone.name": "mini"})
    whole = load_space("default")
    space = whole.restrict(config, fixed={EPOCHS_KEY})  # the recorded runs have five epochs
    sampled = [
        whole.sample(optuna.create_study(sampler=optuna.samplers.RandomSampler(number)).ask())
        for number in range(1, 25)
    ]
    settings: list[Settings] = [
        {key: value for key, value in each.items() if key in space.ranges}
        for each in (whole.default_values(config), *sampled)
    ]
    return space, settings


def replayed_gains(
    recorded: Recorded, settings: Sequence[Settings], trials: int, rng: np.random.Generator
) -> list[MeasuredGain]:
    """Return the gains that a replayed study has measured, as `tune.defaults.measured_gains` does."""
    drawn = [int(number) for number in rng.permutation(np.arange(1, len(settings)))[:trials]]
    score_seed, *others = rng.permutation(recorded.tests.shape[1])
    confirmed = replay_study(recorded, drawn, score_seed, others)
    gains = []
    for number in (DEFAULT, *drawn):
        seeds = [score_seed, *others] if number in confirmed else [score_seed]
        gain = (recorded.scores[number, seeds] - recorded.scores[DEFAULT, seeds]).mean()
        gains.append(MeasuredGain(settings[number], float(gain), len(seeds)))
    return gains


def defaults_table(recorded: Mapping[str, Recorded], replays: int) -> str:
    """Return a table with the gain on the target of settings that were chosen on the other datasets."""
    space, settings = recorded_settings()
    true_gains = {name: each.tests.mean(1) - each.tests.mean(1)[DEFAULT] for name, each in recorded.items()}
    gains: dict[str, dict[str, list[float]]] = {}
    for trials in (12, 24):
        label = f"`prometar defaults`, {trials} settings per study"
        gains[label] = {target: [] for target in recorded}
        rng = np.random.default_rng(trials)
        for _ in range(replays):
            measured = {name: replayed_gains(each, settings, trials, rng) for name, each in recorded.items()}
            for target in recorded:
                sources = {name: found for name, found in measured.items() if name != target}
                best = find_average_best(sources, space, settings[DEFAULT])
                gains[label][target].append(float(true_gains[target][settings.index(best.settings)]))
    rng = np.random.default_rng(0)
    label = "selected settings of one other dataset"
    gains[label] = {target: [] for target in recorded}
    for target in recorded:
        for _ in range(20 * replays):
            source = recorded[str(rng.choice([name for name in recorded if name != target]))]
            drawn = list(map(int, rng.permutation(np.arange(1, len(settings)))[:SOURCE_TRIALS]))
            score_seed, *others = rng.permutation(source.tests.shape[1])
            selected = replay_study(source, drawn, score_seed, others)[0]
            gains[label][target].append(float(true_gains[target][selected]))
    gains["a random setting"] = {name: list(map(float, each[1:])) for name, each in true_gains.items()}
    gains["the best setting on the target's test images"] = {
        name: [float(each.max())] for name, each in true_gains.items()
    }
    rows = []
    for label, by_target in gains.items():
        means = [mean(values) for values in by_target.values()]
        rows.append((label, mean_and_interval(means), *(f"{value:+.2f}" for value in means)))
    return table(("settings", "gain in H", *recorded), rows)


def surrogates_table(recorded: Mapping[str, Recorded], splits: int) -> str:
    """Return how well models rank settings that they have not seen: rank correlations with mean scores.

    A model learns from the default settings and 16 random ones with one seed, and predicts the other eight.
    This uses the scores of searches only, no test images.
    """
    space, settings = recorded_settings()
    numbers = np.array([settings_features(each, space) for each in settings])
    scaled = np.nan_to_num(MinMaxScaler().fit_transform(numbers), nan=0.5)  # Gaussian processes accept no NaN

    def forest(seen: Sequence[int], gains: Floats, unseen: Sequence[int]) -> Floats:
        measured = [MeasuredGain(settings[k], float(gain)) for k, gain in zip(seen, gains, strict=True)]
        return predict_gains(measured, [settings[k] for k in unseen], space)

    def gaussian_process(kernel: Any) -> Callable[[Sequence[int], Floats, Sequence[int]], Floats]:
        def predict(seen: Sequence[int], gains: Floats, unseen: Sequence[int]) -> Floats:
            whole = ConstantKernel(1.0) * kernel + WhiteKernel(0.5)
            model = GaussianProcessRegressor(whole, normalize_y=True, n_restarts_optimizer=1, random_state=0)
            return np.asarray(model.fit(scaled[seen], gains).predict(scaled[unseen]))

        return predict

    models = {
        "random forest": forest,
        "Gaussian process, RBF kernel": gaussian_process(RBF(2.0, (0.3, 30))),
        "Gaussian process, Matern kernel": gaussian_process(Matern(2.0, (0.3, 30), nu=2.5)),
    }
    rows = []
    for label, predict in models.items():
        means = []
        for found in recorded.values():
            rng = np.random.default_rng(1)
            ranks = []
            for _ in range(splits):
                order = [int(number) for number in rng.permutation(np.arange(1, len(settings)))]
                seen = [DEFAULT, *order[:16]]
                unseen = order[16:]
                gains = found.scores[seen, rng.integers(3)] - found.scores[DEFAULT].mean()
                predicted = predict(seen, gains, unseen)
                ranks.append(np.nan_to_num(spearmanr(predicted, found.scores[unseen].mean(1)).statistic))
            means.append(float(np.mean(ranks)))
        rows.append((label, f"{mean(means):.2f}", *(f"{value:.2f}" for value in means)))
    return table(("rank correlation", "mean", *recorded), rows)


def show_replays(args: argparse.Namespace) -> None:
    """Replay all searches, and publish the tables."""
    recorded = read_recorded("objectives.json")
    joined = read_recorded(*SPACE_FILES)
    replays, choices = (20, 1) if args.quick else (args.replays, args.choices)
    first = replays_table(recorded, replays, BUDGETS[:2])
    second = replays_table(joined, replays, BUDGETS)
    text = (
        f"**Replays** of recorded runs, {replays} per target and number of trials. Settings of the space "
        f"`default`:\n\n{first}\n\nSettings of the spaces `default`, `full` and `recipe`, without fresh "
        f"seeds in the confirmation:\n\n{second}"
    )
    publish(text, args.doc, "transfer")
    text = f"**Replays** of recorded runs, {choices} per target.\n\n{defaults_table(recorded, choices)}"
    publish(text, args.doc, "defaults")


# Real searches

SETS = (*DEVELOPMENT, *CLOSED)
ARMS = ("nothing enqueued", "random settings", "settings of other datasets")
SEED = 90_000


def seed_of(dataset: str) -> int:
    """Return the seed of all searches on a dataset. No other benchmark uses it."""
    return SEED + 1000 * SETS.index(dataset)


def search(dataset: str, trials: int, name: str, out: Path, *options: object) -> None:
    """Run or resume a search with five seed pairs in its final test."""
    seed = seed_of(dataset)
    final_seeds = " ".join(str(seed + number) for number in range(501, 506))
    run_python(
        "tune/search.py",
        "--dataset",
        dataset,
        "--backbone",
        "mini",
        "--epochs",
        5,
        "--trials",
        trials,
        "--study",
        name,
        "--out",
        out,
        "--seed",
        seed,
        "--final-seeds",
        final_seeds,
        *options,
    )


def source_study(dataset: str, out: Path) -> Path:
    """Run the study of 24 trials of a dataset, from which others take settings. Return its folder."""
    name = f"source-{dataset.replace(':', '.')}"
    search(dataset, 24, name, out)
    return out / name


def measure_search(target: str, trials: int, arm: str, sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Run a search on the target, and return its outcome."""
    name = f"{target.replace(':', '.')}-{trials}-{ARMS.index(arm)}"
    if trials == 24 and arm == "nothing enqueued":
        name = source_study(target, out).name  # the same search
    options: list[object] = []
    if arm == "settings of other datasets":
        options = ["--enqueue", *sources]
    if arm == "random settings":
        file = out / f"{name}.yaml"
        space = read_records(sources[0]).config.search.space
        asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed_of(target)))
        number = min(trials - 1, len(sources) * TOP)
        file.write_text(yaml.safe_dump([space.sample(asked.ask()) for _ in range(number)]))
        options = ["--enqueue", file]
    search(target, trials, name, out, *options)
    final_test = StudyFolder(out / name).read(FinalTest)
    assert final_test is not None
    runs = final_test.datasets[target]
    gain = 0.0
    if not final_test.baseline_selected:
        gain = mean(paired_differences(runs.selected, runs.baseline).values())
    enqueued = sum(trial.origin == "enqueued" for trial in read_records(out / name).trials)
    return {"trials": trials, "arm": arm, "H": gain, "enqueued": enqueued, "verdict": final_test.verdict}


def measure_defaults(target: str, sources: Sequence[Path], out: Path) -> dict[str, Any]:
    """Train settings of `prometar defaults` and the published ones on the target. Return the difference."""
    recipe = out / f"without-{target.replace(':', '.')}.yaml"
    run_python("-m", "prometar", "defaults", *sources, "--to", recipe)
    folder = out / f"defaults-{target.replace(':', '.')}"
    seeds = [str(seed_of(target) + number) for number in range(601, 606)]
    run_python(
        "-m",
        "prometar",
        "reproduce",
        "--datasets",
        target,
        "--methods",
        "prometar",
        recipe,
        "--seeds",
        *seeds,
        "--out",
        folder,
    )
    with (folder / "base-to-new" / "pairs.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "H" and not row["dataset"]]
    (row,) = rows
    return {"arm": "defaults", "H": float(row["difference"])}


def read() -> list[dict[str, Any]]:
    """Return the stored outcomes."""
    if not RECORDS.exists():
        return []
    return [json.loads(line) for line in RECORDS.read_text("utf-8").splitlines()]


def todo(targets: Sequence[str], budgets: Sequence[int]) -> Iterator[tuple[str, int, str]]:
    """Yield target, number of trials (0 for defaults) and arm of what has no stored outcome."""
    done = {(row["target"], row.get("trials", 0), row["arm"]) for row in read()}
    asked = [(target, 0, "defaults") for target in targets]
    asked += [(target, trials, arm) for trials in budgets for target in targets for arm in ARMS]
    yield from (each for each in asked if each not in done)


def train(args: argparse.Namespace) -> None:
    """Run the searches that have no outcome yet."""
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    studies = {dataset: source_study(dataset, out) for dataset in SETS}
    for target, trials, arm in list(todo(args.sets, args.budgets)):
        started = time.perf_counter()
        sources = [folder for dataset, folder in studies.items() if dataset != target]
        if arm == "defaults":
            outcome = measure_defaults(target, sources, out)
        else:
            outcome = measure_search(target, trials, arm, sources, out)
        row = {"target": target, **outcome, "seconds": round(time.perf_counter() - started)}
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "machine": machine()}) + "\n")
        print(f"{target}, {trials} trials, {arm}: {row['H']:+.2f} ({row['seconds']} s)", flush=True)


def show(doc: Path | None) -> None:
    """Publish the tables of all real searches."""
    rows = read()
    if not rows:
        raise SystemExit(f"error: {RECORDS.name} is empty. Run benchmarks/transfer.py --train.")
    lines = []
    for trials in sorted({row.get("trials", 0) for row in rows}):
        by_arm = {
            arm: {
                row["target"]: row["H"] for row in rows if (row.get("trials", 0), row["arm"]) == (trials, arm)
            }
            for arm in (ARMS if trials else ("defaults",))
        }
        for arm, gains in by_arm.items():
            control = by_arm.get("random settings", {})
            shared = [target for target in gains if target in control]
            difference = "-"
            if shared and arm != "random settings":
                difference = mean_and_interval([gains[target] - control[target] for target in shared])
            if gains:
                cells = mean_and_interval(list(gains.values())), difference, len(gains)
                lines.append((trials or "-", arm, *cells))
    machines = "; ".join(dict.fromkeys(describe(threads=1, where=row["machine"]) for row in rows))
    head = ("trials", "search", "gain in H", "minus random settings", "datasets")
    publish(f"{machines}. Real searches.\n\n{table(head, lines)}", doc, "transfer-real")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--replays", type=int, default=2000, help="replayed searches per target and budget")
    parser.add_argument("--choices", type=int, default=30, help="replayed choices of defaults per target")
    parser.add_argument("--surrogates", action="store_true", help="compare models that predict gains")
    parser.add_argument("--train", action="store_true", help="run real searches")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="targets of real searches")
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS, help="trials of real searches")
    parser.add_argument("--out", type=Path, default=Path("out/transfer"), help="folder of real searches")
    parser.add_argument("--show", action="store_true", help="print the tables of real searches")
    parser.add_argument(
        "--doc", type=Path, help="document with blocks `transfer`, `defaults`, `transfer-real`"
    )
    parser.add_argument("--quick", action="store_true", help="few replays, to check that the script runs")
    args = parser.parse_args()
    if args.surrogates:
        print(surrogates_table(read_recorded("objectives.json"), splits=12))
        return
    if args.train:
        train(args)
    if args.train or args.show:
        show(args.doc)
    else:
        show_replays(args)


if __name__ == "__main__":
    main()
