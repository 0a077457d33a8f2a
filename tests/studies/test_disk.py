"""A study on a disk that is full or read-only fails with one line, loses nothing finished, and resumes."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prometar.errors import PrometarError
from tests.support.disk import MIB, Disk
from tests.support.driver import NAME, records, run_fake
from tests.support.fake_trial import BEHAVIOUR, HANGS


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 32 MiB. The report of a study alone takes 5 MiB."""
    try:
        disk = Disk(tmp_path / "disk", 32 * MIB)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system can be mounted by root only")
    yield disk
    disk.end()


def fill_when_hanging(number: int, disk: Disk, out: Path) -> threading.Thread:
    """Start a thread that waits until a trial hangs, fills the disk, and lets the trial go on.

    Args:
        number: Number of the trial.
        disk: The disk.
        out: Parent of the study's folder.

    Returns:
        The thread.
    """
    folder = out / NAME

    def wait() -> None:
        while not (folder / f"trials/{number:04d}/{HANGS}").exists():
            time.sleep(0.02)
        disk.fill()
        (folder / BEHAVIOUR).unlink()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_study_resumes_after_its_disk_was_full_and_read_only(disk: Disk, ray_local: str) -> None:
    # The disk fills up while a worker trains trial 2.
    filling = fill_when_hanging(2, disk, disk.path)
    with pytest.raises(PrometarError) as fills_up:
        run_fake(disk.path, trials=4, behaviour={"2": "hang"}, on_ray=True)
    filling.join(90)
    assert "rerun the same command to resume." in str(fills_up.value).lower()

    # It is full from the start of a command.
    with pytest.raises(PrometarError, match=r"No space left on device|disk is full") as full:
        run_fake(disk.path, trials=4)
    before = records(disk.path)
    assert [(record["number"], record["state"]) for record in before] == [(0, "COMPLETE"), (1, "COMPLETE")]

    # It has space, but is read-only.
    disk.free()
    disk.protect()
    with pytest.raises(PrometarError, match=r"cannot write .*fake.*: Read-only file system") as read_only:
        run_fake(disk.path, trials=4)
    for caught in (fills_up, full, read_only):
        assert "\n" not in str(caught.value)

    # It can be written again.
    disk.unprotect()
    run_fake(disk.path, trials=4)
    found = records(disk.path)
    assert [record["state"] for record in found] == ["COMPLETE"] * 4
    assert found[:2] == before
    steps = (disk.path / NAME / "trials/0002/steps.log").read_text()
    assert steps.split() == ["1", "2", "3"], "trial 2 resumed from its last epoch"
