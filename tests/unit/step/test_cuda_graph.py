"""How a step is recorded, on a GPU that is only pretended: streams, memory, and what a failure leaves."""

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
    """The streams that were computed on and recorded on, and the memory in which recordings compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warmed, self.captured, self.replays = list[Stream](), list[Stream](), 0
        self.pools: list[object] = []
        self._main = Stream()
        gpu = self

        class Recording:
            _pool: object

            def replay(self) -> None:
                gpu.replays += 1

            def pool(self) -> object:
                return self._pool

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
    def _recording(self, graph: Any, pool: object = None, stream: Stream | None = None) -> Iterator[None]:
        self.captured.append(stream or Stream())
        graph._pool = pool or object()
        self.pools.append(graph._pool)
        yield


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


def test_inputs_of_several_shapes_are_recorded_once_each(gpu: Gpu) -> None:
    graph, calls = Graph(), list[int]()
    for size in (2, 3, 2, 3, 2):
        found = graph(lambda x: calls.append(len(x)) or 2 * x, some(size))
        assert found.shape == (size,)
    assert calls == [*[2] * (WARM_UP + 1), *[3] * (WARM_UP + 1)]
    assert gpu.replays == 5


def test_of_many_shapes_the_rare_are_computed_as_they_are(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "MOST", 2)
    graph, calls = Graph(), list[int]()
    for size in (2, 3, 4, 4, 2):
        assert graph(lambda x: calls.append(len(x)) or 2 * x, some(size)).tolist() == [2] * size
    assert calls[-2:] == [4, 4]
    assert gpu.replays == 3


def test_where_recordings_leave_no_memory_for_the_next_they_go(gpu: Gpu) -> None:
    graph = Graph()

    def function(x: Tensor) -> Tensor:
        if len(x) == 3 and graph._recordings:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2 * x

    for size in (2, 3, 2, 3):
        assert graph(function, some(size)).tolist() == [2] * size
    assert gpu.replays == 4
    assert len(gpu.captured) == 3, "the first one again"


def test_recordings_share_their_memory_and_what_is_of_one_shape(gpu: Gpu) -> None:
    graph, state = Graph(), some(5)
    seen = dict[int, Tensor]()

    def step(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        seen[len(x)] = state
        return state + 1, 2 * x

    found = [graph(step, state, some(size)) for size in (2, 3)]
    assert len(gpu.pools) == 2
    assert len({*map(id, gpu.pools)}) == 1
    assert seen[2] is seen[3], "the state that goes in"
    outputs = [recording.outputs for recording in graph._recordings]
    assert outputs[0][0] is outputs[1][0], "the state that comes out"
    assert found[0][0] is not outputs[0][0], "the caller's is its own: the next replay writes to that memory"
    assert [each.tolist() for each in (*found[0], *found[1])] == [[2] * 5, [2] * 2, [2] * 5, [2] * 3]


def test_a_recording_that_fails_leaves_nothing_that_is_replayed(gpu: Gpu) -> None:
    graph, calls = Graph(), list[int]()

    def function(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(x) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 2 * x

    graph(function, some(2))
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            graph(function, some(3))
    graph(function, some(2))
    assert calls == [*[2] * (WARM_UP + 1), 3, 3, 3, *[2] * (WARM_UP + 1)]
    assert gpu.replays == 2
