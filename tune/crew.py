"""The jobs of one worker: trained in lockstep where they can be, one after another where not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometar.analysis.alignment import Alignment
from prometar.checkpoint import write_atomically
from prometar.config import dump_config, parse
from prometar.data.stream import StreamOptions
from prometar.errors import UserError
from prometar.lockstep import Lockstep, partition
from prometar.runs import FINAL, ray_stream, write_result
from prometar.train import Diverged, Session, build_run
from tune.job import Job

_TOLD = ("epoch", "objective", "base", "new", "seconds")
_STOPPED = "stopped"


def stop(job: Job) -> None:
    """Have a job left out of its crew from the next epoch on; its worker looks for this file."""
    write_atomically(Path(job.run_dir) / _STOPPED, b"")


def allow(job: Job) -> None:
    """Undo `stop`."""
    (Path(job.run_dir) / _STOPPED).unlink(missing_ok=True)


class Crew:
    """Jobs trained together, all by one epoch at a time; those that are behind first.

    A result names the `member` (its index in `jobs`), and whether that is its last one (`finished`). Results
    of epochs that a checkpoint already holds come first. A single job is trained as `Session` does.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._members = [_Member(number, job) for number, job in enumerate(jobs)]
        self._lockstep: Lockstep | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to tell."""
        return all(member.over for member in self._members)

    def advance(self) -> list[dict[str, Any]]:
        """The results of the next epoch."""
        here = [member for member in self._members if not member.over]
        for member in here:
            if member.stopped():
                member.close()
        here = [member for member in here if not member.over]
        if not any(member.untold for member in here):
            self._train(here)
        return [member.tell() for member in here if member.untold]

    def _train(self, members: list[_Member]) -> None:
        """One epoch of those with the fewest epochs behind them."""
        owners = {member.session: member for member in members if member.session}
        fewest = min((len(session.history) for session in owners), default=0)
        for sessions in partition([session for session in owners if len(session.history) == fewest]):
            for session, problem in zip(sessions, self._epoch(sessions), strict=True):
                if problem is not None:
                    owners[session].fail(problem)

    def _epoch(self, sessions: list[Session]) -> list[UserError | None]:
        """Train them by one epoch; why each has ended, if it has failed."""
        try:
            if len(sessions) > 1:
                if self._lockstep is None or self._lockstep.sessions != sessions:
                    self._lockstep = Lockstep(sessions)
                return [each if isinstance(each, UserError) else None for each in self._lockstep.epoch()]
            sessions[0].epoch()
        except UserError as error:
            return [error] * len(sessions)
        return [None]

    def close(self) -> None:
        """End the streams."""
        for member in self._members:
            member.close()


class _Member:
    """One job: its session while it goes on, and how much of it has been told."""

    def __init__(self, number: int, job: Job) -> None:
        self._number, self._job, self._folder = number, job, Path(job.run_dir)
        self._num_told, self._failure = 0, ""
        self.session: Session | None = None
        self.over = self.stopped()
        if self.over:
            return
        try:
            self.session = self._open()
        except UserError as error:  # no retry would help
            self._failure = str(error)

    def _open(self) -> Session:
        job = self._job
        config = parse(job.config, where=f"the settings of {self._folder.name}")
        run = build_run(config, job.objective, val_per_class=job.val_per_class)
        watch = Alignment(self._folder) if job.objective == FINAL else None
        stream = ray_stream(run, StreamOptions.in_bundle(job.stream_cpus))
        session = Session(run, self._folder, stream, watch)
        write_atomically(self._folder / "config.yaml", dump_config(config).encode())
        return session

    def stopped(self) -> bool:
        return (self._folder / _STOPPED).exists()

    @property
    def untold(self) -> bool:
        return bool(self._failure) or (
            self.session is not None and self._num_told < len(self.session.history)
        )

    def tell(self) -> dict[str, Any]:
        """The next result."""
        self._num_told += 1
        common = {"member": self._number, "failed": self._failure}
        if self.session is None or self._failure:
            self.close()
            return common | {"epoch": self._num_told, "finished": True}
        session, record = self.session, self.session.history[self._num_told - 1]
        finished = session.finished and self._num_told == len(session.history)
        if finished:
            write_result(self._folder, session)
            self.close()
        told = {key: record[key] for key in _TOLD if key in record}
        return common | told | {"loss": record.get("direct_ce", 0.0), "finished": finished}

    def fail(self, error: UserError) -> None:
        with_settings = f", with {json.dumps(self._job.settings)}" if isinstance(error, Diverged) else ""
        self._failure = f"{error}{with_settings}"

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
        self.session, self.over = None, True
