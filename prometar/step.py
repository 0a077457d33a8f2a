"""One iteration: the direct phase on the whole batch, then the meta phase on support and query.

Source: ProMetaR (CVPR 2024), as its released code computes it; tests/parity holds recorded
trajectories of that code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.teacher import frozen_image
from prometar.methods import Method
from prometar.model import Model
from prometar.optim import sgd
from prometar.parts.inner import InnerLoop
from prometar.parts.prompts import Leaves
from prometar.parts.tasks import TaskDraw
from prometar.state import State


@dataclass(frozen=True)
class Rates:
    """Hyperparameters of both optimizers at this step."""

    prompt_lr: float
    gate_lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4


class Batch(NamedTuple):
    """Embedded images (B, T, D), labels (B,), frozen features (B, E) if used, the meta task if any."""

    tokens: Tensor
    labels: Tensor
    frozen: Tensor | None
    task: TaskDraw | None

    @property
    def support(self) -> Batch:
        """The support images alone."""
        assert self.task is not None
        rows = self.task.support
        return Batch(
            self.tokens[rows], self.labels[rows], None if self.frozen is None else self.frozen[rows], None
        )


Scalars = dict[str, Tensor]


def make_batch(model: Model, method: Method, tokens: Tensor, labels: Tensor, task: TaskDraw | None) -> Batch:
    """A batch with its frozen image features, computed once where the regularizer uses them."""
    frozen = frozen_image(model.clip, tokens) if method.regularizer.uses_images else None
    return Batch(tokens, labels, frozen, task)


def step(model: Model, method: Method, state: State, batch: Batch, rates: Rates) -> tuple[State, Scalars]:
    """The state after one batch, and named scalars (detached; `*_text`, `*_image` are unweighted).

    Direct phase: theta <- SGD(theta, g_task + m g_reg on the batch).
    Meta phase: theta' = theta - inner_lr (g_task + m g_reg on the support); theta and the gate <- SGD of
    outer_weight * query loss(theta'). Both phases share the prompts' momentum.
    """
    scalars: Scalars = {}
    prompts = _leaves(state.prompts)
    gradient = _modulated(model, method, prompts, state.gate, batch, scalars, "direct")
    state = _update(state, {name: g.detach() for name, g in gradient.items()}, {}, rates)
    if method.inner is not None and batch.task is not None and prompts:
        prompt_gradient, gate_gradient = _outer(
            model, method, method.inner, state, batch, batch.task, scalars
        )
        state = _update(state, prompt_gradient, gate_gradient, rates)
    return replace(state, step=state.step + 1), scalars


def _leaves(tensors: Mapping[str, Tensor]) -> Leaves:
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def _update(state: State, prompts: Leaves, gate: Leaves, rates: Rates) -> State:
    """SGD of the prompts, and of the gate where it has a gradient."""
    common = {"momentum": rates.momentum, "weight_decay": rates.weight_decay}
    leaves, momenta = sgd(state.prompts, state.prompt_momenta, prompts, lr=rates.prompt_lr, **common)
    state = replace(state, prompts=leaves, prompt_momenta=momenta)
    if gate:
        leaves, momenta = sgd(state.gate, state.gate_momenta, gate, lr=rates.gate_lr, **common)
        state = replace(state, gate=leaves, gate_momenta=momenta)
    return state


def _modulated(
    model: Model,
    method: Method,
    prompts: Leaves,
    gate: Leaves,
    batch: Batch,
    scalars: Scalars,
    phase: str,
    *,
    differentiable: bool = False,
) -> Leaves:
    """The modulated gradient of the prompts on a batch; its losses go to `scalars` under `phase`."""
    text_CE = model.text_features(prompts)
    image_BE = model.image_features(prompts, batch.tokens)
    task_loss = F.cross_entropy(model.logits(image_BE, text_CE), batch.labels)
    terms = method.regularizer.terms(
        (text_CE, model.frozen_text_CE), (F.normalize(image_BE, dim=-1), batch.frozen)
    )
    scalars[f"{phase}_ce"] = task_loss.detach()
    scalars |= {
        f"{phase}_{name}": term.detach() for name, term in terms._asdict().items() if term is not None
    }
    total, strength = method.regularizer.total(terms), method.modulator.constant
    if total is None:
        return _grad(task_loss, prompts, differentiable)
    if strength is not None:  # one pass: the modulated gradient is the gradient of one sum
        return _grad(task_loss + strength * total, prompts, differentiable)
    g_task = _grad(task_loss, prompts, differentiable, retain=True)
    g_reg = _grad(total, prompts, differentiable)
    return method.modulator(gate, g_task, g_reg)


def _grad(loss: Tensor, leaves: Leaves, differentiable: bool, *, retain: bool = False) -> Leaves:
    """Gradient by leaf; zeros where the loss does not depend on one (no text prompt enters an image term)."""
    if not leaves:
        return {}
    gradient = torch.autograd.grad(
        loss,
        list(leaves.values()),
        create_graph=differentiable,
        retain_graph=retain or differentiable,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(leaves, gradient, strict=True))


def _outer(
    model: Model,
    method: Method,
    inner: InnerLoop,
    state: State,
    batch: Batch,
    task: TaskDraw,
    scalars: Scalars,
) -> tuple[Leaves, Leaves]:
    """Gradients of outer_weight * query loss after the inner step, for the prompts and for the gate."""
    prompts, gate = _leaves(state.prompts), _leaves(state.gate)
    gradient = _modulated(
        model, method, prompts, gate, batch.support, scalars, "support", differentiable=inner.second_order
    )
    adapted = inner(prompts, gradient)
    query_loss = _query_loss(model, adapted, batch, task)
    scalars["query_loss"] = query_loss.detach()
    both = prompts | {f"gate/{name}": leaf for name, leaf in gate.items()}
    outer = _grad(inner.outer_weight * query_loss, both, differentiable=False)
    return {name: outer[name] for name in prompts}, {name: outer[f"gate/{name}"] for name in gate}


def _query_loss(model: Model, adapted: Leaves, batch: Batch, task: TaskDraw) -> Tensor:
    """Cross-entropy of the query images, mixed with their partners in the support, under adapted prompts."""
    text_CE = model.text_features(adapted)
    if task.lam is None or task.mix is None:
        image_BE = model.image_features(adapted, batch.tokens[task.query])
        return F.cross_entropy(model.logits(image_BE, text_CE), batch.labels[task.query])
    partners, place = task.support[task.mix].unique(return_inverse=True)
    image_BE = model.image_features(adapted, batch.tokens[torch.cat([task.query, partners])])
    num_query = len(task.query)
    # 1 - lam is taken in the precision that lam was drawn in, as the released code does.
    lam, rest = task.lam.to(image_BE), (1 - task.lam).to(image_BE)
    mixed = lam[:, None] * image_BE[:num_query] + rest[:, None] * image_BE[num_query:][place]
    logits = model.logits(mixed, text_CE)
    own = F.cross_entropy(logits, batch.labels[task.query], reduction="none")
    other = F.cross_entropy(logits, batch.labels[task.support[task.mix]], reduction="none")
    return (lam * own + rest * other).mean()
