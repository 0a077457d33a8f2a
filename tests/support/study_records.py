"""Records of invented studies, to test reports. `small` and `rich` invent whole studies."""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from prometar.config.settings import Config
from prometar.metrics import t_interval
from prometar.training.classification import ClassificationMetrics
from tests.support.fake_trial import write_result
from tune.config import StudyConfig
from tune.execution.flows import Stage
from tune.records.folder import Records, StudyFolder
from tune.records.schema import (
    Candidate,
    ClassSplit,
    Confirmation,
    DatasetTest,
    FinalTest,
    RunScore,
    StudyRecord,
    TrialRecord,
    mean_differences,
    mean_of,
    rank_completed,
)
from tune.space.space import build_space
from tune.stages.final_test import _compare, choose_verdict

SCRIPT = "<script>alert(1)</script>"
"""Part of a name. It runs a script if a page contains the name as text, without escaping it."""
IMAGE = '"><img src=x onerror=alert(2)>'
"""Part of a name. It runs a script if a page contains the name in an attribute, without escaping it."""
RANGES: dict[str, dict[str, Any]] = {
    "regularizer.kind": {"type": "choice", "choices": ["l1", "l2", "none"]},
    "regularizer.text_weight": {
        "type": "float",
        "low": 0.5,
        "high": 200.0,
        "log": True,
        "when": {"regularizer.kind": ["l1", "l2"]},
    },
    "optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
    "prompts.text_depth": {"type": "int", "low": 0, "high": 12},
    "augment.flip": {"type": "float", "low": 0.0, "high": 0.5},
}
"""Ranges of the settings that the invented studies search."""
DEFAULT: dict[str, Any] = {
    "regularizer.kind": "l1",
    "regularizer.text_weight": 25.0,
    "optim.lr": 0.0025,
    "prompts.text_depth": 9,
    "augment.flip": 0.5,
}
"""Settings of trial 0, the baseline."""


def study(ranges: Mapping[str, Any] = RANGES, **options: Any) -> StudyRecord:
    """Return the record of a study of 60 trials on DTD.

    Args:
        ranges: Ranges of the settings.
        options: Options of `StudyConfig.of`, which replace the above ones.
    """
    defaults = {"dataset": ["dtd"], "trials": 60, "space": build_space(ranges)}
    config = StudyConfig.of(**(defaults | options))
    return StudyRecord(
        config=config,
        score_name="base accuracy" if config.search.objective == "base_val" else "H",
        reads_test_images=config.search.objective == "oracle_test",
        digests={"weights": "4b1d"},
        command="python tune/search.py --dataset dtd --trials 60",
        environment={"python": "3.12.1", "cpu": "a processor"},
        classes={"dtd": ClassSplit(("banded", "blotchy"), ("waffled", "zigzagged"))},
    )


def settings_of(number: int) -> dict[str, Any]:
    """Return the settings of a trial: `DEFAULT` for trial 0, random values from `RANGES` for others."""
    if number == 0:
        return dict(DEFAULT)
    rng = random.Random(number)

    def log_uniform(low: float, high: float) -> float:
        return low * (high / low) ** rng.random()

    settings = {
        "regularizer.kind": rng.choice(["l1", "l1", "l2", "none"]),
        "regularizer.text_weight": log_uniform(0.5, 200.0),
        "optim.lr": log_uniform(1e-4, 0.1),
        "prompts.text_depth": rng.randint(0, 12),
        "augment.flip": rng.uniform(0, 0.5),
    }
    if settings["regularizer.kind"] == "none":
        del settings["regularizer.text_weight"]
    return settings


def run(dataset: str, seed: int, settings: Mapping[str, Any], base: float = 0, new: float = 0) -> RunScore:
    """Return a run whose accuracies are a smooth function of its settings, plus noise.

    The base accuracy is highest at a learning rate of 10^-2.3 = 0.005. Higher learning rates also reduce the
    new accuracy. A higher weight of the regularizer, or a lower prompt depth, reduces the base accuracy and
    increases the new accuracy. Every score has the same values in each call with equal arguments.

    Args:
        dataset: Name of the dataset, which affects the noise.
        seed: Seed of the run, which affects the noise.
        settings: Settings of the run.
        base: Points to add to the base accuracy.
        new: Points to add to the new accuracy.
    """
    noise = random.Random(f"{dataset} {seed} {sorted(settings.items())}")
    log_lr = math.log10(settings["optim.lr"]) + 2.3  # 0 at the best learning rate
    text_weight = settings.get("regularizer.text_weight", 0.1)  # no regularizer: a small weight
    log_weight = math.log10(text_weight) / 2.3  # 1 at the highest weight, 200 = 10^2.3
    depth = settings["prompts.text_depth"]
    base += 78 - 5 * log_lr**2 - 3 * log_weight + 0.3 * depth + noise.gauss(0, 0.6)
    new += 64 - 3 * max(0, log_lr) ** 2 + 6 * log_weight - 0.4 * depth + noise.gauss(0, 0.8)
    harmonic_mean = 2 * base * new / (base + new)
    return RunScore(
        dataset=dataset,
        seed=seed,
        base=base,
        new=new,
        objective=harmonic_mean,
        seconds=900.0,
        cpus=2.0,
        gpus=0.5,
    )


