"""What a step computes on: embedded images with weights, and the meta task as two smaller batches.

Every mean over images is a sum with weights. So a task can be *compact* (only the images that take part: the
fewest operations), or *static* (all images in every part, weight 0 where one does not take part: one shape
whatever the draw, for CUDA graphs and for steps mapped over configurations). Both give the same step.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.clip import Clip
from prometar.backbone.frozen_features import Seen
from prometar.backbone.vision import embed_images
from prometar.device import send
from prometar.methods.composition import Method
from prometar.methods.meta_tasks import TaskDraw
from prometar.step.task_selection import Selection, select


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
    """Embedded images (R, T, D) whose first Q are the query, its labels (Q,), weights (Q,) and mix.

    frozen: (Q, E), mixed as the images are; only where the text sees the images.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    shares: Shares | None = None
    frozen: Tensor | None = None


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
    static: bool = False,
) -> Batch:
    """Embed a batch of normalised images once for all passes of a step.

    Args:
        images_B3HW: In the backbone's precision and place.
        labels: (B,), on the CPU or there.
        draw: The meta task, None where the method or the batch has none.
        static: Every part holds all B images, and there is a task even where the batch has none.
    """
    whole = embed_batch(clip, images_B3HW, labels, teach=method.uses_images)
    selection = select_task(clip, method, len(labels), draw, static=static)
    if selection is None:
        return Batch(whole, None)
    selection = send(selection, whole.tokens.device)
    return Batch(whole, take(clip, method, images_B3HW, whole, selection))


def embed_batch(
    clip: Clip, images_B3HW: Tensor, labels: Tensor, *, seen: Seen = Seen(), step: int = 0, teach: bool = True
) -> Images:
    """All images, embedded; `teach`: with the frozen CLIP's features. `seen`: what is known of a step's."""
    tokens, labels = seen.embed(clip, step, images_B3HW), labels.to(images_B3HW.device)
    frozen = seen.frozen(clip, step, tokens) if teach else None
    weights = torch.full((len(labels),), 1 / len(labels), dtype=clip.working_dtype, device=tokens.device)
    return Images(tokens, labels, weights, frozen)


def select_task(
    clip: Clip, method: Method, num_images: int, draw: TaskDraw | None, *, static: bool
) -> Selection | None:
    """Which images the method's meta task takes, on the host; None where it has none."""
    if method.inner is None or (draw is None and not static):
        return None
    return select(draw, method.augmentation, num_images, dtype=clip.working_dtype, static=static)


def take(clip: Clip, method: Method, images_B3HW: Tensor, whole: Images, selection: Selection) -> Task:
    """The selected images, embedded; the selection is where they are."""
    rows, mixing = selection.support_rows, selection.mixing
    frozen = None if whole.frozen is None else _rows(whole.frozen, rows)
    support = Images(_rows(whole.tokens, rows), _rows(whole.labels, rows), selection.support_weights, frozen)
    tokens, rows, shares = whole.tokens, selection.query_rows, None
    if mixing is not None:
        if mixing.pixels is not None:
            partners = images_B3HW[mixing.pixels.partner]
            mixed = method.augmentation.mixed_images(images_B3HW, partners, mixing.pixels)
            tokens = embed_images(clip, mixed)
        shares = Shares(mixing.own, mixing.rest, whole.labels[mixing.partner], mixing.encoded)
    labels = whole.labels if rows is None else whole.labels[rows[: len(selection.query_weights)]]
    seen = _seen(whole.frozen, selection) if method.prompts.conditional else None
    query = Query(_rows(tokens, rows), labels, selection.query_weights, shares, seen)
    return Task(support, query, selection.present)


def _seen(frozen_BE: Tensor | None, selection: Selection) -> Tensor:
    """The frozen features of the query images, mixed with those of their partners."""
    assert frozen_BE is not None
    own = _rows(frozen_BE, selection.query_rows)[: len(selection.query_weights)]
    mixing = selection.mixing
    if mixing is None:
        return own
    mixed = mixing.own[:, None] * own + mixing.rest[:, None] * frozen_BE[mixing.partner]
    return F.normalize(mixed, dim=-1)


def _rows(tensor: Tensor, rows: Tensor | None) -> Tensor:
    # A static task holds the very same tensors as its batch: nothing of them is stacked in lockstep.
    return tensor if rows is None else tensor[rows]
