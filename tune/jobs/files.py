"""Where a job's files lie: in its folder, which all machines share, or at a URL, mirrored where it works.

Files at a URL are one study's, as a name says that its study.yaml and the URL both hold.
"""

import os
import shutil
import stat
import tempfile
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from prometar.errors import StorageError, UserError
from prometar.io.files import write_atomically
from prometar.io.stores import Store, join, masked
from tune.jobs.remote import Mirror
from tune.jobs.spec import Job, Leg

_OWNER = "owner"
_STOPPED = "stopped"
_RESULTS = ("result.json", "alignment.jsonl", "config.yaml")  # what a driver reads, in a few kilobytes
_STATES = ("checkpoint.safetensors", "checkpoint.set-aside.safetensors")


class JobFiles:
    """A job's files as a worker and a driver see them; of all methods, only the mirror's reach the URL.

    Raises:
        WorkError: from every method, where the store cannot be reached.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._folder, self._url = job, Path(job.run_dir), ""
        if job.terms.files is not None:
            self._url = join(job.terms.files, self._folder.relative_to(job.terms.root).as_posix())

    @cached_property
    def _store(self) -> Store:
        return Store(self._url or str(self._folder))

    def work_folder(self, leg: Leg) -> Path:
        """Where a worker has a run's files: the shared folder, or one of its own machine."""
        return (self._own if self._url else self._folder) / leg.folder

    @property
    def own_disk(self) -> Path:
        """The job's folder as this machine has it: the shared one, or one that only its workers know."""
        if not self._url:
            return self._folder
        return _own_folder() / sha256(self._url.encode()).hexdigest()[:16]

    @property
    def _own(self) -> Path:
        """This process's own: Tune may start a second worker of a trial, and drop it when it is there."""
        return self.own_disk.with_name(f"{self.own_disk.name}-{os.getpid()}")

    def clean(self) -> None:
        """Remove what a mirrored job has on this machine."""
        if self._url:
            shutil.rmtree(self._own, ignore_errors=True)

    def mirror(self, leg: Leg) -> Mirror | None:
        """What keeps that folder and the URL equal; None where the folder is shared."""
        if not self._url:
            return None
        return Mirror(join(self._url, leg.folder) if leg.folder else self._url, self.work_folder(leg))

    def stop(self) -> None:
        """Have the job left out of its crew from the next epoch on; its worker looks for this file."""
        self._store.write(_STOPPED, b"")

    def allow(self) -> None:
        """Undo `stop`."""
        self._store.delete(_STOPPED)

    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._store.exists(_STOPPED)

    def fetch(self) -> None:
        """Bring the results of runs that have ended into the job's folder, where the driver reads them."""
        if not self._url:
            return
        for leg in self._job.legs:
            for name in _RESULTS:
                content = self._store.read(f"{leg.folder}/{name}".lstrip("/"))
                if content is not None:
                    write_atomically(self._folder / leg.folder / name, content)

    def drop_states(self) -> None:
        """Remove what is needed only to go on."""
        for leg in self._job.legs:
            for name in _STATES:
                self._store.delete(f"{leg.folder}/{name}".lstrip("/"))


def _own_folder() -> Path:
    """This user's alone below the machine's temporary folder, where others may lay anything, links too.

    Raises:
        StorageError: somebody else has put something of that name there.
    """
    folder = Path(tempfile.gettempdir()) / f"prometar-{os.getuid()}-own"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(f"cannot use {folder}: {error.strerror}; remove it, or set TMPDIR") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StorageError(f"cannot use {folder}: it is not this user's alone; remove it, or set TMPDIR")
    return folder


def require_own(url: str, key: str) -> None:
    """See that the files at `url` are those of the study with this key.

    Raises:
        UserError: they are another study's. WorkError: the store cannot be reached.
    """
    store = Store(url)
    found = store.read(_OWNER)
    if found == key.encode() or (found is None and not store.names()):
        return
    raise UserError(
        f"{masked(url)} holds the files of another study: go on with that one's --out; "
        "or choose another --study NAME or --files; or delete them there"
    )


def take(url: str, key: str) -> None:
    """Make the files at `url` the study's.

    Raises:
        UserError: another study has taken them at the same moment. WorkError: the store cannot be reached.
    """
    require_own(url, key)
    Store(url).write(_OWNER, key.encode())
    require_own(url, key)
