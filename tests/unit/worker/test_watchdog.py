"""Who has hung, and for whom that counts."""

from dataclasses import replace
from pathlib import Path

from tune.jobs.files import JobFiles
from tune.jobs.spec import Job, Leg, Terms
from tune.worker.watchdog import ATTEMPTS, Watchdog


def test_only_what_hung_in_the_same_command_counts(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, "b", 60.0)
    for number in range(ATTEMPTS):
        assert watchdog.verdict() == ""
        (tmp_path / f"hung-a-here-{number}.txt").write_text("a stack")
        (tmp_path / f"hung-b-here-{number + 10}.txt").touch()  # at work
        (tmp_path / f"hung-b-here-{number}.txt").write_text("a stack")
    assert watchdog.verdict().startswith("2 workers hung: no result within 60 s (--trial-timeout)")
    assert replace(watchdog, session="c").verdict() == "", "the next command tries again"
    assert replace(watchdog, timeout_seconds=None).verdict() == ""


def test_a_watch_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "new", "a", 60.0).watching():
        (file,) = (tmp_path / "new").iterdir()
        assert file.name.startswith("hung-a-")
    assert not list((tmp_path / "new").iterdir())


def test_workers_elsewhere_watch_on_a_disk_of_their_own(tmp_path: Path) -> None:
    terms = Terms(root=str(tmp_path), files="file:///nowhere/study")
    job = Job(str(tmp_path / "trials" / "0001"), (Leg({}),), "final", terms=terms)
    assert not JobFiles(job).own_disk.is_relative_to(tmp_path), "the driver's folder may not be theirs"
    assert JobFiles(replace(job, terms=Terms())).own_disk == tmp_path / "trials" / "0001"
