"""Final test: comparison of the selected settings with the baseline on test images.

A seed pair consists of a run with the selected settings and a baseline run, both with the same seed.
"""

from collections.abc import Mapping
from statistics import mean

from prometar.metrics import Interval, t_interval
from tune.config import StudyConfig
from tune.records.folder import StudyFolder, paired_differences
from tune.records.schema import Candidate, DatasetTest, FinalTest, RunScores, Verdict
from tune.stages.statistics import ALPHA_BY_PAIRS, BASELINE_RUNS, dataset_interval, is_decided, min_detectable
from tune.stages.study_jobs import JobRunner, final_job, read_scores


def run_final_test(
    config: StudyConfig,
    folder: StudyFolder,
    selected: Candidate,
    run_jobs: JobRunner,
    *,
    published: Mapping[str, float | None],
    previous: FinalTest | None,
) -> FinalTest:
    """Run seed pairs until an analysis is conclusive, no pair succeeds, or no seeds are left.

    Args:
        published: Published H (harmonic mean of base and new accuracy) by dataset, or None if unknown.
        previous: The study's previous final test, or None if there is none.
    """
    datasets, baseline_selected, alphas = config.search.datasets, selected.is_baseline, ALPHA_BY_PAIRS
    if baseline_selected or config.test.seeds != "auto":
        # With a fixed number of seeds, there is one analysis, which has the whole error probability of 5%.
        alphas = {BASELINE_RUNS if config.test.seeds == "auto" else len(config.final_seeds): 0.05}
    # A selected baseline may be a later trial that reran trial 0. With number 0, both sides have equal jobs.
    selected_number = 0 if baseline_selected else selected.number
    trials = [(0, config.baseline_settings), (selected_number, selected.settings)]
    failures: dict[str, str] = {}
    for num_pairs, alpha in alphas.items():
        seeds = config.final_seeds[:num_pairs]
        jobs = {
            dataset: [[final_job(config, folder, *each, dataset, seed) for seed in seeds] for each in trials]
            for dataset in datasets
        }
        all_jobs = [job for sides in jobs.values() for side in sides for job in side]
        failures |= run_jobs(list({job.name: job for job in all_jobs if job.name not in failures}.values()))
        results = {
            dataset: _compare(
                *(tuple(run for job in side for run in read_scores(job, failures)) for side in sides),
                published=published.get(dataset),
                alpha=None if baseline_selected else alpha,
            )
            for dataset, sides in jobs.items()
        }
        # Average over the datasets, for each seed with results of both sides on every dataset.
        per_dataset = [paired_differences(each.selected, each.baseline) for each in results.values()]
        complete_seeds = [seed for seed in seeds if all(seed in by_seed for by_seed in per_dataset)]
        differences = [mean(by_seed[seed] for by_seed in per_dataset) for seed in complete_seeds]
        if not differences or is_decided(differences, alpha, min_relevant=config.test.min_relevant):
            break
    # With one dataset, this is the interval over seeds. With several, it is a 95% interval over their means.
    difference = dataset_interval([each.difference for each in results.values()])
    return FinalTest(
        seeds=seeds,
        epochs=config.test.epochs,
        selected=selected,
        datasets=results,
        difference=difference,
        verdict=_verdict(difference, baseline_selected=baseline_selected),
        alpha=alpha,
        min_relevant=config.test.min_relevant if config.test.seeds == "auto" else None,
        detectable=None if baseline_selected or len(datasets) > 1 else min_detectable(differences, alpha),
        earlier_tests=_tested_before(previous, (selected.number, seeds, config.test.epochs)),
    )


def _compare(
    baseline: RunScores, selected: RunScores, *, published: float | None, alpha: float | None
) -> DatasetTest:
    """Compare both sides on a dataset. If the baseline is selected, `alpha` and the intervals are None."""

    def interval(metric: str) -> Interval | None:
        if alpha is None:
            return None
        return t_interval(list(paired_differences(selected, baseline, metric).values()), level=1 - alpha)

    return DatasetTest(
        selected=selected,
        baseline=baseline,
        difference=interval("objective"),  # H
        base_difference=interval("base"),
        new_difference=interval("new"),
        published=published,
    )


def _verdict(difference: Interval | None, *, baseline_selected: bool) -> Verdict:
    if baseline_selected or (difference and difference.high < 0):
        return "baseline"
    return "selected" if difference and difference.low > 0 else "either"


def _tested_before(previous: FinalTest | None, test: tuple[int, tuple[int, ...], int]) -> tuple[int, ...]:
    """Return trials whose results in tests before `test` (trial, seeds, epochs) may have influenced users."""
    if previous is None:
        return ()
    is_rerun = (previous.selected.number, previous.seeds, previous.epochs) == test
    if is_rerun or previous.baseline_selected or not previous.seeds:
        return previous.earlier_tests
    return tuple(dict.fromkeys((*previous.earlier_tests, previous.selected.number)))
