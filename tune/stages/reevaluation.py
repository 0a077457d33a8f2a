"""The last round: the best settings of a search and the released ones, run again with fresh seeds.

The best of many noisy figures flatters. So settings are chosen by the mean of runs that had no part in their
selection, on the search's own images and with the same fresh seeds for all.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from prometar.errors import WorkError
from tune.execution.course import Course
from tune.execution.reruns import Means, run_missing, runs_of
from tune.jobs.files import JobFiles
from tune.optimizer.storage import GO_ON
from tune.results.goals import Bound, in_words
from tune.results.schema import REEVALUATION, Learned, Reevaluated, Reevaluation, TrialRecord, by_score
from tune.results.writer import StudyFolder
from tune.space.portfolio import applies, known_gains
from tune.stages.choice import (
    CALIBRATIONS,
    EMBEDDED,
    KEEP_UNLESS,
    PROMISES,
    UNKNOWN,
    Belief,
    belief,
    believed,
    leads,
)
from tune.stages.warm_start import promised
from tune.study_spec import StudySpec


def run_last_round(
    folder: StudyFolder,
    spec: StudySpec,
    trials: Sequence[TrialRecord],
    means: Means,
    learned: Learned | None = None,
) -> Course[Reevaluation]:
    """Run what has no result yet, and write lastround.json. Returns its content.

    Where it is known what a lead is worth (`tune.stages.choice`), `chosen` is the number of the settings that
    are expected to gain most, if they are probably better than the released ones, else of those. Otherwise it
    is the number with the highest mean over all fresh seeds; the released ones win a tie. Without a last
    round (`top` 0) it is the search's own best. What breaks a bound is not chosen, unless nothing keeps it:
    then the released settings are.
    """
    asked = contenders(trials, spec, learned)
    if not asked:
        raise WorkError(
            f"no finished trial keeps {in_words(spec.bounds)}, and the released settings have not finished: "
            "begin another study with other bounds"
        )
    seeds = spec.fresh_seeds if len(asked) > 1 else ()  # one alone is compared with nothing
    rows = (yield from _rows(folder, spec, asked, seeds, means)) if seeds else ()
    rows, judged = _judged(rows, spec, learned)
    found = Reevaluation(
        seeds,
        _chosen(rows, spec.bounds, judged=judged, slow=_slow(asked, spec)) if rows else asked[0].number,
        rows,
        keep_unless=KEEP_UNLESS if judged else None,
        among=len(by_score(trials)),
    )
    REEVALUATION.write(folder / "lastround.json", found)
    return found


def _rows(
    folder: StudyFolder, spec: StudySpec, asked: Sequence[TrialRecord], seeds: Sequence[int], means: Means
) -> Course[tuple[Reevaluated, ...]]:
    names = ", ".join(str(trial.number) for trial in asked)
    shown = ", ".join(map(str, seeds))
    means.console.print(f"last round on the search's own images: trials {names}, fresh seeds {shown}")
    jobs = {
        (trial.number, seed): spec.search_job(
            dict(trial.settings), (seed,), str(folder.rerun(trial.number, seed)), means.terms
        )
        for seed in seeds
        for trial in asked
    }
    reasons = yield from run_missing(list(jobs.values()), means, what="last round", required=True)
    for job in jobs.values():
        JobFiles(job).drop_states()  # their figures are all that is needed of them
    rows = []
    for trial in asked:
        own = [job for (number, _), job in jobs.items() if number == trial.number]
        runs = tuple(run for job in own for run in runs_of(job, reasons))
        whole = [run.objective for run in runs if run.objective is not None]
        same_seeds = len(whole) == len(runs)
        rows.append(
            Reevaluated(
                trial.number,
                trial.reference,
                trial.settings,
                search=trial.score,
                mean=mean(whole) if same_seeds else None,
                runs=runs,
            )
        )
    return tuple(rows)


def contenders(
    trials: Sequence[TrialRecord], spec: StudySpec, learned: Learned | None = None
) -> list[TrialRecord]:
    """The released settings first, then the `top` others; the best alone where it is 0.

    Those have the highest expected gains where it is known what a lead is worth, else the highest scores.
    """
    found = by_score(trials, spec.bounds)
    released = [trial for trial in by_score(trials) if trial.reference]
    if not spec.top:
        return [*found, *released][:1]
    others = [trial for trial in found if not trial.reference]
    if released:
        expected = _gains(
            {trial.number: _searched(trial.score or 0.0, spec) for trial in (*released, *others)},
            {trial.number: trial.settings for trial in others},
            released[0].number,
            spec,
            learned,
        )
        if expected:
            others.sort(key=lambda trial: -expected[trial.number].mean)
    return [*released, *others[: spec.top]]


def _beliefs(
    settings: Mapping[int, Mapping[str, Any]], spec: StudySpec, learned: Learned | None
) -> dict[int, Belief]:
    """What is believed of settings' gain before anything is measured on these data sets, by number."""
    known = applies(spec.space, spec.config, spec.names)
    before = EMBEDDED if known else UNKNOWN
    own = [before] * len(settings)
    # The same images are not measured twice.
    others = learned.scored_by(spec.objective, besides=spec.names) if learned else ()
    if others and spec.objective in PROMISES:
        own = promised(
            list(settings.values()),
            others,
            spec.space,
            worth=PROMISES[spec.objective],
            calibration=CALIBRATIONS[spec.objective],
            before=before,
        )
    return {
        number: belief(known_gains(each, spec.names) if known else [], mine)
        for (number, each), mine in zip(settings.items(), own, strict=True)
    }


