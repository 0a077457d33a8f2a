"""The command `prometar reproduce`: grids of tiny runs, some of them interrupted and resumed."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from prometar.cli.app import main
from prometar.training.run_result import read_result
from tests.support.copies import write_copy

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ["--backbone", "mini", "--epochs", "1", "--max-concurrent", "1", "--cpus-per-run", "0.5"]
"""Options of short runs of a small model, one at a time."""


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with small copies of two benchmarks. Do not write into it."""
    root = tmp_path_factory.mktemp("copies")
    for name in ("dtd", "eurosat"):
        write_copy(name, root)
    return root


def reproduce(protocol: str, root: Path, out: Path, *args: str) -> int:
    """Run the grid of a protocol in this process. Return the exit status.

    Args:
        protocol: Name of the protocol.
        root: Data root.
        out: Folder of the grid.
        args: More options of `prometar reproduce`.
    """
    options = ["--protocol", protocol, "--data-root", str(root), "--out", str(out), *TINY]
    return main(["reproduce", *options, *args])


def table(out: Path, protocol: str) -> dict[tuple[str, str, str], dict[str, str]]:
    """Return the rows of a grid's table.csv by dataset, method and column."""
    with (out / protocol / "table.csv").open() as file:
        return {(row["dataset"], row["method"], row["column"]): row for row in csv.DictReader(file)}


@dataclass(frozen=True)
class SmallGrid:
    """A grid of the methods zero-shot and coop.

    Args:
        protocol: Name of the protocol.
        args: Datasets, seeds and shots.
        num_runs: Number of runs. Zero-shot has one per dataset, because nothing depends on seed and shots.
        num_coop_runs: Number of runs of coop, by dataset and column of the table.
    """

    protocol: str
    args: list[str]
    num_runs: int
    num_coop_runs: dict[tuple[str, str], int]


BASE_TO_NEW = SmallGrid(
    "base-to-new",
    ["--datasets", "dtd", "eurosat", "--seeds", "1", "2", "--shots", "1"],
    num_runs=6,
    num_coop_runs={("dtd", "H"): 2, ("average", "H"): 2},
)
FEW_SHOT = SmallGrid(
    "few-shot",
    ["--datasets", "dtd", "--seeds", "1", "2", "--shots", "1", "8"],
    num_runs=5,
    num_coop_runs={("dtd", "1 shot"): 2, ("dtd", "8 shots"): 2},
)


