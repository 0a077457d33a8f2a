"""Studies in Python: what they are asked, what they read, and what a notebook shows."""

import inspect
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tune.options import Options
from tune.study_spec import StudySpec

from prometar.errors import UserError
from tests.support import report_study
from tests.support.report_study import SCRIPT, description, trial, write
from tune import Space, Study, study
from tune.search import main, search
from tune.study import Place

Asked = list[tuple[StudySpec, Place]]
IN_PYTHON_ALONE = {"command"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """Requests instead of studies; the current folder is a test's own."""
    found: Asked = []
    monkeypatch.setattr(study, "run_study", lambda spec, place: found.append((spec, place)))
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A study of three trials that has not been tested."""
    trials = [trial(0), trial(1), trial(2, "PRUNED")]
    return write(tmp_path / "small", description(), trials)


def test_the_command_line_has_the_options_and_defaults_of_python() -> None:
    """One place for both: else a study would be another one from a notebook."""
    options = {each.name: each.default for each in fields(Options)}
    given = {name: each.default for name, each in inspect.signature(search).parameters.items()}
    assert {name: given.get(name, "missing") for name in options.keys() - IN_PYTHON_ALONE} == {
        name: value for name, value in options.items() if name not in IN_PYTHON_ALONE
    }
    completed = inspect.signature(Study).parameters.keys()
    assert completed - {"folder"} == options.keys() - {"out", "study", "command"}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (
            ["--dataset", "cells", "textures", "--trials", "3", "--goals", "base", "new"],
            {"dataset": ["cells", "textures"], "trials": 3, "goals": ("base", "new")},
        ),
        (
            ["--final-seeds", "4 5", "--set", "optim.lr=0.01", "data.shots=2", "--gpus-per-trial", "0.5"],
            {"final_seeds": [4, 5], "settings": {"optim.lr": 0.01, "data.shots": 2}, "gpus_per_trial": 0.5},
        ),
        (["--set", "data.shots=2", "--track", "mlflow"], {"settings": "data.shots=2", "track": "mlflow"}),
    ],
)  # fmt: skip
def test_the_same_study_from_both(words: list[str], options: dict[str, Any], asked: Asked) -> None:
    assert main([*words, "--out", "there", "--study", "it"]) == 0
    assert Study("there/it", **options).run().folder == Path("there/it").resolve()
    (one, place), (other, its_place) = asked
    assert one == other
    assert {**vars(place), "command": None, "out": place.out.resolve()} == {
        **vars(its_place),
        "command": None,
    }
    assert place.command is None
    assert its_place.command is not None
    assert its_place.command.startswith("Study('there/it'")


def test_a_space_of_ones_own(asked: Asked) -> None:
    space = Space.of({"optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True}}, name="rates")
    Study("out/it", space=space).run()
    assert asked[0][0].space == space
    with pytest.raises(UserError, match=r"space own, optim\.lr"):
        Space.of({"optim.lr": {"type": "float", "low": 1.0, "high": 0.1}})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"trails": 4}, "a study has no option 'trails'"),
        ({"trials": "many"}, "trials: Input should be a valid integer"),
        ({"out": "there"}, "Study takes no 'out': its first argument is the folder"),
        *(
            ({name: given}, f"^{name}: Input should be neither true nor false .found ")
            for name in ("trials", "top_seeds", "final_seeds", "max_hours")
            for given in (True, [1, True], np.array([False]))
        ),
        ({"portfolio": -3}, "portfolio: Input should be greater than or equal to 0 .found -3"),
        ({"space": 3}, "space: Input should be a valid string"),
        (
            {"final_seeds": {1, 2}},
            "final_seeds: Input should be a valid string, or a valid integer, or an instance of Sequence",
        ),
    ],
)
def test_what_is_no_option_is_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Study("out/it", **options)
    assert "\n" not in str(caught.value)


def test_an_empty_list_of_data_sets_is_not_the_embedded_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataset names no data set: leave it out for the embedded one"):
        Study(tmp_path / "out/it", dataset=[]).run()


@pytest.mark.parametrize("folder", [None, 5, b"out/it"])
def test_what_is_no_folder_is_one_line(folder: Any) -> None:
    with pytest.raises(UserError, match=f"^a study has a folder of its own, OUT/STUDY: found {folder!r}$"):
        Study(folder)


def test_paths_and_arrays_are_texts_and_lists(asked: Asked) -> None:
    Path("mine.yaml").write_text("optim.lr: {type: float, low: 0.001, high: 0.1}")
    for space, seeds in (("mine.yaml", [0, 1]), (Path("mine.yaml"), np.arange(2)), ("mine.yaml", range(2))):
        Study("out/it", space=space, seed=5, trials=np.int64(3), final_seeds=seeds, verbose=True).run()
    first, *others = (spec for spec, _ in asked)
    assert first.final_seeds == (0, 1)
    assert all(each == first for each in others)
    assert repr(Study("it", final_seeds=np.arange(2))) == "Study('it', final_seeds=[0, 1])"


def test_a_folder_without_a_study_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no study"):
        _ = Study(tmp_path / "nowhere").trials


def test_trials_are_read(small: Path) -> None:
    found = Study(small)
    assert [each.number for each in found.trials] == [0, 1, 2]
    best = found.best
    assert best is not None
    assert best.objective == max(each.objective or 0.0 for each in found.trials if each.state == "COMPLETE")


def test_trials_as_a_table(small: Path) -> None:
    pytest.importorskip("pandas")
    trials = Study(small).trials
    frame = trials.to_frame()
    assert list(frame.index) == [0, 1, 2]
    assert list(frame["state"]) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert list(frame["optim.lr"]) == [each.settings["optim.lr"] for each in trials]
    assert list(trials[1:].to_frame().index) == [1, 2]
    assert Study(write(small.parent / "empty", description(), [])).trials.to_frame().empty


def test_without_pandas_one_line_says_so(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        Study(small).trials.to_frame()


def test_a_notebook_shows_the_report(small: Path) -> None:
    report = Study(small).report()
    assert report.path == small / "report.html"
    assert report.path.stat().st_size > 10_000
    shown = report._repr_html_()
    assert "The study has not ended. So far trial" in shown
    assert "released, the best" in shown
    assert "report.html" in repr(report)


def test_a_study_shows_no_password() -> None:
    assert "postgresql://me:***@host/db" in repr(Study("out/x", storage="postgresql://me:secret@host/db"))


def test_what_a_notebook_shows_is_escaped(tmp_path: Path) -> None:
    evil = [report_study.IMAGE, SCRIPT]
    study_dir = write(tmp_path / "evil", description(datasets=evil, name=SCRIPT), [trial(0), trial(1)])
    shown = Study(study_dir).report()._repr_html_()
    assert "&lt;script&gt;alert(1)" in shown
    assert "<script" not in shown
    assert "<img" not in shown


def test_a_study_is_read_without_the_machinery_that_made_it(small: Path) -> None:
    code = (
        "import sys; import tune; light = sorted(set(sys.modules) & {'ray', 'pydantic', 'numpy'});"
        "from tune import Study, Space; found = Study(sys.argv[1]); found.report()._repr_html_();"
        "heavy = {'ray', 'optuna', 'sqlalchemy', 'pandas', 'torch'};"
        "print(light, len(found.trials), found.best.number, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small)], capture_output=True, text=True, check=True
    )
    best = Study(small).best
    assert best is not None
    assert done.stdout.splitlines()[-1] == f"[] 3 {best.number} []"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"enqueue": "none.yaml"}, "--enqueue none.yaml: no such file"),
        ({"gpus_per_trial": "x"}, "--gpus-per-trial 'x': expected a number"),
        ({"gpus_per_trial": float("nan")}, "--gpus-per-trial must be 0 or at least 0.01"),
        ({"cpus_per_trial": 0}, "--cpus-per-trial must be at least 0.1"),
        ({"track": "nosuch"}, "unknown tracker 'nosuch'"),
        ({"files": "s3://"}, "cannot open 's3://': it names no bucket"),
        ({"settings": {"train.seed": 3}}, "--set train.seed: a search's seed is given by --seed"),
        ({"settings": {"train.epochs": 3}, "epochs": 2}, "--set train.epochs: --epochs gives it too"),
        ({"settings": {"method": "coop"}, "method": "ivlp"}, "--set method: --method gives it too"),
        ({"settings": {"method": "coop"}, "method": "prometar"}, "--set method: --method gives it too"),
    ],
)
def test_a_plan_refuses_what_the_study_would(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        Study(tmp_path / "it", dataset="cells", **options).plan()


def test_a_study_means_the_same_from_every_folder(asked: Asked, tmp_path: Path) -> None:
    mine = Study("out/mine", dataset="dtd", data_root=Path("data"), trials=3)
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    spec = mine.run().options.spec()
    assert spec.config.data.root == str(tmp_path / "data")
    assert eval(repr(mine)).folder.name == "mine"  # what a page says to run
    with pytest.raises(UserError, match=r"a study has a folder of its own, OUT/STUDY: found /"):
        Study("/")
