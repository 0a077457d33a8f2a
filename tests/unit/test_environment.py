"""What records say of the machine."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from tune.reporting.html import _environment
from tune.results.schema import StudyRecord

from prometar.environment import environment


def study(now: dict[str, str], *earlier: dict[str, str]) -> StudyRecord:
    return cast(StudyRecord, SimpleNamespace(environment=now, earlier_environments=earlier))


def test_the_gpu_that_a_process_has_computed_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gpu" not in environment()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Card")
    assert environment()["gpu"] == "A Card"

    def failed() -> str:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "get_device_name", failed)
    assert "gpu" not in environment()


def test_a_study_that_went_on_without_gpus_or_began_so_tells_of_those_it_had() -> None:
    on, off = {"torch": "2.9", "gpus": "A100"}, {"torch": "2.9"}
    assert _environment(study(off, on)) == {"torch": "2.9", "gpus": "none (earlier A100)"}
    assert _environment(study(on, off)) == {"torch": "2.9", "gpus": "A100 (earlier none)"}
    assert _environment(study(on, on)) == on
    assert _environment(study({"torch": "2.9", "cores": "2"}, off))["cores"] == "2 (earlier unknown)"
