"""GPUs without a GPU: torch's functions are replaced by what a GPU would answer."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prometar import device
from prometar.device import CONTEXT_BYTES, gpu_problem, limit_gpu_memory, num_gpus

GIB = 2**30


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees one GPU. What is computed on it is computed on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device, "default_device", lambda: torch.device("cpu"))


def raises(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **options: object) -> None:
        raise error

    return fail


def test_a_missing_gpu_is_a_problem() -> None:
    assert gpu_problem() in {
        "torch is built without CUDA",
        f"torch (built for CUDA {torch.version.cuda}) finds no GPU",
    }


@pytest.mark.usefixtures("visible")
def test_a_gpu_that_computes_has_no_problem() -> None:
    assert gpu_problem() == ""


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: all CUDA-capable devices are busy or unavailable",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_a_visible_gpu_that_cannot_compute_is_a_problem(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "conv2d", raises(RuntimeError(f"{message}\nFor debugging ...")))
    assert gpu_problem() == message


@pytest.mark.usefixtures("visible")
def test_a_gpu_that_computes_wrong_results_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *_: torch.zeros(1))
    assert gpu_problem() == "it computes wrong results (4096 and 0 instead of 4096)"


@pytest.mark.usefixtures("visible")
def test_a_gpu_without_free_memory_is_no_problem_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", raises(RuntimeError("CUDA error: out of memory")))
    with pytest.raises(MemoryError, match="out of memory"):
        gpu_problem()


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize("gib", [8, 16, 80])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_processes_that_share_a_gpu_fit_into_it_with_their_contexts(
    share: float, gib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    total = gib * GIB
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    limit_gpu_memory(share)
    if share == 1:
        assert limits == [1.0], "a worker's earlier job may have had a smaller share"
    else:
        assert limits[0] * total + CONTEXT_BYTES == pytest.approx(share * total)


@pytest.mark.usefixtures("visible")
@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("0", 1),
        ("GPU-8a5f", 1),
        ("MIG-11c2a9d4", 1),
        ("MIG-11c2a9d4,MIG-52b7e0f3,MIG-9d04c6aa", 3),
    ],
)
def test_each_listed_slice_counts_as_a_gpu(
    devices: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert num_gpus() == expected


def test_slices_that_torch_cannot_use_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-11c2a9d4,MIG-52b7e0f3")
    assert num_gpus() == 0
