"""What a driver hands a worker: plain data, for which nobody has to load torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometar.environment import environment
from prometar.errors import one_line
from prometar.parts.sending import Sent
from prometar.reproduce.grid import Entry, Record, read_record


@dataclass(frozen=True)
class Job:
    """A run as the driver hands it to a worker; its state lies in `folder`.

    everywhere: Digests of what the driver has found, which the worker's machine must have too.
    """

    entry: Entry
    folder: Path
    threads: int
    stream_cpus: float
    code: tuple[Sent, ...] = ()
    everywhere: Mapping[str, str] = field(default_factory=dict)

    def failed(self, reason: str) -> Record:
        """Write and return a record that says so; figures that are there already stay."""
        record = read_record(self.entry, self.folder) or Record(entry=self.entry)
        record = replace(record, reason=one_line(reason), environment=environment())
        record.write(self.folder)
        return record
