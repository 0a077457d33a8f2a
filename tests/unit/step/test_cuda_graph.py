"""How a step is recorded, on a GPU that is only pretended: streams, memory, and what a failure leaves."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from prometar.step import cuda_graph
from prometar.step.cuda_graph import WARM_UP, Graph


class OnGpu(Tensor):
    """A tensor that says so."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass


class Gpu:
    """What was recorded on it and is still there, and the streams that were computed on and recorded on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[weakref.ref[Any]] = []
        self.warmed, self.captured, self.replays = list[Stream](), list[Stream](), 0
        self._main = Stream()
        gpu = self

        class Recording:
            def __init__(self) -> None:
                gpu.recorded.append(weakref.ref(self))

            def replay(self) -> None:
                gpu.replays += 1

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self._main)
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        monkeypatch.setattr(torch.cuda, "graph", self._recording)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        self.warmed.append(stream)
        yield

    @contextmanager
    def _recording(self, graph: object, stream: Stream | None = None) -> Iterator[None]:
        self.captured.append(stream or Stream())
        yield

    @property
    def there(self) -> int:
        return sum(each() is not None for each in self.recorded)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    cuda_graph._side.cache_clear()
    yield Gpu(monkeypatch)
    cuda_graph._side.cache_clear()


def some(size: int) -> Tensor:
    return torch.ones(size).as_subclass(OnGpu)


def test_calls_of_one_kind_are_recorded_once(gpu: Gpu) -> None:
    graph, calls = Graph(), list[int]()
    for _ in range(3):
        graph(lambda x: calls.append(len(x)) or 2 * x, some(2))
    assert calls == [2] * (WARM_UP + 1)
    assert gpu.replays == 3


def test_all_recordings_of_a_process_are_made_on_one_stream(gpu: Gpu) -> None:
    """Libraries keep a workspace of 32 MiB for each stream that they have seen, for good."""
    for size in (2, 3):
        Graph()(lambda x: 2 * x, some(size))
    assert len({*map(id, gpu.warmed), *map(id, gpu.captured)}) == 1


def test_what_was_recorded_before_is_gone_when_the_next_one_needs_its_memory(gpu: Gpu) -> None:
    graph, there = Graph(), list[int]()
    for size in (2, 3):
        graph(lambda x: there.append(gpu.there) or 2 * x, some(size))
    assert there == [*[0] * WARM_UP, 1] * 2


def test_a_recording_that_fails_leaves_nothing_that_is_replayed(gpu: Gpu) -> None:
    graph, calls = Graph(), list[int]()

    def function(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(x) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2 * x

    graph(function, some(2))
    with pytest.raises(torch.OutOfMemoryError):
        graph(function, some(3))
    graph(function, some(2))
    assert calls == [*[2] * (WARM_UP + 1), 3, *[2] * (WARM_UP + 1)], "recorded anew"
