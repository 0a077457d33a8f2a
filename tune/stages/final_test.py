"""Final test: comparison of the selected settings with the baseline on test images, in seed pairs."""

from collections.abc import Mapping
from statistics import mean

from prometar.metrics import Interval, t_interval
from tune.config import StudyConfig
from tune.records.folder import StudyFolder, paired_differences
from tune.records.schema import Candidate, DatasetTest, FinalTest, Runs, Verdict
from tune.stages.jobs import RunJobs, final_job, scores
from tune.stages.statistics import BASELINE_SEEDS, INTERIM_ANALYSES, is_decided, mean_interval, min_detectable


def run_final_test(
    config: StudyConfig,
    folder: StudyFolder,
    selected: Candidate,
    run_jobs: RunJobs,
    *,
    published: Mapping[str, float | None],
    before: FinalTest | None,
) -> FinalTest:
    """Run seed pairs until an interim analysis decides. Return the summary of the test.

    Args:
        published: Published harmonic mean by dataset, None if unknown.
        before: Record of an earlier final test of this study, if there is one.
    """
    seeds, names, same = config.final_seeds, config.search.datasets, selected.baseline
    analyses = INTERIM_ANALYSES
    if same or config.test.seeds != "auto":
        analyses = {BASELINE_SEEDS if config.test.seeds == "auto" else len(seeds): 0.05}
    sides = [(0, config.baseline_settings), (0 if same else selected.number, selected.settings)]
    failures: dict[str, str] = {}
    for number, alpha in analyses.items():
        seeds = config.final_seeds[:number]
        jobs = {
            name: [[final_job(config, folder, *side, name, seed) for seed in seeds] for side in sides]
            for name in names
        }
        by_name = {job.name: job for both in jobs.values() for side in both for job in side}
        failures |= run_jobs([job for name, job in by_name.items() if name not in failures])
        runs = {
            name: [tuple(run for job in side for run in scores(job, failures)) for side in both]
            for name, both in jobs.items()
        }
        # Mean differences over the datasets, for seeds with a result on each dataset.
        pairs = [paired_differences(ours, theirs) for theirs, ours in runs.values()]
        complete = [seed for seed in seeds if all(seed in by_seed for by_seed in pairs)]
        differences = [mean(by_seed[seed] for by_seed in pairs) for seed in complete]
        if is_decided(differences, alpha, min_relevant=config.test.matters):
            break
    datasets = {
        name: _compare(ours, theirs, published.get(name), None if same else alpha)
        for name, (theirs, ours) in runs.items()
    }
    # Interim analyses test the variation over seeds. The interval over datasets is computed only once.
    difference = mean_interval([each.difference for each in datasets.values()])
    return FinalTest(
        seeds=seeds,
        epochs=config.test.epochs,
        selected=selected,
        datasets=datasets,
        difference=difference,
        verdict=_verdict(difference, same=same),
        alpha=alpha,
        min_relevant=config.test.matters if config.test.seeds == "auto" else None,
        detectable=None if same or len(names) > 1 else min_detectable(differences, alpha),
        earlier_tests=_earlier(before, selected, seeds),
    )


def _compare(ours: Runs, theirs: Runs, published: float | None, alpha: float | None) -> DatasetTest:
    """Compare the runs on a dataset. If `alpha` is None, `ours` and `theirs` are the same runs."""

    def interval(metric: str) -> Interval | None:
        if alpha is None:
            return None
        return t_interval(list(paired_differences(ours, theirs, metric).values()), level=1 - alpha)

    return DatasetTest(
        selected=ours,
        baseline=theirs,
        difference=interval("objective"),
        base_difference=interval("base"),
        new_difference=interval("new"),
        published=published,
    )


def _verdict(difference: Interval | None, *, same: bool) -> Verdict:
    if same or (difference and difference.high < 0):
        return "baseline"
    return "selected" if difference and difference.low > 0 else "either"


def _earlier(before: FinalTest | None, selected: Candidate, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the trials of earlier tests, whose results may have influenced later decisions of the user."""
    if before is None:
        return ()
    is_rerun = (before.selected.number, before.seeds) == (selected.number, seeds)
    new = () if is_rerun or before.baseline_selected or not before.seeds else (before.selected.number,)
    return tuple(dict.fromkeys((*before.earlier_tests, *new)))
