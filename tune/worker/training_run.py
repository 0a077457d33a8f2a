"""One training run of a trial: its session, opened from what its folder holds."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from prometar.analysis.alignment import Alignment
from prometar.config.settings import Config, dump_config, parse
from prometar.data.streaming.stream import StreamOptions
from prometar.errors import StorageError, UserError, one_line
from prometar.io.files import refused, write_atomically
from prometar.runs import FINAL, ray_stream, write_result
from prometar.training.run import build_run, contents_of
from prometar.training.run_result import FILE, read_result
from prometar.training.session import Session
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job, Leg, Terms


class LegRun:
    """A leg while it is trained.

    `note` says where the run has been started over (`Session.or_anew`).

    Raises:
        UserError: whatever is wrong with the settings, the data or the weights.
        StorageError: nothing can be kept; from every method.
    """

    def __init__(self, job: Job, leg: Leg) -> None:
        files = JobFiles(job)
        self.leg, self._mirror = leg, files.mirror(leg)
        self._folder = folder = files.work_folder(leg)
        if self._mirror is not None:
            self._mirror.pull()
        config = parse(leg.config, where=f"the settings of {folder.name}")
        _require_like_the_driver(config, job.terms)
        run = build_run(config, job.objective, val_per_class=job.val_per_class, fold=leg.fold)
        watch = Alignment(folder) if job.objective == FINAL else None
        stream = ray_stream(run, StreamOptions.in_bundle(job.terms.stream_cpus))
        self.session, self.note = Session.or_anew(run, folder, stream, watch)
        _drop_result(folder, unless=run.digest)  # beside this configuration it would be taken for its result
        write_atomically(folder / "config.yaml", dump_config(config).encode())

    def keep(self) -> None:
        """Bring an epoch's state to where any worker finds it, if that is not this folder."""
        if self._mirror is not None:
            self._mirror.push()

    def conclude(self) -> None:
        """Write result.json."""
        write_result(self._folder, self.session)
        self.keep()


def _require_like_the_driver(config: Config, terms: Terms) -> None:
    """What the driver has opened must be here as well, and the same.

    Raises:
        StorageError: this machine is to blame, and no trial.
    """
    here = f"the machine {socket.gethostname()}"
    if not terms.contents:
        return
    if terms.files is None and not os.path.exists(Path(terms.root, "study.yaml")):
        raise StorageError(
            f"{here} does not see {terms.root}: share it between the machines, or pass --files URL"
        )
    try:
        found = contents_of(config)
    except StorageError:
        raise
    except UserError as error:
        lacking = one_line(str(error))
        raise StorageError(f"{here} lacks what the study was checked with: {lacking}") from None
    for name, digest in found.items():
        if terms.contents.get(name, digest) != digest:
            raise StorageError(f"{here} has other {name} than this command began with: make them the same")


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
