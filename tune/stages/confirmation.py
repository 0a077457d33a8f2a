"""Confirmation: the best trials and the baseline are rerun with fresh seeds, then one is selected.

The best of many noisy scores is too high. Runs with fresh seeds, equal for all candidates, correct most of
this.
"""

from collections.abc import Sequence

from prometar.errors import WorkError
from tune.config import StudyConfig
from tune.records.folder import StudyFolder
from tune.records.schema import Candidate, Confirmation, TrialRecord, by_score
from tune.stages.jobs import RunJobs, scores, search_job


def candidates(trials: Sequence[TrialRecord], top: int) -> list[TrialRecord]:
    """Return the baseline, if it finished, and the `top` best other trials."""
    ranked = by_score(trials)
    baseline = [trial for trial in ranked if trial.baseline]
    others = [trial for trial in ranked if not trial.baseline]
    return [*baseline, *others[:top]] if top else ranked[:1]


def confirm(
    config: StudyConfig, folder: StudyFolder, chosen: Sequence[TrialRecord], run_jobs: RunJobs
) -> Confirmation:
    """Rerun the candidates and select the highest mean over all their seeds; the baseline wins ties.

    Raises:
        WorkError: no candidate finished with every fresh seed, or the baseline did not.
    """
    seeds = config.confirmation_seeds if len(chosen) > 1 else ()
    jobs = {
        trial.number: [search_job(config, folder, trial.number, trial.settings, seed) for seed in seeds]
        for trial in chosen
    }
    failures = run_jobs([job for each in jobs.values() for job in each])
    rows = tuple(
        Candidate(
            number=trial.number,
            baseline=trial.baseline,
            settings=trial.settings,
            runs=(*trial.runs, *(run for job in jobs[trial.number] for run in scores(job, failures))),
        )
        for trial in chosen
    )
    complete = [row for row in rows if row.mean is not None]
    required = [row for row in rows if row.baseline] if complete else rows
    reason = next((run.failed for row in required for run in row.runs if run.failed), "")
    if reason:
        who = "The default settings did not finish" if complete else "No candidate finished"
        raise WorkError(
            f"{who} the confirmation: {reason}. Fix the cause, then rerun this command to resume."
        )
    best = max(complete, key=lambda row: (row.mean, row.baseline))
    return Confirmation(seeds=seeds, candidates=rows, selected=best.number)
