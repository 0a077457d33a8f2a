"""Confirmation: rerun the best trials and the baseline with fresh seeds, then select one of these trials.

The highest of many noisy scores is biased upward. Fresh seeds, the same for all trials, reduce this bias.
"""

from collections.abc import Sequence

from prometar.errors import FIX_AND_RESUME, WorkError
from tune.config import StudyConfig
from tune.records.folder import StudyFolder
from tune.records.schema import Candidate, Confirmation, TrialRecord, rank_completed
from tune.stages.study_jobs import JobRunner, read_scores, trial_job


def choose_trials(trials: Sequence[TrialRecord], top: int) -> list[TrialRecord]:
    """Return the completed baseline and the `top` best other trials, or only the best trial if `top` is 0."""
    ranked = rank_completed(trials)
    baseline = [trial for trial in ranked if trial.is_baseline]
    others = [trial for trial in ranked if not trial.is_baseline]
    return [*baseline, *others[:top]] if top else ranked[:1]


def confirm(
    config: StudyConfig, folder: StudyFolder, trials: Sequence[TrialRecord], run_jobs: JobRunner
) -> Confirmation:
    """If there are several trials, rerun them with fresh seeds. Select the best mean. The baseline wins ties.

    Raises:
        WorkError: a rerun of the baseline failed, or every trial has a failed rerun.
    """
    seeds = config.confirmation_seeds if len(trials) > 1 else ()
    jobs = {
        trial.number: [trial_job(config, folder, trial.number, trial.settings, seed) for seed in seeds]
        for trial in trials
    }
    failures = run_jobs([job for reruns in jobs.values() for job in reruns])
    candidates = tuple(
        Candidate(
            number=trial.number,
            is_baseline=trial.is_baseline,
            settings=trial.settings,
            runs=(*trial.runs, *(run for job in jobs[trial.number] for run in read_scores(job, failures))),
        )
        for trial in trials
    )
    complete = [each for each in candidates if each.mean is not None]
    fatal = [each for each in candidates if each.is_baseline] if complete else candidates
    error = next((run.error for each in fatal for run in each.runs if run.error), "")
    if error:
        failed = "the default settings" if complete else "all candidates"
        raise WorkError(f"The confirmation of {failed} failed: {error}. {FIX_AND_RESUME}")
    best = max(complete, key=lambda each: (each.mean, each.is_baseline))
    return Confirmation(seeds=seeds, candidates=candidates, selected_number=best.number)
