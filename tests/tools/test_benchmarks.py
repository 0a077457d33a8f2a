"""Every benchmark script starts, and `make bench` knows it. What it measures decides no test."""

import argparse
import hashlib
import importlib
import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from prometar.config.settings import Config
from prometar.data.datasets.catalog import open_dataset
from prometar.errors import WorkError
from tune.config import StudyConfig

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TIMED = re.search(r"^SCRIPTS := (.*)$", MAKEFILE, flags=re.MULTILINE)[1].split()  # type: ignore[index]
COUNTS = {"kernels"}  # exact, no timing; tests/contracts/training/test_counts.py holds them
ACCURACIES = {
    "objectives",
    "claim",
    "allocation",
    "costs",
    "precision",
    "demo",
    "transfer",
    "verdicts",
    "equal_tuning",
}
HOURS = {"claim", "demo", "equal_tuning"}  # whole studies, of which --show prints the recorded ones
GPU = {"gpu"}  # `make gpu`; tests/unit/test_gpu_benchmark.py reads its parts
KILLS = {"chaos"}  # minutes of killed processes, and no timing: `make chaos`
SHARED = {"common", "counting", "gpu_parts", "gpu_parity", "step_methods"}

SUITE_PIXELS = {
    "flags": "2d1d6dfc7753b2d5ad8b4fddb765b68f189d2cacb7f5e640f41d7cd960cdcabe",
    "leaves": "0b992da72a350dc6de3ad77b3eece99e50bf9335e95404405837df1e37ec4659",
    "shapes": "19959a45eb397b4f11091f177257ce0412ed8973a161b69fd61f527829406954",
    "fabrics": "b00d5514beeb357bdd277e2aeaf981931b1c8fa9e46441df3fa19c4ce975f6c5",
    "plots": "fd024ac85f1cd7a8ff5b9f129fa3f2ebedde9086257c9a8927a38274bd86ad99",
    "terrain": "5eab8efd4b42d425e68c2c9e617f9f7a6d6f03b8f8b3710650cde83fc13ae8eb",
    "sketches": "c990d4ba60964678722cd8780d990bc5e5a6b095b8004d21ba43e8e4cd0183ff",
}
"""SHA-256 over the pixels of image 0 of every class."""


def test_every_script_is_in_the_makefile() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == {*TIMED, *COUNTS, *ACCURACIES, *GPU, *KILLS, *SHARED}


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


def test_quick(run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    # A thread: those of tests beside this one share its cores.
    run("step", "--quick", "--threads", "1", "--json", str(figures))
    assert re.search(r"^\|---\|", capsys.readouterr().out, flags=re.MULTILINE)
    found = json.loads(figures.read_text("utf-8"))
    assert found["machine"]["torch"]
    assert found["rounds"]


def test_a_repeated_comparison_of_methods_measures_nothing_again(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    doc = tmp_path / "doc.md"
    doc.write_text("Before\n<!-- step-methods -->\nold\n<!-- end -->\nAfter\n", "utf-8")
    methods = ("--quick", "--threads", "1", "--dtypes", "fp32", "--methods", "dept-coop")
    run("step", *methods, "--records", str(records))
    [line] = records.read_text("utf-8").splitlines()
    with records.open("a", encoding="utf-8") as file:
        file.write('{"cell": ')
    run("step", *methods, "--records", str(records), "--doc", str(doc))
    assert records.read_text("utf-8") == line + '\n{"cell": '
    assert json.loads(line)["figures"]["ours"]["flops"] > 0
    text = doc.read_text("utf-8")
    assert "| dept-coop | 4 | fp32 |" in text
    assert text.startswith("Before")
    assert text.endswith("After\n")
    assert "old" not in text


@pytest.mark.parametrize("name", sorted({*TIMED, *COUNTS, *ACCURACIES, *KILLS}))
def test_every_script_has_an_option_that_takes_no_hours(
    name: str, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    option = "[--show]" if name in HOURS else "[--quick]"
    assert option in capsys.readouterr().out


def test_make_demo_is_the_first_study_of_the_demo_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    demo = importlib.import_module("demo")

    def parsed(words: list[str]) -> StudyConfig:
        given: dict[str, str] = {}
        settings = []
        for option, value in zip(words[::2], words[1::2], strict=True):
            if option == "--set":
                settings.append(value)
            else:
                given[option.removeprefix("--").replace("-", "_")] = value
        return StudyConfig.of(**{**given, "out": "out", "study": "demo", "settings": settings})

    options = demo.make_demo_options()
    studies = [parsed(demo.command(seed, Path("out"))[1:]) for seed in demo.SEEDS]
    assert studies[0] == parsed(options)
    seeds = [seed for study in studies for seed in (*study.search.seeds, *study.final_seeds)]
    assert len(seeds) == len(set(seeds)) == 10 * (1 + 8)
    assert studies[0].test.epochs == Config(method="prometar").train.epochs, "the published baseline"


def test_settings_that_diverged_are_excluded_from_the_ranking_of_objectives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    objectives = importlib.import_module("objectives")
    names = ("H", "base", "new", *(f"seen {name}" for name in (*objectives.SEEN, objectives.NAMED)))
    good = dict.fromkeys(names, 50.0)
    diverged = {objectives.DIVERGED: "Loss is nan at step 3."}
    found = objectives.figures([[good, good], [good, diverged], [good, good]], "cells")
    assert found[objectives.DIVERGED] == 1
    assert found["tests"] == found["signals"]["divergence"] == [[50.0, 50.0]] * 2
    with pytest.raises(WorkError, match="The default settings diverged on cells"):
        objectives.figures([[diverged, good], [good, good]], "cells")


def test_replays_of_transfer_select_and_enqueue_as_studies_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    transfer = importlib.import_module("transfer")
    # Setting 2 is the best of the first seed, setting 1 the best of both, and setting 4 is not a trial.
    scores = np.array([[50.0, 50.0], [60.0, 60.0], [61.0, 40.0], [30.0, 30.0], [90.0, 90.0]])
    recorded = transfer.Recorded(scores, scores)
    assert transfer.replay_study(recorded, [1, 2, 3], 0, [1]) == [1, 2, 0, 3]
    assert transfer.replay_study(recorded, [3], 0, [1]) == [0, 3], "the default settings are a candidate"
    assert transfer.enqueued_from([[1, 2, 0, 3], [0, 4], [2, 0]]) == [1, 4, 2, 3]


def test_recorded_settings_are_those_that_objectives_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    transfer = importlib.import_module("transfer")
    objectives = importlib.import_module("objectives")
    _, settings = transfer.recorded_settings()
    options = argparse.Namespace(space="default", data_root=None, epochs=5)
    assert len(settings) == 25
    for number in (0, 1, 24):
        trained = objectives.config_of(options, "cells", number, 1)
        assert trained.override(settings[number]) == trained


def test_pixels_of_the_suite_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sets = importlib.import_module("suite").SETS
    for name, expected in SUITE_PIXELS.items():
        digest = hashlib.sha256()
        for classname in sets[name].classnames:
            digest.update(sets[name].render(classname, 0).tobytes())
        assert digest.hexdigest() == expected, name
        assert open_dataset(f"suite:{name}").classnames == sets[name].classnames