def runs_of(
    datasets: Iterable[str], seeds: Iterable[int], settings: Mapping[str, Any]
) -> tuple[RunScore, ...]:
    """Return a run for each dataset and seed."""
    return tuple(run(name, seed, settings) for name, seed in product(datasets, seeds))


CLASSES = {"base": ("banded", "blotchy", "dotted"), "new": ("waffled", "zigzagged")}
"""Class names of the final test."""


def with_metrics(score: RunScore, classes: Mapping[str, Sequence[str]] = CLASSES) -> RunScore:
    """Return a run with the metrics of a final test, on 40 images per class.

    Args:
        score: Run whose accuracies the predictions have in expectation.
        classes: Class names of the parts "base" and "new".
    """
    rng = np.random.default_rng(score.seed)
    metrics = {}
    for part, names in classes.items():
        labels = np.repeat(np.arange(len(names)), 40)
        accuracy = (getattr(score, part) or 0.0) / 100
        is_correct = rng.random(len(labels)) < accuracy
        next_class = (labels + 1) % len(names)
        predicted = np.where(is_correct, labels, next_class)
        chance = 1 / len(names)  # the most probable class has at least this probability
        confidences = rng.uniform(chance, 1, len(labels))
        metrics[part] = ClassificationMetrics.of(names, labels, predicted, confidences)
    return replace(score, metrics=metrics, joint_accuracies={"base": 55.0 + score.seed / 10, "new": 45.0})


