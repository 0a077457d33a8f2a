"""One iteration: the direct phase on a batch, then the meta phase on its meta task (support and query).

Towers with prompt tokens have hand-written derivatives (`prometar.clip.tower`). Autograd differentiates the
rest, and towers that are changed in other ways (`prometar.clip.adapted`).

Leaves are the learned tensors of a method. Inputs are what the method computes from them, such as prompt
tokens (`Method.inputs`). The inputs enter the towers and the losses.

Partners are support images that are mixed into the query images. Names of tensors end with their dimensions:
B images, C classes, K losses, Q query images, R query images and partners, features of width E. Prompts have
P tokens of width D.

The plural `gradients` means the gradients of K losses, with a leading dimension K. The singular `gradient`
means the gradient of one loss, with the shape of the differentiated tensor.

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
"""Unweighted losses by name: "ce" and the regularizer's terms, such as "text".

In the results of `step`, names have a prefix, such as "direct_ce" and "support_ce". The loss of the query
is "query_loss".
"""

Hvp = Callable[[Tensors], Tensors]
"""Map from input directions u_k (K, P, D) to sum_k H_k u_k. H_k: Hessian of loss k with respect to inputs."""


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
    and the regularizer.

    - Direct phase: The optimizer updates the leaves theta with g on the batch.
    - Meta phase: The inner step computes theta' = theta - inner_lr g on the support. The optimizer then
      updates theta and the gate with the gradients of outer_weight * query loss(theta'). This phase is
      skipped if the method has no inner loop or no leaves, or if there is no meta task.

    Both phases share the optimizer's state.
    """
    inputs, _, inputs_vjp = vjp(partial(_inputs, method), state.leaves)
    gradients, direct_losses = _gradients(model, method, inputs, batch)
    leaf_gradient = inputs_vjp(_modulate(method, state.gate, gradients))
    state = _update(method, state, leaf_gradient, {}, rates)
    logged = {f"direct_{name}": loss.detach() for name, loss in direct_losses.items()}

    if method.inner is not None and meta_task is not None and state.leaves:
        support, query = meta_task
        leaf_gradient, gate_gradient, meta_losses = _meta_gradient(
            model, method, method.inner, state, support, query
        )
        state = _update(method, state, leaf_gradient, gate_gradient, rates)
        logged |= {name: loss.detach() for name, loss in meta_losses.items()}

    return replace(state, step=state.step + 1), logged


def _update(
    method: Method, state: State, leaf_gradient: Tensors, gate_gradient: Tensors, rates: Rates
) -> State:
    """Return the state after an update of the leaves, and of the gate if `gate_gradient` is not empty."""
    leaves, optimizer = update_leaves(
        method.optimizer, state.leaves, leaf_gradient, state.optimizer, rates.of_leaf
    )
    state = replace(state, leaves=leaves, optimizer=optimizer)
    if not gate_gradient:
        return state
    gate, gate_optimizer = update_leaves(
        method.optimizer, state.gate, gate_gradient, state.gate_optimizer, lambda name: rates.gate_lr
    )
    return replace(state, gate=gate, gate_optimizer=gate_optimizer)


def _meta_gradient(
    model: PromptedClip, method: Method, inner: InnerSGD, state: State, support: Embeddings, query: Embeddings
) -> tuple[Tensors, Tensors, Losses]:
    """Return the gradients of outer_weight * query loss by leaf and by gate tensor, and all losses.

    The inner step maps the leaves, the gate and the support gradients g_k to adapted inputs. Its vjp maps
    the query gradient at the adapted inputs to gradients of the leaves and the gate, and to cotangents u_k
    of g_k. With second order, sum_k H_k u_k is pulled back to the leaves and added to their gradient.
    """
    inputs, _, inputs_vjp = vjp(partial(_inputs, method), state.leaves)
    support_hvp: Hvp | None = None
    if inner.second_order:
        gradients, support_losses, support_hvp = _gradients_and_hvp(model, method, inputs, support)
    else:
        gradients, support_losses = _gradients(model, method, inputs, support)

    arguments = _join_groups({"leaves": state.leaves, "gate": state.gate, "gradients": gradients})
    adapted, _, adapt_vjp = vjp(partial(_adapt, method, inner), arguments)
    query_gradient, query_loss = _query_gradient(model, method, adapted, query, inner.outer_weight)
    pulled_back = adapt_vjp(query_gradient)
    leaf_gradient = _group(pulled_back, "leaves")
    gate_gradient = _group(pulled_back, "gate")

    if support_hvp is not None:
        # In float16, the scale keeps the tangents within range. It is undone after the products.
        loss_scale = scale_factor(model.clip.dtype, HEADROOM, inner.lr, inner.outer_weight)
        u = _group(pulled_back, "gradients")
        scaled_product = support_hvp(_scaled(u, loss_scale))
        second_order_terms = inputs_vjp(_scaled(scaled_product, 1 / loss_scale))
        leaf_gradient = _sum(leaf_gradient, second_order_terms)

    losses = {f"support_{name}": loss for name, loss in support_losses.items()}
    losses["query_loss"] = query_loss
    return leaf_gradient, gate_gradient, losses


