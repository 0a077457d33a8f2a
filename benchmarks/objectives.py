"""Rank settings by scores that use no test images, and compare these ranks with ranks on test images.

    python benchmarks/objectives.py [--sets textures ...] [--settings 24] [--seeds 1 2 3] [--epochs 5]
        [--space default] [--out DIR] [--jobs 2] [--evidence FILE] [--quick]
    python benchmarks/objectives.py --show [--evidence FILE] [--doc docs/measurements.md] [--block objectives]

The default settings and random samples of a space are trained with several seeds on all base classes, scored
as in a search, and tested. Scores of one seed are compared with test results of the other seeds. Settings
that diverge with one of the seeds have no test result, so they are excluded. Rerun the same command to resume
from the records in --out. `--show` prints the tables of a file written by --evidence.

Drift is also measured over the true names of the new classes, which a search does not know. This bounds the
gain of users who can name future classes before they have images of them.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
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
"""Values from which a search computes the score `drift`. `divergence` is the drift."""
DIVERGED = "diverged"
"""Key of the error message in the record of a run that diverged. The record has no other keys."""
NAMED = "named divergence"
"""Drift over the true names of the new classes."""


@dataclass(frozen=True)
class Table:
    """Figures of one dataset, settings x seeds. The default settings come first.

    Args:
        classes, names: Number of base classes, and of out-of-domain names.
        tests: H on the test images. base, new: Accuracy on them.
        signals: Figures that predict test results, by name.
        num_diverged: Number of settings that diverged and are therefore excluded.
    """

    dataset: str
    classes: int
    names: int
    tests: Floats
    base: Floats
    new: Floats
    signals: Mapping[str, Floats]
    num_diverged: int = 0


def read_evidence(path: Path) -> tuple[dict[str, Any], list[Table]]:
    """Return the options of the measurement, and its tables."""
    found = json.loads(path.read_text("utf-8"))
    tables = []
    for each in found.pop("tables"):
        tests, base, new = (np.array(each[name], np.float64) for name in ("tests", "base", "new"))
        signals = {name: np.array(values, np.float64) for name, values in each["signals"].items()}
        tables.append(
            Table(
                each["dataset"],
                each["classes"],
                each["names"],
                tests,
                base,
                new,
                signals,
                each.get(DIVERGED, 0),
            )
        )
    return found, tables


# Measurement


def config_of(args: argparse.Namespace, dataset: str, number: int, seed: int) -> Config:
    """Return the configuration of a run. Number 0 has the default settings, others are random samples."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampled = optuna.create_study(sampler=optuna.samplers.RandomSampler(number)).ask()
    settings = load_space(args.space).sample(sampled) if number else {}
    where = {"data.name": dataset, "data.root": args.data_root, "backbone.name": "mini"}
    return configure("prometar", {**settings, **where, "train.epochs": args.epochs, "train.seed": seed})


def train(config: Config, path: Path) -> None:
    """Train a run, test it, score it as `drift` does, and write the record. It says if the run diverged."""
    torch.set_num_threads(1)
    shared = RunCache()
    run = build_run(config, "final", shared=shared)
    scored_run = build_run(config, "drift", shared=shared)
    new_names = classnames(run.evaluations["new"].order.items)
    with patch.object(training_run, "out_of_domain_names", return_value=new_names):
        informed_run = build_run(config, "drift", shared=shared)
    with TemporaryDirectory() as folder:
        session = Session(run, Path(folder))
        try:
            while not session.finished:
                session.run_epoch()
            last = session.history[-1]
            session.run = scored_run  # the same prompts, on other images
            seen = session.score()
            record: dict[str, float | str] = {
                "H": last["objective"],
                "base": last["base"],
                "new": last["new"],
            }
            record |= {f"seen {name}": seen[name] for name in (*SEEN, "objective")}
            session.run = informed_run
            record[f"seen {NAMED}"] = session.score()["divergence"]
        except WorkError as error:
            record = {DIVERGED: str(error)}
            print(f"{path.stem}: {error}", flush=True)
    write_atomically(path, json.dumps(record).encode())


