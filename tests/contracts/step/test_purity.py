"""A step is one fixed sequence of kernels, as CUDA graphs require.

The sequence must not depend on the values of tensors. If it is replayed with other values, it must return the
same bits as the step.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from prometar.clip.openclip import Backbone
from prometar.config.recipes import METHODS
from prometar.methods.composition import Method
from prometar.methods.prompts import Tensors
from prometar.step.iteration import step
from prometar.step.meta_batch import Selection, embed_batch, select
from prometar.step.prompted_clip import PromptedClip
from prometar.step.state import State
from tests.contracts.step.test_step import IS_QUERY, RATES, make

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LEARNING = [name for name in METHODS if not name.startswith("zero-shot")]

Inputs = tuple[Tensors, Tensors, Tensor, Tensor, Selection | None]
"""Leaves, gate, pixels, labels and selection of a meta task."""


class Step:
    """Step of a method as a function of all tensors that differ between steps."""

    def __init__(self, method: str, dtype: torch.dtype) -> None:
        made: tuple[Backbone, Method, PromptedClip, State] = make({}, method, dtype)
        _, self.method, self.model, self.start = made

    def __call__(
        self, leaves: Tensors, gate: Tensors, pixels: Tensor, labels: Tensor, selection: Selection | None
    ) -> Tensors:
        """Take a step. Return the tensors of the next state, and the losses."""
        state = State.start(leaves, gate, self.method.optimizer)
        batch, task = embed_batch(self.model.clip, self.method, pixels, labels, selection)
        after, losses = step(self.model, self.method, state, batch, task, RATES)
        return {**after.tensors(), **losses}

    def inputs(self, seed: int) -> Inputs:
        """Return random arguments of the function."""
        generator = torch.Generator().manual_seed(seed)

        def near(tensors: Tensors) -> Tensors:
            """Return tensors plus a little noise."""
            noisy = {}
            for name, tensor in tensors.items():
                noise = torch.randn(tensor.shape, generator=generator)
                noisy[name] = tensor + 0.01 * noise.to(tensor.dtype)
            return noisy

        clip = self.model.clip
        pixels = torch.randn(4, 3, 16, 16, generator=generator).to(clip.dtype)
        selection = None
        if self.method.inner is not None:
            augmentation = self.method.augmentation
            mix = augmentation.draw(2, 2, np.random.default_rng(0))
            selection = select(
                IS_QUERY, mix, mixes_pixels=augmentation.mixes_pixels, dtype=clip.working_dtype
            )
        labels = torch.tensor([0, 1, 1, 2])
        return near(self.start.leaves), near(self.start.gate), pixels, labels, selection


@dataclass
class Log(TorchDispatchMode):
    """Mode that records each kernel with its arguments. Tensors are recorded by shape, stride and type."""

    kernels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        described = tree_map_only(Tensor, lambda x: (x.shape, x.stride(), x.dtype), (args, kwargs))
        self.kernels.append(f"{operator} {described}")
        return operator(*args, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", LEARNING)
def test_all_data_get_the_same_sequence_of_kernels(method: str, dtype: torch.dtype) -> None:
    function = Step(method, dtype)

    def kernels(seed: int) -> list[str]:
        inputs = function.inputs(seed)
        with Log() as log:
            function(*inputs)
        return log.kernels

    first = kernels(seed=0)
    assert kernels(seed=1) == first
    # Kernels whose result the host must wait for.
    waiting = ("aten._local_scalar", "aten.nonzero")
    assert [kernel for kernel in first if kernel.startswith(waiting)] == []


class Trace(TorchDispatchMode):
    """Mode that records each kernel with its arguments, so that the kernels can run again on other inputs.

    A tensor is recorded by its number: first the inputs, then the results of kernels. Tensors that are
    neither are constants of the trace.

    Args:
        inputs: Arguments of the traced function.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.kernels: list[tuple[Any, Any, Any]] = []
        self.tensors = _tensors(inputs)
        """All numbered tensors. They stay alive, so that no other tensor gets the id of one of them."""
        self.numbers = {id(tensor): number for number, tensor in enumerate(self.tensors)}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorded = tree_map_only(Tensor, self._number_of, (args, kwargs or {}))
        self.kernels.append((operator, *recorded))
        results = operator(*args, **(kwargs or {}))
        for tensor in _tensors(results):
            self.numbers[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return results

    def _number_of(self, tensor: Tensor) -> "_Number | Tensor":
        """Return the number of a tensor, or the tensor itself if it is a constant."""
        number = self.numbers.get(id(tensor))
        return tensor if number is None else _Number(number)

    def replay(self, inputs: Inputs, results: Tensors) -> Tensors:
        """Run the kernels on other inputs.

        Args:
            inputs: Arguments, with the structure of those of the trace.
            results: Tensors that the traced function has returned.

        Returns:
            What the kernels return in place of `results`.
        """
        tensors = _tensors(inputs)

        def tensor_of(number: _Number) -> Tensor:
            return tensors[number.value]

        for operator, args, kwargs in self.kernels:
            args, kwargs = tree_map_only(_Number, tensor_of, (args, kwargs))
            tensors += _tensors(operator(*args, **kwargs))
        replayed = {}
        for name, tensor in results.items():
            number = self._number_of(tensor)
            replayed[name] = tensor_of(number) if isinstance(number, _Number) else number
        return replayed


@dataclass(frozen=True)
class _Number:
    """Number of a tensor in a trace."""

    value: int


def _tensors(structure: Any) -> list[Tensor]:
    """Return all tensors in nested containers."""
    return [leaf for leaf in tree_iter(structure) if isinstance(leaf, Tensor)]


REPLAYED = [(method, torch.float32) for method in LEARNING]
REPLAYED += [("prometar", dtype) for dtype in DTYPES if dtype != torch.float32]


@pytest.mark.parametrize(("method", "dtype"), REPLAYED, ids=str)
def test_a_trace_replayed_with_other_data_returns_the_bits_of_the_step(
    method: str, dtype: torch.dtype
) -> None:
    function = Step(method, dtype)
    first = function.inputs(0)
    second = function.inputs(1)
    with Trace(first) as trace:
        results_of_first = function(*first)
    expected = function(*second)

    replayed = trace.replay(second, results_of_first)

    assert replayed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(replayed[name], tensor), name
    assert any(not torch.equal(replayed[name], tensor) for name, tensor in results_of_first.items())
