"""The jobs of one worker."""

import json
from collections.abc import Sequence
from statistics import mean
from typing import Any

from prometar.device import give_back
from prometar.errors import StorageError, UserError
from prometar.training.epoch import Diverged
from prometar.training.session import Session
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job
from tune.worker.training_run import LegRun

_MEANS = ("objective", "base", "new")


class Crew:
    """Jobs trained in turn, all by one epoch at a time; those that are behind first.

    A result names the `member` (its index in `jobs`), and whether that is its last one (`finished`). Results
    of epochs that checkpoints already hold come first. A single job is trained as `Session` does.

    Args:
        failure: Why none of them is trained at all (default "": they are).
    Raises:
        StorageError: from every method, where nothing can be kept: that is no trial's failure.
    """

    def __init__(self, jobs: Sequence[Job], failure: str = "") -> None:
        self._members = [_Member(number, job, failure) for number, job in enumerate(jobs)]

    @property
    def over(self) -> bool:
        """Whether nothing is left to tell."""
        return all(member.over for member in self._members)

    def advance(self) -> list[dict[str, Any]]:
        """The results of the next epoch."""
        for member in self._members:
            if not member.over and member.files.stopped():
                member.close()
        here = [member for member in self._members if not member.over]
        if not any(member.untold for member in here):
            self._train(here)
        return [member.tell() for member in here if member.untold]

    def _train(self, members: "list[_Member]") -> None:
        """One epoch of those with the fewest epochs behind them."""
        owners = {session: member for member in members for session in member.unfinished()}
        fewest = min((len(session.history) for session in owners), default=0)
        for session, member in owners.items():
            if len(session.history) == fewest:
                member.conclude_epoch(session, self._epoch(session))

    def _epoch(self, session: Session) -> UserError | None:
        """Train it by one epoch; why it has ended, if it has failed."""
        try:
            session.epoch()
        except StorageError:
            raise
        except UserError as error:
            return error
        return None

    def close(self) -> None:
        """End the streams, and keep nothing of a GPU that other workers share."""
        for member in self._members:
            member.close()
        give_back()


class _Member:
    """One job: its runs while they go on, and how much of them has been told."""

    def __init__(self, number: int, job: Job, failure: str) -> None:
        self._number, self._job, self.files = number, job, JobFiles(job)
        self._num_told, self._failure = 0, failure
        self._runs: list[LegRun] = []
        self.over = self.files.stopped()
        if self.over or failure:
            return
        try:
            self._runs = [LegRun(job, leg) for leg in job.legs]
        except StorageError:
            raise
        except UserError as error:  # no retry would help
            self._failure = str(error)

    def unfinished(self) -> list[Session]:
        return [run.session for run in self._runs if not run.session.finished]

    @property
    def untold(self) -> bool:
        """Whether an epoch that all its runs have behind them has not been told."""
        return bool(self._failure) or bool(self._runs and self._num_told < self._num_done())

    def _num_done(self) -> int:
        return min(len(run.session.history) for run in self._runs)

    def tell(self) -> dict[str, Any]:
        """The next result: means over the runs, and each run's own figures."""
        self._num_told += 1
        common = {"member": self._number, "failed": self._failure, "epoch": self._num_told}
        if self._failure:
            self.close()
            return common | {"finished": True}
        figures = [run.session.history[self._num_told - 1] for run in self._runs]
        finished = not self.unfinished() and self._num_told == self._num_done()
        told = {
            "loss": mean(each.get("direct_ce", 0.0) for each in figures),
            "seconds": sum(each["seconds"] for each in figures),
            "of_epochs": self._job.epochs,
            "runs": [
                run.leg.name | {key: each[key] for key in _MEANS if key in each}
                for run, each in zip(self._runs, figures, strict=True)
            ],
            "notes": [run.note for run in self._runs if run.note],
            "finished": finished,
        }
        for key in _MEANS:
            if all(key in each for each in figures):
                told[key] = mean(each[key] for each in figures)
        if finished:
            for run in self._runs:
                run.conclude()
            self.close()
        return common | told

    def conclude_epoch(self, session: Session, problem: UserError | None) -> None:
        """Keep what a run's epoch has led to, or why it has ended."""
        (run,) = (run for run in self._runs if run.session is session)
        try:
            if problem is not None:
                raise problem
            run.keep()
        except StorageError:
            raise
        except UserError as error:
            diverged = isinstance(error, Diverged)
            with_settings = f", with {json.dumps(self._job.settings)}" if diverged else ""
            self._failure = f"{error}{with_settings}"
        if len(self._runs) > 1:
            session.close()  # of several runs that take turns, those that wait keep no stream open

    def close(self) -> None:
        for run in self._runs:
            run.session.close()
        self._runs, self.over = [], True
        self.files.clean()
