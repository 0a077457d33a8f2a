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
from itertools import product, zip_longest
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
"""Number of random settings that a source study tries."""
NUM_RANDOM_SETTINGS = 24
"""Number of random settings in objectives.json."""
TOP = 3
"""Number of trials that are confirmed, besides the default settings."""
DEFAULT = 0
"""Number (row) of the default settings among the recorded ones. All others are random settings."""


# Replays


class Recorded(NamedTuple):
    """Recorded runs of a dataset. Arrays have a row per settings and a column per seed.

    The default settings are in the row `DEFAULT`.
    """

    scores: Floats
    """Scores of a search (`drift`)."""
    tests: Floats
    """H on test images."""


def read_recorded(*files: str) -> dict[str, Recorded]:
    """Return the recorded runs by dataset. The rows of several files are joined."""
    joined: dict[str, Recorded] = {}
    for file in files:
        _, results = read_evidence(Path(__file__).with_name(file))
        for each in results:
            assert not each.num_diverged  # otherwise, the rows would be those of other settings
            recorded = Recorded(drift_score(each), each.tests)
            if each.dataset in joined:
                recorded = _joined(joined[each.dataset], recorded)
            joined[each.dataset] = recorded
    return joined


def _joined(first: Recorded, second: Recorded) -> Recorded:
    """Join the settings of two records. Keep the seeds that both have, and the default settings once."""
    num_seeds = min(first.tests.shape[1], second.tests.shape[1])
    kept = slice(num_seeds)
    return Recorded(
        scores=np.concatenate([first.scores[:, kept], second.scores[DEFAULT + 1 :, kept]]),
        tests=np.concatenate([first.tests[:, kept], second.tests[DEFAULT + 1 :, kept]]),
    )


def shuffled(num_settings: int, rng: np.random.Generator) -> list[int]:
    """Return the numbers of all random settings (without the default settings) in random order."""
    return [int(number) for number in rng.permutation(np.arange(DEFAULT + 1, num_settings))]


def replay_study(
    recorded: Recorded, trials: Sequence[int], score_seed: int, confirmation_seeds: Sequence[int]
) -> list[int]:
    """Return the confirmed settings of a replayed study, the selected ones first.

    Args:
        recorded: Recorded runs of the study's dataset.
        trials: Numbers of the settings that the search tries, in addition to the default settings.
        score_seed: Seed of the search.
        confirmation_seeds: Seeds of the confirmation. Its mean score includes the seed of the search.
    """
    ranked = sorted(trials, key=lambda number: -recorded.scores[number, score_seed])
    seeds = [score_seed, *confirmation_seeds]
    means = {number: recorded.scores[number, seeds].mean() for number in (DEFAULT, *ranked[:TOP])}
    return sorted(
        means, key=lambda number: (-means[number], number != DEFAULT)
    )  # the default settings win ties


def replay_random_study(recorded: Recorded, rng: np.random.Generator) -> list[int]:
    """Return the confirmed settings of a source study, whose settings and seeds are drawn at random."""
    num_settings, num_seeds = recorded.tests.shape
    drawn = shuffled(num_settings, rng)[:SOURCE_TRIALS]
    score_seed, *confirmation_seeds = rng.permutation(num_seeds)
    return replay_study(recorded, drawn, score_seed, confirmation_seeds)


def enqueued_from(sources: Sequence[Sequence[int]]) -> list[int]:
    """Return the settings that `--enqueue` takes from studies with these confirmed settings, in its order.

    Studies take turns. Equal settings are tried once. The default settings are left out, because each search
    tries them anyway.
    """
    others = [[number for number in confirmed if number != DEFAULT] for confirmed in sources]
    enqueued: list[int] = []
    for turn in zip_longest(*others):
        for number in turn:
            if number is None:  # a study with fewer settings than another has no more turns
                continue
            if number not in enqueued:
                enqueued.append(number)
    return enqueued


def replay_search(
    recorded: Mapping[str, Recorded], target: str, trials: int, enqueue: bool, rng: np.random.Generator
) -> float:
    """Return the gain of a replayed search on the target."""
    num_settings, num_seeds = recorded[target].tests.shape
    enqueued: list[int] = []
    if enqueue:
        sources = [replay_random_study(source, rng) for name, source in recorded.items() if name != target]
        enqueued = enqueued_from(sources)
    sampled = [number for number in shuffled(num_settings, rng) if number not in enqueued]
    tried = [*enqueued, *sampled][: trials - 1]  # one trial has the default settings
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
    whole_space = load_space("default")
    all_settings = [whole_space.default_values(config)]
    for seed in range(1, NUM_RANDOM_SETTINGS + 1):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
        all_settings.append(whole_space.sample(study.ask()))
    # The recorded runs have five epochs, whatever number was sampled.
    space = whole_space.restrict(config, fixed={EPOCHS_KEY})
    settings: list[Settings] = [
        {key: value for key, value in each.items() if key in space.ranges} for each in all_settings
    ]
    return space, settings


