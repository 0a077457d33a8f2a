"""Every benchmark script runs, and `make bench` knows it. What it measures decides no test."""

import importlib
import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from prometar.clip.openclip import FOREIGN_NAMES
from prometar.training.drift import foreign_to
from prometar.training.run import build_run
from tune.space.spaces import load_space

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TIMED = re.search(r"^SCRIPTS := (.*)$", MAKEFILE, flags=re.MULTILINE)[1].split()  # type: ignore[index]
COUNTS = {"kernels", "backbones"}  # exact, no timing; tests/contracts/training/test_counts.py holds them
ACCURACIES = {"embedded", "suite", "tuned", "precision", "objectives", "claim", "top", "learned"}
GPU = {"gpu"}  # `make gpu`; tests/unit/test_gpu_benchmark.py reads its parts
CLUSTERS = {"scale"}  # many processes: `make scale`
KILLS = {"chaos"}  # minutes of killed processes, and no timing: `make chaos`
SHARED = {
    "common",
    "records",
    "scoring",
    "quarters",
    "choosing",
    "clocks",
    "nodes",
    "replay",
    "gpu_parts",
    "claim_plot",
}
PICTURES = {"pictures"}  # of the README, with a browser
SLOW = {"teacher", "text_tower", "evaluation", "study", "sampler", "trial_start"}  # a minute or more


def test_every_script_is_in_the_makefile() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == {*TIMED, *COUNTS, *ACCURACIES, *GPU, *CLUSTERS, *KILLS, *SHARED, *PICTURES}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script with options, in this process; the sides that it compares have theirs."""

    def run(name: str, *options: str) -> None:
        script = str(ROOT / "benchmarks" / f"{name}.py")
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        monkeypatch.setattr(sys, "argv", [script, *options])
        with mock.patch.dict(os.environ):
            runpy.run_path(script, run_name="__main__")

    return run


@pytest.mark.parametrize("name", [name for name in TIMED if name not in SLOW])
def test_quick(
    name: str, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    # A thread: those of tests beside this one share its cores.
    run(name, "--quick", "--threads", "1", "--json", str(figures))
    assert re.search(r"^\|---\|", capsys.readouterr().out, flags=re.MULTILINE)
    found = json.loads(figures.read_text("utf-8"))
    assert found["machine"]["torch"]
    assert found["rounds"]


@pytest.mark.parametrize("name", sorted({*SLOW, *COUNTS, *ACCURACIES, *CLUSTERS, *KILLS}))
def test_help(name: str, run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    assert "--quick" in capsys.readouterr().out


def test_a_search_s_signals_are_measured_with_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    records = importlib.import_module("records")
    run = build_run(records.on_mini({"data.shots": 1}, "textures", epochs=1, seed=1), "drift")
    assert run.foreign is not None
    ours = records.model_of(run, foreign_to(run.dataset, run.backbone.vocabulary))
    assert torch.equal(ours.text.embedded_RTD, run.foreign.model.text.embedded_RTD)
    other = records.on_words_of_imagenet(run)
    assert len(other.frozen_text_VE) == len(records.foreign_names(run.dataset.classnames, FOREIGN_NAMES))


def test_a_trial_is_replayed_also_without_the_settings_of_parts_that_are_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    replay = importlib.import_module("replay")
    assert len(replay.Curves(load_space(replay.SPACE))({"regularizer.kind": "none"})) == replay.EPOCHS
