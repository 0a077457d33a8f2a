"""`prometar reproduce` through the command line: tiny runs of each protocol, interrupted and resumed."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from prometar.cli.app import main
from prometar.training.run_result import read_result
from tests.support.copies import write_copy

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ["--backbone", "mini", "--epochs", "1", "--max-concurrent", "1", "--cpus-per-run", "0.5"]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with small copies of two benchmarks. Do not write into it."""
    root = tmp_path_factory.mktemp("copies")
    for name in ("dtd", "eurosat"):
        write_copy(name, root)
    return root


def reproduce(protocol: str, root: Path, out: Path, *args: str) -> int:
    return main(
        ["reproduce", "--protocol", protocol, "--data-root", str(root), "--out", str(out), *TINY, *args]
    )


def table(out: Path, protocol: str) -> dict[tuple[str, str, str], dict[str, str]]:
    with (out / protocol / "table.csv").open() as file:
        return {(r["dataset"], r["method"], r["column"]): r for r in csv.DictReader(file)}


RUNS = [
    (
        "base-to-new",
        ["--datasets", "dtd", "eurosat", "--seeds", "1", "2", "--shots", "1"],
        6,
        {("dtd", "H"): 2, ("average", "H"): 2},
    ),
    (
        "few-shot",
        ["--datasets", "dtd", "--seeds", "1", "2", "--shots", "1", "8"],
        5,
        {("dtd", "1 shot"): 2, ("dtd", "8 shots"): 2},
    ),
]


@pytest.mark.parametrize(("protocol", "args", "num_runs", "counts"), RUNS, ids=[run[0] for run in RUNS])
def test_a_protocol_from_end_to_end(
    protocol: str,
    args: list[str],
    num_runs: int,
    counts: dict[tuple[str, str], int],
    copies: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ray_local: None,
) -> None:
    before = sorted(copies.rglob("*"))
    args = [*args, "--methods", "zero-shot", "coop"]
    assert reproduce(protocol, copies, tmp_path, *args) == 0
    first = capsys.readouterr()
    assert f"0 of {num_runs} runs done" in first.out
    assert f"{num_runs} of {num_runs} done" in first.out
    assert len(list(tmp_path.glob("runs/*/result.json"))) == num_runs
    found = table(tmp_path, protocol)
    for (dataset, column), n in counts.items():
        assert found[dataset, "coop", column]["n"] == str(n)
        assert found[dataset, "zero-shot", column]["n"] == "1"
        assert 0 <= float(found[dataset, "coop", column]["mean"]) <= 100
    assert reproduce(protocol, copies, tmp_path, *args) == 0
    again = capsys.readouterr().out
    assert f"{num_runs} of {num_runs} runs done" in again
    assert first.out.endswith("".join(again.splitlines(keepends=True)[1:])), "the same table"
    assert table(tmp_path, protocol) == found
    if protocol == "base-to-new":
        assert main(["compare", str(tmp_path), "--reference", "coop"]) == 0
        assert "a method minus coop in points" in capsys.readouterr().out
    assert sorted(copies.rglob("*")) == before, "nothing is written into the data folder"


def test_problems_are_named_and_the_rest_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    root = tmp_path / "data"
    out = tmp_path / "out"
    for name in ("dtd", "eurosat"):
        write_copy(name, root)
    (root / "dtd" / "images" / "tests" / "0_0.jpg").write_bytes(b"no image")
    args = ["--datasets", "dtd", "eurosat", "ucf101", "--methods", "zero-shot", "--shots", "1"]
    assert reproduce("base-to-new", root, out, *args) == 1
    text = capsys.readouterr()
    assert text.err.startswith("error: Some runs are missing (see above).")
    assert f"Skipping ucf101: Dataset folder {root / 'ucf101'} is missing" in text.out
    assert "dtd, zero-shot, 1 shot, seed 1 failed: " in text.out
    assert "tests/0_0.jpg" in text.out
    rows = table(out, "base-to-new")
    assert [dataset for dataset, _, column in rows if column == "H"] == ["eurosat"]
    assert "ucf101 was skipped" in (out / "base-to-new" / "table.md").read_text().replace("\\", "")
    write_copy("ucf101", root)
    assert reproduce("base-to-new", root, out, *args) == 1
    text = capsys.readouterr()
    assert "1 of 3 runs done" in text.out
    assert "dtd, zero-shot, 1 shot, seed 1 failed: " in text.out, "it is tried again"
    assert table(out, "base-to-new")["ucf101", "zero-shot", "H"]["n"] == "1"


def test_further_targets_are_tested_without_training_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    root = tmp_path / "data"
    out = tmp_path / "out"
    for name in ("dtd", "imagenetv2", "eurosat"):
        write_copy(name, root)
    args = ["--source", "dtd", "--methods", "coop", "--seeds", "1", "--shots", "2"]
    args += ["--datasets", "imagenetv2"]
    assert reproduce("cross-dataset", root, out, *args) == 0
    assert {dataset for dataset, _, _ in table(out, "cross-dataset")} == {"dtd", "imagenetv2"}
    (folder,) = out.glob("runs/*")
    trained = (folder / "checkpoint.safetensors").read_bytes()
    assert reproduce("cross-dataset", root, out, *args, "eurosat") == 0
    assert "0 of 1 runs done" in capsys.readouterr().out
    assert (folder / "checkpoint.safetensors").read_bytes() == trained
    accuracy = table(out, "cross-dataset")["eurosat", "coop", "accuracy"]["mean"]
    assert main(["evaluate", str(folder), "--dataset", "eurosat", "--data-root", str(root)]) == 0
    assert f"on eurosat: {float(accuracy):.2f} %\n" in capsys.readouterr().out


