"""Benchmark scripts: each one belongs to a group and starts. Their measurements are not tested.

Also tested are parts that results depend on: the options of the demo, replays, and rendered pixels.
"""

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
from typing import Any
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
"""Scripts that `make bench` runs."""
COUNTS = {"kernels"}
"""Scripts that count kernels. tests/contracts/training/test_counts.py compares the counts exactly."""
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
"""Scripts that measure accuracies and verdicts."""
HOURS = {"claim", "demo", "equal_tuning"}
"""Scripts that run whole studies, for hours. Their option --show prints the recorded results."""
GPU = {"gpu"}
"""Scripts that `make gpu` runs. tests/tools/test_gpu_benchmark.py tests them."""
KILLS = {"chaos"}
"""Scripts that kill processes of studies for minutes, without timing: `make chaos`."""
SHARED = {"common", "counting", "gpu_parts", "gpu_parity", "step_methods"}
"""Modules that scripts import."""

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


def test_every_script_belongs_to_a_group() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == {*TIMED, *COUNTS, *ACCURACIES, *GPU, *KILLS, *SHARED}


def run(name: str, *options: str) -> None:
    """Run a script with options in this process.

    Scripts may start further processes, one per compared implementation.
    """
    script = str(ROOT / "benchmarks" / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.syspath_prepend(ROOT / "benchmarks")
        patch.setattr(sys, "argv", [script, *options])
        runpy.run_path(script, run_name="__main__")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Function that imports a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_step_quick_prints_a_table_and_writes_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    # One thread, because tests that run in parallel share the cores.
    run("step", "--quick", "--threads", "1", "--json", str(figures))
    assert re.search(r"^\|---\|", capsys.readouterr().out, flags=re.MULTILINE)
    found = json.loads(figures.read_text("utf-8"))
    assert found["machine"]["torch"]
    assert found["rounds"]


def compare_methods(*options: str) -> None:
    """Compare the steps of one method, quickly."""
    run("step", "--quick", "--threads", "1", "--dtypes", "fp32", "--methods", "dept-coop", *options)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The line that `compare_methods` records."""
    records = tmp_path_factory.mktemp("records") / "records.jsonl"
    compare_methods("--records", str(records))
    [line] = records.read_text("utf-8").splitlines()
    return line


@pytest.fixture
def records(record: str, tmp_path: Path) -> Path:
    """A file of records whose last line is as if the command had been killed while writing."""
    path = tmp_path / "records.jsonl"
    path.write_text(f'{record}\n{{"cell": ', "utf-8")
    return path


def test_a_comparison_of_methods_counts_operations(record: str) -> None:
    assert json.loads(record)["figures"]["ours"]["flops"] > 0


def test_a_repeated_comparison_of_methods_measures_nothing_again(records: Path) -> None:
    before = records.read_text("utf-8")
    compare_methods("--records", str(records))
    assert records.read_text("utf-8") == before


def test_a_comparison_of_methods_replaces_its_block_of_a_document(records: Path, tmp_path: Path) -> None:
    doc = tmp_path / "doc.md"
    doc.write_text("Before\n<!-- step-methods -->\nold\n<!-- end -->\nAfter\n", "utf-8")
    compare_methods("--records", str(records), "--doc", str(doc))
    text = doc.read_text("utf-8")
    assert "| dept-coop | 4 | fp32 |" in text
    assert text.startswith("Before")
    assert text.endswith("After\n")
    assert "old" not in text


@pytest.mark.parametrize("name", sorted({*TIMED, *COUNTS, *ACCURACIES, *KILLS}))
def test_every_script_has_a_quick_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts that run whole studies have --show instead."""
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    option = "[--show]" if name in HOURS else "[--quick]"
    assert option in capsys.readouterr().out


def config_of(words: list[str]) -> StudyConfig:
    """Return the study of a command's options, without its name and folder."""
    given: dict[str, str] = {}
    settings = []
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--set":
            settings.append(value)
        else:
            given[option.removeprefix("--").replace("-", "_")] = value
    return StudyConfig.of(**{**given, "out": "out", "study": "demo", "settings": settings})


def demo_studies(demo: Any) -> list[StudyConfig]:
    """Return the studies that benchmarks/demo.py runs."""
    commands = [demo.command(seed, Path("out")) for seed in demo.SEEDS]
    return [config_of(options) for _, *options in commands]


def test_make_demo_is_the_first_study_of_the_demo_benchmark(load: Callable[[str], Any]) -> None:
    demo = load("demo")
    assert demo_studies(demo)[0] == config_of(demo.make_demo_options())


def test_studies_of_the_demo_benchmark_share_no_seed(load: Callable[[str], Any]) -> None:
    num_studies = 10
    search_seeds = 1
    final_seeds = 8
    seeds: list[int] = []
    for study in demo_studies(load("demo")):
        seeds += study.search.seeds
        seeds += study.final_seeds
    assert len(seeds) == num_studies * (search_seeds + final_seeds)
    assert len(set(seeds)) == len(seeds)


def test_the_baseline_of_the_demo_has_the_published_number_of_epochs(load: Callable[[str], Any]) -> None:
    study = demo_studies(load("demo"))[0]
    assert study.test.epochs == Config(method="prometar").train.epochs


def records_of(objectives: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the record of a run that finished, and of one that diverged, as benchmarks/objectives.py has."""
    names = ["H", "base", "new", f"seen {objectives.NAMED}"]
    names += [f"seen {name}" for name in objectives.SEEN]
    finished = dict.fromkeys(names, 50.0)
    diverged = {objectives.DIVERGED: "Loss is nan at step 3."}
    return finished, diverged


def test_settings_that_diverged_are_excluded_from_the_ranking_of_objectives(
    load: Callable[[str], Any],
) -> None:
    objectives = load("objectives")
    finished, diverged = records_of(objectives)
    # A row per settings, a column per seed.
    records = [[finished, finished], [finished, diverged], [finished, finished]]
    found = objectives.figures(records, "cells")
    assert found[objectives.DIVERGED] == 1
    without_diverged = [[50.0, 50.0], [50.0, 50.0]]
    assert found["tests"] == without_diverged
    assert found["signals"]["divergence"] == without_diverged


def test_no_objectives_are_ranked_on_a_dataset_where_the_default_settings_diverged(
    load: Callable[[str], Any],
) -> None:
    objectives = load("objectives")
    finished, diverged = records_of(objectives)
    with pytest.raises(WorkError, match="The default settings diverged on cells"):
        objectives.figures([[diverged, finished], [finished, finished]], "cells")


def test_a_replayed_study_ranks_its_candidates_by_the_mean_over_all_seeds(
    load: Callable[[str], Any],
) -> None:
    transfer = load("transfer")
    # A row per settings, a column per seed. Settings 0 are the default. Settings 2 are the best of seed 0,
    # settings 1 are the best of both seeds, and settings 4 are not tried.
    scores = np.array([[50.0, 50.0], [60.0, 60.0], [61.0, 40.0], [30.0, 30.0], [90.0, 90.0]])
    recorded = transfer.Recorded(scores=scores, tests=scores)
    candidates = transfer.replay_study(recorded, [1, 2, 3], score_seed=0, confirmation_seeds=[1])
    assert candidates == [1, 2, 0, 3]
    # The default settings are a candidate of every study.
    candidates = transfer.replay_study(recorded, [3], score_seed=0, confirmation_seeds=[1])
    assert candidates == [0, 3]


def test_settings_are_enqueued_by_rank_and_without_the_default_settings(
    load: Callable[[str], Any],
) -> None:
    transfer = load("transfer")
    # First the best settings of each study, then the second best ones. Settings 0 are the default.
    assert transfer.enqueued_from([[1, 2, 0, 3], [0, 4], [2, 0]]) == [1, 4, 2, 3]


def test_recorded_settings_are_those_that_the_script_objectives_trains(load: Callable[[str], Any]) -> None:
    _, settings = load("transfer").recorded_settings()
    objectives = load("objectives")
    options = argparse.Namespace(space="default", data_root=None, epochs=5)
    assert len(settings) == 25
    # The default settings, the first sample and the last one.
    for number in (0, 1, 24):
        trained = objectives.config_of(options, "cells", number, 1)
        # Overriding changes nothing, because the run has these settings.
        assert trained.override(settings[number]) == trained


def test_pixels_of_the_suite_are_pinned(load: Callable[[str], Any]) -> None:
    sets = load("suite").SETS
    for name, expected in SUITE_PIXELS.items():
        digest = hashlib.sha256()
        for classname in sets[name].classnames:
            digest.update(sets[name].render(classname, 0).tobytes())
        assert digest.hexdigest() == expected, name
        assert open_dataset(f"suite:{name}").classnames == sets[name].classnames