def _adapt(method: Method, inner: InnerSGD, arguments: Tensors) -> tuple[Tensors, Tensors]:
    """Return the inputs after the inner step, and no auxiliary values.

    `arguments` has the groups "leaves", "gate" and "gradients" (`_join_groups`). The latter are the gradients
    of the support losses with respect to the inputs.
    """
    leaves = _group(arguments, "leaves")
    gate = _group(arguments, "gate")
    gradients = _group(arguments, "gradients")
    # First order treats the inner gradient as constant, so it is computed at detached leaves.
    inner_leaves = leaves if inner.second_order else fresh_leaves(leaves)
    _, _, inner_vjp = vjp(partial(_inputs, method), inner_leaves, differentiable=True)
    leaf_gradient = inner_vjp(_modulate(method, gate, gradients))
    adapted_leaves = inner(leaves, leaf_gradient)
    return _inputs(method, adapted_leaves)


def _inputs(method: Method, leaves: Leaves) -> tuple[Tensors, Tensors]:
    """Return the inputs, and no auxiliary values, in the form that `vjp` requires."""
    return method.inputs(leaves), {}


def _modulate(method: Method, gate: Leaves, gradients: Tensors) -> Tensors:
    """Return the modulated gradient g of each input, given the gradients of K losses.

    If K = 1, g is the gradient of the only loss. If K = 2, the losses are the task loss and the regularizer.
    """
    has_one_loss = all(len(gradients_K) == 1 for gradients_K in gradients.values())
    if has_one_loss:
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

    K is 2 if the gradients of task loss and regularizer are needed separately. Otherwise, K is 1, and the
    only loss is the task loss, or its weighted sum with the regularizer.
    """
    towers = model.forward(inputs, batch.images, batch.frozen)
    losses_of = partial(_losses, model, method, towers, batch)
    terms, losses, loss_vjp = vjp(losses_of, towers.outputs)
    output_gradients = _output_gradients(method, terms, loss_vjp)
    return towers.vjp(output_gradients, release=True), losses


def _gradients_and_hvp(
    model: PromptedClip, method: Method, inputs: Tensors, batch: Embeddings
) -> tuple[Tensors, Losses, Hvp]:
    """Return the gradients and losses of `_gradients`, and the Hessian-vector product at the inputs."""
    towers = model.forward(inputs, batch.images, batch.frozen, differentiable_twice=True)

    def output_gradients_at(outputs: Tensors) -> tuple[Tensors, Losses]:
        losses_of = partial(_losses, model, method, towers, batch)
        terms, losses, loss_vjp = vjp(losses_of, outputs, differentiable=True)
        return _output_gradients(method, terms, loss_vjp), losses

    # A Hessian is symmetric, so the vjp of the gradients is the Hessian-vector product.
    output_gradients, losses, outputs_hvp = vjp(output_gradients_at, towers.outputs)
    gradients, vjp_records = towers.vjp_for_hvp(output_gradients)

    def hvp(u: Tensors) -> Tensors:
        output_tangents, jvp_records = towers.jvp(u)
        output_cotangents = outputs_hvp(output_tangents)
        return towers.hvp(vjp_records, jvp_records, output_cotangents, release=True)

    return gradients, losses, hvp


def _output_gradients(method: Method, terms: Tensors, loss_vjp: Vjp) -> Tensors:
    """Return the gradients (K, ...) of K losses with respect to the towers' outputs (K: see `_gradients`)."""
    one = torch.ones_like(terms["task"])
    constant = method.modulator.constant
    if "regularizer" not in terms:
        gradient_by_loss = [loss_vjp({"task": one})]
    elif constant is not None:
        # With a constant m, the modulated gradient is the gradient of task loss + m * regularizer.
        gradient_by_loss = [loss_vjp({"task": one, "regularizer": constant * one})]
    else:
        gradient_by_loss = [loss_vjp({"task": one}), loss_vjp({"regularizer": one})]
    stacked: Tensors = {}
    for name in gradient_by_loss[0]:
        stacked[name] = torch.stack([gradient[name] for gradient in gradient_by_loss])
    return stacked


