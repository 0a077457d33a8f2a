"""Rank settings by scores that use no test images, and compare these ranks with ranks on test images.

    python benchmarks/objectives.py [--sets textures ...] [--settings 24] [--seeds 1 2 3] [--epochs 5]
        [--space default] [--out DIR] [--jobs 2] [--evidence FILE] [--quick]
    python benchmarks/objectives.py --show [--evidence FILE] [--doc docs/measurements.md] [--block objectives]

The default settings and random samples of a space are trained with several seeds on all base classes, scored
as in a search, and tested. Scores of one seed are compared with test results of the other seeds. Settings
that diverge with one of the seeds have no test result, so they are excluded. Rerun the same command to resume
from the records in --out. `--show` prints the tables of a file written by --evidence.

Drift is also measured over the true names of the new classes, which a search does not know. Users may know
the names of future classes before they have images of them. This measurement shows how much they could gain.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import torch
from common import DEVELOPMENT, WORSE, describe, parser_of, publish, table
from numpy.typing import NDArray
from scipy.stats import spearmanr

from prometar.config.settings import Config, configure
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import classnames
from prometar.errors import WorkError
from prometar.io.files import write_atomically
from prometar.metrics import harmonic_mean
from prometar.training import run as training_run
from prometar.training.backbone import load_configured_backbone
from prometar.training.cache import RunCache
from prometar.training.drift import out_of_domain_names
from prometar.training.run import build_run
from prometar.training.session import Session
from tune.space.space import load_space

Floats = NDArray[np.float64]
EVIDENCE = Path(__file__).with_suffix(".json")
SEEN = ("base", "zero_shot", "divergence")
"""Names of the values from which a search computes the score `drift`: base validation accuracy, accuracy of
the frozen CLIP on the same images, and drift."""
NAMED = "named divergence"
"""Name of the drift over the true names of the new classes."""
DIVERGED = "diverged"
"""Key of the error message in the record of a run that diverged. The record has no other keys. In the file of
--evidence, the same key contains the number of settings that diverged."""


@dataclass(frozen=True)
class Results:
    """Results of one dataset. Arrays have a row per settings and a column per seed.

    The default settings are in the first row.

    Args:
        dataset: Name of the dataset.
        num_classes: Number of base classes.
        num_names: Number of names that are unrelated to the dataset, over which drift is measured.
        tests: H on the test images.
        base: Accuracy on test images of base classes, in percent.
        new: Accuracy on test images of new classes, in percent.
        signals: What predicts test results, by name (`SEEN` and `NAMED`).
        num_diverged: Number of settings that diverged and are therefore excluded.
    """

    dataset: str
    num_classes: int
    num_names: int
    tests: Floats
    base: Floats
    new: Floats
    signals: Mapping[str, Floats]
    num_diverged: int = 0


def read_evidence(path: Path) -> tuple[dict[str, Any], list[Results]]:
    """Return the options of the measurement, and the results of each dataset."""
    content = json.loads(path.read_text("utf-8"))
    results = []
    for each in content.pop("tables"):
        signals = {name: np.array(values, np.float64) for name, values in each["signals"].items()}
        results.append(
            Results(
                dataset=each["dataset"],
                num_classes=each["classes"],
                num_names=each["names"],
                tests=np.array(each["tests"], np.float64),
                base=np.array(each["base"], np.float64),
                new=np.array(each["new"], np.float64),
                signals=signals,
                num_diverged=each.get(DIVERGED, 0),
            )
        )
    options = content  # all other keys
    return options, results


# Measurement


def config_of(args: argparse.Namespace, dataset: str, number: int, seed: int) -> Config:
    """Return the configuration of a run.

    Settings number 0 are the default settings. Any other number is the seed of a random sample of the space.
    """
    settings: dict[str, Any] = {}
    if number > 0:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.RandomSampler(number)
        settings |= load_space(args.space).sample(optuna.create_study(sampler=sampler).ask())
    settings |= {
        "data.name": dataset,
        "data.root": args.data_root,
        "backbone.name": "mini",
        "train.epochs": args.epochs,
        "train.seed": seed,
    }
    return configure("prometar", settings)


def train(config: Config, path: Path) -> None:
    """Train a run, test it, score it as a search does, and write its record.

    If the run diverges, the record contains only the error message.
    """
    torch.set_num_threads(1)
    shared = RunCache()
    run = build_run(config, "final", shared=shared)
    scored_run = build_run(config, "drift", shared=shared)
    # A third run, which measures drift over the true names of the new classes.
    new_names = classnames(run.evaluations["new"].order.items)
    with patch.object(training_run, "out_of_domain_names", return_value=new_names):
        informed_run = build_run(config, "drift", shared=shared)
    with TemporaryDirectory() as folder:
        session = Session(run, Path(folder))
        try:
            while not session.finished:
                session.run_epoch()
            tested = session.history[-1]
            # The trained prompts are scored again, on the images and names of the other two runs.
            session.run = scored_run
            scored = session.score()
            session.run = informed_run
            informed = session.score()
        except WorkError as error:
            record: dict[str, float | str] = {DIVERGED: str(error)}
            print(f"{path.stem}: {error}", flush=True)
        else:
            record = {"H": tested["objective"], "base": tested["base"], "new": tested["new"]}
            record |= {f"seen {name}": scored[name] for name in (*SEEN, "objective")}
            record[f"seen {NAMED}"] = informed["divergence"]
    write_atomically(path, json.dumps(record).encode())


def measure(args: argparse.Namespace) -> None:
    """Train the runs that have no record yet, and write the evidence."""
    settings_numbers = range(args.settings + 1)
    record_paths = {
        (dataset, number, seed): args.out / f"{dataset}-{args.space}-{number:03d}-seed{seed}.json"
        for dataset in args.sets
        for number in settings_numbers
        for seed in args.seeds
    }
    missing = [key for key, path in record_paths.items() if not path.exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context) as pool:
        running = [pool.submit(train, config_of(args, *key), record_paths[key]) for key in missing]
        for number, done in enumerate(as_completed(running), 1):
            done.result()  # raises the error of a run that failed
            print(f"{number} of {len(missing)} runs", flush=True)

    tables: list[dict[str, Any]] = []
    for dataset in args.sets:
        records = [
            [json.loads(record_paths[dataset, number, seed].read_text("utf-8")) for seed in args.seeds]
            for number in settings_numbers
        ]
        backbone = load_configured_backbone(config_of(args, dataset, 0, args.seeds[0]).backbone)
        opened = open_dataset(dataset, args.data_root)
        names = out_of_domain_names(opened, backbone.vocabulary)
        counts = {"classes": len(opened.base_labels), "names": len(names)}
        tables.append({"dataset": dataset, **counts, **figures(records, dataset)})
    options = {key: getattr(args, key) for key in ("space", "settings", "seeds", "epochs")}
    evidence = {"machine": describe(threads=1), **options, "tables": tables}
    write_atomically(args.evidence, json.dumps(evidence).encode())


def figures(records: Sequence[Sequence[Mapping[str, Any]]], dataset: str) -> dict[str, Any]:
    """Return the figures of a dataset that the evidence contains, without settings that diverged.

    Args:
        records: A row per settings, with the record of each seed. The default settings are in the first row.
        dataset: Name of the dataset, for the message.

    Raises:
        WorkError: the default settings diverged, so there is nothing to compare with.
    """
    diverged = [any(DIVERGED in record for record in row) for row in records]
    if diverged[0]:
        raise WorkError(f"The default settings diverged on {dataset}. Omit this dataset.")
    rows = [row for row, excluded in zip(records, diverged, strict=True) if not excluded]

    def grid(name: str) -> list[list[float]]:
        return [[round(record[name], 6) for record in row] for row in rows]

    signals = {name: grid(f"seen {name}") for name in (*SEEN, NAMED)}
    figures_by_name = {"tests": grid("H"), "base": grid("base"), "new": grid("new"), "signals": signals}
    return {DIVERGED: sum(diverged), **figures_by_name}


# Evaluation


def drift_score(results: Results) -> Floats:
    """Return the score `drift` of each run: H of base validation accuracy and predicted new accuracy.

    The prediction is that of `prometar.training.drift`.
    """
    zero_shot = results.signals["zero_shot"]
    chance = 100 / results.num_classes
    weight = np.minimum(1, results.signals["divergence"] / np.log(results.num_names))
    predicted_new = zero_shot + weight * np.minimum(0, chance - zero_shot)
    score = np.vectorize(lambda base, new: harmonic_mean({"base": base, "new": new}))
    scores: Floats = score(results.signals["base"], predicted_new)
    return scores


SCORES: dict[str, Callable[[Results], Floats]] = {
    "base validation accuracy": lambda results: results.signals["base"],
    "drift (default)": drift_score,
    "the test itself, another seed": lambda results: results.tests,
}
"""Functions that return the score of each run, by their name in the table. The last one is the best possible
score: it differs from the test result only by the seed."""


def mean_of_other_seeds(tests: Floats, seed: int) -> Floats:
    """Return the mean test result over all seeds but one, for each row of settings.

    `seed` is the number of the column that is left out.
    """
    means: Floats = np.delete(tests, seed, axis=1).mean(axis=1)
    return means


def scores_table(results: Sequence[Results]) -> str:
    """Return a table of scores: rank correlation, gain and losses of the settings with the best score.

    All columns compare the score of one seed with the mean test result of the other seeds. Correlation and
    gain are means over datasets and seeds.
    """
    rows = []
    for name, score in SCORES.items():
        correlations: list[float] = []
        gains: list[float] = []
        for each in results:
            for seed in range(each.tests.shape[1]):
                scores = score(each)[:, seed]
                tests = mean_of_other_seeds(each.tests, seed)
                correlations.append(spearmanr(scores, tests).statistic)
                gains.append(tests[np.argmax(scores)] - tests[0])  # row 0: the default settings
        num_worse = sum(gain < WORSE for gain in gains)
        rows.append(
            (name, f"{mean(correlations):.2f}", f"{mean(gains):+.2f}", f"{num_worse} of {len(gains)}")
        )
    return table(("score", "rank correlation", "gain of the pick", "worse"), rows)


PREDICTORS: dict[str, Callable[[Results], tuple[Floats, Floats]]] = {
    "base accuracy with validation accuracy": lambda results: (results.signals["base"], results.base),
    "new accuracy with low drift": lambda results: (-results.signals["divergence"], results.new),
    "new accuracy with low drift over the true new names": lambda results: (
        -results.signals[NAMED],
        results.new,
    ),
    "new accuracy with that of another seed": lambda results: (results.new, results.new),
}
"""Functions that return what predicts an accuracy, and that accuracy, by their name in the table."""


def accuracies_table(results: Sequence[Results]) -> str:
    """Return how well base and new accuracy are predicted: mean rank correlations over seeds, per dataset."""
    rows = []
    for name, predictor in PREDICTORS.items():
        cells = []
        for each in results:
            signal, accuracy = predictor(each)
            correlations = [
                spearmanr(signal[:, seed], mean_of_other_seeds(accuracy, seed)).statistic
                for seed in range(accuracy.shape[1])
            ]
            cells.append(f"{mean(correlations):.2f}")
        rows.append((name, *cells))
    return table(("rank correlation of", *(each.dataset for each in results)), rows)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sets", nargs="+", default=DEVELOPMENT, help="datasets")
    parser.add_argument("--data-root", help="folder of datasets that are not part of the project")
    parser.add_argument("--settings", type=int, default=24, help="number of random settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of each setting")
    parser.add_argument("--epochs", type=int, default=5, help="epochs per run")
    parser.add_argument("--space", default="default", help="search space")
    parser.add_argument("--out", type=Path, default=Path("out/objectives"), help="folder of the records")
    parser.add_argument("--jobs", type=int, default=2, help="concurrent runs with one thread each")
    parser.add_argument("--evidence", type=Path, default=EVIDENCE, help="file of the results")
    parser.add_argument("--quick", action="store_true", help="two settings, one epoch")
    parser.add_argument("--show", action="store_true", help="print tables without training")
    parser.add_argument("--doc", type=Path, help="document in which --block is replaced by the tables")
    parser.add_argument("--block", default="objectives", help="name of the block")
    args = parser.parse_args()
    if args.quick:
        args.settings = 2
        args.epochs = 1
        args.seeds = [1, 2]
        args.out = args.out / "quick"
        args.evidence = args.out / "evidence.json"
    if not args.show:
        measure(args)
    options, results = read_evidence(args.evidence)
    sets = ", ".join(each.dataset for each in results)
    seeds = ", ".join(map(str, options["seeds"]))
    head = (
        f"{options['machine']}. {sets}: the default settings and {options['settings']} samples of "
        f"`{options['space']}`, {options['epochs']} epochs, seeds {seeds}."
    )
    num_diverged = sum(each.num_diverged for each in results)
    if num_diverged:
        head += f" {num_diverged} settings that diverged are excluded."
    publish(f"{head}\n\n{scores_table(results)}\n\n{accuracies_table(results)}", args.doc, args.block)


if __name__ == "__main__":
    main()
