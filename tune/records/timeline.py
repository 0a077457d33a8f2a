"""timeline.jsonl: when and in which slot each job of a study ran. Only the report reads this file.

A line per ended job is appended, so a killed study loses only the lines of its running jobs. Other records do
not depend on this file. Unreadable lines are ignored.
"""

from pathlib import Path
from typing import Literal

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
    with (folder / FILE_NAME).open("ab") as file:
        file.write(_ADAPTER.dump_json(entry) + b"\n")


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