@pytest.mark.parametrize("grid", [BASE_TO_NEW, FEW_SHOT], ids=lambda grid: grid.protocol)
def test_a_protocol_from_end_to_end(
    grid: SmallGrid, copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    files_before = sorted(copies.rglob("*"))
    args = [*grid.args, "--methods", "zero-shot", "coop"]

    # The first command runs all.
    assert reproduce(grid.protocol, copies, tmp_path, *args) == 0
    first_output = capsys.readouterr().out
    assert f"0 of {grid.num_runs} runs done" in first_output
    assert f"{grid.num_runs} of {grid.num_runs} done" in first_output
    assert len(list(tmp_path.glob("runs/*/result.json"))) == grid.num_runs

    # The table has a row for each method, dataset and column.
    rows = table(tmp_path, grid.protocol)
    for (dataset, column), num_runs in grid.num_coop_runs.items():
        assert rows[dataset, "coop", column]["n"] == str(num_runs)
        assert rows[dataset, "zero-shot", column]["n"] == "1"
        assert 0 <= float(rows[dataset, "coop", column]["mean"]) <= 100

    # The second command runs nothing, and prints the same table after its first line.
    assert reproduce(grid.protocol, copies, tmp_path, *args) == 0
    first_line, table_text = capsys.readouterr().out.split("\n", maxsplit=1)
    assert f"{grid.num_runs} of {grid.num_runs} runs done" in first_line
    assert first_output.endswith(table_text)
    assert table(tmp_path, grid.protocol) == rows

    # `prometar compare` reads the runs.
    if grid.protocol == "base-to-new":
        assert main(["compare", str(tmp_path), "--reference", "coop"]) == 0
        assert "a method minus coop in points" in capsys.readouterr().out

    assert sorted(copies.rglob("*")) == files_before, "nothing is written into the data folder"


def test_a_missing_dataset_and_a_corrupt_image_are_named_and_other_datasets_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    root = tmp_path / "data"
    out = tmp_path / "out"
    for name in ("dtd", "eurosat"):
        write_copy(name, root)
    (root / "dtd" / "images" / "tests" / "0_0.jpg").write_bytes(b"no image")
    args = ["--datasets", "dtd", "eurosat", "ucf101", "--methods", "zero-shot", "--shots", "1"]

    # The image of dtd is corrupt, and ucf101 is missing. Only eurosat is run.
    assert reproduce("base-to-new", root, out, *args) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: Some runs are missing (see above).")
    assert f"Skipping ucf101: Dataset folder {root / 'ucf101'} is missing" in printed.out
    assert "dtd, zero-shot, 1 shot, seed 1 failed: " in printed.out
    assert "tests/0_0.jpg" in printed.out
    datasets = [dataset for dataset, _, column in table(out, "base-to-new") if column == "H"]
    assert datasets == ["eurosat"]
    table_text = (out / "base-to-new" / "table.md").read_text()
    assert "ucf101 was skipped" in table_text.replace("\\", "")  # Markdown escapes some characters

    # The same command runs ucf101, which is there now, and tries dtd again.
    write_copy("ucf101", root)
    assert reproduce("base-to-new", root, out, *args) == 1
    printed = capsys.readouterr()
    assert "1 of 3 runs done" in printed.out
    assert "dtd, zero-shot, 1 shot, seed 1 failed: " in printed.out
    assert table(out, "base-to-new")["ucf101", "zero-shot", "H"]["n"] == "1"


def test_further_targets_are_tested_without_training_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    """Targets are the datasets on which a run of another dataset is tested."""
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

    # The second command has another target.
    assert reproduce("cross-dataset", root, out, *args, "eurosat") == 0
    assert "0 of 1 runs done" in capsys.readouterr().out
    assert (folder / "checkpoint.safetensors").read_bytes() == trained

    # `prometar evaluate` finds the accuracy of the table.
    accuracy = table(out, "cross-dataset")["eurosat", "coop", "accuracy"]["mean"]
    assert main(["evaluate", str(folder), "--dataset", "eurosat", "--data-root", str(root)]) == 0
    assert f"on eurosat: {float(accuracy):.2f} %\n" in capsys.readouterr().out


def start_driver(out: Path, address: str, *args: str) -> "subprocess.Popen[str]":
    """Start `prometar reproduce` in a process. Return the process once a run has a checkpoint."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "prometar", "reproduce", "--out", str(out), "--address", address, *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("runs/*/checkpoint.safetensors")):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return driver


def test_a_driver_that_was_killed_in_a_run_is_resumed_with_the_same_results(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: str
) -> None:
    killed = tmp_path / "killed"
    undisturbed = tmp_path / "undisturbed"
    args = ["--datasets", "dtd", "--methods", "coop", "--seeds", "1", "--shots", "2", "--epochs", "5"]
    driver = start_driver(killed, ray_local, "--data-root", str(copies), *TINY, *args)

    # While the driver exists, no other process may use its folder. A stopped process cannot end early.
    os.kill(driver.pid, signal.SIGSTOP)
    assert reproduce("base-to-new", copies, killed, *args) == 1
    assert f"the output folder {killed} is in use by another process" in capsys.readouterr().err
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()

    # The same command resumes the run. Its prompts equal those of a grid that nobody disturbs.
    assert reproduce("base-to-new", copies, killed, *args) == 0
    assert reproduce("base-to-new", copies, undisturbed, *args) == 0
    assert table(killed, "base-to-new") == table(undisturbed, "base-to-new")
    checkpoint = "runs/final-dtd-2shots-coop-seed1/checkpoint.safetensors"
    resumed_state = load_file(killed / checkpoint)
    undisturbed_state = load_file(undisturbed / checkpoint)
    assert resumed_state.keys() == undisturbed_state.keys()
    for name, tensor in resumed_state.items():
        assert tensor.equal(undisturbed_state[name]), name

    # Another number of epochs is refused.
    *same_args, _ = args
    assert reproduce("base-to-new", copies, killed, *same_args, "6") == 2
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


@pytest.mark.parametrize(
    ("args", "message"), WRONG, ids=[" ".join(args)[:50] or "no options" for args, _ in WRONG]
)
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


def test_an_output_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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

    # With --predictions, the command writes a table for each dataset, and changes nothing else.
    assert reproduce("cross-dataset", copies, tmp_path, *args, "--predictions") == 0
    capsys.readouterr()
    assert (folder / "result.json").read_bytes() == result
    assert {path.name for path in folder.glob("*.parquet")} == {
        "predictions.parquet",
        "predictions-eurosat.parquet",
    }

    # The table agrees with the accuracy of the run.
    rows = pq.read_table(folder / "predictions-eurosat.parquet").to_pylist()
    is_correct = [row["predictions"][0] == row["classname"] for row in rows]
    accuracy, _ = read_result(folder).tests["eurosat"]
    assert 100 * sum(is_correct) / len(is_correct) == pytest.approx(accuracy)

    # The next command has nothing to do.
    assert reproduce("cross-dataset", copies, tmp_path, *args, "--predictions") == 0
    assert "1 of 1 runs done" in capsys.readouterr().out
