"""Grids as values: which runs a request means, and what its folder contains."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.config.settings import dump_config
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.errors import UserError, one_line
from prometar.reproduce.grid import (
    GridResult,
    GridRun,
    TargetTest,
    read_grid_result,
    require_same,
    write_tests,
)
from prometar.reproduce.protocols import PROTOCOLS
from tests.support.reproductions import UNTRAINED, ask, result_of
from tests.support.texts import ANY


@given(
    protocol=st.sampled_from(sorted(PROTOCOLS)),
    methods=st.lists(st.sampled_from(["zero-shot", "coop", "maple", "prometar"]), min_size=1, unique=True),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True),
    num_missing=st.integers(0, 3),
)
def test_every_combination_is_one_run(
    protocol: str, methods: list[str], seeds: list[int], num_missing: int
) -> None:
    grid = ask(protocol, tuple(methods), seeds=tuple(seeds))
    missing = grid.datasets[:num_missing]
    runs = grid.runs(UNTRAINED, missing)
    assert len({run.name for run in runs}) == len(runs), "each has its own folder"
    trained_on = [d for d in grid.trained_on if d not in missing]
    per_method = {m: 1 if m in UNTRAINED else len(seeds) * len(grid.shots) for m in methods}
    assert len(runs) == len(trained_on) * sum(per_method.values())
    targets = set(grid.datasets) - set(missing) if grid.source else set()
    assert all(set(run.targets) == targets for run in runs)


def test_the_protocols_are_those_of_the_field() -> None:
    assert len(PROTOCOLS["base-to-new"].datasets) == 11
    assert PROTOCOLS["cross-dataset"].source == "imagenet"
    assert set(PROTOCOLS["cross-dataset"].datasets) == set(PROTOCOLS["base-to-new"].datasets) - {"imagenet"}
    variants = PROTOCOLS["domain-generalisation"].datasets
    assert variants == ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
    assert set(variants) | set(PROTOCOLS["few-shot"].datasets) == set(BENCHMARKS)
    assert PROTOCOLS["few-shot"].shots == (1, 2, 4, 8, 16)


def test_protocols_with_one_source_share_its_runs() -> None:
    methods = ("zero-shot", "coop", "maple", "promptsrc", "prometar")
    cross, domain = (ask(p, methods).runs(UNTRAINED) for p in ("cross-dataset", "domain-generalisation"))
    assert [(run.name, run.config) for run in cross] == [(run.name, run.config) for run in domain]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shots": (1, 2)}, "base-to-new takes one number of --shots"),
        ({"datasets": ("dtx",)}, "dtx"),
        ({"compared_to": "ivlp"}, "--compare-to must be one of zero-shot, coop, got ivlp"),
    ],
)
def test_wrong_requests(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask("base-to-new", **wrong)


def run_of(**settings: Any) -> GridRun:
    grid = ask("cross-dataset", ("maple",), seeds=(1,), datasets=("dtd", "eurosat"), settings=settings)
    return grid.runs(UNTRAINED)[0]


def write(folder: Path, run: GridRun, *targets: str, data: str = "") -> GridResult:
    """Write a finished run's folder, and read it."""
    (folder / run.name).mkdir(parents=True, exist_ok=True)
    (folder / run.name / "config.yaml").write_text(dump_config(run.config))
    result_of({"all": 50.0}, data).write(folder / run.name)
    write_tests(folder / run.name, {name: TargetTest(accuracy=40.0, data=f"of {name}") for name in targets})
    return read_grid_result(run, folder / run.name)


def test_a_result_is_finished_with_its_targets(tmp_path: Path) -> None:
    run = run_of()
    assert not read_grid_result(run, tmp_path / run.name).finished
    assert not write(tmp_path, run, "dtd").finished
    found = write(tmp_path, run, "dtd", "eurosat")
    assert found.finished
    assert (found.accuracies, found.tests["dtd"].accuracy) == ({"all": 50.0}, 40.0)


@pytest.mark.parametrize("name", ["result.json", "tests.json"])
@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000, '{"dtd": {"accuracy": 400, "data": ""}}'])
def test_a_corrupt_file_counts_as_missing(name: str, text: str, tmp_path: Path) -> None:
    run = run_of()
    write(tmp_path, run, "dtd", "eurosat")
    (tmp_path / run.name / name).write_text(text)
    assert not read_grid_result(run, tmp_path / run.name).finished


def test_runs_with_other_settings_or_splits_are_rejected(tmp_path: Path) -> None:
    run = run_of()
    found = write(tmp_path, run, "dtd", "eurosat", data="of imagenet")
    digests = {name: f"of {name}" for name in ("imagenet", "dtd")}
    require_same([found], tmp_path, digests)
    for name in digests:
        with pytest.raises(UserError, match=f"another split of {name}"):
            require_same([found], tmp_path, {**digests, name: "other"})
    changed = GridResult(run_of(**{"optim.lr": 0.1}))
    with pytest.raises(UserError, match=r"other settings \(optim\.lr: 0\.0026 then, 0\.1 now\)"):
        require_same([changed], tmp_path, {})


@given(st.text(ANY))
def test_a_message_is_one_printable_line(text: str) -> None:
    line = one_line(text)
    assert line == "" or line.isprintable()
    assert line == one_line(line)
