"""What machines tell of their GPUs' memory."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from prometar.distributed import gpu_memory
from prometar.distributed.gpu_memory import least_memory


def machines(monkeypatch: pytest.MonkeyPatch, *gpus: float) -> None:
    """Ray's own machine, as often as there are figures, each with so many GPUs."""
    (here,) = ray.nodes()
    told = [{**here, "Resources": {**here["Resources"], "GPU": count}} for count in gpus]
    monkeypatch.setattr(ray, "nodes", lambda: told)


def test_without_gpus_nobody_is_asked(ray_local: None) -> None:
    assert least_memory() is None


def test_the_smallest_gpu_of_a_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (80, 40, 80)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: SimpleNamespace(total_memory=sizes[k]))
    assert gpu_memory._least_here() == 40


@pytest.mark.parametrize(
    ("answers", "least"), [([80, 40], 40), ([None, 80], 80), ([None], None), ([40, "fails"], 40)]
)
def test_the_smallest_of_all_machines_counts(
    answers: list[Any], least: int | None, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    """Each is asked with none of its GPUs here: there are none."""
    left = iter(answers)

    def task(answer: Any) -> Any:
        def told() -> Any:
            if answer == "fails":
                raise RuntimeError("CUDA error: unknown error")
            return answer

        return told

    remote = ray.remote

    class Asked:
        def __init__(self, function: Any) -> None:
            self._function = remote(max_calls=1)(task(next(left)))

        def options(self, *, num_gpus: int, **more: Any) -> Any:
            assert num_gpus == 2
            return self._function.options(num_gpus=0, **more)

    def decorate(*, max_calls: int) -> type[Asked]:
        assert max_calls == 1, "no other task meets the GPUs that it has seen"
        return Asked

    machines(monkeypatch, *[2.0] * len(answers))
    monkeypatch.setattr(ray, "remote", decorate)
    assert least_memory() == least


def test_a_machine_whose_gpus_others_use_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    machines(monkeypatch, 1.0)  # which nobody has: the task finds no place
    assert least_memory(patience=0.5) is None
