"""A disk that is full or read-only: one line, nothing finished is lost, and the same command resumes."""

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
    """A disk of 32 MiB: a report alone takes five."""
    try:
        disk = Disk(tmp_path / "disk", 32 * MIB)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system can be mounted by root only")
    yield disk
    disk.end()


def fill_when_hanging(number: int, disk: Disk, out: Path) -> threading.Thread:
    """Fill the disk when this trial hangs, and let it go on then."""
    folder = out / NAME

    def wait() -> None:
        while not (folder / f"trials/{number:04d}/{HANGS}").exists():
            time.sleep(0.02)
        disk.fill()
        (folder / BEHAVIOUR).unlink()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_study_whose_disk_fills_up_resumes(disk: Disk, ray_local: str) -> None:
    """First while a worker runs, then from the start, then read-only."""
    filling = fill_when_hanging(2, disk, disk.path)
    with pytest.raises(PrometarError) as full:
        run_fake(disk.path, trials=4, behaviour={"2": "hang"}, on_ray=True)
    filling.join(90)
    assert "rerun the same command to resume." in str(full.value).lower()
    with pytest.raises(PrometarError, match=r"No space left on device|disk is full") as still:
        run_fake(disk.path, trials=4)
    before = records(disk.path)
    assert [(r["number"], r["state"]) for r in before] == [(0, "COMPLETE"), (1, "COMPLETE")]
    disk.free()
    disk.protect()
    with pytest.raises(PrometarError, match=r"cannot write .*fake.*: Read-only file system") as refused:
        run_fake(disk.path, trials=4)
    assert not any("\n" in str(caught.value) for caught in (full, still, refused))
    disk.unprotect()
    run_fake(disk.path, trials=4)
    found = records(disk.path)
    assert [r["state"] for r in found] == ["COMPLETE"] * 4
    assert found[:2] == before
    steps = (disk.path / NAME / "trials/0002/steps.log").read_text()
    assert steps.split() == ["1", "2", "3"], "it resumed from its last epoch"