def replayed_gains(
    recorded: Recorded, settings: Sequence[Settings], trials: int, rng: np.random.Generator
) -> list[MeasuredGain]:
    """Return the gains that a replayed study has measured, as `tune.defaults.measured_gains` does.

    Args:
        recorded: Recorded runs of the study's dataset.
        settings: The recorded settings, in the order of the rows.
        trials: Number of random settings that the study tries.
        rng: Draws settings and seeds.
    """
    drawn = shuffled(len(settings), rng)[:trials]
    score_seed, *confirmation_seeds = rng.permutation(recorded.tests.shape[1])
    confirmed = replay_study(recorded, drawn, score_seed, confirmation_seeds)
    gains = []
    for number in (DEFAULT, *drawn):
        seeds = [score_seed, *confirmation_seeds] if number in confirmed else [score_seed]
        gain = (recorded.scores[number, seeds] - recorded.scores[DEFAULT, seeds]).mean()
        gains.append(MeasuredGain(settings[number], float(gain), len(seeds)))
    return gains


Gains = dict[str, list[float]]
"""Gains in H on test images, by target."""


def gains_of_defaults(
    recorded: Mapping[str, Recorded], true_gains: Mapping[str, Floats], trials: int, replays: int
) -> Gains:
    """Return the gains of what `prometar defaults` chooses from replayed studies of the other datasets."""
    space, settings = recorded_settings()
    rng = np.random.default_rng(trials)
    gains: Gains = {target: [] for target in recorded}
    for _ in range(replays):
        measured = {name: replayed_gains(each, settings, trials, rng) for name, each in recorded.items()}
        for target in recorded:
            sources = {name: found for name, found in measured.items() if name != target}
            best = find_average_best(sources, space, settings[DEFAULT])
            number = settings.index(best.settings)
            gains[target].append(float(true_gains[target][number]))
    return gains


def gains_of_one_source(
    recorded: Mapping[str, Recorded], true_gains: Mapping[str, Floats], replays: int
) -> Gains:
    """Return the gains of the selected settings of one replayed study of another dataset, drawn at random."""
    rng = np.random.default_rng(0)
    gains: Gains = {target: [] for target in recorded}
    for target in recorded:
        others = [name for name in recorded if name != target]
        for _ in range(replays):
            source = recorded[str(rng.choice(others))]
            selected = replay_random_study(source, rng)[0]
            gains[target].append(float(true_gains[target][selected]))
    return gains


def defaults_table(recorded: Mapping[str, Recorded], replays: int) -> str:
    """Return a table with the gain on the target of settings that were chosen on the other datasets."""
    true_gains: dict[str, Floats] = {}
    for name, each in recorded.items():
        means = each.tests.mean(axis=1)
        true_gains[name] = means - means[DEFAULT]

    gains: dict[str, Gains] = {}
    for trials in (SOURCE_TRIALS, NUM_RANDOM_SETTINGS):
        label = f"`prometar defaults`, {trials} settings per study"
        gains[label] = gains_of_defaults(recorded, true_gains, trials, replays)
    # These replays train no model, so there is time for more of them.
    gains["selected settings of one other dataset"] = gains_of_one_source(recorded, true_gains, 20 * replays)
    gains["a random setting"] = {
        name: list(map(float, each[DEFAULT + 1 :])) for name, each in true_gains.items()
    }
    gains["the best setting on the target's test images"] = {
        name: [float(each.max())] for name, each in true_gains.items()
    }
    rows = []
    for label, by_target in gains.items():
        target_means = [mean(values) for values in by_target.values()]
        rows.append((label, mean_and_interval(target_means), *(f"{value:+.2f}" for value in target_means)))
    return table(("settings", "gain in H", *recorded), rows)


Surrogate = Callable[[Sequence[int], Floats, Sequence[int]], Floats]
"""Function that learns from the gains of some settings, and predicts the gains of others. Its arguments are
the numbers of the first settings, their gains, and the numbers of the others."""