def _losses(
    model: PromptedClip, method: Method, towers: TowerPasses, batch: Embeddings, outputs: Tensors
) -> tuple[Tensors, Losses]:
    """Return the terms to differentiate, and all unweighted losses for logging.

    The terms are "task" and, if the method has a regularizer, "regularizer".
    """
    features = model.final_features(outputs, towers.features(outputs))
    logit_scale = model.clip.logit_scale
    logits_leaves = part(outputs, "logits")
    task_loss = method.logits.loss(logits_leaves, features, batch.labels, batch.weights, logit_scale)
    regularizer_inputs = RegularizerInputs(
        text_CE=features.unit_text_CE,
        frozen_text_CE=model.frozen_text_CE,
        image_BE=features.unit_image_BE,
        frozen_image_BE=batch.frozen,
        weights_B=batch.weights,
        scale=logit_scale,
    )
    total, distances = method.regularizer(regularizer_inputs)
    terms = {"task": task_loss}
    if total is not None:
        terms["regularizer"] = total
    return terms, {"ce": task_loss, **distances}


def _query_gradient(
    model: PromptedClip, method: Method, inputs: Tensors, query: Embeddings, outer_weight: float
) -> tuple[Tensors, Tensor]:
    """Return the gradient of outer_weight * query loss at the adapted inputs, and the query loss itself."""
    towers = model.forward(inputs, query.images, query.frozen)

    def query_loss(outputs: Tensors) -> tuple[Tensors, Tensors]:
        return {"query": _query_loss(model, method, towers, outputs, query)}, {}

    terms, _, loss_vjp = vjp(query_loss, towers.outputs)
    loss_scale = scale_factor(model.clip.dtype, outer_weight)
    weight = torch.ones_like(terms["query"]) * (outer_weight * loss_scale)
    output_gradient = loss_vjp({"query": weight})
    # The towers' vjp takes and returns K gradients. Here, K = 1.
    output_gradients = {name: gradient[None] for name, gradient in output_gradient.items()}
    gradients = towers.vjp(output_gradients, release=True)
    gradient = {name: gradients_K[0] for name, gradients_K in gradients.items()}
    return _scaled(gradient, 1 / loss_scale), terms["query"]


def _query_loss(
    model: PromptedClip, method: Method, towers: TowerPasses, outputs: Tensors, query: Embeddings
) -> Tensor:
    """Return the query loss. The images are Q query images, then partners (support images to mix in)."""
    partners = query.partners

    def mix(features_RE: Tensor) -> Tensor:
        return _mixed(features_RE, len(query.labels), partners)

    unmixed = model.final_features(outputs, towers.features(outputs))
    features = unmixed.for_images(mix)
    logits_leaves = part(outputs, "logits")

    def loss(labels: Tensor, weights: Tensor) -> Tensor:
        return method.logits.loss(logits_leaves, features, labels, weights, model.clip.logit_scale)

    if partners is None or query.partner_labels is None:
        return loss(query.labels, query.weights)
    own_loss = loss(query.labels, query.weights * partners.query_share)
    partner_loss = loss(query.partner_labels, query.weights * partners.partner_share)
    return own_loss + partner_loss


def _mixed(features_RE: Tensor, num_query: int, partners: Partners | None) -> Tensor:
    """Return the features of the query images, mixed with those of their partners.

    If there are no partners, or if pixels have been mixed already, the features are returned unmixed.
    """
    query_QE = features_RE[:num_query]
    if partners is None or partners.image_rows is None:  # `image_rows` is None if pixels are mixed
        return query_QE
    partner_QE = features_RE[partners.image_rows]
    query_share = partners.query_share[:, None]
    partner_share = partners.partner_share[:, None]
    return query_share * query_QE + partner_share * partner_QE


def _join_groups(groups: dict[str, Tensors]) -> Tensors:
    """Return one dictionary of all tensors, named "<group>/<name>", as `vjp` requires."""
    tensors: Tensors = {}
    for group, tensors_of_group in groups.items():
        for name, tensor in tensors_of_group.items():
            tensors[f"{group}/{name}"] = tensor
    return tensors


def _group(tensors: Tensors, group: str) -> Tensors:
    """Return the tensors of one group by name, given those of all groups (`_join_groups`)."""
    prefix = f"{group}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _sum(tensors: Tensors, terms: Tensors) -> Tensors:
    """Return each tensor plus the term of the same name. One call for all tensors needs few kernels."""
    sums = torch._foreach_add(list(tensors.values()), [terms[name] for name in tensors])
    return dict(zip(tensors, sums, strict=True))


def _scaled(tensors: Tensors, factor: float) -> Tensors:
    """Return the tensors times `factor`. If it is 1, no kernels are launched."""
    if factor == 1:
        return tensors
    return {name: tensor * factor for name, tensor in tensors.items()}