def measure(args: argparse.Namespace) -> None:
    """Train the runs that have no record yet, and write the evidence."""
    runs = {
        (dataset, number, seed): args.out / f"{dataset}-{args.space}-{number:03d}-seed{seed}.json"
        for dataset in args.sets
        for number in range(args.settings + 1)
        for seed in args.seeds
    }
    todo = [key for key, path in runs.items() if not path.exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context) as pool:
        running = [pool.submit(train, config_of(args, *key), runs[key]) for key in todo]
        for number, done in enumerate(as_completed(running), 1):
            done.result()
            print(f"{number} of {len(todo)} runs", flush=True)

    def records(dataset: str) -> list[list[dict[str, Any]]]:
        settings = range(args.settings + 1)
        return [[json.loads(runs[dataset, k, s].read_text("utf-8")) for s in args.seeds] for k in settings]

    def counts(dataset: str) -> dict[str, int]:
        config = config_of(args, dataset, 0, args.seeds[0])
        backbone = load_configured_backbone(config.backbone)
        opened = open_dataset(dataset, args.data_root)
        names = out_of_domain_names(opened, backbone.vocabulary)
        return {"classes": len(opened.base_labels), "names": len(names)}

    tables = [{"dataset": name, **counts(name), **figures(records(name), name)} for name in args.sets]
    options = {key: getattr(args, key) for key in ("space", "settings", "seeds", "epochs")}
    write_atomically(
        args.evidence, json.dumps({"machine": describe(threads=1), **options, "tables": tables}).encode()
    )


def figures(records: Sequence[Sequence[Mapping[str, Any]]], dataset: str) -> dict[str, Any]:
    """Return figures of a dataset (settings x seeds) without settings that diverged with one of the seeds.

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


def drift(t: Table) -> Floats:
    """Return H of base validation accuracy and predicted new accuracy (`prometar.training.drift`)."""
    zero_shot = t.signals["zero_shot"]
    weight = np.minimum(1, t.signals["divergence"] / np.log(t.names))
    new = zero_shot + weight * np.minimum(0, 100 / t.classes - zero_shot)
    return np.vectorize(lambda b, n: harmonic_mean({"base": b, "new": n}))(t.signals["base"], new)


SCORES: dict[str, Callable[[Table], Floats]] = {
    "base validation accuracy": lambda t: t.signals["base"],
    "drift (default)": drift,
    "the test itself, another seed": lambda t: t.tests,
}


def mean_of_other_seeds(tests: Floats, seed: int) -> Floats:
    """Return the mean test result of the other seeds, per setting."""
    means: Floats = np.delete(tests, seed, axis=1).mean(axis=1)
    return means


def scores_table(tables: Sequence[Table]) -> str:
    """Return a table of scores: rank correlation, mean gain of the best-scored settings, number of losses."""
    rows = []
    for name, score in SCORES.items():
        pairs = [
            (score(t)[:, k], mean_of_other_seeds(t.tests, k)) for t in tables for k in range(t.tests.shape[1])
        ]
        ranks = [spearmanr(*pair).statistic for pair in pairs]
        gains = np.array([test[np.argmax(score)] - test[0] for score, test in pairs])
        worse = f"{np.sum(gains < WORSE)} of {len(gains)}"
        rows.append((name, f"{np.mean(ranks):.2f}", f"{gains.mean():+.2f}", worse))
    return table(("score", "rank correlation", "gain of the pick", "worse"), rows)


def accuracies_table(tables: Sequence[Table]) -> str:
    """Return how well base and new accuracy are predicted per dataset: rank correlations."""
    predictors: dict[str, Callable[[Table], tuple[Floats, Floats]]] = {
        "base accuracy with validation accuracy": lambda t: (t.signals["base"], t.base),
        "new accuracy with low drift": lambda t: (-t.signals["divergence"], t.new),
        "new accuracy with low drift over the true new names": lambda t: (-t.signals[NAMED], t.new),
        "new accuracy with that of another seed": lambda t: (t.new, t.new),
    }
    rows = []
    for name, predictor in predictors.items():
        ranks = []
        for score, test in map(predictor, tables):
            seeds = range(test.shape[1])
            ranks.append(
                np.mean([spearmanr(score[:, k], mean_of_other_seeds(test, k)).statistic for k in seeds])
            )
        rows.append((name, *(f"{rank:.2f}" for rank in ranks)))
    return table(("rank correlation of", *(t.dataset for t in tables)), rows)


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
    how, tables = read_evidence(args.evidence)
    sets = ", ".join(t.dataset for t in tables)
    seeds = ", ".join(map(str, how["seeds"]))
    head = (
        f"{how['machine']}. {sets}: the default settings and {how['settings']} samples of `{how['space']}`, "
        f"{how['epochs']} epochs, seeds {seeds}."
    )
    if num_diverged := sum(t.num_diverged for t in tables):
        head += f" {num_diverged} settings that diverged are excluded."
    publish(f"{head}\n\n{scores_table(tables)}\n\n{accuracies_table(tables)}", args.doc, args.block)


if __name__ == "__main__":
    main()
