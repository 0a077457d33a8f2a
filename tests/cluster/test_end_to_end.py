"""The real thing through the command line: a study, killed and continued, and the use of its files."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from prometar.cli.app import main as prometar_main
from prometar.config.settings import load_config
from tests.conftest import write_dtd
from tune.records.folder import read_records
from tune.records.schema import by_score
from tune.report.statements import verdict
from tune.search import main as search_main

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--trials", "3", "--epochs", "2", "--set", "search.val_per_class=4", "--set", "data.shots=2",
    "--final-seeds", "1 2", "--final-epochs", "2", "--top", "1", "--set", "confirm.seeds=1",
]  # fmt: skip


def search(out: Path, *args: str) -> subprocess.Popen[str]:
    """A process that runs it, a trial at a time: a second worker takes longer to start than its trials."""
    command = [sys.executable, "tune/search.py", "--out", str(out), "--max-concurrent", "1", *SMALL, *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def search_here(out: Path, *args: str) -> int:
    """The same command in this process, on its Ray. Returns the exit status."""
    return search_main(["--out", str(out), "--max-concurrent", "1", *SMALL, *args])


def finish(process: subprocess.Popen[str], *, seconds: float = 600) -> str:
    """The output of a run that must end well and say nothing on stderr."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    assert err == ""
    return out


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def records(study: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(study.glob("trials/*/record.json"))]


def assert_whole(study: Path, name: str, trials: int) -> None:
    """As many trials as asked, none lost, drawn twice, or left RUNNING; a record of each."""
    storage = optuna.load_study(study_name=name, storage=f"sqlite:///{study / 'study.db'}")
    assert [t.number for t in storage.trials] == list(range(trials))
    assert {t.state for t in storage.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    settings = [tuple(sorted(t.params.items())) for t in storage.trials]
    assert len(set(settings)) == trials
    assert [(r["number"], r["settings"]) for r in records(study)] == [
        (t.number, t.params) for t in storage.trials
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options for a folder of photographs-to-be, eight classes of 8 + 4 + 4."""
    root = write_dtd(tmp_path_factory.mktemp("data"), classes=tuple("abcdefgh"))
    return ["--dataset", "dtd", "--data-root", str(root), "--backbone", "mini"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, data: list[str], ray_local: str) -> tuple[Path, str]:
    """A study whose driver was killed with -9 in the middle of a trial, and then finished; its output."""
    out = tmp_path_factory.mktemp("out")
    study = out / "dtd"
    first = search(out, *data, "--address", ray_local)
    wait_for(lambda: any(study.glob("trials/*/checkpoint.safetensors")), first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    with sqlite3.connect(study / "study.db") as database:
        states = [row[0] for row in database.execute("select state from trials")]
    assert "RUNNING" in states, "it was killed in the middle"
    before = {r["number"]: r["settings"] for r in records(study)}
    text = finish(search(out, *data))  # with a Ray of its own
    assert {r["number"]: r["settings"] for r in records(study)}.items() >= before.items()
    return study, text


def test_a_killed_study_finishes_with_nothing_lost(killed: tuple[Path, str]) -> None:
    study, text = killed
    assert_whole(study, "dtd", 3)
    assert re.search(r"Resuming: \d trials finished, 1 interrupted\n", text)
    assert "Final test on the test images: " in text
    words = " ".join(text.split())
    assert "noisy scores, therefore biased upwards. Rely on the final test." in words
    assert "Do not compare its numbers with published ones." in words


def test_the_highest_confirmed_mean_is_selected_and_tested(killed: tuple[Path, str]) -> None:
    study, _ = killed
    found = read_records(study)
    confirmation, test = found.confirmation, found.final_test
    assert confirmation is not None
    assert test is not None
    means = {candidate.number: candidate.mean or 0.0 for candidate in confirmation.candidates}
    best = by_score(trial for trial in found.trials if not trial.baseline)[0]
    assert means.keys() == {0, best.number}, "the default settings, and the best others of the search"
    assert all([run.seed for run in each.runs] == [0, 1000] for each in confirmation.candidates)
    assert means[confirmation.selected] == max(means.values())
    assert test.selected.number == confirmation.selected
    assert test.same == (confirmation.selected == 0)
    assert (test.seeds, test.epochs, test.baseline.number) == ((1, 2), 2, 0)
    for runs in (test.datasets["dtd"].selected, test.datasets["dtd"].baseline):
        assert [run.seed for run in runs] == [1, 2]
        assert all(run.objective is not None and 0 <= run.objective <= 100 for run in runs)
        assert all(run.alignment is not None and -1 <= run.alignment <= 1 for run in runs)


def test_best_yaml_is_taken_as_it_is(
    killed: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    study, _ = killed
    run = tmp_path / "run"
    assert prometar_main(["train", "--config", str(study / "best.yaml"), "--out", str(run)]) == 0
    trained = capsys.readouterr().out
    assert prometar_main(["evaluate", str(run)]) == 0
    figures = capsys.readouterr().out.split(": ")[1].strip()
    assert figures in trained
    finals = json.loads((study / "finals.json").read_text())
    seed_1 = finals["datasets"]["dtd"]["selected"][0]
    assert figures == f"base {seed_1['base']:.2f} %, new {seed_1['new']:.2f} %, H {seed_1['objective']:.2f} %"
    assert load_config(run / "config.yaml") == load_config(study / "best.yaml")


def test_more_trials_extend_it_and_other_settings_are_refused(
    killed: tuple[Path, str], data: list[str], capsys: pytest.CaptureFixture[str], ray_local: str
) -> None:
    study, _ = killed
    before = records(study)
    assert search_here(study.parent, *data, "--trials", "4") == 0
    assert capsys.readouterr().err == ""
    assert_whole(study, "dtd", 4)
    assert records(study)[:3] == before
    assert search_here(study.parent, *data, "--epochs", "3") == 2
    assert "was started with other settings (train.epochs: 2 then, 3 now)" in capsys.readouterr().err


def test_optuna_dashboard_opens_the_study(killed: tuple[Path, str]) -> None:
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    study, _ = killed
    app = optuna_dashboard.wsgi(optuna.storages.RDBStorage(f"sqlite:///{study / 'study.db'}"))
    status: list[str] = []
    environment = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "localhost", "SERVER_PORT": "80",
        "wsgi.url_scheme": "http", "wsgi.input": None, "wsgi.errors": sys.stderr,
    }  # fmt: skip
    body = b"".join(app(environment, lambda line, headers, *rest: status.append(line)))
    assert status == ["200 OK"]
    (shown,) = json.loads(body)["study_summaries"]
    assert shown["study_name"] == "dtd"


def test_the_report_says_what_was_found(killed: tuple[Path, str]) -> None:
    study, _ = killed
    html = (study / "report.html").read_text()
    assert escape(verdict(read_records(study))) in html
    assert "Optimization history" in html
    assert "Importances of settings require at least 8 completed trials" in html
    rebuilt = html
    (study / "report.html").unlink()
    assert prometar_main(["report", str(study)]) == 0
    assert (study / "report.html").read_text() == rebuilt


def test_real_photographs(real_dtd: Path, tmp_path: Path) -> None:
    args = ["--dataset", "dtd", "--data-root", str(real_dtd), "--backbone", "mini", "--trials", "2"]
    text = finish(search(tmp_path, *args, "--set", "data.shots=2", "--epochs", "1", "--final-seeds", "1"))
    assert_whole(tmp_path / "dtd", "dtd", 2)
    assert "Do not compare its numbers with published ones." in " ".join(text.split())
