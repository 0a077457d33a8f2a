"""Confirmation: rerun the best trials and the baseline with fresh seeds, then select one of these trials.

The highest of many noisy scores is biased upward. Fresh seeds, the same for all trials, reduce this bias.
The reruns train for as many epochs as the final test. The best settings of short trials may not be the best
ones of longer runs.
"""

from collections.abc import Sequence

from prometar.errors import FIX_AND_RESUME, WorkError
from tune.config import StudyConfig
from tune.execution.flows import Stages
from tune.execution.job import Job
from tune.records.folder import StudyFolder
from tune.records.schema import Candidate, Confirmation, RunScore, TrialRecord, rank_completed
from tune.stages.study_jobs import confirmation_job, read_scores, run_unfinished, trial_epochs


def choose_trials(trials: Sequence[TrialRecord], top: int) -> list[TrialRecord]:
    """Return the completed baseline and the `top` best other trials, or only the best trial if `top` is 0.

    The baseline comes first. If it was not completed, it is left out.
    """
    ranked = rank_completed(trials)
    if top == 0:
        return ranked[:1]
    baseline = [trial for trial in ranked if trial.is_baseline]
    others = [trial for trial in ranked if not trial.is_baseline]
    return [*baseline, *others[:top]]


def confirm(config: StudyConfig, folder: StudyFolder, trials: Sequence[TrialRecord]) -> Stages[Confirmation]:
    """Rerun trials with fresh seeds, and select the one with the best mean. The baseline wins ties.

    The mean is over the fresh seeds and, if reruns have as many epochs as trials, the seeds of the search.
    A single trial is selected without reruns.

    Raises:
        WorkError: a rerun of the baseline failed, or every trial has a failed rerun.
    """
    seeds = config.confirmation_seeds if len(trials) > 1 else ()
    all_jobs: list[Job] = []
    jobs_by_trial: dict[int, list[Job]] = {}
    same_epochs = True  # of trials and their reruns
    for trial in trials:
        jobs = [confirmation_job(config, folder, trial.number, trial.settings, seed) for seed in seeds]
        jobs_by_trial[trial.number] = jobs
        all_jobs += jobs
        num_epochs = trial_epochs(config, trial.settings)
        if any(job.epochs != num_epochs for job in jobs):
            same_epochs = False
    failures = yield from run_unfinished("Confirmation", all_jobs)

    candidates: list[Candidate] = []
    for trial in trials:
        runs: list[RunScore] = []
        if same_epochs:
            runs += trial.runs
        for job in jobs_by_trial[trial.number]:
            runs += read_scores(job, failures)
        candidate = Candidate(
            number=trial.number,
            is_baseline=trial.is_baseline,
            settings=trial.settings,
            runs=tuple(runs),
        )
        candidates.append(candidate)
    complete = [each for each in candidates if each.mean is not None]
    _require_baseline(candidates, complete)
    best = max(complete, key=lambda each: (each.mean, each.is_baseline))
    return Confirmation(seeds=seeds, candidates=tuple(candidates), selected_number=best.number)


def _require_baseline(candidates: Sequence[Candidate], complete: Sequence[Candidate]) -> None:
    """Check that no rerun of the baseline failed, and that some candidate has no failed rerun.

    Args:
        candidates: All candidates.
        complete: Candidates without a failed rerun.

    Raises:
        WorkError: a rerun of the baseline failed, or every candidate has a failed rerun.
    """
    if complete:
        failed = "the default settings"
        needed = [each for each in candidates if each.is_baseline]
    else:
        failed = "all candidates"
        needed = list(candidates)
    for candidate in needed:
        for run in candidate.runs:
            if run.error:
                raise WorkError(f"The confirmation of {failed} failed: {run.error}. {FIX_AND_RESUME}")
