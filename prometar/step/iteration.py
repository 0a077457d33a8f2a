"""One iteration: the direct phase on the whole batch, then the meta phase on support and query.

The towers' derivatives are hand-written (`prometar.clip.tower`). Everything small goes through autograd
(`prometar.step.autodiff`): losses at the features, and what becomes of gradients at the tokens.

Source: ProMetaR (CVPR 2024), as its released code computes it; tests/parity holds recorded
trajectories of that code.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.methods.composition import Method
from prometar.methods.inner_loop import InnerSGD
from prometar.methods.prompts import Leaves
from prometar.methods.regularizers import Views
from prometar.step.autodiff import Vjp, detached, vjp
from prometar.step.loss_scaling import ROOM, factor
from prometar.step.meta_batch import Images, Task
from prometar.step.prompted_clip import Model
from prometar.step.sgd import sgd
from prometar.step.state import State
from prometar.step.towers import Towers


@dataclass(frozen=True)
class Rates:
    """Hyperparameters of both optimizers at this step."""

    prompt_lr: float
    gate_lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4


Scalars = dict[str, Tensor]


def step(
    model: Model, method: Method, state: State, images: Images, task: Task | None, rates: Rates
) -> tuple[State, Scalars]:
    """Return the state after one batch, and named scalars (detached; `*_text`, `*_image` are unweighted).

    Direct phase: theta <- SGD(theta, g_task + m g_reg on the batch).
    Meta phase: theta' = theta - inner_lr (g_task + m g_reg on the support); theta and the gate <- SGD of
    outer_weight * query loss(theta'). Both phases share the prompts' momentum. Without a task there is no
    meta phase, and no scalars of one.
    """
    gradient, losses = _direct(model, method, state, images)
    scalars = {f"direct_{name}": loss.detach() for name, loss in losses.items()}
    state = _update(state, gradient, {}, rates)
    if method.inner is not None and task is not None and state.prompts:
        prompts, gate, meta = _outer(model, method, method.inner, state, *task)
        state = _update(state, prompts, gate, rates)
        scalars |= {name: loss.detach() for name, loss in meta.items()}
    return replace(state, step=state.step + 1), scalars


def _update(state: State, prompts: Leaves, gate: Leaves, rates: Rates) -> State:
    """SGD of the prompts, and of the gate where it has a gradient."""
    common = {"momentum": rates.momentum, "weight_decay": rates.weight_decay}
    leaves, momenta = sgd(state.prompts, state.prompt_momenta, prompts, lr=rates.prompt_lr, **common)
    state = replace(state, prompts=leaves, prompt_momenta=momenta)
    if gate:
        leaves, momenta = sgd(state.gate, state.gate_momenta, gate, lr=rates.gate_lr, **common)
        state = replace(state, gate=leaves, gate_momenta=momenta)
    return state


Hvp = Callable[[Leaves], Leaves]
"""Directions u_k (K, P, D) by token to the gradient of sum_k <u_k, g_k> at the tokens, for gradients g_k."""


def _direct(model: Model, method: Method, state: State, images: Images) -> tuple[Leaves, Scalars]:
    """Return the modulated gradient of the prompts on images, and the losses."""
    tokens, _, to_leaves = vjp(partial(_tokens, method), state.prompts)
    each, losses = _gradients(model, method, tokens, images)
    return to_leaves(_modulated(method, state.gate, each)), losses


def _outer(
    model: Model, method: Method, inner: InnerSGD, state: State, support: Images, query: Images
) -> tuple[Leaves, Leaves, Scalars]:
    """Return gradients of outer_weight * query loss after the inner step, for the prompts and the gate.

    With v the query's gradient at the adapted tokens, and u_k what the inner step makes of it at the
    support's gradients, the prompts get v and sum_k H_k u_k.
    """
    tokens, _, to_leaves = vjp(partial(_tokens, method), state.prompts)
    hvp: Hvp | None = None
    if inner.second_order:
        each, losses, hvp = _gradients_and_hvp(model, method, tokens, support)
    else:
        each, losses = _gradients(model, method, tokens, support)

    def adapt(values: Leaves) -> tuple[Leaves, Leaves]:
        prompts, gate, each = (_group(values, name) for name in ("prompts", "gate", "gradient"))
        # Gradients are modulated at the tokens, then pulled back to the leaves that the tokens are made
        # of. For independent prompts both are the same.
        at = prompts if inner.second_order else detached(prompts)
        _, _, to_leaves = vjp(partial(_tokens, method), at, differentiable=True)
        gradient = to_leaves(_modulated(method, gate, each))
        return _tokens(method, inner(prompts, gradient))

    parts = {"prompts": state.prompts, "gate": state.gate, "gradient": each}
    values = {f"{name}/{key}": leaf for name, part in parts.items() for key, leaf in part.items()}
    adapted, _, back = vjp(adapt, values)
    at_query, query_loss = _query(model, adapted, query, inner.outer_weight)
    outer = back(at_query)
    prompts = _group(outer, "prompts")
    if hvp is not None:
        rate = factor(model.clip.dtype, ROOM, inner.lr, inner.outer_weight)
        bent = hvp(_times(_group(outer, "gradient"), rate))
        bent = to_leaves(_times(bent, 1 / rate))
        prompts = {name: leaf + bent[name] for name, leaf in prompts.items()}
    scalars = {f"support_{name}": loss for name, loss in losses.items()}
    return prompts, _group(outer, "gate"), scalars | {"query_loss": query_loss}


def _tokens(method: Method, leaves: Leaves) -> tuple[Leaves, Leaves]:
    return method.prompts.tokens(leaves), {}


def _modulated(method: Method, gate: Leaves, each: Leaves) -> Leaves:
    if any(len(gradients) == 1 for gradients in each.values()):
        return {name: gradients[0] for name, gradients in each.items()}
    pairs = {name: gradients.unbind() for name, gradients in each.items()}
    task, regularizer = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    return method.modulator(gate, task, regularizer)


def _gradients(model: Model, method: Method, tokens: Leaves, images: Images) -> tuple[Leaves, Scalars]:
    """Return gradients (K, P, D) at each token, and the losses.

    K is 2 for the gradients of the task and of the regularizer, or 1 for that of one sum.
    """
    towers = model.run(tokens, images.tokens, images.frozen)
    values, losses, to_features = vjp(partial(_losses, model, method, towers, images), towers.features)
    return towers.vjp(_at_features(method, values, to_features)), losses


def _gradients_and_hvp(
    model: Model, method: Method, tokens: Leaves, images: Images
) -> tuple[Leaves, Scalars, Hvp]:
    """Return the same as `_gradients`, and the product of a direction with the Hessians."""
    towers = model.run(tokens, images.tokens, images.frozen)

    def at_features(features: Leaves) -> tuple[Leaves, Scalars]:
        losses_of = partial(_losses, model, method, towers, images)
        values, losses, to_features = vjp(losses_of, features, differentiable=True)
        return _at_features(method, values, to_features), losses

    cotangents, losses, bend = vjp(at_features, towers.features)
    each = towers.differentiable_vjp(cotangents)
    return each, losses, lambda u: towers.hvp(bend(towers.jvp(u)))


def _at_features(method: Method, values: Leaves, to_features: Vjp) -> Leaves:
    """Return K gradients (K, N, E) of the losses at the features of each tower."""
    one, strength = torch.ones_like(values["task"]), method.modulator.constant
    if "regularizer" not in values:
        each = [to_features({"task": one})]
    elif strength is not None:  # one pass: the modulated gradient is the gradient of one sum
        each = [to_features({"task": one, "regularizer": strength * one})]
    else:
        each = [to_features({"task": one}), to_features({"regularizer": one})]
    return {tower: torch.stack([g[tower] for g in each]) for tower in each[0]}


def _losses(
    model: Model, method: Method, towers: Towers, images: Images, features: Leaves
) -> tuple[Leaves, Scalars]:
    text_CE, image_BE = towers.both(features)
    task_loss = cross_entropy(model.logits(image_BE, text_CE), images.labels, images.weights)
    views = Views(
        text_CE, model.frozen_text_CE, F.normalize(image_BE, dim=-1), images.frozen, images.weights,
        model.clip.logit_scale,
    )  # fmt: skip
    total, distances = method.regularizer(views)
    values = {"task": task_loss} if total is None else {"task": task_loss, "regularizer": total}
    return values, {"ce": task_loss, **distances}


def _query(model: Model, tokens: Leaves, query: Images, outer_weight: float) -> tuple[Leaves, Tensor]:
    """The gradient of outer_weight * query loss at the adapted tokens, and the loss."""
    towers = model.run(tokens, query.tokens, query.frozen)
    values, _, to_features = vjp(
        lambda features: ({"query": _query_loss(model, towers, features, query)}, {}), towers.features
    )
    weight = factor(model.clip.dtype, outer_weight)
    one = torch.ones_like(values["query"]) * (outer_weight * weight)
    pulled = towers.vjp({name: g[None] for name, g in to_features({"query": one}).items()})
    return _times({name: g[0] for name, g in pulled.items()}, 1 / weight), values["query"]


def _query_loss(model: Model, towers: Towers, features: Leaves, query: Images) -> Tensor:
    """Cross-entropy of the query images under adapted prompts, with their partners mixed in."""
    text_CE, image_RE = towers.both(features)
    image_QE, mixing = image_RE[: len(query.labels)], query.mixing
    if mixing is not None and mixing.encoded is not None:
        image_QE = mixing.own[:, None] * image_QE + mixing.rest[:, None] * image_RE[mixing.encoded]
    logits = model.logits(image_QE, text_CE)
    if mixing is None or query.partner_labels is None:
        return cross_entropy(logits, query.labels, query.weights)
    own = cross_entropy(logits, query.labels, query.weights * mixing.own)
    return own + cross_entropy(logits, query.partner_labels, query.weights * mixing.rest)


def _group(values: Leaves, name: str) -> Leaves:
    return {key.partition("/")[2]: leaf for key, leaf in values.items() if key.startswith(f"{name}/")}


def _times(leaves: Leaves, number: float) -> Leaves:
    return leaves if number == 1 else {name: leaf * number for name, leaf in leaves.items()}


def cross_entropy(logits_BC: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i CE_i; with equal weights that sum to 1, the mean."""
    return (F.cross_entropy(logits_BC, labels, reduction="none") * weights).sum()
