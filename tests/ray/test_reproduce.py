"""`prometar reproduce` through the command line: tiny runs by each protocol, interrupted and mended."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prometar.cli.app import main
from prometar.cli.console import INTERRUPTED
from prometar.config.settings import Config, configure
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.layouts import SplitFile
from prometar.errors import StorageError
from prometar.io.lock import locked
from prometar.reproduce import run
from prometar.reproduce.check import Found, look
from prometar.reproduce.grid import Asked, Entry, Job
from prometar.reproduce.protocols import PROTOCOLS
from prometar.reproduce.worker import Worker
from tests.support.copies import write_copy

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ["--backbone", "mini", "--epochs", "1", "--max-concurrent", "1", "--cpus-per-run", "0.5"]
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with small copies of a few benchmarks. Do not write into it."""
    root = tmp_path_factory.mktemp("copies")
    for name in ("dtd", "eurosat", "imagenet", *VARIANTS):
        write_copy(name, root)
    return root


def reproduce(protocol: str, root: Path, out: Path, *args: str) -> int:
    return main(
        ["reproduce", "--protocol", protocol, "--data-root", str(root), "--out", str(out), *TINY, *args]
    )


def table(out: Path, protocol: str) -> dict[tuple[str, str, str], dict[str, str]]:
    with (out / protocol / "table.csv").open() as file:
        return {(r["dataset"], r["method"], r["column"]): r for r in csv.DictReader(file)}


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(out.glob("runs/*/record.json"))}


RUNS = [
    ("base-to-new", ["--datasets", "dtd", "eurosat", "--seeds", "1", "2", "--shots", "1"], 6,
     {("dtd", "H"): 2, ("average", "H"): 2}),
    ("domain-generalisation", ["--seeds", "1", "--shots", "1"], 2,
     {(name, "accuracy"): 1 for name in ("imagenet", *VARIANTS, "average")}),
    ("few-shot", ["--datasets", "dtd", "--seeds", "1", "2", "--shots", "1", "8"], 5,
     {("dtd", "1 shot"): 2, ("dtd", "8 shots"): 2}),
]  # fmt: skip


@pytest.mark.parametrize(("protocol", "args", "num_runs", "figures"), RUNS, ids=[run[0] for run in RUNS])
def test_a_protocol_from_end_to_end(
    protocol: str, args: list[str], num_runs: int, figures: dict[tuple[str, str], int],
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None,
) -> None:  # fmt: skip
    before = sorted(copies.rglob("*"))
    args = [*args, "--methods", "zero-shot", "coop"]
    assert reproduce(protocol, copies, tmp_path, *args) == 0
    first = capsys.readouterr()
    assert f"{num_runs} runs, 0 are done" in first.out
    assert first.out.count("dtd has at most 4 training images a class") == 2 * (protocol == "few-shot")
    assert "about 1.1 GiB of memory, of 2 CPUs" in first.out
    assert f"{num_runs} of {num_runs} done" in first.out
    assert len(records(tmp_path)) == num_runs
    found = table(tmp_path, protocol)
    for (dataset, column), n in figures.items():
        assert found[dataset, "coop", column]["n"] == str(n)
        assert found[dataset, "zero-shot", column]["n"] == "1"
        assert 0 <= float(found[dataset, "coop", column]["mean"]) <= 100
    assert reproduce(protocol, copies, tmp_path, *args) == 0
    again = capsys.readouterr().out
    assert f"{num_runs} runs, {num_runs} are done" in again
    assert again.splitlines()[3:] == first.out.splitlines()[3 + num_runs + 1 :], "the same table"
    assert table(tmp_path, protocol) == found
    assert sorted(copies.rglob("*")) == before, "nothing is written into the data folder"


HOSTILE = "a|b [31m & 100% $x_1$ <script> \\end{tabular}"


def write_hostile(name: str, root: Path) -> None:
    """A copy whose first class has a hostile name and no test images."""
    layout = BENCHMARKS[name].layout
    assert isinstance(layout, SplitFile)
    path = write_copy(name, root) / layout.file
    split = json.loads(path.read_text())
    renamed = {
        part: [[image, label, known if label else HOSTILE] for image, label, known in rows]
        for part, rows in split.items()
    }
    renamed["test"] = [row for row in renamed["test"] if row[1] != 0]
    path.write_text(json.dumps(renamed))


