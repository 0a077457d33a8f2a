"""`make gpu` as far as no GPU is needed: records, expectations, the block, and a rehearsal without Ray."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from prometar.config.settings import Config
from tests.support.fake_trial import write_result
from tune.config import StudyConfig
from tune.execution.resources import plan_trials

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu")


def rate(steps: float) -> dict[str, Any]:
    return {"steps_per_second": steps, "lowest": steps, "highest": steps, "sensors": {}}


GOOD: dict[str, dict[str, Any]] = {
    "parity": {
        "fp64": {"violations": {}},
        "fp32": {"violations": {}},
        "tf32": {"violations": {}},
        "bf16": {"violations": {"prompts": "0.5 > 0.3"}},
    },
    "repeat": {"again": True, "resumed": False},
    "speed": {"fp32": rate(3.0), "tf32": rate(4.0), "bf16": rate(2.0)},
    "memory": {
        **{p: {"allocated": 4 * 2**30, "counted": 3.5 * 2**30} for p in ("fp32", "tf32", "bf16")},
        "after a job": {"more allocated": 2**20},
    },
    "packing": {"bf16": {"1": rate(2.0), "2": rate(2.5), "4": {"does not fit": "CUDA out of memory"}}},
}


def part(name: str, seconds: float) -> dict[str, Any]:
    failed = "" if name in GOOD else "failed with exit status 1"
    return {"failed": failed, "seconds": 1.0, "figures": GOOD.get(name, {})}


def test_an_expectation_holds_does_not_hold_or_is_not_measured(gpu: ModuleType, tmp_path: Path) -> None:
    records = gpu.measure(tmp_path / "results.json", "a card", list(gpu.PARTS), 3600.0, part)
    verdicts = {claim.text: gpu.verdict(claim, records) for claim in gpu.CLAIMS}
    assert verdicts["runs in two processes are equal bit for bit"] == "holds"
    assert verdicts["a resumed run equals one that never stopped, bit for bit"] == "does not hold"
    assert verdicts["mini in fp32 is within the bounds"] == "holds"
    assert verdicts["mini in bf16 is within the bounds"] == "does not hold"
    assert verdicts["bf16 is faster than fp32"] == "does not hold"
    assert verdicts["the counted memory is within 25% of the allocated memory"] == "holds"
    assert verdicts["four processes in bf16 do 1.5 times the steps of one"] == "does not hold"
    assert verdicts["a study whose trials share the GPU finishes"] == "not measured"
    assert {gpu.verdict(claim, {}) for claim in gpu.CLAIMS} == {"not measured"}
    assert all(text in gpu.block("a card", records) for text in verdicts)


def test_the_last_line_names_the_expectations_that_do_not_hold(gpu: ModuleType, tmp_path: Path) -> None:
    records = gpu.measure(tmp_path / "results.json", "a card", list(gpu.PARTS), 3600.0, part)
    line = gpu.last_line(records)
    assert "\n" not in line
    assert "bf16 is faster than fp32" in line
    assert gpu.last_line({}) == f"Expectations: 0 hold, 0 do not hold, {len(gpu.CLAIMS)} not measured."


def test_a_later_run_completes_the_file(gpu: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    gpu.measure(path, "a card", ["speed", "study"], 3600.0, part)
    asked: list[str] = []

    def note(name: str, seconds: float) -> dict[str, Any]:
        asked.append(name)
        return part(name, seconds)

    gpu.measure(path, "a card", ["study", "speed", "packing"], 3600.0, note)
    assert asked == ["study", "packing"], "what failed or is missing, in the given order"
    asked.clear()
    gpu.measure(path, "another card", ["speed"], 0.0, note)
    assert not asked, "no time is left"
    gpu.measure(path, "another card", ["speed"], 600.0, note)
    assert asked == ["speed"], "figures of another card do not count"
    assert set(gpu.measured(path, "a card")) == {"speed", "packing"}, "nor are they lost"
    path.write_text("{")
    assert gpu.measured(path, "a card") == {}


@pytest.mark.parametrize(
    ("code", "seconds", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60.0, "crashed with signal SIGSEGV"),
        ("raise SystemExit(3)", 60.0, "failed with exit status 3"),
        ("import time; time.sleep(60)", 0.5, "timed out after 0 s"),
    ],
)
def test_a_part_that_crashes_fails_or_hangs_says_so(
    gpu: ModuleType, code: str, seconds: float, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "part.py"
    script.write_text(code)
    monkeypatch.setitem(gpu.PARTS, "speed", gpu.Part(str(script), (), 60))
    assert gpu.run_part("speed", seconds, folder=tmp_path)["failed"] == expected


def test_a_crashed_process_is_not_one_that_does_not_fit(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = importlib.import_module("gpu_parts")

    class Dead:
        exitcode = -11

        def join(self) -> None:
            pass

    worker = object.__new__(parts.Worker)
    worker._pipe, theirs = parts.get_context("spawn").Pipe()
    worker._process = Dead()
    theirs.send(("out of memory", "CUDA out of memory"))
    with pytest.raises(parts.OutOfMemory):
        worker.wait_until_ready()
    theirs.close()
    with pytest.raises(RuntimeError, match="crashed with status -11"):
        worker.wait_until_ready()
    worker._pipe.close()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "OutOfMemory"),
        ("CUDA error: an illegal memory access was encountered", "RuntimeError"),
    ],
)
def test_a_process_says_whether_it_lacks_memory_or_has_another_problem(
    gpu: ModuleType, message: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = importlib.import_module("gpu_parts")

    def fail(*_: Any, **options: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(parts, "run_of", fail)
    worker = object.__new__(parts.Worker)
    worker._pipe, theirs = parts.get_context("spawn").Pipe()
    parts._serve(theirs, "bf16", parts.Setup())
    with pytest.raises((parts.OutOfMemory, RuntimeError), match=message[:20]) as caught:
        worker.wait_until_ready()
    assert type(caught.value).__name__ == expected


def test_a_run_that_does_not_learn_fails_the_expectations_of_parity(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/tools/test_gpu_parity.py plants the faults themselves."""
    parts = importlib.import_module("gpu_parts")
    start = {"prompts/text": torch.zeros(3).double()}
    end = {"prompts/text": torch.ones(3).double()}
    history = [{"epoch": 1, "direct_ce": 2.0, "base": 50.0}, {"epoch": 2, "direct_ce": 1.0, "base": 60.0}]
    learns = parts.Trajectory(start, end, history)
    does_not_learn = parts.Trajectory(start, start, [history[0], history[0]])

    def train(precision: str) -> Any:
        return does_not_learn if precision in ("fp32", "bf16") else learns

    monkeypatch.setattr(parts, "run_of", lambda precision, *_, **options: precision)
    monkeypatch.setattr(parts, "train", train)
    records = {name: {"figures": parts.MEASURES[name](parts.Setup())} for name in ("parity", "parity-vit")}
    verdicts = {claim.text: gpu.verdict(claim, records) for claim in gpu.CLAIMS}
    for backbone in ("mini", "ViT-B/16"):
        assert verdicts[f"{backbone} in fp32 is within the bounds"] == "does not hold"
        assert verdicts[f"{backbone} in tf32 is within the bounds"] == "holds"
        assert verdicts[f"{backbone} in bf16 is within the bounds"] == "does not hold"
    assert verdicts["mini in fp64 is within the bounds"] == "holds"


