"""One iteration: the direct phase on the whole batch, then the meta phase on support and query.

Source: ProMetaR (CVPR 2024), as its released code computes it; tests/parity holds recorded
trajectories of that code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.methods.composition import Method
from prometar.methods.inner_loop import InnerLoop
from prometar.methods.prompts import Leaves
from prometar.methods.regularizers import Views
from prometar.step.autodiff import Differentiate, autograd
from prometar.step.loss_scaling import Scaling
from prometar.step.meta_batch import Batch, Images, Query, Task
from prometar.step.prompted_clip import Model
from prometar.step.sgd import sgd
from prometar.step.state import State


@dataclass(frozen=True)
class Rates:
    """Hyperparameters of both optimizers at this step."""

    prompt_lr: float
    gate_lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4


Scalars = dict[str, Tensor]


def step(
    model: Model,
    method: Method,
    state: State,
    batch: Batch,
    rates: Rates,
    differentiate: Differentiate = autograd,
) -> tuple[State, Scalars]:
    """The state after one batch, and named scalars (detached; `*_text`, `*_image` are unweighted).

    Direct phase: theta <- SGD(theta, g_task + m g_reg on the batch).
    Meta phase: theta' = theta - inner_lr (g_task + m g_reg on the support); theta and the gate <- SGD of
    outer_weight * query loss(theta'). Both phases share the prompts' momentum. Where a static task is not
    present, the meta phase changes nothing and its scalars are NaN.
    """
    compute = _Compute(model, method, differentiate)
    gradient, losses = compute.modulated(state.prompts, state.gate, batch.images, again=False)
    scalars = {f"direct_{name}": loss.detach() for name, loss in losses.items()}
    state = _update(state, gradient, {}, rates)
    if method.inner is not None and batch.task is not None and state.prompts:
        prompts, gate, meta = compute.outer(method.inner, state, batch.task)
        meta = {name: loss.detach() for name, loss in meta.items()}
        updated, present = _update(state, prompts, gate, rates), batch.task.present
        if present is not None:
            updated = _where(present, updated, state)
            meta = {name: loss.where(present, torch.nan) for name, loss in meta.items()}
        state, scalars = updated, scalars | meta
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


def _where(condition: Tensor, yes: State, no: State) -> State:
    kept = no.tensors()
    chosen = {name: torch.where(condition, value, kept[name]) for name, value in yes.tensors().items()}
    return State.from_tensors(chosen, yes.step)


@dataclass(frozen=True)
class _Compute:
    """Gradients of both phases."""

    model: Model
    method: Method
    differentiate: Differentiate

    def modulated(
        self, prompts: Leaves, gate: Leaves, images: Images, *, again: bool
    ) -> tuple[Leaves, Scalars]:
        """The modulated gradient of the prompts on images, and the losses.

        Gradients are taken, and modulated, at the tokens in the towers, then pulled back to the leaves that
        the tokens are made of: for independent prompts these are the same.
        """
        tokens, _, to_leaves = self.differentiate(
            lambda leaves: (self.method.prompts.tokens(leaves), {}), prompts, again=again
        )
        inner = self.method.inner if again else None
        scaling = Scaling.of(self.model.clip.dtype, rate=inner.lr if inner else 1.0)
        values, losses, pull = self.differentiate(
            lambda t: self._losses(t, images), scaling.enter(tokens), again=again
        )
        one, strength = scaling.cotangent(values["task"]), self.method.modulator.constant
        if "regularizer" not in values:
            gradient = scaling.leave(pull({"task": one}))
        elif strength is not None:  # one pass: the modulated gradient is the gradient of one sum
            gradient = scaling.leave(pull({"task": one, "regularizer": strength * one}))
        else:
            g_task = scaling.leave(pull({"task": one}, last=False))
            gradient = self.method.modulator(gate, g_task, scaling.leave(pull({"regularizer": one})))
        return to_leaves(gradient, connected=True), losses

    def _losses(self, tokens: Leaves, images: Images) -> tuple[Leaves, Scalars]:
        model = self.model
        text_CE = model.text_features(tokens, images.frozen)
        image_BE = model.image_features(tokens, images.tokens)
        task_loss = cross_entropy(model.logits(image_BE, text_CE), images.labels, images.weights)
        views = Views(
            text_CE, model.frozen_text_CE, F.normalize(image_BE, dim=-1), images.frozen, images.weights,
            model.clip.logit_scale,
        )  # fmt: skip
        total, distances = self.method.regularizer(views)
        values = {"task": task_loss} if total is None else {"task": task_loss, "regularizer": total}
        return values, {"ce": task_loss, **distances}

    def outer(self, inner: InnerLoop, state: State, task: Task) -> tuple[Leaves, Leaves, Scalars]:
        """Gradients of outer_weight * query loss after the inner step, for the prompts and for the gate."""

        def objective(both: Leaves) -> tuple[Leaves, Scalars]:
            prompts = {name: both[f"prompts/{name}"] for name in state.prompts}
            gate = {name: both[f"gate/{name}"] for name in state.gate}
            gradient, losses = self.modulated(prompts, gate, task.support, again=inner.second_order)
            query_loss = self._query_loss(inner(prompts, gradient), task.query)
            scalars = {f"support_{name}": loss for name, loss in losses.items()}
            return {"outer": inner.outer_weight * query_loss}, scalars | {"query_loss": query_loss}

        both = {f"{group}/{name}": leaf
                for group in ("prompts", "gate") for name, leaf in getattr(state, group).items()}  # fmt: skip
        values, scalars, pull = self.differentiate(objective, both)
        scaling = Scaling.of(self.model.clip.dtype, weight=inner.outer_weight)
        outer = scaling.leave(pull({"outer": scaling.cotangent(values["outer"])}))
        return (
            {name: outer[f"prompts/{name}"] for name in state.prompts},
            {name: outer[f"gate/{name}"] for name in state.gate},
            scalars,
        )

    def _query_loss(self, adapted: Leaves, query: Query) -> Tensor:
        """Cross-entropy of the query images under adapted prompts, with their partners mixed in."""
        tokens = self.method.prompts.tokens(adapted)
        text_CE = self.model.text_features(tokens, query.frozen)
        image_RE = self.model.image_features(tokens, query.tokens)
        image_QE, shares = image_RE[: len(query.labels)], query.shares
        if shares is not None and shares.partner is not None:
            image_QE = shares.own[:, None] * image_QE + shares.rest[:, None] * image_RE[shares.partner]
        logits = self.model.logits(image_QE, text_CE)
        if shares is None:
            return cross_entropy(logits, query.labels, query.weights)
        own = cross_entropy(logits, query.labels, query.weights * shares.own)
        return own + cross_entropy(logits, shares.labels, query.weights * shares.rest)


def cross_entropy(logits_BC: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i CE_i; with equal weights that sum to 1, the mean."""
    return (F.cross_entropy(logits_BC, labels, reduction="none") * weights).sum()
