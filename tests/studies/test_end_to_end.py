"""A study through the command line: killed, resumed with more trials, tested, and the use of its files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
CLASSES = "abcdefgh"  # the first four are base classes
OPTIONS: dict[str, Any] = {
    "backbone": "mini",
    "epochs": "2",
    "final-seeds": "1",
    "final-epochs": "1",
    "top": "1",
    "max-concurrent": "1",
}
SETTINGS = {"data.shots": "1", "search.val_per_class": "2", "confirm.seeds": "1"}


def command(root: Path, out: Path, *more: str) -> list[str]:
    """Arguments of search.py. One trial at a time: a second worker takes longer to start than its trials."""
    words = [f"--{name}={value}" for name, value in OPTIONS.items()]
    words += [f"--set={name}={value}" for name, value in SETTINGS.items()]
    return ["--dataset=dtd", f"--data-root={root}", f"--out={out}", *words, *more]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def records(study: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(study.glob("trials/*/record.json"))]


def break_what_judges(root: Path) -> dict[Path, bytes]:
    """Make every test image and every image of a new class a broken file. Returns the whole ones.

    A study decodes all images before it starts, to find corrupt ones. This is done here, and then the files
    keep their sizes and modification times, so that the study takes them for decoded. Who opens one fails.
    """
    dataset = open_dataset("dtd", str(root))
    assert unreadable_images(dataset, dataset.items) == {}
    items = [*dataset.test, *(item for item in (*dataset.train, *dataset.val) if item.label >= 4)]
    whole = {root / "dtd/images" / item.path: b"" for item in items}
    for path in whole:
        whole[path] = path.read_bytes()
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_data: str) -> tuple[Path, Path, str]:
    """A study, the root of its data, and what it printed.

    Its driver was killed with -9 in the middle of a trial. Until search and confirmation were over, no test
    image and no image of a new class was one.
    """
    root = write_dtd(tmp_path_factory.mktemp("data"), per_class=4, classes=tuple(CLASSES))
    out = tmp_path_factory.mktemp("out")
    study = out / "dtd"
    broken = break_what_judges(root)
    first = subprocess.Popen(
        [sys.executable, "tune/search.py", *command(root, out, "--trials=2", f"--address={ray_data}")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(study.glob("trials/*/checkpoint.safetensors")), first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    storage = optuna.load_study(study_name="dtd", storage=f"sqlite:///{study / 'study.db'}")
    assert TrialState.RUNNING in {trial.state for trial in storage.trials}, "it was killed in the middle"
    before = {r["number"]: r for r in records(study)}

    printed = StringIO()
    options = {name.replace("-", "_"): value for name, value in OPTIONS.items()}
    config = StudyConfig.of(
        **options, dataset=["dtd"], data_root=str(root), out=str(out), trials="3", settings=SETTINGS
    )
    resumed = Study(config=config, console=Console(file=printed, width=200, soft_wrap=True))
    resumed.search()
    resumed.confirm()
    found = records(study)
    assert {number: found[number] for number in before} == before
    for path, content in broken.items():
        path.write_bytes(content)
    assert search_main(command(root, out, "--trials=3")) == 0
    assert records(study) == found
    return study, root, printed.getvalue()


Whole = tuple[Path, Path, str]


def test_no_trial_is_lost_sampled_twice_or_left_running(whole: Whole) -> None:
    study, _, text = whole
    assert re.search(r"Resuming: \d done, 1 interrupted\n", text)
    storage = optuna.load_study(study_name="dtd", storage=f"sqlite:///{study / 'study.db'}")
    assert [t.number for t in storage.trials] == [0, 1, 2]
    assert {t.state for t in storage.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len({tuple(sorted(t.params.items())) for t in storage.trials}) == 3
    assert [(r["number"], r["settings"]) for r in records(study)] == [
        (t.number, t.params) for t in storage.trials
    ]


def test_the_highest_confirmed_mean_is_selected_and_tested(whole: Whole) -> None:
    found = read_records(whole[0])
    confirmation = found.confirmation
    test = found.final_test
    assert confirmation is not None
    assert test is not None
    means = {candidate.number: candidate.mean or 0.0 for candidate in confirmation.candidates}
    best = rank_completed(trial for trial in found.trials if not trial.is_baseline)[0]
    assert means.keys() == {0, best.number}, "the default settings, and the best others of the search"
    # The confirmation has as many epochs as the final test, and the search more. So only its seed counts.
    assert all([run.seed for run in each.runs] == [1000] for each in confirmation.candidates)
    assert means[confirmation.selected_number] == max(means.values())
    assert test.selected.number == confirmation.selected_number
    assert test.baseline_selected == (confirmation.selected_number == 0)
    assert (test.seeds, test.epochs) == ((1,), 1)
    for runs in (test.datasets["dtd"].selected, test.datasets["dtd"].baseline):
        assert [run.seed for run in runs] == [1]
        assert all(run.objective is not None and 0 <= run.objective <= 100 for run in runs)
        assert all(run.alignment is not None and -1 <= run.alignment <= 1 for run in runs)


def test_best_yaml_is_taken_as_it_is(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: str
) -> None:
    study = whole[0]
    run = tmp_path / "run"
    assert prometar_main(["train", "--config", str(study / "best.yaml"), "--out", str(run)]) == 0
    trained = capsys.readouterr().out
    assert prometar_main(["evaluate", str(run)]) == 0
    figures = capsys.readouterr().out.splitlines()[0].split(": ")[1]
    assert figures in trained
    finals = json.loads((study / "finals.json").read_text())
    seed_1 = finals["datasets"]["dtd"]["selected"][0]
    assert figures == f"base {seed_1['base']:.2f} %, new {seed_1['new']:.2f} %, H {seed_1['objective']:.2f} %"
    assert load_config(run / "config.yaml") == load_config(study / "best.yaml")


def test_other_settings_are_refused(whole: Whole, capsys: pytest.CaptureFixture[str], ray_local: str) -> None:
    study, root, _ = whole
    assert search_main(command(root, study.parent, "--trials=3", "--epochs=3")) == 2
    assert "was started with other settings (train.epochs: 2 then, 3 now)" in capsys.readouterr().err


def test_optuna_dashboard_opens_the_study(whole: Whole) -> None:
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    app = optuna_dashboard.wsgi(optuna.storages.RDBStorage(f"sqlite:///{whole[0] / 'study.db'}"))
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
    body = b"".join(app(environment, lambda line, headers, *rest: status.append(line)))
    assert status == ["200 OK"]
    (shown,) = json.loads(body)["study_summaries"]
    assert shown["study_name"] == "dtd"


def test_the_report_says_what_was_found(whole: Whole) -> None:
    study = whole[0]
    html = (study / "report.html").read_text()
    assert escape(verdict_text(read_records(study))) in html
    assert "Optimization history" in html
    assert "The importance of settings requires at least 8 completed trials" in html
    (study / "report.html").unlink()
    assert prometar_main(["report", str(study)]) == 0
    assert (study / "report.html").read_text() == html
