"""A disk that is full or read-only: one line, nothing finished is lost, and the same command resumes."""

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prometar.errors import PrometarError
from prometar.io.files import write_atomically
from prometar.io.lock import locked
from prometar.step.state import State
from prometar.training.checkpoint import load_checkpoint, save_checkpoint
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


def state_of(step: int) -> State:
    return State.start({"text": torch.full((2_200_000,), float(step))}, {})


EPOCH = {"epoch": 1, "seconds": 1.0}


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(disk: Disk) -> None:
    path = disk.path / "run/checkpoint.safetensors"
    save_checkpoint(path, state_of(1), [EPOCH], run="r", weights="w")
    with pytest.raises(
        PrometarError, match=r"^cannot write .*checkpoint\.safetensors: No space left"
    ) as caught:
        save_checkpoint(
            path, state_of(2), [EPOCH, {"epoch": 2, "seconds": 2.0}], run="r", weights="w"
        )  # each takes more than half
    assert "\n" not in str(caught.value)
    kept = load_checkpoint(path)
    assert kept is not None
    assert kept.history == (EPOCH,)
    assert float(kept.state.prompts["text"][-1]) == 1.0
    assert [p.name for p in path.parent.iterdir()] == [path.name], "what did not fit takes no room"


def test_full_and_read_only_folders_are_one_line(disk: Disk) -> None:
    def refused(reason: str) -> None:
        with pytest.raises(PrometarError, match=f"^cannot write .*record.json: {reason}: make ") as caught:
            write_atomically(disk.path / "record.json", b"new")
        assert "\n" not in str(caught.value)

    write_atomically(disk.path / "record.json", b"old")
    disk.fill()
    refused("No space left on device")
    with locked(disk.path / "s", "the study"):  # an empty file takes no room
        assert (disk.path / "s/lock").read_bytes() == b""
    disk.free()
    disk.protect()
    refused("Read-only file system")
    with (
        pytest.raises(
            PrometarError, match=r"^cannot write .*/s/lock: Read-only file system: make it writable$"
        ),
        locked(disk.path / "s", "the study"),
    ):
        pytest.fail("the lock was taken")
    disk.unprotect()
    assert (disk.path / "record.json").read_bytes() == b"old"
    assert not list(disk.path.glob(".record*")), "what did not fit takes no room"


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


@pytest.mark.usefixtures("ray_local")
def test_a_study_whose_disk_fills_up_goes_on(disk: Disk) -> None:
    filling = fill_when_hanging(2, disk, disk.path)
    behaviour = {"2": "hang"}
    with pytest.raises(PrometarError) as caught:
        run_fake(disk.path, trials=5, behaviour=behaviour)
    filling.join(90)
    assert "\n" not in str(caught.value)
    assert "rerun the same command to resume." in str(caught.value).lower()
    with pytest.raises(PrometarError, match=r"No space left on device|disk is full") as still:
        run_fake(disk.path, trials=5)
    assert "\n" not in str(still.value)
    before = records(disk.path)
    disk.free()
    disk.protect()
    with pytest.raises(PrometarError, match=r"cannot write .*fake.*: Read-only file system") as refused:
        run_fake(disk.path, trials=5)
    assert "\n" not in str(refused.value)
    disk.unprotect()
    run_fake(disk.path, trials=5)
    found = records(disk.path)
    assert [r["state"] for r in found] == ["COMPLETE"] * 5
    assert [r for r in found if r["number"] in {old["number"] for old in before}] == before


@pytest.mark.usefixtures("ray_local")
def test_a_worker_whose_disk_fills_up_fails_no_trial(disk: Disk, tmp_path: Path) -> None:
    """The disk of one trial alone: the driver's has room for everything, also for a record of a failure."""
    out, mine = tmp_path / "out", disk.path / "trial"
    trials = out / NAME / "trials"
    mine.mkdir()
    trials.mkdir(parents=True)
    (trials / "0002").symlink_to(mine)
    filling = fill_when_hanging(2, disk, out)
    with pytest.raises(PrometarError) as caught:
        run_fake(out, trials=5, behaviour={"2": "hang"}, settings={"resources.trial_timeout": 300})
    filling.join(90)
    expected = (
        rf"Stopped: cannot write {trials}/0002/[\w.-]+: No space left on device.*\. "
        r"Rerun the same command to resume\."
    )
    assert re.fullmatch(expected, str(caught.value))
    before = records(out)
    assert [(r["number"], r["state"]) for r in before] == [(0, "COMPLETE"), (1, "COMPLETE")]
    disk.free()
    run_fake(out, trials=5)
    found = records(out)
    assert [r["state"] for r in found] == ["COMPLETE"] * 5
    assert found[:2] == before
    assert (mine / "steps.log").read_text().split() == ["1", "2", "3"], "it went on from its last epoch"