class FakeGPU:
    """A GPU with room for some processes. It notes what happens, and counts processes that are alive."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.num_alive = 0
        self.events: list[str] = []


def fake_workers(parts: ModuleType, gpu: FakeGPU) -> type:
    class FakeWorker:
        def __init__(self, precision: str, setup: Any) -> None:
            gpu.num_alive += 1
            self.fits = gpu.num_alive <= gpu.room
            gpu.events.append("process")

        def wait_until_ready(self) -> None:
            if not self.fits:
                raise parts.OutOfMemory("CUDA out of memory.")

        def start(self, seconds: float) -> None:
            gpu.events.append("steps")

        def rate(self) -> float:
            return 2.0

        def close(self) -> None:
            gpu.num_alive -= 1

    return FakeWorker


def packed_on(card: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the results of the part `packing` on a simulated GPU, by precision."""
    parts = importlib.import_module("gpu_parts")
    monkeypatch.setattr(parts, "Worker", fake_workers(parts, card))
    return parts.packing(parts.Setup())


def test_processes_that_share_a_gpu_start_together_before_the_first_is_timed(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = FakeGPU(room=8)
    found = packed_on(card, monkeypatch)
    assert found.keys() == {"fp32", "tf32", "bf16"}
    for packed in found.values():
        assert {count: each["steps_per_second"] for count, each in packed.items()} == {
            "1": 2.0,
            "2": 4.0,
            "4": 8.0,
            "8": 16.0,
        }
    repeats = importlib.import_module("gpu_parts").REPEATS
    of_a_precision = ["process"] * 8 + ["steps"] * (repeats * (1 + 2 + 4 + 8))
    assert card.events == of_a_precision * 3
    assert card.num_alive == 0


def test_a_number_of_processes_that_does_not_fit_leaves_smaller_numbers_measured(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = FakeGPU(room=5)
    packed = packed_on(card, monkeypatch)["bf16"]
    assert packed["4"]["steps_per_second"] == 8.0
    assert packed["8"] == {"does not fit": "CUDA out of memory."}
    assert card.num_alive == 0


def test_the_study_runs_vit_with_trials_that_share_the_gpu_and_reports_their_shares(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = importlib.import_module("gpu_parts")
    options: dict[str, str] = {}

    def search(command: list[str], **_: Any) -> SimpleNamespace:
        words = command[2:]  # after the interpreter and the script
        options.update(zip(words[::2], words[1::2], strict=True))
        trials = Path(options["--out"]) / "textures" / "trials"
        for number, share in enumerate([0.25, 0.25, 0.5]):
            write_result(trials / str(number), Config(), "drift", {"objective": 1.0}, gpus=share)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(parts.subprocess, "run", search)
    found = parts.study(parts.Setup())
    assert (found["status"], found["gpu_shares"]) == (0, [0.25, 0.5])
    settings = [options.pop("--set")]
    names = {name.removeprefix("--").replace("-", "_"): value for name, value in options.items()}
    study = StudyConfig.of(**names, settings=settings)
    backbone = study.baseline.backbone
    assert (backbone.name, backbone.pretrained) == ("ViT-B-16-quickgelu", "random")
    resources, _ = plan_trials([{"CPU": 16.0, "GPU": 1.0}], study.resources, study.search.trials)
    assert (resources.num_concurrent, resources.gpus) == (4, 0.25)


@pytest.mark.parametrize(
    ("status", "shares", "expected"),
    [
        (0, [0.25], "holds"),
        (0, [1.0], "does not hold"),
        (0, [0.0], "does not hold"),
        (0, [], "does not hold"),
        (1, [0.25], "does not hold"),
    ],
)
def test_a_study_whose_trials_do_not_share_the_gpu_does_not_hold(
    gpu: ModuleType, status: int, shares: list[float], expected: str
) -> None:
    [claim] = [each for each in gpu.CLAIMS if "a study" in each.text]
    assert gpu.verdict(claim, {"study": {"figures": {"status": status, "gpu_shares": shares}}}) == expected


def test_each_timed_step_encodes_its_images(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = importlib.import_module("gpu_parts")
    meta_batch = importlib.import_module("prometar.step.meta_batch")
    caches: list[Any] = []
    original = meta_batch.cached_embedding

    def note(clip: Any, images: Any, cache: Any, step: int, **options: Any) -> Any:
        caches.append(cache)
        return original(clip, images, cache, step, **options)

    monkeypatch.setattr(meta_batch, "cached_embedding", note)
    run = parts.run_of("fp32", method="coop", device=torch.device("cpu"))
    for _ in range(2):
        parts.steps_within(run, 0.0)
    assert caches == [None, None]


class Clock:
    """Time that passes only while parts run."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


def test_parts_without_ray_end_within_nine_minutes_even_if_all_time_out(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(gpu, "time", clock)
    monkeypatch.setattr(gpu, "is_installed", lambda package: True)
    asked: list[str] = []

    def times_out(name: str, seconds: float) -> dict[str, Any]:
        asked.append(name)
        clock.seconds += seconds
        return {"failed": f"timed out after {seconds:.0f} s", "seconds": seconds, "figures": {}}

    gpu.measure(tmp_path / "results.json", "a card", list(gpu.PARTS), 60 * gpu.MINUTES, times_out)
    assert clock.seconds - 1000.0 <= 9 * 60
    assert asked == [name for name, each in gpu.PARTS.items() if not each.needs_ray]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "not run" in line] == [
        "study: not run, because its limit of 300 s exceeds the time left",
        "stream: not run, because its limit of 180 s exceeds the time left",
    ]


def test_more_minutes_raise_the_limits_of_parts(gpu: ModuleType, tmp_path: Path) -> None:
    limits: dict[str, float] = {}

    def note(name: str, seconds: float) -> dict[str, Any]:
        limits[name] = seconds
        return part(name, seconds)

    gpu.measure(tmp_path / "results.json", "a card", ["packing"], 120 * gpu.MINUTES, note)
    assert limits == {"packing": 2 * gpu.PARTS["packing"].limit_seconds}


def test_the_stream_is_compared_with_the_fastest_steps(gpu: ModuleType) -> None:
    [claim] = [each for each in gpu.CLAIMS if "image stream" in each.text]

    def verdict(images_per_second: float) -> str:
        sides = [[{"kind": "in-process", "rate": 1e9}], [{"kind": "ray", "rate": images_per_second}]]
        records = {"speed": {"figures": GOOD["speed"]}, "stream": {"figures": {"rounds": sides}}}
        return str(gpu.verdict(claim, records))

    assert verdict(16.0) == "holds", "four steps of four images"
    assert verdict(15.9) == "does not hold"
    assert gpu.verdict(claim, {"speed": {"figures": GOOD["speed"]}}) == "not measured"


def test_a_step_that_runs_out_of_memory_is_repeated_with_twice_the_share(gpu: ModuleType) -> None:
    parts = importlib.import_module("gpu_parts")
    limits: list[float] = []

    def step_that_needs(share: float, error: Exception) -> Any:
        def step() -> None:
            if limits[-1] < share:
                raise error

        return step

    lack = torch.OutOfMemoryError("CUDA out of memory.")
    found = parts.retried(step_that_needs(0.35, lack), limits.append, 0.1)
    assert found == {"shares": [0.1, 0.2, 0.4], "succeeded": True, "recognized": True}
    assert limits == found["shares"]
    found = parts.retried(step_that_needs(2.0, lack), limits.append, 0.6)
    assert found == {"shares": [0.6, 1.0], "succeeded": False, "recognized": True}
    found = parts.retried(step_that_needs(1.0, RuntimeError("a defect")), limits.append, 0.5)
    assert found == {"shares": [0.5], "succeeded": False, "recognized": False}
    found = parts.retried(step_that_needs(0.0, lack), limits.append, 0.5)
    assert not found["recognized"], "no error was forced"


BLOCKER = '''
import importlib.util
import socket
import sys

real_find_spec = importlib.util.find_spec

def is_missing(name):
    """Ray, Optuna and what only they need are missing."""
    return name.partition(".")[0] in ("ray", "optuna", "sqlalchemy", "scipy", "sklearn", "plotly")

def find_spec(name, package=None):
    """As for a missing package: torch asks whether some packages exist."""
    return None if is_missing(name) else real_find_spec(name, package)

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if is_missing(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

def no_network(*args, **kwargs):
    raise OSError("no network")

class Socket(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            no_network()
        super().connect(address)

    connect_ex = connect

importlib.util.find_spec = find_spec
sys.meta_path.insert(0, Blocker())
socket.create_connection = no_network
socket.getaddrinfo = no_network
socket.socket = Socket
'''


def test_a_rehearsal_runs_without_ray_optuna_and_network(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(FOLDER / "gpu.py"),
        "--rehearse",
        "--out",
        str(out),
        "--minutes",
        "90",  # other work on this machine may be slow
        "--parts",
        "packing",
        "speed",
        "memory",
        "out-of-memory",
        "study",
        "stream",
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"packing: measured", "speed: measured", "memory: measured"} <= set(lines), done.stdout
    assert {f"{name}: needs ray and optuna, not installed" for name in ("study", "stream")} <= set(lines)
    assert lines[-1].startswith("Expectations: ")
    [records] = json.loads((out / "results.json").read_text()).values()
    speed = records["speed"]["figures"]["bf16"]
    assert speed["classes"] == 32
    assert speed["lowest"] <= speed["steps_per_second"] <= speed["highest"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line_and_status_two(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == "No GPU is available. Nothing was measured.\n"
