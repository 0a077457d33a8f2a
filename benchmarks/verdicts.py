"""Simulate final tests: power, false verdicts, coverage of the interval, and bias after an early stop.

    python benchmarks/verdicts.py [--tests 4000] [--doc docs/studies.md]

Nothing is trained. The difference in H of a seed pair on a dataset is normally distributed around the true
difference of that dataset, with a standard deviation of `SPREAD` points. The true differences of several
datasets are evenly spaced from 1 point below to 1 point above `gain`, their mean. Each simulated test stops
and concludes as `tune/stages/final_test.py` does. "t over datasets" is the verdict of version 0.2.0 for
several datasets: a t-interval over the datasets' means, after the same stopping rule. The result is in
`verdicts.json`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from common import parser_of, publish, table

from prometar.io.files import write_atomically
from prometar.metrics import t_interval
from tune.config import MAX_SEED_PAIRS
from tune.stages.statistics import ALPHA_BY_PAIRS, is_decided

RECORD = Path(__file__).with_suffix(".json")
NUM_DATASETS = (1, 2, 3, 11)
GAINS = (0.0, 1.0, 2.0, 4.0)
SPREAD = 2.0
MIN_RELEVANT = 1.0
FIRST_ANALYSIS = min(ALPHA_BY_PAIRS)


def simulate(num_datasets: int, gain: float, num_tests: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return rates over simulated tests.

    `shown` is the share of tests whose interval excludes 0, `covered` that of intervals that contain `gain`.
    """
    offsets = np.linspace(-1, 1, num_datasets) if num_datasets > 1 else np.zeros(1)
    outcomes = []
    for _ in range(num_tests):
        by_dataset = gain + offsets[:, None] + rng.normal(0, SPREAD, (num_datasets, MAX_SEED_PAIRS))
        differences = by_dataset.mean(axis=0).tolist()
        for num_pairs, alpha in ALPHA_BY_PAIRS.items():
            if is_decided(differences[:num_pairs], alpha, min_relevant=MIN_RELEVANT):
                break
        interval = t_interval(differences[:num_pairs], level=1 - alpha)
        over_datasets = t_interval(by_dataset[:, :num_pairs].mean(axis=1).tolist())
        assert interval is not None
        outcomes.append(
            {
                "pairs": num_pairs,
                "mean": interval.mean,
                "shown": interval.excludes_zero,
                "covered": interval.low <= gain <= interval.high,
                "shown_over_datasets": over_datasets.excludes_zero if over_datasets else None,
            }
        )
    early = [each["mean"] for each in outcomes if each["pairs"] == FIRST_ANALYSIS]
    old_rule = None
    if num_datasets > 1:
        old_rule = mean(each["shown_over_datasets"] for each in outcomes)
    return {
        "datasets": num_datasets,
        "gain": gain,
        "tests": num_tests,
        "shown": mean(each["shown"] for each in outcomes),
        "shown_over_datasets": old_rule,
        "covered": mean(each["covered"] for each in outcomes),
        "pairs": mean(each["pairs"] for each in outcomes),
        "mean": mean(each["mean"] for each in outcomes),
        "early_share": len(early) / num_tests,
        "early_mean": mean(early) if early else None,
    }


def rows_of(results: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the published table."""
    for each in results:
        old_rule = each["shown_over_datasets"]
        early_mean = each["early_mean"]
        yield (
            each["datasets"],
            f"{each['gain']:+.0f}",
            f"{each['shown']:.1%}",
            "-" if old_rule is None else f"{old_rule:.1%}",
            f"{each['covered']:.1%}",
            f"{each['pairs']:.1f}",
            f"{each['mean']:+.2f}",
            "-" if early_mean is None else f"{early_mean:+.2f} ({each['early_share']:.0%})",
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tests", type=int, default=4000, help="simulated tests per row")
    parser.add_argument(
        "--quick", action="store_true", help="20 tests per row, to check that the script runs"
    )
    parser.add_argument("--doc", type=Path, help="document whose block `verdicts` is replaced")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    num_tests = 20 if args.quick else args.tests
    results = [simulate(datasets, gain, num_tests, rng) for datasets in NUM_DATASETS for gain in GAINS]
    if not args.quick:
        content = {"spread": SPREAD, "min_relevant": MIN_RELEVANT, "results": results}
        write_atomically(RECORD, (json.dumps(content, indent=1) + "\n").encode())
    head = (
        "datasets",
        "true difference",
        "difference shown",
        "t over datasets (0.2.0)",
        "interval covers",
        "pairs",
        "mean",
        f"mean if stopped after {FIRST_ANALYSIS} pairs (share)",
    )
    publish(table(head, list(rows_of(results))), args.doc, "verdicts")


if __name__ == "__main__":
    main()
