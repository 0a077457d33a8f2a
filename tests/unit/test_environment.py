"""What records say of the machine."""

import pytest
import torch

from prometar.environment import environment


def test_the_gpu_that_a_process_has_computed_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gpu" not in environment()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Card")
    assert environment()["gpu"] == "A Card"

    def failed() -> str:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "get_device_name", failed)
    assert "gpu" not in environment()
