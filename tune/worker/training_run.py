"""One training run of a trial: its session, opened from what its folder holds."""

from pathlib import Path

from prometar.analysis.alignment import Alignment
from prometar.config.settings import dump_config, parse
from prometar.data.streaming.stream import StreamOptions
from prometar.errors import UserError
from prometar.io.files import refused, write_atomically
from prometar.runs import FINAL, ray_stream, write_result
from prometar.training.run import build_run
from prometar.training.run_result import FILE, read_result
from prometar.training.session import Session
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job, Leg


class LegRun:
    """A leg while it is trained.

    `note` says where the run has been started over (`Session.or_anew`).

    Raises:
        UserError: whatever is wrong with the settings, the data or the weights.
        StorageError: nothing can be kept, from every method; this machine has not what the driver has.
    """

    def __init__(self, job: Job, leg: Leg) -> None:
        files = JobFiles(job)
        self.leg, self._plan, self._mirror = leg, job.terms.plan, files.mirror(leg)
        self._folder = folder = files.work_folder(leg)
        if self._mirror is not None:
            self._mirror.pull()
        config = parse(leg.config, where=f"the settings of {folder.name}")
        run = build_run(config, job.objective, val_per_class=job.val_per_class)
        watch = Alignment(folder) if job.objective == FINAL else None
        stream = ray_stream(run, StreamOptions.in_bundle(self._plan.stream_cpus))
        self.session, self.note = Session.or_anew(run, folder, stream, watch)
        _drop_result(folder, unless=run.digest)  # beside this configuration it would be taken for its result
        write_atomically(folder / "config.yaml", dump_config(config).encode())

    def keep(self) -> None:
        """Bring an epoch's state to where any worker finds it, if that is not this folder."""
        if self._mirror is not None:
            self._mirror.push()

    def conclude(self) -> None:
        """Write result.json."""
        cpus, gpus = self._plan.cpus_per_trial, self._plan.gpus_per_trial
        write_result(self._folder, self.session, cpus=cpus, gpus=gpus)
        self.keep()


def _drop_result(folder: Path, *, unless: str) -> None:
    """Remove another run's result."""
    path = folder / FILE
    try:
        if path.exists() and read_result(folder).run == unless:
            return
    except UserError:  # it is damaged
        pass
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise refused(path, error) from None
