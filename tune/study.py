"""A study from beginning to end: check, search, compare, report. Every stage goes on where it was left."""

import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray import tune
from rich.console import Console

from prometar.config.settings import dump_config
from prometar.data.streaming.shared_images import shared_images
from prometar.distributed.local_ray import require_address, start_ray
from prometar.distributed.placement import Node, ResourcePlan, Room, Shares, plan_resources
from prometar.errors import UserError, WorkError
from prometar.io.files import write_atomically
from prometar.io.stores import filesystem, masked
from tune.execution.course import Batch, Course
from tune.execution.estimate import Estimate
from tune.execution.jobs import SearchJobs
from tune.execution.progress import Progress
from tune.execution.record_keeper import RecordKeeper
from tune.execution.reruns import Means
from tune.execution.runner import run_course
from tune.execution.stopping import Stopping
from tune.jobs.files import require_own, take
from tune.jobs.spec import Job, Terms
from tune.optimizer.ask_tell import Asked, Memory
from tune.optimizer.storage import GO_ON, reachable
from tune.reporting.html import write_report
from tune.reporting.terminal import print_summary
from tune.results.reader import read_records
from tune.results.schema import LEARNED, FinalTest, Learned, Tested
from tune.results.writer import StudyFolder
from tune.stages.agreement import require_agreement
from tune.stages.budget import headline
from tune.stages.final_test import failed_runs, run_finals
from tune.stages.reevaluation import run_last_round
from tune.stages.validation import Checked, check
from tune.stages.warm_start import learned_of
from tune.study_spec import StudySpec
from tune.tracking.callbacks import Trackers
from tune.tracking.kinds import check_trackers
from tune.worker.trainable import TrialWorker

_MOST = 1e6  # hours of searching, seconds of waiting: a clock must hold them


def _kinds_of_gpu(nodes: Sequence[Node]) -> str:
    kinds = {key.partition(":")[2] for node in nodes for key in node if key.startswith("accelerator_type:")}
    return " ".join(sorted(kinds))


@dataclass(frozen=True)
class Place:
    """Where a study lies, what it may use and where it starts; none of it is part of what was asked.

    Args:
        enqueued: Settings to be run before any are drawn. portfolio: Others, that did well elsewhere.
        warm_start: Folders of other studies to learn from: what they promise most of is run between the two.
        max_hours: Of searching, in all commands together; then no trial is begun.
        trial_timeout: Seconds without a result, after which a trial hangs.
        from_records: Make the study's database anew from the trials' records, if it has lost them.
        command: What the study was asked with, for its records; None: this process's command line.
    """

    out: Path
    name: str
    shares: Shares
    storage: str | None = None
    files: str | None = None
    address: str | None = None
    max_hours: float | None = None
    trial_timeout: float | None = None
    enqueued: Sequence[Mapping[str, Any]] = ()
    warm_start: tuple[Path, ...] = ()
    portfolio: Sequence[Mapping[str, Any]] = ()
    trackers: tuple[str, ...] = ()
    from_records: bool = False
    verbose: bool = False
    command: str | None = None

    def __post_init__(self) -> None:
        check_trackers(self.trackers)
        if self.address is not None:
            require_address(self.address)
        for option, value in (("max-hours", self.max_hours), ("trial-timeout", self.trial_timeout)):
            if value is not None and not 0 < value <= _MOST:
                raise UserError(f"--{option} must be above 0 and at most {_MOST:,.0f}, found {value:g}")