def surrogate_models() -> dict[str, Surrogate]:
    """Return the compared models by name."""
    space, settings = recorded_settings()
    features = np.array([settings_features(each, space) for each in settings])
    scaled = np.nan_to_num(
        MinMaxScaler().fit_transform(features), nan=0.5
    )  # Gaussian processes accept no NaN

    def forest(known: Sequence[int], gains: Floats, unknown: Sequence[int]) -> Floats:
        measured = [
            MeasuredGain(settings[number], float(gain)) for number, gain in zip(known, gains, strict=True)
        ]
        return predict_gains(measured, [settings[number] for number in unknown], space)

    def gaussian_process(kernel: Any) -> Surrogate:
        def predict(known: Sequence[int], gains: Floats, unknown: Sequence[int]) -> Floats:
            scaled_kernel = ConstantKernel(1.0) * kernel + WhiteKernel(0.5)
            model = GaussianProcessRegressor(
                scaled_kernel, normalize_y=True, n_restarts_optimizer=1, random_state=0
            )
            model.fit(scaled[known], gains)
            return np.asarray(model.predict(scaled[unknown]))

        return predict

    return {
        "random forest": forest,
        "Gaussian process, RBF kernel": gaussian_process(RBF(2.0, (0.3, 30))),
        "Gaussian process, Matern kernel": gaussian_process(Matern(2.0, (0.3, 30), nu=2.5)),
    }


def surrogates_table(recorded: Mapping[str, Recorded], splits: int) -> str:
    """Return how well models rank settings that they have not seen: rank correlations with mean scores.

    A model learns from the default settings and 16 random ones with one seed, and predicts the other eight.
    This uses the scores of searches only, no test images.

    Args:
        recorded: Recorded runs by dataset.
        splits: Number of random splits into known and unknown settings, over which correlations are averaged.
    """
    rows = []
    for label, predict in surrogate_models().items():
        means = []
        for each in recorded.values():
            rng = np.random.default_rng(1)  # the same splits for each model and dataset
            correlations = []
            for _ in range(splits):
                order = shuffled(NUM_RANDOM_SETTINGS + 1, rng)
                known = [DEFAULT, *order[:16]]
                unknown = order[16:]
                seed = rng.integers(each.scores.shape[1])
                gains = each.scores[known, seed] - each.scores[DEFAULT].mean()
                correlation = spearmanr(predict(known, gains, unknown), each.scores[unknown].mean(axis=1))
                # A model that predicts the same gain for all settings has no correlation, but NaN.
                correlations.append(np.nan_to_num(correlation.statistic))
            means.append(float(np.mean(correlations)))
        rows.append((label, f"{mean(means):.2f}", *(f"{value:.2f}" for value in means)))
    return table(("rank correlation", "mean", *recorded), rows)


def show_replays(args: argparse.Namespace) -> None:
    """Replay all searches, and publish the tables."""
    recorded = read_recorded("objectives.json")
    joined = read_recorded(*SPACE_FILES)
    replays = 20 if args.quick else args.replays
    choices = 1 if args.quick else args.choices
    # With 24 trials, a search of 24 recorded settings would try all of them.
    one_space = replays_table(recorded, replays, BUDGETS[:2])
    three_spaces = replays_table(joined, replays, BUDGETS)
    searches = (
        f"**Replays** of recorded runs, {replays} per target and number of trials. Settings of the space "
        f"`default`:\n\n{one_space}\n\nSettings of the spaces `default`, `full` and `recipe`, without fresh "
        f"seeds in the confirmation:\n\n{three_spaces}"
    )
    publish(searches, args.doc, "transfer")
    defaults = f"**Replays** of recorded runs, {choices} per target.\n\n{defaults_table(recorded, choices)}"
    publish(defaults, args.doc, "defaults")


# Real searches

SETS = (*DEVELOPMENT, *CLOSED)
ARMS = ("nothing enqueued", "random settings", "settings of other datasets")
"""What a search on the target tries first."""
SEED = 90_000
"""Smallest seed of the real searches."""


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
    for target in targets:
        if (target, 0, "defaults") not in done:
            yield target, 0, "defaults"
    for trials, target, arm in product(budgets, targets, ARMS):
        if (target, trials, arm) not in done:
            yield target, trials, arm


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
        gains: dict[str, dict[str, float]] = {}  # by arm and target
        for row in rows:
            if row.get("trials", 0) == trials:
                gains.setdefault(row["arm"], {})[row["target"]] = row["H"]
        control = gains.get("random settings", {})
        for arm in (*ARMS, "defaults"):
            by_target = gains.get(arm)
            if by_target is None:
                continue
            shared = [target for target in by_target if target in control]
            difference = "-"
            if shared and arm != "random settings":
                difference = mean_and_interval([by_target[target] - control[target] for target in shared])
            gain = mean_and_interval(list(by_target.values()))
            lines.append((trials or "-", arm, gain, difference, len(by_target)))
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
