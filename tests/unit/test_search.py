"""What the command line hands to a study."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import open_clip
import pytest
from open_clip import factory
from tune.options import Options
from tune.results.reader import read_study
from tune.results.writer import StudyFolder
from tune.study_spec import StudySpec

from prometar.cli.app import main as prometar_main
from prometar.cli.console import INTERRUPTED
from prometar.clip import openclip
from tune import study
from tune.search import FIRST, HOW, JUDGED, ON, WHAT, WHERE, main, search
from tune.study import Place

ROOT = Path(__file__).parents[2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[StudySpec, Place]]:
    """Requests instead of studies; the current folder is a test's own."""
    found: list[tuple[StudySpec, Place]] = []
    monkeypatch.setattr(study, "run_study", lambda spec, place: found.append((spec, place)))
    monkeypatch.chdir(tmp_path)
    return found


def test_paths_mean_the_same_on_every_worker(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    given = ["--pretrained", "weights.safetensors", "--data-root", "data", "--files", "store"]
    assert main(["--backbone", "ViT-B-16", *given]) == 0
    ((spec, place),) = asked
    assert spec.config.backbone.pretrained == str(tmp_path / "weights.safetensors")
    assert spec.config.data.root == str(tmp_path / "data")
    assert place.files == str(tmp_path / "store" / "textures")


def test_several_data_sets_make_one_study(asked: list[Any]) -> None:
    assert main(["--dataset", "dtd", "eurosat", "--seeds-per-trial", "2", "--seed", "4"]) == 0
    ((spec, place),) = asked
    assert spec.names == ("dtd", "eurosat")
    assert spec.seeds == (4, 5)
    assert place.name == "dtd-eurosat"
    assert spec.config.backbone.name == "ViT-B-16-quickgelu"


@pytest.mark.parametrize(
    ("wanted", "interrupted", "said"),
    [
        (False, 0, "nothing is searched, and all of it counts"),
        (True, 0, "nothing new is searched, and all of it counts; run again: the released settings"),
        (False, 1, "nothing new is searched, and all of it counts; run again: what was interrupted"),
    ],
)
def test_fewer_trials_than_are_done(wanted: bool, interrupted: int, said: str) -> None:
    memory = Mock(wants=lambda trials: wanted, num_interrupted=interrupted)
    assert study._all_counts(2, memory).startswith(f"--trials 2 is less than what is done: {said}")


def test_settings_of_a_loader_reach_one_data_set(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaders = (
        f"@dataclass(frozen=True)\nclass {name}:\n    size: int = 8\n    def __call__(self, root): ...\n"
        for name in ("One", "Two")
    )
    (tmp_path / "two_sets.py").write_text("from dataclasses import dataclass\n" + "".join(loaders))
    monkeypatch.syspath_prepend(tmp_path)
    given = ["--backbone", "mini", "--set", "data.args.size=4"]
    assert main(["--dataset", "two_sets:One", "textures", *given]) == 0
    ((spec, _),) = asked
    assert (spec.data_args("two_sets:One"), spec.data_args("textures")) == ({"size": 4}, {})
    assert main(["--dataset", "two_sets:One", "textures", "two_sets:Two", *given]) == 2
    said = "error: --set data.args.size: of two_sets:One two_sets:Two it would not reach all; "
    assert capsys.readouterr().err.startswith(said)


def test_several_goals_are_not_pruned(asked: list[Any]) -> None:
    assert main(["--goals", "objective", "seconds"]) == 0
    assert asked[0][0].goals == ("objective", "seconds")
    assert asked[0][0].pruner == "none"


def sections(text: str) -> dict[str, list[str]]:
    """The options of each section of a help text."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line):
            title = line.rstrip(":")
            found[title] = []
        elif option := re.match(r"  (--[\w-]+)", line):
            found[title].append(option[1])
    return found


def test_help_is_grouped_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    found = sections(capsys.readouterr().out)
    assert list(found) == [FIRST, WHAT, HOW, JUDGED, ON, WHERE, "Other"]
    assert len(found[FIRST]) == 10
    assert {"--dataset", "--data-root", "--trials", "--plan"} <= set(found[FIRST])
    assert found["Other"] == ["--help"], "every option has its place"
    listed = [option for options in found.values() for option in options]
    assert len(listed) == len(set(listed)) == len(inspect.signature(search).parameters) + 1


def test_a_plan_runs_and_writes_nothing(
    asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", "--dataset", "cells", "--trials", "7", "--top", "0", "--final-seeds", "1 2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        f"study {tmp_path / 'out' / 'cells'}: 7 trials of 5 epochs, prometar on cells with mini"
    )
    assert "search: 7 runs, 35 epochs, " in said
    assert "last round" not in said
    assert "at most: 11 runs, 55 epochs, " in said
    assert "\n  inner.lr: 0.0001 .. 0.1 (log)\n" in said
    assert "left out" not in said
    assert not asked
    assert not list(tmp_path.iterdir())


def test_a_plan_says_what_of_a_space_the_method_does_not_search(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", "--dataset", "cells", "--method", "coop", "--space", "augmentation"]) == 0
    searched, left = (
        capsys.readouterr().out.rsplit("searched:\n", 1)[1].split("left out (without effect, or ")
    )
    assert "augment.crop_scale_min" in searched
    assert "coop's own value, or yours, is outside the range): task.augmentation, task.mixup_alpha" in left
    assert "task." not in searched


def test_a_plan_of_what_is_not_there_is_one_line(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--plan", "--dataset", "dtd", "--data-root", "nowhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    for words, line in (
        (["--trials", "0"], "--trials must be at least 1"),
        (["--seeds-per-trial", str(10**10)], "--seeds-per-trial must be at most 1,000, found 10,000,000,000"),
        (["--max-hours", "0"], "--max-hours must be above 0"),
        (["--enqueue", "nowhere.yaml"], "--enqueue nowhere.yaml: no such file"),
        (["--warm-start", "nowhere"], "--warm-start nowhere holds no study"),
    ):
        assert main(["--plan", *words]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backbone", "why"),
    [
        (["ViT-B-17"], "unknown backbone 'ViT-B-17'"),
        (["ViT-B-16"], "activation quick_gelu, which ViT-B-16 does not use; use ViT-B-16-quickgelu"),
        (["tiny-other", "--pretrained", "random"], "backbone tiny-other is not supported: it is neither"),
        (
            ["ViT-B-16-SigLIP2", "--pretrained", "random"],
            "timm/ViT-B-16-SigLIP2, which needs transformers: pip install '.[transformers]'",
        ),
    ],
)
def test_a_plan_refuses_a_backbone_as_the_study_does(
    backbone: list[str],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = open_clip.get_model_config("ViT-B-16")
    text = {**plain["text_cfg"], "qk_norm": True}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-other", {**plain, "text_cfg": text})
    monkeypatch.setattr(openclip, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert main(["--plan", "--dataset", "cells", "--backbone", *backbone]) == 2
    said = capsys.readouterr()
    assert why in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out


def test_an_interrupted_study_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(spec: StudySpec, place: Place) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", interrupted)
    assert main([]) == INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted. Rerun the same command to resume.\n"


@pytest.mark.parametrize("words", [["--help"], ["--plan", "--dataset", "cells", "textures", "--trials", "7"]])
def test_the_installed_command_says_what_the_script_says(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    script = capsys.readouterr().out
    assert prometar_main(["search", *words]) == 0, "the installed entry points are old: make install"
    command = capsys.readouterr().out
    assert command.replace(" search [OPTIONS]", " [OPTIONS]") == script


def test_the_installed_command_makes_the_same_study(asked: list[Any]) -> None:
    words = [
        "--dataset",
        "cells",
        "textures",
        "--set",
        "optim.lr=0.01",
        "--seed",
        "3",
        "--goals",
        "base",
        "new",
    ]
    assert main(words) == prometar_main(["search", *words]) == 0
    assert asked[0] == asked[1]


def test_a_users_module_may_be_named_as_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "options.py").write_text("def huber(a, b):\n    return a\n")
    words = ["--set", "regularizer.kind=options:hubber", "--plan"]
    done = subprocess.run(
        [sys.executable, ROOT / "tune/search.py", *words],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"error: options:hubber: {tmp_path / 'options.py'} has no 'hubber'\n"


def test_help_of_all_commands_loads_little() -> None:
    code = (
        "import sys; from prometar.cli.app import main; status = main(['--help']);"
        "heavy = {'torch', 'ray', 'optuna', 'plotly', 'open_clip', 'tune.study', 'tune.optimizer'};"
        "print(status, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"^  search +Search settings", done.stdout, flags=re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (["/opt/x y/bin/prometar", "search", "--study", "a b"], "prometar search --study 'a b'"),
        (["/opt/lib/prometar/__main__.py", "search"], "python -m prometar search"),
        (["tune/search.py", "--trials", "3"], "python tune/search.py --trials 3"),
    ],
)
def test_a_study_remembers_how_it_was_asked(
    process: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", process)
    folder = StudyFolder(tmp_path, "textures")
    folder.path.mkdir()
    folder.describe(Options().spec(), {})
    assert read_study(folder.path).command == said
