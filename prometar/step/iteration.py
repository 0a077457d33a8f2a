"""One iteration: the direct phase on a batch, then the meta phase on its meta task (support and query).

Towers have hand-written derivatives (`prometar.clip.tower`). Autograd differentiates the rest, and the text
tower of conditional prompts. B images, C classes, K losses, P tokens of width D, N features of width E.

Source: the published code of ProMetaR (CVPR 2024). tests/parity contains recorded trajectories of that code.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.methods.composition import Method
from prometar.methods.inner_loop import InnerSGD
from prometar.methods.prompts import Leaves, Tensors
from prometar.methods.regularizers import RegularizerInputs
from prometar.step.autodiff import Vjp, fresh_leaves, vjp
from prometar.step.loss_scaling import HEADROOM, scale_factor
from prometar.step.meta_batch import Embeddings, MetaTask
from prometar.step.prompted_clip import PromptedClip
from prometar.step.sgd import sgd
from prometar.step.state import State
from prometar.step.towers import TowerPasses


@dataclass(frozen=True)
class SgdConfig:
    """SGD hyperparameters of both phases, fixed within an epoch. Gate: the modulator's learnable tensors."""

    prompt_lr: float
    gate_lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4


Losses = dict[str, Tensor]


def step(
    model: PromptedClip, method: Method, state: State, batch: Embeddings, meta_task: MetaTask | None,
    config: SgdConfig,
) -> tuple[State, Losses]:  # fmt: skip
    """Return the state after one iteration, and the detached, unweighted losses by name.

    The modulator chooses the factor m in g = g_task + m g_reg, which combines the gradients of the task loss
    and the regularizer. Direct phase: update the prompts theta by SGD with g on the batch. Meta phase
    (skipped without an inner loop, a meta task or learnable prompts): compute theta' = theta - inner_lr g on
    the support; update theta and gate by SGD on outer_weight * query loss(theta'). Both phases share momenta.
    """
    tokens, _, tokens_vjp = vjp(partial(_tokens, method), state.leaves)
    gradients, losses = _gradients(model, method, tokens, batch)
    gradient = tokens_vjp(_modulate(method, state.gate, gradients))
    logged = {f"direct_{name}": loss.detach() for name, loss in losses.items()}
    state = _update(state, gradient, {}, config)
    if method.inner is not None and meta_task is not None and state.leaves:
        gradient, g_gate, losses = _meta_gradients(model, method, method.inner, state, *meta_task)
        state = _update(state, gradient, g_gate, config)
        logged |= {name: loss.detach() for name, loss in losses.items()}
    return replace(state, step=state.step + 1), logged


def _update(state: State, g_prompts: Tensors, g_gate: Tensors, config: SgdConfig) -> State:
    """Return the state after an SGD step of the prompts, and of the gate if `g_gate` is not empty."""
    common = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    leaves, momenta = sgd(state.leaves, state.prompt_momenta, g_prompts, lr=config.prompt_lr, **common)
    state = replace(state, leaves=leaves, prompt_momenta=momenta)
    if g_gate:
        leaves, momenta = sgd(state.gate, state.gate_momenta, g_gate, lr=config.gate_lr, **common)
        state = replace(state, gate=leaves, gate_momenta=momenta)
    return state


Hvp = Callable[[Tensors], Tensors]
"""Map from token directions u_k (K, P, D) to sum_k H_k u_k. H_k: Hessian of loss k with respect to tokens."""