def test_a_killed_driver_is_resumed(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: str
) -> None:
    """Killed with -9 in the middle of a run: the same command ends where an uninterrupted one does."""
    killed = tmp_path / "killed"
    whole = tmp_path / "whole"
    args = ["--datasets", "dtd", "--methods", "coop", "--seeds", "1", "--shots", "2", "--epochs", "5"]
    command = [sys.executable, "-m", "prometar", "reproduce", "--data-root", str(copies), *TINY, *args]
    driver = subprocess.Popen(
        [*command, "--out", str(killed), "--address", ray_local],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = killed / "runs" / "final-dtd-2shots-coop-seed1"
    deadline = time.monotonic() + 300
    while not (run / "checkpoint.safetensors").exists():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGSTOP)  # two at once: while it is certainly there
    assert reproduce("base-to-new", copies, killed, *args) == 1
    assert f"the output folder {killed} is in use by another process" in capsys.readouterr().err
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert reproduce("base-to-new", copies, killed, *args) == 0
    assert reproduce("base-to-new", copies, whole, *args) == 0
    assert table(killed, "base-to-new") == table(whole, "base-to-new")
    ours, theirs = (load_file(out / "runs" / run.name / "checkpoint.safetensors") for out in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    refused = [*args[:-1], "6"]
    assert reproduce("base-to-new", copies, killed, *refused) == 2
    assert "has other settings (train.epochs: 5 then, 6 now)" in capsys.readouterr().err


WRONG = [
    (["--protocol", "zero"], "'zero' is not one of 'base-to-new', 'cross-dataset', "),
    (["--methods", "nope"], "Unknown method 'nope'. Choose one of zero-shot, "),
    (["--datasets", "nope"], "Unknown dataset 'nope'. Use one of imagenet, "),
    (["--shots", "0"], "--shots must be at least 1, got 0."),
    (["--protocol", "few-shot", "--source", "imagenet"], "--source does not apply to --protocol few-shot"),
    (["--shots", "1", "2"], "--protocol base-to-new accepts one value of --shots, got 2"),
    (["--set", "train.seed=3"], "--set train.seed is not allowed. Use --seeds"),
    (["--methods", "examples/mine.yaml", "./examples/mine.yaml"], "files must have different names"),
    (["--set", "optim.rate=1"], "Unknown setting 'optim.rate'"),
    (["--methods", "coop", "--set", "inner.lr=1"], "--set inner.lr does not apply to these methods."),
    (["--max-concurrent", "0"], "--max-concurrent must be at least 1, got 0."),
    ([], "is not a folder. Pass --data-root DIR, the folder that contains imagenet"),
    (["--datasets", "textures", "--set", "modulator.reduction=7"], "modulator.reduction 7 does not divide"),
]


@pytest.mark.parametrize(("args", "message"), WRONG, ids=[" ".join(a)[:50] or "nothing" for a, _ in WRONG])
def test_a_grid_with_invalid_options_is_refused_in_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "--out", str(tmp_path / "out"), *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists(), "a refused grid leaves nothing behind"


def test_a_run_that_fits_on_no_machine_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    args = ["--datasets", "textures", "--out", str(tmp_path / "grid"), "--cpus-per-run", "64"]
    assert main(["reproduce", *args]) == 2
    said = capsys.readouterr()
    assert "A run needs 64 CPU on one machine, but Ray's machines have at most 2 CPU" in said.err
    assert not said.out
    assert not (tmp_path / "grid").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("in the way")
    assert main(["reproduce", "--datasets", "textures", "--out", str(tmp_path / "out")]) == 1
    assert f"cannot write {tmp_path / 'out'}: File exists" in capsys.readouterr().err


def test_predictions_are_added_to_finished_runs(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    args = ["--source", "dtd", "--datasets", "eurosat", "--methods", "coop", "--seeds", "1", "--shots", "1"]
    assert reproduce("cross-dataset", copies, tmp_path, *args) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    result = (folder / "result.json").read_bytes()
    assert not list(folder.glob("*.parquet"))
    assert reproduce("cross-dataset", copies, tmp_path, *args, "--predictions") == 0
    capsys.readouterr()
    assert (folder / "result.json").read_bytes() == result
    assert {path.name for path in folder.glob("*.parquet")} == {
        "predictions.parquet",
        "predictions-eurosat.parquet",
    }
    rows = pq.read_table(folder / "predictions-eurosat.parquet").to_pylist()
    correct = [row["predictions"][0] == row["classname"] for row in rows]
    accuracy, _ = read_result(folder).tests["eurosat"]
    assert 100 * sum(correct) / len(correct) == pytest.approx(accuracy)
    assert reproduce("cross-dataset", copies, tmp_path, *args, "--predictions") == 0
    assert "1 of 1 runs done" in capsys.readouterr().out
