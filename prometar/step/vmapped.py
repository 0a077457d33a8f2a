"""One step of several configurations at once, over one frozen backbone.

Configurations of one structure differ in numbers alone: weights, rates, strengths, shares of a mix. The step
is a function of these numbers, so `torch.vmap` maps it over them: every operation does the work of all
configurations, which is what a GPU needs to be busy with batches of four images.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from prometar.device import send
from prometar.errors import UserError
from prometar.methods.composition import Method
from prometar.methods.prompts import Leaves
from prometar.step.autodiff import functional
from prometar.step.cuda_graph import Graph
from prometar.step.iteration import Rates, Scalars, step
from prometar.step.meta_batch import Batch
from prometar.step.prompted_clip import Model
from prometar.step.state import State


def stack(states: Sequence[State]) -> State:
    """P states as one, whose tensors have P as their first dimension.

    Raises:
        UserError: states of different steps, or of different leaves.
    """
    first, *others = states
    shapes = {name: tensor.shape for name, tensor in first.tensors().items()}
    for other in others:
        if other.step != first.step or {n: t.shape for n, t in other.tensors().items()} != shapes:
            raise UserError("states in lockstep must be at one step, and of the same leaves")
    columns = [state.tensors() for state in states]
    return State.from_tensors({name: torch.stack([c[name] for c in columns]) for name in shapes}, first.step)


def unstack(stacked: State) -> list[State]:
    """The inverse of `stack`."""
    columns = {name: tensor.unbind() for name, tensor in stacked.tensors().items()}
    count = len(next(iter(columns.values())))
    return [
        State.from_tensors({name: column[k].clone() for name, column in columns.items()}, stacked.step)
        for k in range(count)
    ]


def step_all(
    model: Model,
    methods: Sequence[Method],
    stacked: State,
    batches: Sequence[Batch],
    rates: Sequence[Rates],
    *,
    graph: Graph | None = None,
    numbers: Tensor | None = None,
) -> tuple[State, Scalars]:
    """`step` of each of P methods; states and scalars with P as their first dimension.

    Args:
        batches: One for each, of one shape (`select(..., by_labels=True)`). A tensor that is the very same
            object in all of them is shared: images that all see are encoded with one product.
        graph: Records the step on a GPU; one for all steps of a model and a structure.
        numbers: `numbers_of` these methods and rates, if they are known already.
    Raises:
        UserError: methods that differ in more than numbers.

    Example:
        >>> stacked, scalars = step_all(model, methods, stacked, [batch] * 4, [rates] * 4)  # doctest: +SKIP
        >>> scalars["direct_ce"].shape  # doctest: +SKIP
        torch.Size([4])
    """
    if numbers is None:
        numbers = numbers_of(model, methods, rates)
    shared, own, put = _split(batches)

    def mapped(numbers: Tensor, tensors: Leaves, own: list[Tensor], shared: list[Any]) -> Any:
        def one(numbers: Tensor, tensors: Leaves, own: list[Tensor]) -> tuple[Leaves, Scalars]:
            values, batch = iter(numbers.unbind()), put(shared, own)
            method, now = _map((methods[0], rates[0]), lambda _: next(values))
            state, scalars = step(model, method, State.from_tensors(tensors, 0), batch, now, functional)
            return state.tensors(), scalars

        return torch.vmap(one)(numbers, tensors, own)

    tensors, scalars = (graph or Graph())(mapped, numbers, stacked.changing(), own, shared)
    return stacked.after(tensors), scalars


def numbers_of(model: Model, methods: Sequence[Method], rates: Sequence[Rates]) -> Tensor:
    """Every number that P configurations may differ in, (P, N), where the model is: once for many steps.

    Raises:
        UserError: methods that differ in more than numbers.
    """
    require_one_structure(methods)
    rows = [_numbers(each) for each in zip(methods, rates, strict=True)]
    return send(torch.tensor(rows, dtype=model.clip.working_dtype), model.clip.device)


def require_one_structure(methods: Sequence[Method]) -> None:
    """Raises a UserError where methods differ in more than numbers."""
    first, *others = (_map(method, lambda _: 0.0) for method in methods)
    for other in others:
        for field in fields(Method):
            one, another = getattr(first, field.name), getattr(other, field.name)
            if one != another:
                raise UserError(
                    f"methods in lockstep may differ in numbers, not in their {field.name}: {one}, {another}"
                )


def _map(value: Any, change: Callable[[float], Any]) -> Any:
    """The same composition with every number of our parts changed, in the order of its fields.

    Parts of the user's own keep theirs: they may do with a number what no tensor takes.
    """
    if isinstance(value, float):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_map(each, change) for each in value)
    ours = type(value).__module__.startswith("prometar.")
    if ours and is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _map(getattr(value, f.name), change) for f in fields(value)})
    return value


def _numbers(value: Any) -> list[float]:
    """Every number of a composition, in the order of its fields."""
    found: list[float] = []

    def note(number: float) -> float:
        found.append(number)
        return number

    _map(value, note)
    return found


def _split(
    batches: Sequence[Batch],
) -> tuple[list[Any], list[Tensor], Callable[[list[Any], list[Tensor]], Batch]]:
    """What all batches share, what each has of its own (stacked), and how a batch is made of both."""
    specs = [tree_flatten(batch) for batch in batches]
    spec = specs[0][1]
    columns = list(zip(*(leaves for leaves, _ in specs), strict=True))
    is_own = [any(leaf is not column[0] for leaf in column) for column in columns]
    own = [torch.stack(column) for column, differs in zip(columns, is_own, strict=True) if differs]
    shared = [None if differs else column[0] for column, differs in zip(columns, is_own, strict=True)]

    def put(shared: list[Any], own: list[Tensor]) -> Batch:
        rest = iter(own)
        leaves = [next(rest) if differs else leaf for leaf, differs in zip(shared, is_own, strict=True)]
        return tree_unflatten(leaves, spec)

    return shared, own, put
