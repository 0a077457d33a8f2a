"""One step of one configuration as a GPU replays it."""

from dataclasses import replace

import torch
from torch import Tensor

from prometar.methods.composition import Method
from prometar.methods.prompts import Leaves
from prometar.step.cuda_graph import Graph
from prometar.step.iteration import Rates, Scalars, step
from prometar.step.meta_batch import Batch
from prometar.step.prompted_clip import Model
from prometar.step.state import State


def step_recorded(
    graph: Graph, model: Model, method: Method, state: State, batch: Batch, rates: Rates
) -> tuple[State, Scalars]:
    """`step`, recorded once for each shape of a batch; learning rates, which change, are numbers of a replay.

    Example:
        >>> state, scalars = step_recorded(Graph(), model, method, state, batch, rates)  # doctest: +SKIP
    """
    dtype, device = model.clip.working_dtype, model.clip.device
    now = [
        torch.full((), float(rate), dtype=dtype, device=device) for rate in (rates.prompt_lr, rates.gate_lr)
    ]

    def one(tensors: Leaves, batch: Batch, prompt_lr: Tensor, gate_lr: Tensor) -> tuple[Leaves, Scalars]:
        changed = replace(rates, prompt_lr=prompt_lr, gate_lr=gate_lr)
        new, scalars = step(model, method, State.from_tensors(tensors, 0), batch, changed)
        return new.tensors(), scalars

    tensors, scalars = graph(one, state.changing(), batch, *now)
    return state.after(tensors), scalars