def run_study(
    spec: StudySpec,
    place: Place,
    *,
    trainable: type[tune.Trainable] = TrialWorker,
    console: Console | None = None,
) -> FinalTest:
    """Run or continue a study. Returns what finals.json holds.

    Raises:
        UserError: the study is asked for wrongly, or an old study was made with other settings.
        WorkError: another process runs the study, or all its trials fail.
        KeyboardInterrupt: a signal asked to stop; the same command goes on.
    """
    # In a notebook too: lines as they come, not a display each; its kernel asks for colours by FORCE_COLOR.
    terminal = None if sys.stdout and sys.stdout.isatty() else False
    console = console or Console(
        highlight=False, soft_wrap=True, markup=False, force_jupyter=False, force_terminal=terminal
    )
    checked = check(spec)
    folder = StudyFolder(place.out, place.name)
    storage = place.storage or folder.storage
    if place.files is not None:
        filesystem(place.files)  # a store that cannot be reached is told before anything is run
    with folder.locked(), reachable(storage):
        folder.check(checked.identity)
        learned = learned_of(folder, place.warm_start, spec.space, spec.seed)
        rebuilt = require_agreement(folder, storage, spec, from_records=place.from_records)
        nodes = start_ray(address=place.address, verbose=place.verbose)
        plan = _planned(spec, place, checked, nodes)  # what cannot run claims nothing
        if place.files is not None:
            require_own(place.files, folder.key)
        memory = Memory(
            storage,
            place.name,
            spec,
            reference=spec.reference(),
            epochs=spec.most_epochs,
            admit=partial(_claim, folder, checked.identity, storage),
        )
        if learned and not (folder / "learned.json").exists():
            LEARNED.write(folder / "learned.json", learned)  # before the study has begun
        folder.describe(
            spec,
            checked.identity,
            max_hours=place.max_hours,
            command=place.command,
            forgiven=memory.forgiven,
            seconds_searched=memory.seconds_searched,
            gpus=(_kinds_of_gpu(nodes) or "of an unknown kind") if plan.gpus_per_trial else "",
        )
        if place.files is not None:
            take(place.files, folder.key)
        memory.enqueue(place.enqueued, "enqueued")
        memory.enqueue(learned.starts if learned else (), "warm start")
        memory.enqueue(place.portfolio, "portfolio")
        study = _Begun(spec, place, checked, folder, memory, learned, nodes, console)
        study.introduce(rebuilt)
        try:
            with shared_images():
                means = study.means(plan, trainable)
                finals = run_course(study.course(means), means)
                records = read_records(folder.path)
                print_summary(console, records, folder.path, write_report(records, folder.path))
        finally:
            memory.close()  # what an interrupted process has begun waits, and runs nowhere
        failed = failed_runs(finals)
        if failed:
            raise WorkError(f"{len(failed)} final runs have failed ({failed[0]}); {GO_ON}")
        return finals


def _planned(spec: StudySpec, place: Place, checked: Checked, nodes: Sequence[Node]) -> ResourcePlan:
    """What a trial gets of these machines, its memory counted; raises as `plan_resources`."""
    on_gpu = place.shares.on_gpu(nodes)
    memory = checked.footprint.memory(spec.config, on_gpu=on_gpu)
    return plan_resources(nodes, place.shares, memory=memory)


def _claim(folder: StudyFolder, asked: dict[str, Any], storage: str, memory: Memory) -> None:
    """Make a storage's study this one's, or refuse it: a storage may be shared.

    Raises:
        UserError: it was asked for something else, or another folder has its trials' files: also one of the
            same name on another machine. A disk that has come to this one brings study.yaml with it.
    """
    owner = f"{folder.path} on {socket.gethostname()}"
    identity, found = memory.claim(asked, owner)
    folder.compare(identity, asked)
    here = found == owner or (folder.begun and found.rpartition(" on ")[0] == str(folder.path))
    if storage != folder.storage and not here:
        raise UserError(
            f"the study {folder.name} in {masked(storage)} has its files in {found}: "
            "go on with that --out, or start another with --study NAME"
        )