def test_what_could_not_be_run_is_said_and_made_up_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    for name in ("dtd", "eurosat"):
        write_copy(name, root)
    write_hostile("oxford_pets", root)
    broken = root / "dtd" / "images" / "tests" / "0_0.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    names = ["dtd", "eurosat", "oxford_pets", "ucf101"]
    args = ["--datasets", *names, "--methods", "zero-shot", "--shots", "1"]
    assert reproduce("base-to-new", root, out, *args) == 1
    text = capsys.readouterr()
    assert text.err == ("error: 3 of what was asked could not be run, see above; the same command goes on\n")
    assert f"cannot be used now: data set folder {root / 'ucf101'} is missing" in text.out
    assert "dtd, zero-shot, 1 shot, seed 1: failed: " in text.out
    assert "tests/0_0.jpg" in records(out)["final-dtd-1shots-zero-shot-seed1"]["reason"]
    rows = table(out, "base-to-new")
    assert [rows[name, "zero-shot", "H"]["n"] for name in names] == ["0", "1", "0", "0"]
    assert "\x1b" not in text.out
    assert "no test images of 'a|b [31m & 100% $x_1$ <script> \\end{tabular}'" in text.out
    markdown, latex = ((out / "base-to-new" / f"table.{kind}").read_text() for kind in ("md", "tex"))
    assert "ucf101 was left out" in markdown
    assert "has failed" in markdown
    assert r"a\|b \[31m &amp; 100% $x\_1$ &lt;script&gt; \\end{tabular}" in markdown
    assert not [line for line in latex.splitlines() if "script" in line and not line.startswith("%")]
    broken.write_bytes(whole)
    write_copy("ucf101", root)
    write_copy("oxford_pets", root)
    assert reproduce("base-to-new", root, out, *args) == 0
    assert "4 runs, 1 are done" in capsys.readouterr().out
    assert all(record["state"] == "finished" for record in records(out).values())


def test_targets_come_and_go_and_nothing_is_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    for name in ("dtd", "imagenetv2", "eurosat"):
        write_copy(name, root)
    args = [
        "--source", "dtd", "--methods", "coop", "--seeds", "1", "--shots", "2", "--datasets", "imagenetv2"
    ]  # fmt: skip

    def elsewhere(asked: Asked) -> Found:
        found = look(asked)
        return replace(found, everywhere={**found.everywhere, "splits of imagenetv2": "0" * 64})

    with monkeypatch.context() as patched:  # a machine that is not like the driver's ends the command
        patched.setattr(run, "look", elsewhere)
        assert reproduce("cross-dataset", root, out, *args) == 1
    assert re.search(
        "error: the machine .* has other splits of imagenetv2 than this command began with: make them the "
        "same; the same command goes on\n$",
        capsys.readouterr().err,
    )
    assert not any(record["state"] == "failed" for record in records(out).values())
    (folder,) = out.glob("runs/*")
    trained = (folder / "checkpoint.safetensors").read_bytes()

    assert reproduce("cross-dataset", root, out, *args) == 0
    figures = table(out, "cross-dataset")
    assert {dataset for dataset, _, _ in figures} == {"dtd", "imagenetv2"}
    assert all(row["n"] == "1" and 0 <= float(row["mean"]) <= 100 for row in figures.values())
    capsys.readouterr()

    args.append("eurosat")
    assert reproduce("cross-dataset", root, out, *args) == 0
    assert "1 runs, 0 are done" in capsys.readouterr().out
    assert (folder / "checkpoint.safetensors").read_bytes() == trained
    (record,) = records(out).values()
    assert set(record["tests"]) == {"imagenetv2", "eurosat"}
    assert main(["evaluate", str(folder), "--dataset", "eurosat", "--data-root", str(root)]) == 0
    assert capsys.readouterr().out.endswith(f"on eurosat: {record['tests']['eurosat']:.2f} %\n")

    before = table(out, "cross-dataset")
    shutil.rmtree(root / "eurosat")  # what is gone keeps its figures
    assert reproduce("cross-dataset", root, out, *args) == 0
    said = capsys.readouterr().out
    assert "eurosat cannot be used now, its figures are of an earlier run: data set folder" in said
    assert "left out" not in said
    assert table(out, "cross-dataset") == before
    args[3:4] = ["coop", "zero-shot"]
    assert reproduce("cross-dataset", root, out, *args) == 1
    said = capsys.readouterr().out
    assert "eurosat was left out of 1 of 2 runs (the others were tested on it before): data set" in said


def test_sigterm_is_an_interrupt(copies: Path, tmp_path: Path, ray_local: str) -> None:
    """As batch systems send it at the end of a job's time."""
    args = ["--datasets", "dtd", "--methods", "coop", "--seeds", "1", "--shots", "2", "--epochs", "2000"]
    command = [sys.executable, "-m", "prometar", "reproduce", "--data-root", str(copies), *TINY, *args]
    driver = subprocess.Popen(
        [*command, "--out", str(tmp_path), "--address", ray_local],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "runs" / "final-dtd-2shots-coop-seed1" / "checkpoint.safetensors").exists():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    driver.send_signal(signal.SIGTERM)
    said = driver.communicate(timeout=120)[1]
    assert (driver.returncode, said) == (
        INTERRUPTED,
        "error: interrupted. Rerun the same command to resume.\n",
    )


