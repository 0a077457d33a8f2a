"""One iteration: the direct phase on a batch, then the meta phase on its meta task (support and query).

Towers with prompt tokens have hand-written derivatives (`prometar.clip.tower`). Autograd differentiates the
rest, and towers that are changed in other ways (`prometar.clip.adapted`). B images, C classes, K losses, P
tokens of width D, N features of width E.

Source: the published code of ProMetaR (CVPR 2024). tests/parity contains recorded trajectories of that code.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from prometar.methods.composition import Method, part
from prometar.methods.inner_loop import InnerSGD
from prometar.methods.prompts import Leaves, Tensors
from prometar.methods.regularizers import RegularizerInputs
from prometar.step.autodiff import Vjp, fresh_leaves, vjp
from prometar.step.loss_scaling import HEADROOM, scale_factor
from prometar.step.meta_batch import Embeddings, MetaTask, Partners
from prometar.step.prompted_clip import PromptedClip
from prometar.step.state import State
from prometar.step.towers import TowerPasses
from prometar.step.updates import Rates, update_leaves

Losses = dict[str, Tensor]


def step(
    model: PromptedClip,
    method: Method,
    state: State,
    batch: Embeddings,
    meta_task: MetaTask | None,
    rates: Rates,
) -> tuple[State, Losses]:
    """Return the state after one iteration, and the detached, unweighted losses by name.

    The modulator chooses the factor m in g = g_task + m g_reg, which combines the gradients of the task loss
    and the regularizer. Direct phase: the optimizer updates the leaves theta with g on the batch. Meta phase
    (skipped without an inner loop, a meta task or leaves): compute theta' = theta - inner_lr g on the
    support; update theta and gate on outer_weight * query loss(theta'). Both phases share the optimizer's
    state.
    """
    inputs, _, inputs_vjp = vjp(partial(_inputs, method), state.leaves)
    gradients, losses = _gradients(model, method, inputs, batch)
    gradient = inputs_vjp(_modulate(method, state.gate, gradients))
    logged = {f"direct_{name}": loss.detach() for name, loss in losses.items()}
    state = _update(method, state, gradient, {}, rates)
    if method.inner is not None and meta_task is not None and state.leaves:
        gradient, g_gate, losses = _meta_gradients(model, method, method.inner, state, *meta_task)
        state = _update(method, state, gradient, g_gate, rates)
        logged |= {name: loss.detach() for name, loss in losses.items()}
    return replace(state, step=state.step + 1), logged


def _update(method: Method, state: State, gradient: Tensors, g_gate: Tensors, rates: Rates) -> State:
    """Return the state after an update of the leaves, and of the gate if `g_gate` is not empty."""
    leaves, optimizer = update_leaves(
        method.optimizer, state.leaves, gradient, state.optimizer, rates.of_leaf
    )
    state = replace(state, leaves=leaves, optimizer=optimizer)
    if g_gate:
        gate, optimizer = update_leaves(
            method.optimizer, state.gate, g_gate, state.gate_optimizer, lambda name: rates.gate_lr
        )
        state = replace(state, gate=gate, gate_optimizer=optimizer)
    return state


Hvp = Callable[[Tensors], Tensors]
"""Map from input directions u_k (K, P, D) to sum_k H_k u_k. H_k: Hessian of loss k with respect to inputs."""


def _meta_gradients(
    model: PromptedClip, method: Method, inner: InnerSGD, state: State, support: Embeddings, query: Embeddings
) -> tuple[Tensors, Tensors, Losses]:
    """Return the gradients of outer_weight * query loss with respect to prompts and gate, and all losses.

    The inner step maps the prompts, the gate and the support gradients g_k to adapted inputs. Its vjp maps
    the query gradient at the adapted inputs to gradients of the prompts and the gate, and to cotangents u_k
    of g_k. With second order, sum_k H_k u_k is pulled back to the prompts and added to the prompts' gradient.
    """
    inputs, _, inputs_vjp = vjp(partial(_inputs, method), state.leaves)
    support_hvp: Hvp | None = None
    if inner.second_order:
        support_gradients, losses, support_hvp = _gradients_and_hvp(model, method, inputs, support)
    else:
        support_gradients, losses = _gradients(model, method, inputs, support)

    def adapt(values: Tensors) -> tuple[Tensors, Tensors]:
        prompts, gate, gradients = (_group(values, name) for name in ("prompts", "gate", "gradient"))
        # First order: the inner gradient is treated as constant, so it is computed at detached copies.
        inner_prompts = prompts if inner.second_order else fresh_leaves(prompts)
        _, _, inner_vjp = vjp(partial(_inputs, method), inner_prompts, differentiable=True)
        return _inputs(method, inner(prompts, inner_vjp(_modulate(method, gate, gradients))))

    groups = {"prompts": state.leaves, "gate": state.gate, "gradient": support_gradients}
    values = {f"{name}/{key}": leaf for name, group in groups.items() for key, leaf in group.items()}
    adapted, _, adapt_vjp = vjp(adapt, values)
    query_gradient, query_loss = _query_gradient(model, method, adapted, query, inner.outer_weight)
    pulled_back = adapt_vjp(query_gradient)
    g_prompts = _group(pulled_back, "prompts")
    if support_hvp is not None:
        scale = scale_factor(model.clip.dtype, HEADROOM, inner.lr, inner.outer_weight)
        product = support_hvp(_scale(_group(pulled_back, "gradient"), scale))
        correction = inputs_vjp(_scale(product, 1 / scale))
        sums = torch._foreach_add(list(g_prompts.values()), [correction[name] for name in g_prompts])
        g_prompts = dict(zip(g_prompts, sums, strict=True))
    support_losses = {f"support_{name}": loss for name, loss in losses.items()}
    return g_prompts, _group(pulled_back, "gate"), support_losses | {"query_loss": query_loss}


def _inputs(method: Method, leaves: Leaves) -> tuple[Tensors, Tensors]:
    """Return the inputs, and no auxiliary values, in the form that `vjp` requires."""
    return method.inputs(leaves), {}


def _modulate(method: Method, gate: Leaves, gradients: Tensors) -> Tensors:
    """Return the modulated gradient g of each input, given K gradients. If K = 1, it is the given one."""
    if any(len(gradients_K) == 1 for gradients_K in gradients.values()):
        return {name: gradients_K[0] for name, gradients_K in gradients.items()}
    g_task: Tensors = {}
    g_reg: Tensors = {}
    for name, gradients_K in gradients.items():
        g_task[name], g_reg[name] = gradients_K.unbind()
    return method.modulator(gate, g_task, g_reg)


def _gradients(
    model: PromptedClip, method: Method, inputs: Tensors, batch: Embeddings
) -> tuple[Tensors, Losses]:
    """Return the gradients (K, ...) of K losses with respect to the inputs, and the losses by name.

    K is 2 (task loss and regularizer) or 1 (the task loss, or its weighted sum with the regularizer).
    """
    towers = model.forward(inputs, batch.images, batch.frozen)
    terms, losses, loss_vjp = vjp(partial(_losses, model, method, towers, batch), towers.outputs)
    return towers.vjp(_output_gradients(method, terms, loss_vjp), release=True), losses


def _gradients_and_hvp(
    model: PromptedClip, method: Method, inputs: Tensors, batch: Embeddings
) -> tuple[Tensors, Losses, Hvp]:
    """Return the gradients and losses of `_gradients`, and the Hessian-vector product at the inputs."""
    towers = model.forward(inputs, batch.images, batch.frozen, twice=True)

    def output_gradients(outputs: Tensors) -> tuple[Tensors, Losses]:
        losses_of = partial(_losses, model, method, towers, batch)
        terms, losses, loss_vjp = vjp(losses_of, outputs, differentiable=True)
        return _output_gradients(method, terms, loss_vjp), losses

    # A Hessian is symmetric, so the vjp of the gradients is the Hessian-vector product.
    cotangents, losses, outputs_hvp = vjp(output_gradients, towers.outputs)
    gradients, vjp_records = towers.vjp_for_hvp(cotangents)

    def hvp(u: Tensors) -> Tensors:
        tangents, jvp_records = towers.jvp(u)
        return towers.hvp(vjp_records, jvp_records, outputs_hvp(tangents), release=True)

    return gradients, losses, hvp


def _output_gradients(method: Method, terms: Tensors, loss_vjp: Vjp) -> Tensors:
    """Return the gradients (K, ...) of K losses with respect to the towers' outputs."""
    one = torch.ones_like(terms["task"])
    constant = method.modulator.constant
    if "regularizer" not in terms:
        gradients = [loss_vjp({"task": one})]
    elif constant is not None:  # with a constant m, the modulated gradient is the gradient of a weighted sum
        gradients = [loss_vjp({"task": one, "regularizer": constant * one})]
    else:
        gradients = [loss_vjp({"task": one}), loss_vjp({"regularizer": one})]
    return {name: torch.stack([g[name] for g in gradients]) for name in gradients[0]}


def _losses(
    model: PromptedClip, method: Method, towers: TowerPasses, batch: Embeddings, outputs: Tensors
) -> tuple[Tensors, Losses]:
    """Return the terms to differentiate (task loss, regularizer), and all unweighted losses for logging."""
    features = model.final_features(outputs, towers.features(outputs))
    scale = model.clip.logit_scale
    task_loss = method.logits.loss(part(outputs, "logits"), features, batch.labels, batch.weights, scale)
    inputs = RegularizerInputs(
        text_CE=features.unit_text_CE,
        frozen_text_CE=model.frozen_text_CE,
        image_BE=features.unit_image_BE,
        frozen_image_BE=batch.frozen,
        weights_B=batch.weights,
        scale=scale,
    )
    total, distances = method.regularizer(inputs)
    terms = {"task": task_loss} if total is None else {"task": task_loss, "regularizer": total}
    return terms, {"ce": task_loss, **distances}


def _query_gradient(
    model: PromptedClip, method: Method, inputs: Tensors, query: Embeddings, outer_weight: float
) -> tuple[Tensors, Tensor]:
    """Return the gradient of outer_weight * query loss at the adapted inputs, and the query loss itself."""
    towers = model.forward(inputs, query.images, query.frozen)
    terms, _, loss_vjp = vjp(
        lambda outputs: ({"query": _query_loss(model, method, towers, outputs, query)}, {}), towers.outputs
    )
    scale = scale_factor(model.clip.dtype, outer_weight)
    weight = torch.ones_like(terms["query"]) * (outer_weight * scale)
    query_gradients = {name: g[None] for name, g in loss_vjp({"query": weight}).items()}
    gradient = towers.vjp(query_gradients, release=True)
    return _scale({name: g[0] for name, g in gradient.items()}, 1 / scale), terms["query"]


def _query_loss(
    model: PromptedClip, method: Method, towers: TowerPasses, outputs: Tensors, query: Embeddings
) -> Tensor:
    """Return the query loss. Images: Q query images, then partners (support images to mix in)."""
    features = model.final_features(outputs, towers.features(outputs))
    partners = query.partners
    features = features.for_images(lambda rows: _mixed(rows, len(query.labels), partners))

    def loss(labels: Tensor, weights: Tensor) -> Tensor:
        leaves = part(outputs, "logits")
        return method.logits.loss(leaves, features, labels, weights, model.clip.logit_scale)

    if partners is None or query.partner_labels is None:
        return loss(query.labels, query.weights)
    own_loss = loss(query.labels, query.weights * partners.query_share)
    return own_loss + loss(query.partner_labels, query.weights * partners.partner_share)


def _mixed(rows_RE: Tensor, num_query: int, partners: Partners | None) -> Tensor:
    """Return the features of the query images, mixed with those of their partners (if pixels are not)."""
    query_QE = rows_RE[:num_query]
    if partners is None or partners.image_rows is None:  # `image_rows` is None if pixels are mixed
        return query_QE
    query_share = partners.query_share[:, None]
    return query_share * query_QE + partners.partner_share[:, None] * rows_RE[partners.image_rows]


def _group(values: Tensors, name: str) -> Tensors:
    return {key.partition("/")[2]: leaf for key, leaf in values.items() if key.startswith(f"{name}/")}


def _scale(leaves: Tensors, number: float) -> Tensors:
    return leaves if number == 1 else {name: leaf * number for name, leaf in leaves.items()}
