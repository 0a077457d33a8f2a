"""Inputs of a step: embedded images with weights, and the meta task as two smaller batches."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import Seen, embedded, frozen_image
from prometar.clip.model import Clip
from prometar.clip.vision import embed_images
from prometar.device import send
from prometar.methods.composition import Method
from prometar.step.task_selection import Mixing, Selection, TaskDraw, select


class Images(NamedTuple):
    """Embedded images (B, T, D), labels (B,), weights (B,) that sum to 1, frozen features (B, E) if used.

    mixing, partner_labels: The mixture of a query, and the partners' labels (B,). Embedded images after the
        first B are only mixed in. Frozen features are mixed as the images are.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    frozen: Tensor | None
    mixing: Mixing | None = None
    partner_labels: Tensor | None = None


class Batch(NamedTuple):
    """All images for the direct phase, and support and query of the meta phase if there is one."""

    images: Images
    task: tuple[Images, Images] | None = None


def make_batch(
    clip: Clip,
    method: Method,
    images_B3HW: Tensor,
    labels: Tensor,
    task: TaskDraw | Selection | None,
    *,
    seen: Seen = None,
    step: int = 0,
) -> Batch:
    """Embed a batch of normalised images once for all passes of a step.

    Args:
        images_B3HW: In the backbone's precision, on its device.
        labels: (B,), on the CPU or there.
        task: The meta task, as drawn or as a selection there. None if the method or the batch has none.
        seen: Cached features of the images of each `step`.
    """
    device = images_B3HW.device
    if isinstance(task, TaskDraw):
        task = send(select(task, method.augmentation, dtype=clip.working_dtype), device)
    tokens, labels = embedded(clip, images_B3HW, seen, step), labels.to(device)
    frozen = frozen_image(clip, tokens, seen, step) if method.uses_images else None
    weights = torch.full((len(labels),), 1 / len(labels), dtype=clip.working_dtype, device=tokens.device)
    whole = Images(tokens, labels, weights, frozen)
    if task is None:
        return Batch(whole)
    rows = task.support_rows
    frozen = None if frozen is None else frozen[rows]
    support = Images(tokens[rows], labels[rows], task.support_weights, frozen)
    return Batch(whole, (support, _query(clip, method, images_B3HW, whole, task)))


def _query(clip: Clip, method: Method, images_B3HW: Tensor, whole: Images, selection: Selection) -> Images:
    """Return the selected images, embedded, and what is mixed into them."""
    rows, mixing = selection.query_rows, selection.mixing
    own, partner_labels, frozen = rows[: len(selection.query_weights)], None, None
    if mixing is None or mixing.pixels is None:
        tokens = whole.tokens[rows]
    else:
        partners = images_B3HW[mixing.partner]
        mixed = method.augmentation.mixed_images(images_B3HW[own], partners, mixing.pixels)
        tokens = embed_images(clip, mixed)
    if method.prompts.conditional:
        assert whole.frozen is not None
        frozen = whole.frozen[own]
    if mixing is not None:
        partner_labels = whole.labels[mixing.partner]
        if frozen is not None and whole.frozen is not None:
            frozen = mixing.own[:, None] * frozen + mixing.rest[:, None] * whole.frozen[mixing.partner]
            frozen = F.normalize(frozen, dim=-1)
    return Images(tokens, whole.labels[own], selection.query_weights, frozen, mixing, partner_labels)