@dataclass(frozen=True)
class _Begun:
    """A study that is under way: what it was asked, what that was found to be, and what keeps it."""

    spec: StudySpec
    place: Place
    checked: Checked
    folder: StudyFolder
    memory: Memory
    learned: Learned | None
    nodes: Sequence[Node]
    console: Console

    def introduce(self, rebuilt: str) -> None:
        """Say what it is, how far it is, and what else a user must know."""
        memory, trials, say = self.memory, self.spec.trials, self.console.print
        say(f"study {self.folder.path}: {headline(self.spec)}")
        say(str(self.checked.budget))
        done = memory.num_done
        if done or memory.num_interrupted:
            say(f"going on: {done} trials are done, {memory.num_interrupted} were interrupted")
        if done > trials:
            say(_all_counts(trials, memory))
        learning = f"learning from {self.learned}" if self.learned else ""
        for note in filter(None, (rebuilt, *self.checked.notes, learning)):
            say(note)

    def means(self, plan: ResourcePlan, trainable: type[tune.Trainable]) -> Means:
        """What the jobs are run with; the resource plan is told."""
        place, console = self.place, self.console
        left = None if place.max_hours is None else 3600 * place.max_hours - self.memory.seconds_searched
        terms = Terms(
            plan,
            place.trial_timeout,
            str(self.folder.path),
            place.files,
            uuid4().hex[:8],
        )
        stopping = Stopping(console, max_seconds=left)
        means = Means(trainable, plan, Room.of(self.nodes), terms, stopping, console, place.verbose)
        console.print(plan.describe(self.nodes))
        return means

    def course(self, means: Means) -> Course[FinalTest]:
        """Search, last round, and best.yaml compared with the released settings on the test images."""
        spec, folder = self.spec, self.folder
        yield from self._search(means)
        lastround = yield from run_last_round(folder, spec, self.memory.ended(), means, self.learned)
        trial = next(t for t in self.memory.ended() if t.number == lastround.chosen)
        settings = dict(trial.settings)
        seed = (*spec.final_seeds, spec.seed)[0]
        best = spec.configured(settings, dataset=spec.names[0], seed=seed)
        write_atomically(folder / "best.yaml", dump_config(best).encode())
        tested = Tested(trial.tested_as, settings)
        return (yield from run_finals(folder, spec, tested, means, published=self.checked.published))

    def _search(self, means: Means) -> Course[None]:
        spec, place, folder, memory = self.spec, self.place, self.folder, self.memory
        console, stopping = self.console, means.stopping

        def job_of(asked: Asked) -> Job:
            at = str(folder.trial(asked.number))
            return spec.search_job(asked.settings, spec.seeds, at, means.terms, number=asked.number)

        jobs = SearchJobs(memory, job_of, spec.trials, stopping, means.room)
        keeper = RecordKeeper(folder, memory, stopping, job_of)
        progress = Progress(memory, spec, console=console)
        trackers = Trackers(place.trackers, folder.path, folder.name, memory, console=console)
        left = self.checked.budget.waited(means.plan.max_concurrent, done=memory.num_done / spec.trials)
        estimate = Estimate(
            left, self.checked.budget.steps_per_epoch, means.plan.max_concurrent, console=console
        )
        with closing(trackers):
            trackers.catch_up()
            if memory.num_interrupted or (memory.wants(spec.trials) and not stopping.out_of_time()):
                progress.begin()
                try:
                    yield Batch(jobs, (progress, keeper, trackers, estimate))
                finally:
                    progress.end()
                    keeper.clock()
                trackers.catch_up()
        keeper.catch_up()
        if memory.exhausted:
            console.print("the space is searched through: further draws only repeat settings")
        elif memory.wants(spec.trials) and stopping.out_of_time():
            console.print("the time for searching is used up: no more trials are begun (--max-hours)")
        if memory.num_waiting:
            more = "larger --trials" if not memory.wants(spec.trials) else "longer --max-hours"
            console.print(f"{memory.num_waiting} enqueued settings wait for a {more}")
        reason = memory.hopeless()
        if not reason and memory.best() is None and stopping.out_of_time():
            raise WorkError(
                f"no trial of the study {folder.path} has finished within --max-hours: allow it more"
            )
        if reason or memory.best() is None:
            failed = [trial.reason for trial in memory.ended() if trial.reason]
            raise WorkError(
                f"the study {folder.path} has stopped, its trials fail: "
                f"{reason or next(reversed(failed), 'see its records')}; "
                "the same command goes on when the cause is mended"
            )


def _all_counts(trials: int, memory: Memory) -> str:
    """What is said of `trials` that are fewer than what is done: then the reference alone may be wanted."""
    again = [
        *(["the released settings, which have failed"] if memory.wants(trials) else []),
        *(["what was interrupted"] if memory.num_interrupted else []),
    ]
    nothing = "nothing new" if again else "nothing"
    said = f"--trials {trials} is less than what is done: {nothing} is searched, and all of it counts"
    return f"{said}; run again: {' and '.join(again)}" if again else said
