"""timeline.jsonl: when and in which slot each job of a study ran. Only the report reads this file.

A line per ended job is appended, so a killed study loses only the lines of its running jobs. Other records do
not depend on this file. Unreadable lines are ignored.
"""

import os
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import ConfigDict, NaiveDatetime, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from prometar.io.files import read_bytes

FILE_NAME = "timeline.jsonl"
Outcome = Literal["finished", "pruned", "failed", "interrupted", "running"]


@dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class TimelineEntry:
    """Time span of a job.

    Args:
        stage: Name of the stage, e.g. "Search".
        job: Name of the job, e.g. "trial 7".
        slot: Number of the slot, counted from 1. A slot runs one job at a time.
    """

    stage: str
    job: str
    slot: PositiveInt
    started: NaiveDatetime
    ended: NaiveDatetime
    outcome: Outcome


_ADAPTER = TypeAdapter(TimelineEntry)


def append_entry(folder: Path, entry: TimelineEntry) -> None:
    """Append an entry to the timeline of a study.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    line = _ADAPTER.dump_json(entry) + b"\n"
    with (folder / FILE_NAME).open("a+b") as file:
        if not _ends_with_newline(file):
            # A kill or a full disk has cut the last line. It would make this entry unreadable, too.
            line = b"\n" + line
        file.write(line)


def _ends_with_newline(file: BinaryIO) -> bool:
    """Return True if the file ends with a newline or is empty."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read() == b"\n"


def read_timeline(folder: Path) -> tuple[TimelineEntry, ...]:
    """Return the entries of a study's timeline. Lines that are cut or corrupt are ignored."""
    try:
        lines = read_bytes(folder / FILE_NAME).splitlines()
    except OSError:
        return ()
    entries = []
    for line in lines:
        try:
            entries.append(_ADAPTER.validate_json(line))
        except ValidationError:
            continue
    return tuple(entries)