def _meta_gradients(
    model: PromptedClip, method: Method, inner: InnerSGD, state: State, support: Embeddings, query: Embeddings
) -> tuple[Tensors, Tensors, Losses]:
    """Return the gradients of outer_weight * query loss with respect to prompts and gate, and all losses.

    The inner step maps the prompts, the gate and the support gradients g_k to adapted tokens. Its vjp maps
    the query gradient at the adapted tokens to gradients of the prompts and the gate, and to cotangents u_k
    of g_k. With second order, sum_k H_k u_k is pulled back to the prompts and added to the prompts' gradient.
    """
    tokens, _, tokens_vjp = vjp(partial(_tokens, method), state.leaves)
    support_hvp: Hvp | None = None
    if inner.second_order:
        support_gradients, losses, support_hvp = _gradients_and_hvp(model, method, tokens, support)
    else:
        support_gradients, losses = _gradients(model, method, tokens, support)

    def adapt(inputs: Tensors) -> tuple[Tensors, Tensors]:
        prompts, gate, gradients = (_group(inputs, name) for name in ("prompts", "gate", "gradient"))
        # First order: the inner gradient is treated as constant, so it is computed at detached copies.
        inner_prompts = prompts if inner.second_order else fresh_leaves(prompts)
        _, _, inner_vjp = vjp(partial(_tokens, method), inner_prompts, differentiable=True)
        return _tokens(method, inner(prompts, inner_vjp(_modulate(method, gate, gradients))))

    groups = {"prompts": state.leaves, "gate": state.gate, "gradient": support_gradients}
    inputs = {f"{name}/{key}": leaf for name, group in groups.items() for key, leaf in group.items()}
    adapted, _, adapt_vjp = vjp(adapt, inputs)
    query_gradient, query_loss = _query_gradient(model, adapted, query, inner.outer_weight)
    pulled_back = adapt_vjp(query_gradient)
    g_prompts = _group(pulled_back, "prompts")
    if support_hvp is not None:
        scale = scale_factor(model.clip.dtype, HEADROOM, inner.lr, inner.outer_weight)
        product = support_hvp(_scale(_group(pulled_back, "gradient"), scale))
        correction = tokens_vjp(_scale(product, 1 / scale))
        g_prompts = {name: g + correction[name] for name, g in g_prompts.items()}
    support_losses = {f"support_{name}": loss for name, loss in losses.items()}
    return g_prompts, _group(pulled_back, "gate"), support_losses | {"query_loss": query_loss}


def _tokens(method: Method, leaves: Leaves) -> tuple[Tensors, Tensors]:
    """Return the tokens, and no auxiliary values, in the form that `vjp` requires."""
    return method.prompts.tokens(leaves), {}


def _modulate(method: Method, gate: Leaves, gradients: Tensors) -> Tensors:
    """Return the modulated gradient g (P, D) of each token tensor. If K = 1, it is the given one."""
    if any(len(gradients_KPD) == 1 for gradients_KPD in gradients.values()):
        return {name: gradients_KPD[0] for name, gradients_KPD in gradients.items()}
    pairs = {name: gradients_KPD.unbind() for name, gradients_KPD in gradients.items()}
    g_task, g_reg = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    return method.modulator(gate, g_task, g_reg)


def _gradients(
    model: PromptedClip, method: Method, tokens: Tensors, batch: Embeddings
) -> tuple[Tensors, Losses]:
    """Return the gradients (K, P, D) of K losses with respect to the tokens, and the losses by name.

    K is 2 (task loss and regularizer) or 1 (the task loss, or its weighted sum with the regularizer).
    """
    towers = model.forward(tokens, batch.images, batch.frozen)
    terms, losses, loss_vjp = vjp(partial(_losses, model, method, towers, batch), towers.features)
    return towers.vjp(_feature_gradients(method, terms, loss_vjp), release=True), losses


def _gradients_and_hvp(
    model: PromptedClip, method: Method, tokens: Tensors, batch: Embeddings
) -> tuple[Tensors, Losses, Hvp]:
    """Return the gradients and losses of `_gradients`, and the Hessian-vector product at the tokens."""
    towers = model.forward(tokens, batch.images, batch.frozen)

    def feature_gradients(features: Tensors) -> tuple[Tensors, Losses]:
        losses_of = partial(_losses, model, method, towers, batch)
        terms, losses, loss_vjp = vjp(losses_of, features, differentiable=True)
        return _feature_gradients(method, terms, loss_vjp), losses

    # A Hessian is symmetric, so the vjp of the gradients is the Hessian-vector product.
    cotangents, losses, features_hvp = vjp(feature_gradients, towers.features)
    gradients, vjp_records = towers.vjp_for_hvp(cotangents)

    def hvp(u: Tensors) -> Tensors:
        tangents, jvp_records = towers.jvp(u)
        return towers.hvp(vjp_records, jvp_records, features_hvp(tangents), release=True)

    return gradients, losses, hvp


