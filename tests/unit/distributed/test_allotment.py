"""What a batch system allots to a process, as Linux tells it."""

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from prometar.distributed import allotment
from prometar.distributed.allotment import allotted, memory_limit, require_given_gpus, task_limit
from prometar.errors import StorageError
from prometar.io.files import is_refused_write

GIB = 2**30
UNLIMITED = 9223372036854771712  # as the first version of control groups writes it


def groups_of(folder: Path, line: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """Control groups with these limits, and the file that names a process's own."""
    for name, limit in limits.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(f"{limit}\n")
    (folder / "own").write_text(f"1:name=systemd:/\n{line}\n")
    return folder / "groups", folder / "own"


@pytest.mark.parametrize(
    ("line", "limits", "least"),
    [
        (
            "0::/slurm/job_7/step_0",
            {"slurm/job_7/memory.max": "2147483648", "slurm/memory.max": "max"},
            2 * GIB,
        ),
        ("4:memory:/slurm/job_7", {"memory/slurm/job_7/memory.limit_in_bytes": "2147483648"}, 2 * GIB),
        ("4:memory:/slurm/job_7", {"memory/slurm/job_7/memory.limit_in_bytes": str(UNLIMITED)}, None),
        ("0::/slurm", {"slurm/memory.max": "max"}, None),
        ("0::/", {"memory.max": "2147483648"}, None),  # a container, which Ray sees itself
        ("3:cpuset:/slurm", {"slurm/memory.max": "2147483648"}, None),
        ("0::/../elsewhere", {}, None),
    ],
)
def test_the_least_limit_of_a_process_s_groups(
    tmp_path: Path, line: str, limits: dict[str, str], least: int | None
) -> None:
    assert memory_limit(*groups_of(tmp_path, line, limits)) == least


@pytest.mark.parametrize(
    ("line", "limits", "least"),
    [
        ("0::/", {"pids.max": "100"}, 100),  # a container's own
        ("0::/slurm/job_7", {"slurm/job_7/pids.max": "max", "slurm/pids.max": "300"}, 300),
        ("8:pids:/docker/7", {"pids/pids.max": "100"}, 100),  # as a container sees the first version
        ("0::/", {"pids.max": "max"}, None),
        ("0::/", {}, None),
    ],
)
def test_the_fewest_tasks_of_a_process_s_groups(
    tmp_path: Path, line: str, limits: dict[str, str], least: int | None
) -> None:
    assert task_limit(*groups_of(tmp_path, line, limits)) == least


def test_a_machine_without_control_groups_is_all_its_user_s(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "none") is None


def job(monkeypatch: pytest.MonkeyPatch, *, cpus: int, memory: int | None, shared: int = 64 * GIB) -> None:
    """A process of these CPUs and bytes, on a machine where Ray would take 128 CPUs and 40 GiB."""
    room = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(free=shared))
    monkeypatch.setattr(allotment, "taken_by_itself", lambda: (128, 40 * GIB))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cpus)))
    monkeypatch.setattr(allotment, "memory_limit", lambda: memory)
    monkeypatch.setattr(allotment, "shutil", room)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


def test_fewer_cpus_and_less_memory_are_told_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    job(monkeypatch, cpus=8, memory=GIB)
    found = allotted()
    assert found["num_cpus"] == 8
    assert found["object_store_memory"] + found["_memory"] == GIB
    assert 0 < found["object_store_memory"] <= 0.3 * GIB


def test_of_a_whole_machine_ray_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    job(monkeypatch, cpus=128, memory=None)
    assert allotted() == {}


def test_gpus_that_torch_cannot_use_are_not_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    job(monkeypatch, cpus=128, memory=None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert allotted() == {"num_gpus": 0}


def test_a_container_s_share_of_its_cpus_and_what_others_leave_free_still_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job(monkeypatch, cpus=256, memory=60 * GIB)
    assert allotted() == {}


def test_images_lie_in_shared_memory_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    job(monkeypatch, cpus=128, memory=10 * GIB, shared=GIB)
    assert allotted()["object_store_memory"] == GIB
    job(monkeypatch, cpus=128, memory=10 * GIB, shared=64 * 2**20)  # what docker gives a container
    assert allotted()["object_store_memory"] == 3 * GIB


def test_a_worker_whose_torch_cannot_use_its_gpu_does_not_compute_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver is too old.\nUpdate it.", stacklevel=2)
        return False

    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0])
    monkeypatch.setattr("torch.cuda.is_available", too_old)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    with pytest.raises(StorageError) as caught:
        require_given_gpus("trial")
    assert str(caught.value).endswith(
        " has a GPU that its torch cannot use: no GPU can be used (torch is built for CUDA 13.0); CUDA "
        "initialization: The NVIDIA driver is too old. Update it.; mend its driver or its torch, or pass "
        "--gpus-per-trial 0"
    )
    assert is_refused_write(f"prometar.errors.StorageError: {caught.value}")


def test_a_worker_that_was_given_no_gpu_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ray.get_gpu_ids", list)
    require_given_gpus("trial")
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    require_given_gpus("trial")