def trial(
    number: int,
    state: Any = "COMPLETE",
    datasets: Sequence[str] = ("dtd",),
    *,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> TrialRecord:
    """Return the record of a trial whose runs have the seeds 0 and 1. A failed trial has no runs.

    Args:
        number: Number of the trial.
        state: State: "COMPLETE", "PRUNED" or "FAIL".
        datasets: Names of the datasets.
        settings: Settings of the trial, which determine the scores of its runs. None for `settings_of`.
        changes: Fields of the record to replace, after the scores have been computed.
    """
    if settings is None:
        settings = settings_of(number)
    epochs = {"COMPLETE": 5, "PRUNED": 2, "FAIL": 0}[state]
    runs: tuple[RunScore, ...] = ()
    if state != "FAIL":
        runs = runs_of(datasets, (0, 1), settings)
    objective = mean_of(runs)
    scores_by_epoch: dict[int, float] = {}
    for epoch in range(1, epochs + 1):
        scores_by_epoch[epoch] = (objective or 0.0) - 8 * 0.5**epoch  # the gap halves with each epoch
    start = datetime(2026, 1, 1) + timedelta(minutes=7 * number)
    record = TrialRecord(
        number=number,
        state=state,
        origin="baseline" if number == 0 else "sampled",
        settings=settings,
        objective=objective,
        base=mean_of(runs, "base"),
        new=mean_of(runs, "new"),
        epoch=epochs,
        scores_by_epoch=scores_by_epoch,
        runs=runs,
        seconds=120.0 * epochs + number,
        started=start,
        ended=start + timedelta(seconds=55),
    )
    return replace(record, **changes)


def confirmation(trials: Sequence[TrialRecord]) -> Confirmation:
    """Return the confirmation of the three best trials and the baseline, with the seeds 1000 and 1001."""
    seeds = (1000, 1001)
    ranked = rank_completed(trials)
    confirmed = ranked[:3]
    confirmed += [each for each in ranked[3:] if each.is_baseline]
    candidates = []
    for each in confirmed:
        datasets = dict.fromkeys(score.dataset for score in each.runs)  # without repetitions, in order
        runs = (*each.runs, *runs_of(datasets, seeds, each.settings))
        candidates.append(Candidate(each.number, each.is_baseline, each.settings, runs))
    best = max(candidates, key=lambda each: each.mean or 0.0)
    return Confirmation(seeds, tuple(candidates), selected_number=best.number)


def candidate(number: int) -> Candidate:
    """Return a candidate with the settings of a trial, without runs."""
    return Candidate(number, is_baseline=number == 0, settings=settings_of(number), runs=())


def final_test(
    selected: Candidate,
    shifts: Mapping[str, tuple[float, float]],
    seeds: Sequence[int] = (11, 12, 13, 14, 15),
    *,
    classes: Mapping[str, Sequence[str]] = CLASSES,
    **changes: Any,
) -> FinalTest:
    """Return a final test of 10 epochs per run, with the verdict that follows from its scores.

    Args:
        selected: Selected settings. If they are the baseline, nothing is compared.
        shifts: Mean gain of the selected settings in base accuracy, and in new accuracy, in points, by
            dataset.
        seeds: Seeds of the final test.
        classes: Base and new class names.
        changes: Fields of the final test to replace. The verdict is computed before.
    """
    datasets: dict[str, DatasetTest] = {}
    for name, shift in shifts.items():
        baseline_runs = tuple(with_metrics(run(name, seed, DEFAULT), classes) for seed in seeds)
        if selected.is_baseline:
            datasets[name] = _compare(baseline_runs, baseline_runs, published=None, alpha=None)
            continue
        selected_runs = []
        for seed in seeds:
            shifted = run(name, seed, DEFAULT, *shift)
            # Both runs of a seed pair have the same noise. Without this, all differences would be equal, and
            # their interval would have width 0.
            shifted = replace(shifted, base=(shifted.base or 0) + 0.3 * (seed % 3))
            selected_runs.append(with_metrics(shifted, classes))
        datasets[name] = _compare(baseline_runs, tuple(selected_runs), published=None, alpha=0.05)
    difference = None
    if not selected.is_baseline:
        difference_by_seed = mean_differences(datasets.values())
        difference = t_interval(list(difference_by_seed.values()))
    verdict = choose_verdict(selected, difference, selected_failed=False)
    epochs = 10
    test = FinalTest(tuple(seeds), epochs, selected, datasets, difference, verdict)
    return replace(test, **changes)


def write(folder: Path, records: Records) -> Path:
    """Write all records into a folder. Return the folder."""
    for each in (records.study, *records.trials, records.confirmation, records.final_test):
        if each:
            StudyFolder(folder).write(each)
    return folder


def small(folder: Path, base: float = 3.0, new: float = 2.0, *, selected: int = 1, **options: Any) -> Records:
    """Return the records of a study of four trials.

    Args:
        folder: Folder of the study. Nothing is written.
        base: Gain of the selected settings in base accuracy (points) in the final test.
        new: Gain in new accuracy (points).
        selected: Number of the selected trial. 0 is the baseline.
        options: Options of `study`.
    """
    trials = (trial(0), trial(1), trial(2, "PRUNED"), trial(3, "FAIL", reason="the loss is nan"))
    candidates = tuple(
        Candidate(each.number, each.is_baseline, each.settings, each.runs) for each in trials[:2]
    )
    test = final_test(candidate(selected), {"dtd": (base, new)})
    return Records(folder, study(**options), trials, Confirmation((1000,), candidates, selected), test)


def rich(folder: Path, *, hostile: bool = False, **options: Any) -> Path:
    """Write the records of a study of 60 trials on two datasets. Return its folder.

    It has all stages, conditional settings, and failed and pruned trials.

    Args:
        folder: Folder of the study.
        hostile: True to insert scripts into all names that come from users.
        options: Options of `study`.
    """
    script = SCRIPT if hostile else ""
    image = IMAGE if hostile else ""
    datasets = [f"dtd{script}", f"eurosat{image}"]
    l2 = f"l2{script}"
    weight_range = {**RANGES["regularizer.text_weight"], "when": {"regularizer.kind": ["l1", l2]}}
    ranges = {
        **RANGES,
        "regularizer.kind": {"type": "choice", "choices": ["l1", l2, "none"]},
        "regularizer.text_weight": weight_range,
    }
    trials = []
    for number in range(60):
        settings = settings_of(number)
        if settings["regularizer.kind"] == "l2":
            settings["regularizer.kind"] = l2
        state = "COMPLETE"
        changes = {}
        if number % 4 == 3:
            state = "PRUNED"
        elif number in (10, 41):
            state = "FAIL"
            changes = {"reason": f"the loss is nan, class 'zig{script}' {image}"}
        trials.append(trial(number, state, datasets, settings=settings, **changes))
    trials[5] = replace(trials[5], notes=(f"out of memory: larger share {script}",))
    confirmed = confirmation(trials)
    shifts = {datasets[0]: (9.0, -6.0), datasets[1]: (2.0, 1.0)}
    classes = {part: [f"{name}{script}{image}" for name in names] for part, names in CLASSES.items()}
    test = final_test(confirmed.selected_candidate, shifts, classes=classes)
    record = study(ranges, **options)
    search = record.config.search.model_copy(update={"datasets": tuple(datasets)})
    config = record.config.model_copy(update={"search": search})
    record = replace(record, config=config, command=f"python tune/search.py --study '{script}{image}'")
    return write(folder, Records(folder, record, tuple(trials), confirmed, test))


Score = Callable[[int, Config], float | str]
"""Objective or failure reason of a run, by trial number and configuration."""


def runner(score: Score) -> tuple[Callable[[Stage], dict[str, str]], list[str]]:
    """Return a function that runs the jobs of a stage without training, and the names of jobs it has run.

    Args:
        score: Function that returns the objective of a job, or the reason of its failure.

    Returns:
        run_stage: Function that writes the results of a stage. It returns the reasons of failures, by job
            name.
        names: Names of all jobs that it has run. Each call of `run_stage` appends to this list.
    """
    names: list[str] = []

    def run_stage(stage: Stage) -> dict[str, str]:
        failures = {}
        for job in stage.jobs:
            if job is None:  # the next job follows from results that are still missing
                continue
            names.append(job.name)
            found = score(job.trial_number, job.config)
            if isinstance(found, str):
                failures[job.name] = found
            else:
                figures = {"objective": found, "base": found + 3, "new": found - 3, "seconds": 1.0}
                write_result(job.folder, job.config, job.objective, figures)
        return failures

    return run_stage, names
