"""`make gpu` as far as no GPU is needed: records, claims, the block, and what it says without one."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu")


GOOD: dict[str, dict[str, Any]] = {
    "parity": {"fp64": 1e-12, "fp32": 1e-5},
    "repeat": {"again": True, "resumed": False},
    "speed": {"fp32": 3.0, "bf16": 2.0},
    "memory": {"fp32": [4 * 2**30, 3.5 * 2**30]},
    "packing": {"1": 2.0, "4": 2.9},
}


def part(name: str, seconds: float) -> dict[str, Any]:
    failed = "" if name in GOOD else "ended with status 1"
    return {"failed": failed, "figures": GOOD.get(name, {})}


def test_a_claim_holds_does_not_or_is_not_measured(gpu: ModuleType, tmp_path: Path) -> None:
    records = gpu.measure(tmp_path, "a card", list(gpu.PARTS), 60.0, part)
    verdicts = {claim.text: gpu.verdict(claim, records) for claim in gpu.CLAIMS}
    assert verdicts["two runs are equal bit for bit"] == "holds"
    assert verdicts["a resumed run equals one that never stopped, bit for bit"] == "does not hold"
    assert verdicts["bf16 is faster than fp32"] == "does not hold"
    assert verdicts["the counted memory is within 25% of the allocated memory"] == "holds"
    assert verdicts["four trials on a GPU do 1.5 times the steps of one"] == "does not hold"
    assert verdicts["a study finishes"] == "not measured"
    assert {gpu.verdict(claim, {}) for claim in gpu.CLAIMS} == {"not measured"}
    assert all(text in gpu.block("a card", records) for text in verdicts)


def test_the_same_command_goes_on_with_what_is_missing(gpu: ModuleType, tmp_path: Path) -> None:
    gpu.measure(tmp_path, "a card", list(gpu.PARTS), 60.0, part)
    (tmp_path / "speed.json").write_text("{")
    asked: list[str] = []

    def note(name: str, seconds: float) -> dict[str, Any]:
        asked.append(name)
        return part(name, seconds)

    gpu.measure(tmp_path, "a card", list(gpu.PARTS), 60.0, note)
    assert asked == ["speed", "study", "stream"]
    asked.clear()
    gpu.measure(tmp_path, "another card", list(gpu.PARTS), 0.0, note)
    assert not asked, "no time is left"
    gpu.measure(tmp_path, "another card", ["parity"], 60.0, note)
    assert asked == ["parity"], "figures of another card do not count"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line_and_status_two(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == "No GPU is available. Nothing was measured.\n"
