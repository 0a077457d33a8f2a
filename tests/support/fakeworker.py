"""Workers that die, fail or answer as a job's folder says; Ray imports them by name: they load quickly."""

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometar.reproduce.grid import Job, Record


class FakeWorker:
    """By a job's folder: `kills` its worker so often, `raises` what is told, or finds a disk `full`.

    Where it has raised, nothing else succeeds in its process, as on a GPU.
    """

    broken = ""

    def ready(self) -> None:
        pass

    def run(self, job: "Job") -> "Record":
        from prometar.errors import StorageError
        from prometar.reproduce.grid import Record

        kills = job.folder / "kills"
        if kills.exists() and int(kills.read_text()):
            kills.write_text(str(int(kills.read_text()) - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if (job.folder / "full").exists():
            raise StorageError(f"cannot write {job.folder}: No space left on device: make room")
        if (job.folder / "raises").exists():
            self.broken = (job.folder / "raises").read_text()
        if self.broken:
            raise RuntimeError(self.broken)
        record = Record({"all": 50.0}, environment={"pid": str(os.getpid())}, entry=job.entry)
        record.write(job.folder)
        return record


class NeverStarts(FakeWorker):
    """Its process ends before it is there."""

    def ready(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