def _gains(
    scores: Mapping[int, Sequence[float]],
    settings: Mapping[int, Mapping[str, Any]],
    released: int,
    spec: StudySpec,
    learned: Learned | None,
) -> dict[int, Belief]:
    """What is believed of settings with these scores (block by block), by number; empty if unknown."""
    calibration = CALIBRATIONS.get(spec.objective)
    if calibration is None:
        return {}
    measured = leads(scores, released)
    before = _beliefs({number: settings[number] for number in measured}, spec, learned)
    return {
        number: believed(differences, calibration, before[number]) for number, differences in measured.items()
    }


def _searched(score: float, spec: StudySpec) -> list[float]:
    """The search's score as so many blocks as it is the mean of."""
    return [score] * len(spec.seeds)


def _judged(
    rows: tuple[Reevaluated, ...], spec: StudySpec, learned: Learned | None = None
) -> tuple[tuple[Reevaluated, ...], bool]:
    """The rows with what their leads are worth, and whether that is known."""
    released = next((row for row in rows if row.reference and row.mean is not None), None)
    if released is None:
        return rows, False
    blind = released.search is None  # it has failed in the search: no trial has a lead there
    whole = {
        row.number: [*([] if blind else _searched(row.search or 0.0, spec)), *map(mean, row.by_seed.values())]
        for row in rows
        if row.mean is not None
    }
    found = _gains(whole, {row.number: row.settings for row in rows}, released.number, spec, learned)
    judged = tuple(
        replace(row, expected=found[row.number].mean, probability=found[row.number].probability)
        if row.number in found
        else row
        for row in rows
    )
    return judged, spec.objective in CALIBRATIONS


def _slow(asked: Sequence[TrialRecord], spec: StudySpec) -> set[int]:
    """Trials that took longer than a bound says: the released settings are run again all the same."""
    return {trial.number for trial in asked if not trial.in_time(spec.bounds)}


def _chosen(
    rows: Sequence[Reevaluated], bounds: Sequence[Bound], *, judged: bool, slow: Collection[int] = ()
) -> int:
    """The number of the settings that are probably better, or (`judged` False) of the highest mean.

    Where the released settings break a bound, the best of those that keep it need not be better.

    Raises:
        WorkError: no settings finished with all fresh seeds.
    """
    means = {row.number: row.mean for row in rows if row.mean is not None}
    if not means:
        reason = next(run.failed for row in rows for run in row.runs if run.failed)
        raise WorkError(f"no settings have finished the last round: {reason}; {GO_ON}")
    released = next((row for row in rows if row.reference), None)
    kept = [row for row in rows if row.number in means and row.number not in slow and row.keeps(bounds)]
    if not kept:
        return released.number if released else max(means, key=means.__getitem__)
    if not judged or released is None or released not in kept:
        return max(kept, key=_worth).number  # of equals the first: the released settings
    likely = [row for row in kept if row.probability is not None and row.probability >= KEEP_UNLESS]
    return max(likely, key=lambda row: (_worth(row), -row.number), default=released).number


def _worth(row: Reevaluated) -> float:
    """What is expected of it, else its mean."""
    return row.expected if row.expected is not None else row.mean or 0.0
