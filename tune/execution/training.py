"""Training of one job: its runs advance together, epoch by epoch."""

from functools import partial
from pathlib import Path
from statistics import mean

from prometar.analysis.alignment import Alignment
from prometar.config.settings import dump_config, parse
from prometar.data.streaming.raystream import stream
from prometar.data.streaming.stream import StreamOptions
from prometar.device import give_back
from prometar.errors import PrometarError, StorageError
from prometar.io.files import refused, write_atomically
from prometar.runs import evaluate_targets, write_result
from prometar.training.run import build_run
from prometar.training.run_result import FILE, read_result
from prometar.training.session import Session
from tune.execution.jobs import EpochReport, Job, RunSpec
from tune.execution.worker import Task

_FIGURES = ("objective", "base", "new")


class TrainingRun:
    """One training run of a job, resumed from its folder's checkpoint.

    Attributes:
        note: Why the run started over, if its checkpoint could not be used.

    Raises:
        UserError: a setting, the data or the weights are wrong.
        StorageError: the folder cannot be written.
    """

    def __init__(self, job: Job, spec: RunSpec, stream_cpus: float) -> None:
        self.spec, self._folder = spec, Path(spec.folder)
        config = parse(spec.config, where=job.name)
        run = build_run(config, job.objective, val_per_class=job.val_per_class)
        watch = Alignment(self._folder) if job.alignment else None
        self._stream = partial(stream, options=StreamOptions.in_bundle(stream_cpus))
        self.session, self.note = Session.or_anew(run, self._folder, self._stream, watch)
        # Beside the new configuration, the result of another run would be mistaken for this one's.
        _drop_result(self._folder, unless=run.digest)
        write_atomically(self._folder / "config.yaml", dump_config(config).encode())

    def finish(self, resources: dict[str, float]) -> None:
        """Write result.json, then test the prompts on the targets."""
        self.session.close()
        if not (self._folder / FILE).exists():
            write_result(self._folder, self.session, **resources)
        if self.spec.targets:
            evaluate_targets(self._folder, self.spec.targets, self._stream)


class JobTraining:
    """Training of one job. Its epochs are reported in order, including those that checkpoints contain.

    Raises:
        StorageError: from every method, if a folder cannot be written. The job is not to blame.
    """

    def __init__(self, task: Task) -> None:
        self._task, self._epoch, self._runs = task, 0, list[TrainingRun]()

    def advance(self) -> EpochReport:
        """Return the report of the next epoch. Train it unless the checkpoints contain it.

        An error that would occur again, such as a loss that is not finite, is a failed report.
        """
        self._epoch += 1
        try:
            self._train()
            report = self._report()
            for run in self._runs if report["finished"] else ():
                run.finish(self._task.resources)
        except StorageError:
            raise
        except PrometarError as error:
            return EpochReport(epoch=self._epoch, failed=str(error), finished=True)
        return report

    def _train(self) -> None:
        if not self._runs:
            job, cpus = self._task.job, self._task.plan.stream_cpus
            self._runs = [TrainingRun(job, spec, cpus) for spec in job.runs]
        for run in self._runs:
            while len(run.session.history) < self._epoch:
                run.session.epoch()
                if len(self._runs) > 1:
                    run.session.close()  # only the run whose turn it is holds an open stream

    def _report(self) -> EpochReport:
        epochs = [run.session.history[self._epoch - 1] for run in self._runs]
        figures = {key: mean(each[key] for each in epochs) for key in _FIGURES if key in epochs[0]}
        return EpochReport(
            epoch=self._epoch,
            finished=all(
                run.session.finished and len(run.session.history) == self._epoch for run in self._runs
            ),
            loss=mean(each.get("direct_ce", 0.0) for each in epochs),
            seconds=sum(each["seconds"] for each in epochs),
            runs=[
                {"dataset": run.spec.dataset, "seed": run.spec.seed, "seconds": each["seconds"]}
                | {key: each[key] for key in _FIGURES if key in each}
                for run, each in zip(self._runs, epochs, strict=True)
            ],
            notes=[run.note for run in self._runs if run.note],
            **figures,  # type: ignore[typeddict-item]
        )

    def close(self) -> None:
        """End the streams, and return cached GPU memory to other workers."""
        for run in self._runs:
            run.session.close()
        self._runs.clear()
        give_back()


def _drop_result(folder: Path, *, unless: str) -> None:
    """Remove the result of another run."""
    path = folder / FILE
    try:
        if path.exists() and read_result(folder).run == unless:
            return
    except PrometarError:  # it is corrupt
        pass
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise refused(path, error) from None