def _feature_gradients(method: Method, terms: Tensors, loss_vjp: Vjp) -> Tensors:
    """Return the gradients (K, N, E) of K losses with respect to the features of each tower."""
    one, constant = torch.ones_like(terms["task"]), method.modulator.constant
    if "regularizer" not in terms:
        gradients = [loss_vjp({"task": one})]
    elif constant is not None:  # with a constant m, the modulated gradient is the gradient of a weighted sum
        gradients = [loss_vjp({"task": one, "regularizer": constant * one})]
    else:
        gradients = [loss_vjp({"task": one}), loss_vjp({"regularizer": one})]
    return {tower: torch.stack([g[tower] for g in gradients]) for tower in gradients[0]}


def _losses(
    model: PromptedClip, method: Method, towers: TowerPasses, batch: Embeddings, features: Tensors
) -> tuple[Tensors, Losses]:
    """Return the terms to differentiate (task loss, regularizer), and all unweighted losses for logging."""
    text_CE, image_BE = towers.text_and_image(features)
    task_loss = cross_entropy(model.logits(image_BE, text_CE), batch.labels, batch.weights)
    inputs = RegularizerInputs(
        text_CE, model.frozen_text_CE, F.normalize(image_BE, dim=-1), batch.frozen, batch.weights,
        model.clip.logit_scale,
    )  # fmt: skip
    total, distances = method.regularizer(inputs)
    terms = {"task": task_loss} if total is None else {"task": task_loss, "regularizer": total}
    return terms, {"ce": task_loss, **distances}


def _query_gradient(
    model: PromptedClip, tokens: Tensors, query: Embeddings, outer_weight: float
) -> tuple[Tensors, Tensor]:
    """Return the gradient of outer_weight * query loss at the adapted tokens, and the query loss itself."""
    towers = model.forward(tokens, query.images, query.frozen)
    terms, _, loss_vjp = vjp(
        lambda features: ({"query": _query_loss(model, towers, features, query)}, {}), towers.features
    )
    scale = scale_factor(model.clip.dtype, outer_weight)
    weight = torch.ones_like(terms["query"]) * (outer_weight * scale)
    query_gradients = {name: g[None] for name, g in loss_vjp({"query": weight}).items()}
    gradient = towers.vjp(query_gradients, release=True)
    return _scale({name: g[0] for name, g in gradient.items()}, 1 / scale), terms["query"]


def _query_loss(model: PromptedClip, towers: TowerPasses, features: Tensors, query: Embeddings) -> Tensor:
    """Return the query loss. Rows of `image_RE`: Q query images, then partners (support images to mix in)."""
    text_CE, image_RE = towers.text_and_image(features)
    image_QE, partners = image_RE[: len(query.labels)], query.partners
    if partners is not None and partners.image_rows is not None:  # `image_rows` is None if pixels are mixed
        query_share, partner_share = partners.query_share[:, None], partners.partner_share[:, None]
        image_QE = query_share * image_QE + partner_share * image_RE[partners.image_rows]
    logits = model.logits(image_QE, text_CE)
    if partners is None or query.partner_labels is None:
        return cross_entropy(logits, query.labels, query.weights)
    loss = cross_entropy(logits, query.labels, query.weights * partners.query_share)
    return loss + cross_entropy(logits, query.partner_labels, query.weights * partners.partner_share)


def _group(values: Tensors, name: str) -> Tensors:
    return {key.partition("/")[2]: leaf for key, leaf in values.items() if key.startswith(f"{name}/")}


def _scale(leaves: Tensors, number: float) -> Tensors:
    return leaves if number == 1 else {name: leaf * number for name, leaf in leaves.items()}


def cross_entropy(logits_BC: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the images' cross-entropies (the mean, if all weights are 1 / B)."""
    return (F.cross_entropy(logits_BC, labels, reduction="none") * weights).sum()
