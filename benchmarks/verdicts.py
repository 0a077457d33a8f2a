"""Simulate final tests: power, false verdicts, coverage of the interval, and bias after an early stop.

    python benchmarks/verdicts.py [--tests 4000] [--doc docs/studies.md]

Nothing is trained. The difference in H of a seed pair on a dataset is normally distributed around the true
difference of that dataset, with a standard deviation of `SPREAD` points. The true differences of several
datasets are evenly spaced from 1 point below to 1 point above `gain`, their mean. Each simulated test stops
and concludes as `tune/stages/final_test.py` does. The rule of version 0.2.0 for several datasets is a
t-interval over the datasets' means, after the same stopping rule.

The median-unbiased estimate corrects the mean for early stops (Whitehead, 1986, "On the bias of maximum
likelihood estimation following a sequential test"; results are ordered by their mean). For an observed mean
m, it is the true difference at which half of all stopped tests have a mean below m. The simulation knows the
standard deviation. A study would have to estimate it, so its estimate could only be worse. The results are in
`verdicts.json`.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
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


ESTIMATE_GAINS = np.linspace(0, 10, 41)
"""True differences for which the median of the means is simulated. Others are interpolated."""


def stop_of(differences: list[float]) -> tuple[int, float]:
    """Return the number of seed pairs after which a test stops, and the alpha of that analysis."""
    analyses = list(ALPHA_BY_PAIRS.items())
    for num_pairs, alpha in analyses:
        if is_decided(differences[:num_pairs], alpha, min_relevant=MIN_RELEVANT):
            return num_pairs, alpha
    # Undecided: the last analysis ends the test.
    return analyses[-1]


class MedianUnbiased:
    """Median-unbiased estimate of the true difference, from the mean of a stopped test.

    Args:
        num_datasets: Number of datasets of each test.
        num_tests: Number of simulated tests per true difference.
    """

    def __init__(self, num_datasets: int, num_tests: int, rng: np.random.Generator) -> None:
        medians: list[float] = []
        for gain in ESTIMATE_GAINS:
            means: list[float] = []
            for _ in range(num_tests):
                differences = rng.normal(gain, SPREAD / math.sqrt(num_datasets), MAX_SEED_PAIRS).tolist()
                num_pairs, _ = stop_of(differences)
                means.append(mean(differences[:num_pairs]))
            medians.append(median(means))
        # The median is an odd, increasing function of the true difference. So it is 0 at 0, a running maximum
        # removes noise, and `__call__` mirrors negative means.
        medians[0] = 0.0
        self._medians = np.maximum.accumulate(medians)

    def __call__(self, observed_mean: float) -> float:
        """Return the estimate of the true difference."""
        magnitude = float(np.interp(abs(observed_mean), self._medians, ESTIMATE_GAINS))
        return math.copysign(magnitude, observed_mean)


def simulate(
    num_datasets: int, gain: float, num_tests: int, estimate: MedianUnbiased, rng: np.random.Generator
) -> dict[str, Any]:
    """Return rates over simulated tests.

    `shown` is the share of tests whose interval excludes 0, and `covered` the share whose interval contains
    `gain`. `shown_by_old_rule` is the share by the rule of version 0.2.0, or None for a single dataset.
    """
    offsets = np.linspace(-1, 1, num_datasets) if num_datasets > 1 else np.zeros(1)
    outcomes: list[dict[str, Any]] = []
    for _ in range(num_tests):
        by_dataset = gain + offsets[:, None] + rng.normal(0, SPREAD, (num_datasets, MAX_SEED_PAIRS))
        differences = by_dataset.mean(axis=0).tolist()
        num_pairs, alpha = stop_of(differences)
        interval = t_interval(differences[:num_pairs], level=1 - alpha)
        assert interval is not None
        old_interval = t_interval(by_dataset[:, :num_pairs].mean(axis=1).tolist())
        outcomes.append(
            {
                "pairs": num_pairs,
                "mean": interval.mean,
                "median_unbiased": estimate(interval.mean),
                "shown": interval.excludes_zero,
                "covered": interval.low <= gain <= interval.high,
                "shown_by_old_rule": old_interval is not None and old_interval.excludes_zero,
            }
        )
    early = [each for each in outcomes if each["pairs"] == FIRST_ANALYSIS]
    shown_by_old_rule = None
    if num_datasets > 1:
        shown_by_old_rule = mean(each["shown_by_old_rule"] for each in outcomes)
    return {
        "datasets": num_datasets,
        "gain": gain,
        "tests": num_tests,
        "shown": mean(each["shown"] for each in outcomes),
        "shown_by_old_rule": shown_by_old_rule,
        "covered": mean(each["covered"] for each in outcomes),
        "pairs": mean(each["pairs"] for each in outcomes),
        "mean": mean(each["mean"] for each in outcomes),
        "median_unbiased": mean(each["median_unbiased"] for each in outcomes),
        "early_share": len(early) / num_tests,
        "early_mean": mean(each["mean"] for each in early) if early else None,
        "early_median_unbiased": mean(each["median_unbiased"] for each in early) if early else None,
    }


def rows_of(results: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the published table."""
    for each in results:
        shown_by_old_rule = "-"
        if each["shown_by_old_rule"] is not None:
            shown_by_old_rule = f"{each['shown_by_old_rule']:.1%}"
        early = "-"
        if each["early_mean"] is not None:
            early = f"{each['early_mean']:+.2f} ({each['early_share']:.0%})"
        yield (
            each["datasets"],
            f"{each['gain']:+.0f}",
            f"{each['shown']:.1%}",
            shown_by_old_rule,
            f"{each['covered']:.1%}",
            f"{each['pairs']:.1f}",
            f"{each['mean']:+.2f}",
            early,
        )


def estimate_rows_of(results: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table of means and estimates."""
    names = ("mean", "median_unbiased", "early_mean", "early_median_unbiased")
    for each in results:
        figures = ["-" if each[name] is None else f"{each[name]:+.2f}" for name in names]
        yield (each["datasets"], f"{each['gain']:+.0f}", *figures)


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
    results = []
    for datasets in NUM_DATASETS:
        estimate = MedianUnbiased(datasets, num_tests, np.random.default_rng(1))
        results += [simulate(datasets, gain, num_tests, estimate, rng) for gain in GAINS]
    if not args.quick:
        content = {"spread": SPREAD, "min_relevant": MIN_RELEVANT, "results": results}
        write_atomically(RECORD, (json.dumps(content, indent=1) + "\n").encode())
    head = (
        "datasets",
        "true difference",
        "difference shown",
        "difference shown by the t-interval over datasets (rule of version 0.2.0)",
        "interval contains the true difference",
        "mean number of pairs",
        "mean difference",
        f"mean if stopped after {FIRST_ANALYSIS} pairs (share)",
    )
    publish(table(head, list(rows_of(results))), args.doc, "verdicts")
    early = f"if stopped after {FIRST_ANALYSIS} pairs"
    estimate_head = (
        "datasets",
        "true difference",
        "mean",
        "median-unbiased",
        f"mean {early}",
        f"median-unbiased {early}",
    )
    print(table(estimate_head, list(estimate_rows_of(results))))


if __name__ == "__main__":
    main()
