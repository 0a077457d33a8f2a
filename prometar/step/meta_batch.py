"""What a step computes on: embedded images with weights, and the meta task as two smaller batches.

Every mean over images is a sum with weights. So a task can be *compact* (only the images that take part: the
fewest operations), or *static* (all images in every part, weight 0 where one does not take part: one shape
whatever the draw, for CUDA graphs and for steps mapped over configurations). Both give the same step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prometar.backbone.clip import Clip
from prometar.backbone.frozen_features import frozen_image
from prometar.backbone.vision import embed_images
from prometar.methods.composition import Method
from prometar.methods.meta_tasks import Augmentation, Mix, TaskDraw


class Images(NamedTuple):
    """Embedded images (B, T, D), labels (B,), weights (B,) that sum to 1, frozen features (B, E) if used."""

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    frozen: Tensor | None


class Shares(NamedTuple):
    """What is mixed into the query: (Q,) shares of the own and the partner's image and label, and its label.

    partner: (Q,) rows of the query's tokens whose features are mixed in; None where pixels were mixed.
    """

    own: Tensor
    rest: Tensor
    labels: Tensor
    partner: Tensor | None


class Query(NamedTuple):
    """Embedded images (R, T, D) whose first Q are the query, its labels (Q,), weights (Q,) and mix."""

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    shares: Shares | None = None


class Task(NamedTuple):
    """The meta phase's images; `present` (a scalar) is False where a static task must change nothing."""

    support: Images
    query: Query
    present: Tensor | None = None


class Batch(NamedTuple):
    """All images for the direct phase, and the task of the meta phase if there is one."""

    images: Images
    task: Task | None


def make_batch(
    clip: Clip,
    method: Method,
    images_B3HW: Tensor,
    labels: Tensor,
    draw: TaskDraw | None,
    *,
    frozen: Tensor | None = None,
    static: bool = False,
) -> Batch:
    """Embed a batch of normalised images once for all passes of a step.

    Args:
        images_B3HW: In the backbone's precision and place.
        labels: (B,), on the CPU or there.
        draw: The meta task, None where the method or the batch has none.
        frozen: The frozen CLIP's normalised features (B, E), if they are known already.
        static: Every part holds all B images, and there is a task even where the batch has none.
    """
    whole = embed_batch(clip, images_B3HW, labels, frozen=frozen, teach=method.regularizer.uses_images)
    return Batch(whole, make_task(clip, method, images_B3HW, whole, draw, static=static))


def embed_batch(
    clip: Clip, images_B3HW: Tensor, labels: Tensor, *, frozen: Tensor | None = None, teach: bool = True
) -> Images:
    """All images, embedded; `teach`: with the frozen CLIP's features."""
    tokens, labels = embed_images(clip, images_B3HW), labels.to(images_B3HW.device)
    if frozen is None and teach:
        frozen = frozen_image(clip, tokens)
    return Images(tokens, labels, _weights(torch.ones_like(labels, dtype=torch.bool), tokens), frozen)


def make_task(
    clip: Clip, method: Method, images_B3HW: Tensor, whole: Images, draw: TaskDraw | None, *, static: bool
) -> Task | None:
    """The method's meta task on embedded images; arguments as of `make_batch`."""
    if method.inner is None or (draw is None and not static):
        return None
    is_query, mix = _by_position(draw, method.augmentation, whole.labels)
    mixed = None
    if mix is not None and method.augmentation.of_images:
        mixed = embed_images(
            clip, method.augmentation.mixed_images(images_B3HW, images_B3HW[mix.partner], mix)
        )
    task = _static(whole, is_query, mix, mixed) if static else _compact(whole, is_query, mix, mixed)
    return task._replace(present=is_query.any()) if static else task


def _weights(chosen: Tensor, like: Tensor) -> Tensor:
    """Equal weights of the chosen images, in at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return chosen.to(dtype) / chosen.sum().clamp(min=1)


def _by_position(
    draw: TaskDraw | None, augmentation: Augmentation, labels: Tensor
) -> tuple[Tensor, Mix | None]:
    """The draw with one entry an image of the batch; images that are not in the query mix with themselves."""
    num_images = len(labels)
    if draw is None:
        nothing = torch.zeros(num_images, dtype=torch.bool)
        draw = TaskDraw(nothing, augmentation.draw(0, num_images, np.random.default_rng(0)))
    is_query, device = draw.is_query.cpu(), labels.device
    if draw.mix is None:
        return is_query.to(device), None
    lam, partner = torch.ones(num_images), torch.arange(num_images)
    lam[is_query] = draw.mix.lam.float()
    partner[is_query] = (~is_query).nonzero()[draw.mix.partner, 0]
    box = None
    if draw.mix.box is not None:
        box = draw.mix.box.new_zeros(num_images, 4)
        box[is_query] = draw.mix.box
        box = box.to(device)
    return is_query.to(device), Mix(lam.to(device), partner.to(device), box)


def _compact(whole: Images, is_query: Tensor, mix: Mix | None, mixed: Tensor | None) -> Task:
    rows, query = (~is_query).nonzero()[:, 0], is_query.nonzero()[:, 0]
    support = Images(
        whole.tokens[rows],
        whole.labels[rows],
        _weights(~is_query, whole.tokens)[rows],
        None if whole.frozen is None else whole.frozen[rows],
    )
    labels, weights = whole.labels[query], _weights(is_query, whole.tokens)[query]
    if mix is None:
        return Task(support, Query(whole.tokens[query], labels, weights))
    if mixed is not None:
        return Task(support, Query(mixed[query], labels, weights, _shares(mix, whole, query, None)))
    encoded, place = mix.partner[query].unique(return_inverse=True)
    tokens = whole.tokens[torch.cat([query, encoded])]
    return Task(support, Query(tokens, labels, weights, _shares(mix, whole, query, len(query) + place)))


def _static(whole: Images, is_query: Tensor, mix: Mix | None, mixed: Tensor | None) -> Task:
    support = whole._replace(weights=_weights(~is_query, whole.tokens))
    weights = _weights(is_query, whole.tokens)
    if mix is None:
        return Task(support, Query(whole.tokens, whole.labels, weights))
    rows = torch.arange(len(is_query), device=is_query.device)
    shares = _shares(mix, whole, rows, mix.partner if mixed is None else None)
    return Task(support, Query(whole.tokens if mixed is None else mixed, whole.labels, weights, shares))


def _shares(mix: Mix, whole: Images, rows: Tensor, partner: Tensor | None) -> Shares:
    lam = mix.lam[rows]
    # 1 - lam is taken in the precision that lam was drawn in, as the released code does.
    own, rest = lam.to(whole.weights), (1 - lam).to(whole.weights)
    return Shares(own, rest, whole.labels[mix.partner[rows]], partner)
