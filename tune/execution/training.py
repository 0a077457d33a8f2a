"""Training of one job. The job's runs (e.g. one per seed) advance together, epoch by epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

from prometar.analysis.alignment import AlignmentRecorder
from prometar.config.settings import Config, dump_config, texts_path
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.class_texts import read_texts
from prometar.data.datasets.dataset import Source
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.raystream import stream
from prometar.data.streaming.stream import Batch
from prometar.device import release_cached_memory
from prometar.errors import InfrastructureError, InputError, PrometarError, UserError
from prometar.io.files import cannot_write_error, write_atomically
from prometar.run_folder import evaluate_on_targets, write_result, write_run_predictions
from prometar.training.backbone import load_configured_backbone
from prometar.training.cache import RunCache
from prometar.training.run import build_run
from prometar.training.run_result import RESULT_FILE, read_result
from prometar.training.session import Session
from tune.execution.worker import JobRequest
from tune.records.schema import EpochReport, RunScore


class JobTraining:
    """Training of one job. Every epoch is reported in order, even if the checkpoints already contain it.

    Methods raise InfrastructureError if a folder cannot be written, or data or weights cannot be read,
    because the settings of the job are not at fault.

    Args:
        request: The job, its resources and its timeout.
        shared: Cache of what the jobs of this process share, e.g. the backbone.
    """

    def __init__(self, request: JobRequest, shared: RunCache) -> None:
        self._request = request
        self._shared = shared
        self._epoch = 0  # latest reported epoch
        self._sessions: dict[Path, Session] = {}  # by folder of the run
        self._notes: list[str] = []

    def advance(self) -> EpochReport:
        """Return the report of the next epoch. Train the epoch unless the checkpoints contain it.

        Errors that a retry would repeat, e.g. a non-finite loss, are returned as a report with `error` set.
        """
        self._epoch += 1
        try:
            self._train()
            sessions = self._sessions.values()
            # A resumed session may contain more epochs than have been reported.
            finished = all(session.finished and len(session.history) <= self._epoch for session in sessions)
            if finished:
                for folder, session in self._sessions.items():
                    self._finish(folder, session)
        except InfrastructureError:
            raise
        except PrometarError as error:
            return EpochReport(epoch=self._epoch, error=str(error), finished=True)

        scores: list[RunScore] = []
        losses: list[float] = []
        for folder, config in self._request.job.configs.items():
            history = self._sessions[folder].history
            # Runs may have different numbers of epochs. A run that has ended keeps its last metrics.
            last_epoch = min(self._epoch, len(history))
            metrics = history[last_epoch - 1]
            scores.append(RunScore.of(config, metrics, **self._request.allocated))
            losses.append(metrics.get("direct_ce", 0.0))  # cross-entropy on the whole batch
        return EpochReport(
            epoch=self._epoch,
            runs=tuple(scores),
            loss=mean(losses),
            finished=finished,
            notes=tuple(self._notes),
        )

    def _train(self) -> None:
        """Train the runs up to the current epoch. Open their sessions first if necessary."""
        if not self._sessions:
            configs = self._request.job.configs
            self._sessions = {folder: self._open(folder, config) for folder, config in configs.items()}
        for session in self._sessions.values():
            while len(session.history) < self._epoch and not session.finished:
                session.run_epoch()
                if len(self._sessions) > 1:
                    session.close()  # frees the CPUs for the next run's stream; the session stays usable

    def _open(self, folder: Path, config: Config) -> Session:
        """Open the session of a run, and write its config.yaml. Resume the run if it has a checkpoint."""
        job = self._request.job
        try:
            run = build_run(config, job.objective, val_per_class=job.val_per_class, shared=self._shared)
        except PrometarError:
            _require_inputs(config)
            raise
        recorder = AlignmentRecorder(folder) if job.records_alignment else None
        session, note = Session.resume_or_restart(run, folder, self._stream, recorder)
        if note:
            self._notes.append(note)
        _delete_other_result(folder, run.digest)
        write_atomically(folder / "config.yaml", dump_config(config).encode())
        return session

    def _finish(self, folder: Path, session: Session) -> None:
        """Write result.json and predictions if missing, then test on the job's target datasets, if any."""
        job = self._request.job
        session.close()
        if not (folder / RESULT_FILE).exists():
            write_result(folder, session, **self._request.allocated)
        if job.predictions:
            write_run_predictions(folder, session)
        if job.targets:
            with _blame_machine():
                evaluate_on_targets(
                    folder,
                    job.targets,
                    self._stream,
                    predictions=job.predictions,
                    shared=self._shared,
                )

    def _stream(self, order: ImageOrder, source: Source, start_step: int = 0) -> Iterator[Batch]:
        """Stream images with Ray Data. Errors of the stream are due to the machine, not to the settings."""
        with _blame_machine():
            yield from stream(order, source, start_step, cpus=self._request.resources.stream_cpus)

    def close(self) -> None:
        """Close the data streams, and release cached GPU memory for other workers."""
        while self._sessions:
            _, session = self._sessions.popitem()
            session.close()
            del session  # otherwise, this variable would keep the session's tensors in memory
        release_cached_memory()


def _delete_other_result(folder: Path, run_digest: str) -> None:
    """Delete result.json if it is corrupt or belongs to a run with other settings.

    Otherwise, `JobTraining` would take it for the result of this run.

    Raises:
        InfrastructureError: the file cannot be deleted.
    """
    try:
        is_same_run = read_result(folder).run_digest == run_digest
    except UserError:  # the result is missing or corrupt
        is_same_run = False
    if is_same_run:
        return
    path = folder / RESULT_FILE
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write_error(path, error) from None


@contextmanager
def _blame_machine() -> Iterator[None]:
    """Convert errors other than bugs to InputError, so that the job moves to another machine."""
    try:
        yield
    except InfrastructureError:
        raise
    except PrometarError as error:
        raise InputError(str(error)) from error


def _require_inputs(config: Config) -> None:
    """Raise an InputError if this machine cannot read the dataset, the weights or the texts of classes.

    The driver has already read them. If they are missing here, the cause is this machine, e.g. because a
    folder is not mounted.
    """
    with _blame_machine():
        open_dataset(config.data.name, config.data.root, config.data.args)
        load_configured_backbone(config.backbone)
        texts = texts_path(config)
        if texts is not None:
            read_texts(Path(texts))
