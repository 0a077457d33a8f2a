"""Inputs of a step: embedded images with weights, and the meta task as two smaller batches."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import Seen
from prometar.clip.model import Clip
from prometar.clip.vision import embed_images
from prometar.device import send
from prometar.methods.composition import Method
from prometar.step.task_selection import Mixing, Selection, TaskDraw, select


class Images(NamedTuple):
    """Embedded images (B, T, D), labels (B,), weights (B,) that sum to 1, frozen features (B, E) if used."""

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    frozen: Tensor | None


class Shares(NamedTuple):
    """Mixture of the query: (Q,) shares of the own and the partner's image and label, and its label.

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
    """The meta phase's images."""

    support: Images
    query: Query


class Batch(NamedTuple):
    """All images for the direct phase, and the task of the meta phase if there is one."""

    images: Images
    task: Task | None


def make_batch(
    clip: Clip, method: Method, images_B3HW: Tensor, labels: Tensor, draw: TaskDraw | None
) -> Batch:
    """Embed a batch of normalised images once for all passes of a step.

    Args:
        images_B3HW: In the backbone's precision and place.
        labels: (B,), on the CPU or there.
        draw: The meta task, None where the method or the batch has none.
    """
    whole = embed_batch(clip, images_B3HW, labels, teach=method.uses_images)
    if draw is None:
        return Batch(whole, None)
    selection = select(draw, method.augmentation, dtype=clip.working_dtype)
    selection = send(selection, whole.tokens.device)
    query = take_query(clip, method, images_B3HW, whole, selection)
    return Batch(whole, Task(take_support(whole, selection), query))


def embed_batch(
    clip: Clip, images_B3HW: Tensor, labels: Tensor, *, seen: Seen = Seen(), step: int = 0, teach: bool = True
) -> Images:
    """All images, embedded; `teach`: with the frozen CLIP's features. `seen`: what is known of a step's."""
    tokens, labels = seen.embed(clip, step, images_B3HW), labels.to(images_B3HW.device)
    frozen = seen.frozen(clip, step, tokens) if teach else None
    weights = torch.full((len(labels),), 1 / len(labels), dtype=clip.working_dtype, device=tokens.device)
    return Images(tokens, labels, weights, frozen)


def take_support(whole: Images, selection: Selection) -> Images:
    """The selected images, embedded; the selection is where they are."""
    rows = selection.support_rows
    frozen = None if whole.frozen is None else whole.frozen[rows]
    return Images(whole.tokens[rows], whole.labels[rows], selection.support_weights, frozen)


def take_query(clip: Clip, method: Method, images_B3HW: Tensor, whole: Images, selection: Selection) -> Query:
    """The selected images, embedded, and what is mixed into them; the selection is where they are."""
    rows, mixing = selection.query_rows, selection.mixing
    own, shares = rows[: len(selection.query_weights)], None
    if mixing is None or mixing.pixels is None:
        tokens = whole.tokens[rows]
    else:
        partners = images_B3HW[mixing.partner]
        tokens = embed_images(
            clip, method.augmentation.mixed_images(images_B3HW[own], partners, mixing.pixels)
        )
    if mixing is not None:
        shares = Shares(mixing.own, mixing.rest, whole.labels[mixing.partner], mixing.encoded)
    frozen = _seen(whole.frozen, own, mixing) if method.prompts.conditional else None
    return Query(tokens, whole.labels[own], selection.query_weights, shares, frozen)


def _seen(frozen_BE: Tensor | None, own: Tensor, mixing: Mixing | None) -> Tensor:
    """The frozen features of the query images, mixed with those of their partners."""
    assert frozen_BE is not None
    if mixing is None:
        return frozen_BE[own]
    mixed = mixing.own[:, None] * frozen_BE[own] + mixing.rest[:, None] * frozen_BE[mixing.partner]
    return F.normalize(mixed, dim=-1)
