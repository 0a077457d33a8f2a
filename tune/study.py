"""A study from beginning to end: check, search, compare, report. Every stage goes on where it was left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune import Callback
from rich.console import Console

from prometar.backbone.openclip import load_backbone
from prometar.checkpoint import write_atomically
from prometar.config import dump_config
from prometar.data.catalog import open_dataset
from prometar.errors import UserError, WorkError
from prometar.methods import build
from prometar.objective import SEARCH_OBJECTIVES, problem
from prometar.placement import ResourcePlan, plan_resources
from prometar.published import published
from prometar.raylocal import start_ray
from tune.finals import failed_runs, run_finals
from tune.folder import RecordKeeper, StudyFolder
from tune.memory import GO_ON, PRUNERS, REFERENCE, Memory, reachable
from tune.progress import Progress
from tune.report import build_report
from tune.request import Request
from tune.runner import run_trials
from tune.searcher import StudyScheduler, StudySearcher
from tune.summary import print_summary
from tune.trial import TrialWorker

# Settings that methods are made of.
_PARTS = {"prompts", "regularizer", "modulator", "inner", "task", "averager"}


@dataclass(frozen=True)
class Place:
    """Where a study lies and what it may use; none of it is part of what was asked."""

    out: Path
    name: str
    storage: str | None = None
    address: str | None = None
    max_concurrent: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None
    lockstep: int = 1
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.lockstep < 1:
            raise UserError(f"--lockstep must be at least 1, found {self.lockstep}")


def run_study(
    request: Request,
    place: Place,
    *,
    trainable: type[tune.Trainable] = TrialWorker,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run or continue a study. Returns what finals.json holds.

    Raises:
        UserError: the request is wrong, or an old study was made with other settings.
        WorkError: another process runs the study, or all its trials fail.
    """
    console = console or Console(highlight=False, soft_wrap=True, markup=False)
    num_classes, note = check(request)
    folder = StudyFolder(place.out, place.name)
    storage = place.storage or folder.storage
    with folder.locked(), reachable(storage):
        folder.claim(request)
        memory = Memory(
            storage,
            place.name,
            request.space,
            reference=request.reference(),
            seed=request.seed,
            pruner=request.pruner,
        )
        folder.compare(memory.claim(request.identity), request.identity)  # a storage may be shared
        cluster = start_ray(address=place.address, verbose=place.verbose)
        plan = plan_resources(
            cluster,
            max_concurrent=place.max_concurrent,
            cpus_per_trial=place.cpus_per_trial,
            gpus_per_trial=place.gpus_per_trial,
        )
        together = f"; up to {place.lockstep} trials share a place" if place.lockstep > 1 else ""
        _introduce(console, folder, request, memory, plan.describe(cluster) + together)
        if note:
            console.print(note)
        _search(request, folder, memory, plan, trainable, console, place.lockstep, place.verbose)
        best = memory.best()
        assert best is not None, "the reference is never pruned"
        number = 0 if REFERENCE in best.user_attrs else best.number
        settings = dict(best.params)
        seeded = {**settings, "train.seed": (*request.final_seeds, request.seed)[0]}
        write_atomically(folder / "best.yaml", dump_config(request.config.override(seeded)).encode())
        seeds = ", ".join(map(str, request.final_seeds))
        console.print(f"final comparison: trial {number} and the released settings, seeds {seeds}")
        finals = run_finals(
            folder, request, (number, settings), plan, trainable,
            console=console, published=_published(request, num_classes), verbose=place.verbose,
        )  # fmt: skip
        report = build_report(folder.path)
        print_summary(console, folder, request, memory, finals, report)
        failed = failed_runs(finals)
        if failed:
            raise WorkError(f"{len(failed)} final runs have failed ({failed[0]}); {GO_ON}")
        return finals


def check(request: Request) -> tuple[int, str]:
    """Everything that can be wrong with a request, found before any worker starts.

    Returns the number of classes, and what a user must be told of the search's images ("" for nothing).

    Raises:
        UserError, WorkError: see the builders.
    """
    config = request.config
    if request.objective not in SEARCH_OBJECTIVES:
        known = ", ".join(SEARCH_OBJECTIVES)
        raise UserError(f"unknown objective '{request.objective}': choose one of {known}")
    if request.pruner not in PRUNERS:
        raise UserError(f"unknown pruner '{request.pruner}': choose one of {', '.join(PRUNERS)}")
    request.reference()
    _check_space(request)
    dataset = open_dataset(config.data.name, config.data.root)
    asked, _ = (
        problem(objective, dataset, shots=config.data.shots, seed=config.train.seed)
        for objective in (request.objective, "final")
    )
    clip = load_backbone(config.backbone.name, config.backbone.pretrained).clip
    method, generator = build(config), torch.Generator().manual_seed(0)
    prompts = method.prompts.init(clip, torch.zeros(0, dtype=torch.long), generator)
    method.modulator.init(method.prompts.tokens(prompts), generator)
    return len(dataset.classnames), asked.note


def _check_space(request: Request) -> None:
    """Every end of every range must be a setting that a run takes, and that the method uses."""
    for key, entry in request.space.ranges.items():
        methods = [build(request.config.override({key: value})) for value in entry.ends]
        part = key.split(".")[0]
        if part in _PARTS and len(methods) > 1 and all(method == methods[0] for method in methods):
            name, method = request.space.name, request.config.method
            raise UserError(
                f"the space {name} searches {key}, which {method} does not use with these settings: "
                "choose another --space"
            )


def _introduce(console: Console, folder: StudyFolder, request: Request, memory: Memory, plan: str) -> None:
    config = request.config
    console.print(
        f"study {folder.path}: {request.trials} trials of {config.train.epochs} epochs, {config.method} on "
        f"{config.data.name} with {config.backbone.name}, objective {request.objective}, "
        f"space {request.space.name}"
    )
    console.print(plan)
    ended = len(memory.ended())
    if ended or memory.num_interrupted:
        console.print(f"going on: {ended} trials are done, {memory.num_interrupted} were interrupted")


def _search(
    request: Request,
    folder: StudyFolder,
    memory: Memory,
    plan: ResourcePlan,
    trainable: type[tune.Trainable],
    console: Console,
    lockstep: int,
    verbose: bool,
) -> None:
    searcher = StudySearcher(
        memory,
        lambda asked: request.search_job(asked, str(folder.trial(asked.number)), plan),
        request.trials,
        lockstep,
    )
    keeper = RecordKeeper(folder, memory)
    progress = Progress(
        memory,
        request.trials,
        request.config.train.epochs,
        console=console,
        numbers_of=searcher.numbers,
        reference=request.reference(),
    )
    callbacks: Sequence[Callback] = (progress, keeper)
    if memory.num_interrupted or memory.wants(request.trials):
        scheduler = StudyScheduler(memory, searcher)
        try:
            run_trials(trainable, searcher, plan, scheduler=scheduler, callbacks=callbacks, verbose=verbose)
        finally:
            progress.close()
    keeper.catch_up()
    if memory.exhausted:
        console.print("the space is searched through: further draws only repeat settings")
    reason = memory.hopeless()
    if reason or memory.best() is None:
        raise WorkError(
            f"the study {folder.path} has stopped, its trials fail: {reason or 'see its records'}; "
            "the same command goes on when the cause is mended"
        )


def _published(request: Request, num_classes: int) -> float | None:
    config = request.config
    return published(
        config.data.name,
        method=config.method,
        backbone=config.backbone.name,
        pretrained=config.backbone.pretrained,
        shots=config.data.shots,
        num_classes=num_classes,
    )
