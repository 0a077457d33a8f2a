"""Training of one job: its runs advance together, epoch by epoch."""

from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from prometar.analysis.alignment import Alignment
from prometar.config.settings import Config, dump_config
from prometar.data.streaming.raystream import stream
from prometar.device import give_back
from prometar.errors import PrometarError, StorageError
from prometar.io.files import refused, write_atomically
from prometar.runs import evaluate_targets, write_result
from prometar.training.run import build_run
from prometar.training.run_result import FILE, read_result
from prometar.training.session import Session
from tune.execution.worker import Task
from tune.records.schema import EpochReport, RunScore


class JobTraining:
    """Training of one job. Its epochs are reported in order, including those that checkpoints contain.

    Raises:
        StorageError: from every method, if a folder cannot be written. The job is not to blame.
    """

    def __init__(self, task: Task) -> None:
        self._task, self._epoch = task, 0
        self._stream = partial(stream, cpus=task.plan.stream_cpus)
        self._sessions: dict[Path, Session] = {}
        self._notes: list[str] = []

    def advance(self) -> EpochReport:
        """Return the report of the next epoch. Train it unless the checkpoints contain it.

        An error that would occur again, such as a loss that is not finite, is a failed report.
        """
        self._epoch += 1
        try:
            self._train()
            sessions = self._sessions.values()
            finished = all(each.finished and len(each.history) == self._epoch for each in sessions)
            for folder, session in self._sessions.items() if finished else ():
                self._finish(folder, session)
        except StorageError:
            raise
        except PrometarError as error:
            return EpochReport(epoch=self._epoch, failed=str(error), finished=True)
        epochs = [session.history[self._epoch - 1] for session in sessions]
        return EpochReport(
            epoch=self._epoch,
            runs=tuple(self._score(*each) for each in zip(self._task.job.runs.values(), epochs, strict=True)),
            loss=mean(each.get("direct_ce", 0.0) for each in epochs),
            finished=finished,
            notes=tuple(self._notes),
        )

    def _train(self) -> None:
        if not self._sessions:
            self._sessions = {folder: self._open(folder, run) for folder, run in self._task.job.runs.items()}
        for session in self._sessions.values():
            while len(session.history) < self._epoch:
                session.epoch()
                if len(self._sessions) > 1:
                    session.close()  # only the run whose turn it is holds an open stream

    def _open(self, folder: Path, config: Config) -> Session:
        """Open a run, resumed from its folder's checkpoint."""
        job, path = self._task.job, folder / FILE
        run = build_run(config, job.objective, val_per_class=job.val_per_class)
        session, note = Session.or_anew(
            run, folder, self._stream, Alignment(folder) if job.alignment else None
        )
        self._notes += [note] if note else []
        # Beside the new configuration, the result of another run would be mistaken for this one's.
        try:
            same = read_result(folder).run == run.digest
        except PrometarError:  # it is missing or corrupt
            same = False
        try:
            if not same:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise refused(path, error) from None
        write_atomically(folder / "config.yaml", dump_config(config).encode())
        return session

    def _finish(self, folder: Path, session: Session) -> None:
        """Write result.json, then test the prompts on the targets."""
        session.close()
        if not (folder / FILE).exists():
            write_result(folder, session, **self._task.resources)
        if self._task.job.targets:
            evaluate_targets(folder, self._task.job.targets, self._stream)

    def _score(self, config: Config, epoch: dict[str, Any]) -> RunScore:
        return RunScore(
            dataset=config.data.name,
            seed=config.train.seed,
            base=epoch.get("base"),
            new=epoch.get("new"),
            objective=epoch.get("objective"),
            seconds=epoch["seconds"],
            cpus=self._task.resources["cpus"],
            gpus=self._task.resources["gpus"],
        )

    def close(self) -> None:
        """End the streams, and return cached GPU memory to other workers."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        give_back()