def test_a_killed_driver_goes_on(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: str
) -> None:
    """Killed with -9 in the middle of a run: the same command ends where an uninterrupted one does."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    args = ["--datasets", "dtd", "--methods", "coop", "--seeds", "1", "--shots", "2", "--epochs", "24"]
    command = [sys.executable, "-m", "prometar", "reproduce", "--data-root", str(copies), *TINY, *args]
    driver = subprocess.Popen(
        [*command, "--out", str(killed), "--address", ray_local],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = killed / "runs" / "final-dtd-2shots-coop-seed1"
    deadline = time.monotonic() + 300
    while not (run / "checkpoint.safetensors").exists():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGSTOP)  # two at once: while it is certainly there
    assert reproduce("base-to-new", copies, killed, *args) == 1
    assert f"the grid {killed} is in use by another process" in capsys.readouterr().err
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert reproduce("base-to-new", copies, killed, *args) == 0
    assert reproduce("base-to-new", copies, whole, *args) == 0
    assert table(killed, "base-to-new") == table(whole, "base-to-new")
    ours, theirs = (load_file(out / "runs" / run.name / "checkpoint.safetensors") for out in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    refused = [*args[:-1], "25"]
    assert reproduce("base-to-new", copies, killed, *refused) == 2
    assert "was made with other settings (train.epochs: 24 then, 25 now)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["splits of textures", "weights of mini  in fp32", "code of prometar"])
def test_what_a_worker_s_machine_must_have_is_compared_before_it_trains(name: str, tmp_path: Path) -> None:
    values = {"data.name": "textures", "backbone.name": "mini"}
    config = configure("zero-shot", values).completed()
    asked = Asked(PROTOCOLS["base-to-new"], ("textures",), {"zero-shot": config}, (1,), (1,))
    everywhere = look(asked).everywhere
    assert name in everywhere
    job = Job(Entry(config, "final"), tmp_path / "runs" / "it", 1, 0.5)
    with pytest.raises(StorageError, match=f"has other {name} than this command began with"):
        Worker().run(replace(job, everywhere={**everywhere, name: "0" * 64}))
    assert not any(tmp_path.iterdir())


def test_a_machine_that_does_not_share_the_folder_writes_nothing(tmp_path: Path) -> None:
    config = Config().override({"method": "zero-shot", "data.name": "textures"})
    job = Job(Entry(config.completed(), "final"), tmp_path / "out" / "runs" / "it", 1, 0.5)
    with pytest.raises(StorageError, match=f"does not see {tmp_path / 'out'}: share it between the machines"):
        Worker().run(job)
    assert not any(tmp_path.iterdir())


WRONG = [
    (["--protocol", "zero"], "unknown protocol 'zero': choose one of base-to-new, cross-dataset, "),
    (["--methods", "nope"], "unknown method 'nope': choose one of zero-shot, "),
    (["--methods", "coop", "coop"], "--methods must be different names, found coop, coop"),
    (["--datasets", "nope"], "unknown data set 'nope': known are imagenet, "),
    (["--seeds", "1", "1"], "--seeds must be different values, at least one, found 1, 1"),
    (["--seeds", "x"], "Invalid value for '--seeds'"),
    (["--shots", "0"], "--shots must be at least 1, found 0"),
    (["--epochs", "0"], "train.epochs: Input should be greater than or equal to 1 (found 0)"),
    (["--protocol", "few-shot", "--source", "imagenet"], "--source belongs to protocols with one source"),
    (["--set", "train.seed=3"], "--set train.seed: use --seeds"),
    (["--set", "backbone.name=mini"], "--set backbone.name: use --backbone"),
    (["--set", "data.args.side=8"], "--set data.args.side: the data sets of a grid are opened without"),
    (["--set", "optim.rate=1"], "unknown setting 'optim.rate'"),
    (["--gpus-per-run", "half"], "--gpus-per-run 'half': expected a number, or auto"),
    ([], "no data set can be trained on: data set 'imagenet' needs its files: pass --data-root DIR, the "
     "folder that holds imagenet/, or get it with `prometar data download imagenet` (10 more data sets "
     "cannot be used either)"),
    (["--protocol", "cross-dataset"], "no data set can be trained on: data set 'imagenet' needs its files"),
    (["--datasets", "textures", "--backbone", "ViT-B-17"], "unknown backbone 'ViT-B-17'"),
    (["--datasets", "textures", "--set", "modulator.reduction=7"], "modulator.reduction 7 does not divide"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), WRONG, ids=[" ".join(a)[:50] or "nothing" for a, _ in WRONG])
def test_wrong_usage(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "--out", str(tmp_path / "out"), *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists(), "a refused grid leaves nothing behind"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cpus-per-run", "64"], "A run needs 64 CPU on one machine, Ray's machines have at most 2 CPU"),
        (["--gpus-per-run", "1"], "A run needs 1 CPU and 1 GPU on one machine"),
        (["--max-concurrent", "0"], "--max-concurrent must be at least 1, found 0"),
    ],
)
def test_what_ray_has_no_room_for(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    assert main(["reproduce", "--datasets", "textures", "--out", str(tmp_path / "grid"), *args]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert not said.out
    assert not (tmp_path / "grid").exists()


def test_a_grid_that_runs_is_refused_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "start_ray", lambda **_: pytest.fail("Ray starts"))
    with locked(tmp_path, "it"):
        assert main(["reproduce", "--datasets", "cells", "--methods", "coop", "--out", str(tmp_path)]) == 1
    assert f"the grid {tmp_path} is in use by another process" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("in the way")
    assert main(["reproduce", "--datasets", "textures", "--out", str(tmp_path / "out")]) == 1
    assert f"cannot write {tmp_path / 'out'}: File exists" in capsys.readouterr().err
