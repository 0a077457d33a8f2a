"""A whole study of short runs: it is killed, resumed with more trials, tested, and its files are used."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from prometar.cli.app import main as prometar_main
from prometar.config.settings import load_config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation.check import unreadable_images
from tests.conftest import write_dtd
from tune import Study
from tune.config import StudyConfig
from tune.records.folder import read_records
from tune.records.schema import rank_completed
from tune.report.statements import verdict_text
from tune.search import main as search_main

ROOT = Path(__file__).resolve().parents[2]
CLASSES = "abcdefgh"
NUM_BASE = 4  # the first four classes are base classes
OPTIONS: dict[str, Any] = {
    "backbone": "mini",
    "epochs": "2",
    "final-seeds": "1",  # the seed 1
    "final-epochs": "1",
    "top": "1",
    "max-concurrent": "1",  # starting a second worker takes longer than its trials
}
SETTINGS = {
    "data.shots": "1",
    "search.val_per_class": "2",
    "confirm.seeds": "1",  # the number of seeds
}


def command(root: Path, out: Path, *more: str) -> list[str]:
    """Return arguments of search.py."""
    words = [f"--{name}={value}" for name, value in OPTIONS.items()]
    words += [f"--set={name}={value}" for name, value in SETTINGS.items()]
    return ["--dataset=dtd", f"--data-root={root}", f"--out={out}", *words, *more]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 300) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: The process ended before, or the time is over.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def records(study: Path) -> dict[int, dict[str, Any]]:
    """Return the records of trials by number."""
    found = [json.loads(path.read_text()) for path in study.glob("trials/*/record.json")]
    return {record["number"]: record for record in found}


def corrupt_held_out_images(root: Path) -> dict[Path, bytes]:
    """Overwrite all test images and all images of new classes. Return their contents by path.

    A study decodes every image before it starts, but caches the result by size and modification time. So the
    images are decoded here, then overwritten, and keep both. Whatever opens one of them afterwards fails.
    """
    dataset = open_dataset("dtd", str(root))
    assert unreadable_images(dataset, dataset.items) == {}
    other_images = [*dataset.train, *dataset.val]
    new_class_images = [item for item in other_images if item.label >= NUM_BASE]
    contents: dict[Path, bytes] = {}
    for item in [*dataset.test, *new_class_images]:
        path = root / "dtd/images" / item.path
        contents[path] = path.read_bytes()
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return contents


@dataclass(frozen=True)
class FinishedStudy:
    """A study that was killed, resumed with another trial, and tested.

    Args:
        folder: Folder of the study.
        data_root: Root of its data.
        printed: What the resumed search and the confirmation printed.
        states_when_killed: States of the trials in study.db when the first command was killed.
        records_when_killed: Records of trials by number at that time.
        records_before_test: Records of trials by number before the final test.
    """

    folder: Path
    data_root: Path
    printed: str
    states_when_killed: set[TrialState]
    records_when_killed: dict[int, dict[str, Any]]
    records_before_test: dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_data: str) -> FinishedStudy:
    """Run a study: kill the command in a trial, resume it in Python, run the final test with the command.

    During search and confirmation, the test images and the images of new classes are corrupt, so nothing can
    read them.
    """
    root = write_dtd(tmp_path_factory.mktemp("data"), per_class=4, classes=tuple(CLASSES))
    out = tmp_path_factory.mktemp("out")
    study = out / "dtd"
    contents = corrupt_held_out_images(root)
    _start_and_kill(root, out, ray_data)
    states = {trial.state for trial in optuna_study(study).trials}
    records_when_killed = records(study)
    printed = _search_and_confirm(root, out)
    records_before_test = records(study)
    for path, content in contents.items():
        path.write_bytes(content)
    assert search_main(command(root, out, "--trials=3")) == 0
    return FinishedStudy(
        folder=study,
        data_root=root,
        printed=printed,
        states_when_killed=states,
        records_when_killed=records_when_killed,
        records_before_test=records_before_test,
    )


def _start_and_kill(root: Path, out: Path, address: str) -> None:
    """Start a study of two trials. Kill it with -9 once a trial has a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "tune/search.py", *command(root, out, "--trials=2", f"--address={address}")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any((out / "dtd").glob("trials/*/checkpoint.safetensors")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def _search_and_confirm(root: Path, out: Path) -> str:
    """Resume the study with three trials, in Python. Return what it printed."""
    printed = StringIO()
    options = {name.replace("-", "_"): value for name, value in OPTIONS.items()}
    config = StudyConfig.of(
        **options, dataset=["dtd"], data_root=str(root), out=str(out), trials="3", settings=SETTINGS
    )
    study = Study(config=config, console=Console(file=printed, width=200, soft_wrap=True))
    study.search()
    study.confirm()
    return printed.getvalue()


def optuna_study(folder: Path) -> optuna.Study:
    """Return a study as the database in its folder has it."""
    return optuna.load_study(study_name="dtd", storage=f"sqlite:///{folder / 'study.db'}")


def test_no_trial_is_lost_sampled_twice_or_left_running(finished: FinishedStudy) -> None:
    assert TrialState.RUNNING in finished.states_when_killed
    assert re.search(r"Resuming: \d done, 1 interrupted\n", finished.printed)
    trials = optuna_study(finished.folder).trials
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 3
    settings = {number: record["settings"] for number, record in records(finished.folder).items()}
    assert settings == {trial.number: trial.params for trial in trials}


def test_resuming_keeps_the_records_of_ended_trials(finished: FinishedStudy) -> None:
    kept = {number: finished.records_before_test[number] for number in finished.records_when_killed}
    assert kept == finished.records_when_killed


def test_rerunning_a_search_that_has_ended_changes_no_trial(finished: FinishedStudy) -> None:
    assert records(finished.folder) == finished.records_before_test


def test_the_confirmation_reruns_the_default_and_the_best_settings(finished: FinishedStudy) -> None:
    found = read_records(finished.folder)
    assert found.confirmation is not None
    candidates = found.confirmation.candidates
    best = rank_completed(trial for trial in found.trials if not trial.is_baseline)[0]
    assert {candidate.number for candidate in candidates} == {0, best.number}
    # Trials have more epochs than reruns, so the runs of the search do not count. Seed 1000 is the fresh one.
    for candidate in candidates:
        assert [run.seed for run in candidate.runs] == [1000]


def test_the_settings_with_the_highest_confirmed_mean_are_selected(finished: FinishedStudy) -> None:
    found = read_records(finished.folder)
    assert found.confirmation is not None
    assert found.final_test is not None
    means = {candidate.number: candidate.mean or 0.0 for candidate in found.confirmation.candidates}
    selected_number = found.confirmation.selected_number
    assert means[selected_number] == max(means.values())
    assert found.final_test.selected.number == selected_number
    assert found.final_test.baseline_selected == (selected_number == 0)


def test_the_final_test_has_its_seeds_and_epochs_and_valid_scores(finished: FinishedStudy) -> None:
    test = read_records(finished.folder).final_test
    assert test is not None
    assert test.seeds == (1,)
    assert test.epochs == 1
    for runs in (test.datasets["dtd"].selected, test.datasets["dtd"].baseline):
        assert [run.seed for run in runs] == [1]
        assert all(run.objective is not None and 0 <= run.objective <= 100 for run in runs)
        assert all(run.alignment is not None and -1 <= run.alignment <= 1 for run in runs)


def accuracies_in(output: str) -> str:
    """Return the accuracies that `train` or `evaluate` printed."""
    found = re.search(r"base [\d.]+ %, new [\d.]+ %, H [\d.]+ %", output)
    assert found is not None
    return found[0]


def test_training_with_best_yaml_repeats_a_run_of_the_final_test(
    finished: FinishedStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: str
) -> None:
    best = finished.folder / "best.yaml"
    run = tmp_path / "run"

    assert prometar_main(["train", "--config", str(best), "--out", str(run)]) == 0
    trained = accuracies_in(capsys.readouterr().out)
    assert prometar_main(["evaluate", str(run)]) == 0
    assert accuracies_in(capsys.readouterr().out) == trained

    test = read_records(finished.folder).final_test
    assert test is not None
    dtd = test.datasets["dtd"]
    tested = dtd.baseline[0] if test.recommends_baseline else dtd.selected[0]
    assert trained == f"base {tested.base:.2f} %, new {tested.new:.2f} %, H {tested.objective:.2f} %"
    assert load_config(run / "config.yaml") == load_config(best)


def test_other_settings_are_refused(
    finished: FinishedStudy, capsys: pytest.CaptureFixture[str], ray_local: str
) -> None:
    arguments = command(finished.data_root, finished.folder.parent, "--trials=3", "--epochs=3")
    assert search_main(arguments) == 2
    assert "was started with other settings (train.epochs: 2 then, 3 now)" in capsys.readouterr().err


def test_optuna_dashboard_opens_the_study(finished: FinishedStudy) -> None:
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    app = optuna_dashboard.wsgi(optuna.storages.RDBStorage(f"sqlite:///{finished.folder / 'study.db'}"))
    status: list[str] = []
    environment = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/api/studies",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": None,
        "wsgi.errors": sys.stderr,
    }

    def start_response(line: str, headers: object, *_: object) -> None:
        status.append(line)

    body = b"".join(app(environment, start_response))

    assert status == ["200 OK"]
    (shown,) = json.loads(body)["study_summaries"]
    assert shown["study_name"] == "dtd"


def test_the_report_says_what_was_found(finished: FinishedStudy) -> None:
    html = (finished.folder / "report.html").read_text()
    assert escape(verdict_text(read_records(finished.folder))) in html
    assert "Optimization history" in html
    assert "The importance of settings requires at least 8 completed trials" in html


def test_the_command_report_rebuilds_the_same_page(finished: FinishedStudy) -> None:
    page = finished.folder / "report.html"
    html = page.read_text()
    page.unlink()
    assert prometar_main(["report", str(finished.folder)]) == 0
    assert page.read_text() == html
