"""Confirmation: rerun the best trials and the baseline with fresh seeds, then select one of these trials.

The highest of many noisy scores is biased upward. Fresh seeds, the same for all trials, reduce this bias.
The reruns train for as many epochs as the final test, because the best settings of short trials may not be
the best ones of longer runs.
"""

from collections.abc import Sequence

from prometar.errors import FIX_AND_RESUME, WorkError
from tune.config import StudyConfig
from tune.execution.flows import Stages
from tune.records.folder import StudyFolder
from tune.records.schema import Candidate, Confirmation, RunScores, TrialRecord, rank_completed
from tune.stages.study_jobs import confirmation_job, read_scores, run_unfinished, trial_epochs


def choose_trials(trials: Sequence[TrialRecord], top: int) -> list[TrialRecord]:
    """Return the completed baseline and the `top` best other trials, or only the best trial if `top` is 0."""
    ranked = rank_completed(trials)
    if top == 0:
        return ranked[:1]
    baseline = [trial for trial in ranked if trial.is_baseline]
    others = [trial for trial in ranked if not trial.is_baseline]
    return [*baseline, *others[:top]]


def confirm(config: StudyConfig, folder: StudyFolder, trials: Sequence[TrialRecord]) -> Stages[Confirmation]:
    """If there are several trials, rerun them with fresh seeds. Select the best mean. The baseline wins ties.

    The mean is over the fresh seeds and, if reruns have as many epochs as trials, the seeds of the search.

    Raises:
        WorkError: a rerun of the baseline failed, or every trial has a failed rerun.
    """
    seeds = config.confirmation_seeds if len(trials) > 1 else ()
    jobs_by_trial = {
        trial.number: [confirmation_job(config, folder, trial.number, trial.settings, seed) for seed in seeds]
        for trial in trials
    }
    all_jobs = [job for jobs in jobs_by_trial.values() for job in jobs]
    failures = yield from run_unfinished("Confirmation", all_jobs)
    same_epochs = all(
        job.epochs == trial_epochs(config, trial.settings)
        for trial in trials
        for job in jobs_by_trial[trial.number]
    )

    def runs_of(trial: TrialRecord) -> RunScores:
        fresh = [run for job in jobs_by_trial[trial.number] for run in read_scores(job, failures)]
        return (*trial.runs, *fresh) if same_epochs else tuple(fresh)

    candidates = tuple(
        Candidate(
            number=trial.number,
            is_baseline=trial.is_baseline,
            settings=trial.settings,
            runs=runs_of(trial),
        )
        for trial in trials
    )
    complete = [each for each in candidates if each.mean is not None]
    _require_baseline(candidates, complete)
    best = max(complete, key=lambda each: (each.mean, each.is_baseline))
    return Confirmation(seeds=seeds, candidates=candidates, selected_number=best.number)


def _require_baseline(candidates: Sequence[Candidate], complete: Sequence[Candidate]) -> None:
    """Check that reruns of the baseline succeeded, or those of another trial if there is no baseline.

    Raises:
        WorkError: they failed.
    """
    needed = [each for each in candidates if each.is_baseline] if complete else candidates
    errors = [run.error for each in needed for run in each.runs if run.error]
    if errors:
        failed = "the default settings" if complete else "all candidates"
        raise WorkError(f"The confirmation of {failed} failed: {errors[0]}. {FIX_AND_RESUME}")
