"""Inputs of a step: the embedded images of a batch, and its meta task (support and query images).

Support and query are selected on the CPU. Their sizes depend on the labels, so selecting them on a GPU would
synchronize with it.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import FeatureCache, embedded, frozen_image
from prometar.clip.model import Clip
from prometar.clip.vision import embed_images
from prometar.methods.augmentations import Augmentation, Mix
from prometar.methods.composition import Method


class Mixing(NamedTuple):
    """Mix of Q query images: shares of the images (`own`) and of their partners (`rest`).

    partner, encoded: (Q,) rows of the partners in the batch and in the query tokens (None for mixed pixels).
    """

    own: Tensor
    rest: Tensor
    partner: Tensor
    encoded: Tensor | None
    drawn: Mix


class Selection(NamedTuple):
    """Rows of support and query in a batch, with weights that sum to 1.

    encoded_rows: (R,) rows of the Q query images, then of the partners whose features are mixed in.
    """

    support_rows: Tensor
    support_weights: Tensor
    encoded_rows: Tensor
    query_weights: Tensor
    mixing: Mixing | None

    @property
    def query_rows(self) -> Tensor:
        return self.encoded_rows[: len(self.query_weights)]


def one_class_out(
    labels: Tensor, augmentation: Augmentation, rng: np.random.Generator, *, dtype: torch.dtype
) -> Selection | None:
    """Sample one class of the batch as the query. All other images are the support.

    Returns None if the batch contains one class. `dtype` applies to weights and shares. Source: ProMetaR.
    """
    present = labels.unique().numpy(force=True)
    if len(present) < 2:
        return None
    is_query = labels == int(rng.choice(present))
    num_query = int(is_query.sum())
    mix = augmentation.draw(num_query, len(labels) - num_query, rng)
    return select(is_query, mix, of_images=augmentation.of_images, dtype=dtype)


def task_rng(seed: int, step: int) -> np.random.Generator:
    """Return the random generator of a meta task. It depends only on (seed, step), so runs can resume."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, 0x7A5C])))


def select(is_query: Tensor, mix: Mix | None, *, of_images: bool, dtype: torch.dtype) -> Selection:
    """Return the selection of a meta task from a batch of B images.

    Args:
        is_query: (B,) mask.
        mix: Mix per query image, in batch order. Partners are indices into the support, in batch order.
        of_images: True if pixels are mixed, False if features are.
    """
    query, support = is_query.nonzero()[:, 0], (~is_query).nonzero()[:, 0]
    encoded, mixing = query, None
    if mix is not None:
        partner, partner_rows = support[mix.partner], None
        if not of_images:
            others, inverse = partner.unique(return_inverse=True)
            encoded, partner_rows = torch.cat([query, others]), len(query) + inverse
        # The published code computes 1 - lam in the precision of lam.
        mixing = Mixing(mix.lam.to(dtype), (1 - mix.lam).to(dtype), partner, partner_rows, mix)
    support_weights, query_weights = (torch.ones(len(r), dtype=dtype) / len(r) for r in (support, query))
    return Selection(support, support_weights, encoded, query_weights, mixing)


class Images(NamedTuple):
    """Embedded images of a batch, the support, or the query.

    Args:
        tokens: (R, T, D) embedded images. The first B have labels. The others are only mixed in.
        labels, weights: (B,). Weights sum to 1.
        frozen: (B, E) frozen features if used, mixed like the images.
        mixing, partner_labels: Mix of the query images, and labels (B,) of their partners.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    frozen: Tensor | None
    mixing: Mixing | None = None
    partner_labels: Tensor | None = None


Task = tuple[Images, Images]
"""Meta task: support and query."""


def make_batch(
    clip: Clip,
    method: Method,
    images_B3HW: Tensor,
    labels: Tensor,
    task: Selection | None,
    *,
    cache: FeatureCache = None,
    step: int = 0,
) -> tuple[Images, Task | None]:
    """Embed a batch of normalized images once for all passes of a step. Return the batch and the meta task.

    Args:
        images_B3HW, labels: Images in the precision and on the device of the backbone, and labels (B,).
        task: Selection of the meta task, on the device of the images. None if there is no meta task.
        cache: Cached features by step.
    """
    tokens, labels = embedded(clip, images_B3HW, cache, step), labels.to(images_B3HW.device)
    frozen = frozen_image(clip, tokens, cache, step) if method.uses_images else None
    weights = torch.full((len(labels),), 1 / len(labels), dtype=clip.working_dtype, device=tokens.device)
    whole = Images(tokens, labels, weights, frozen)
    if task is None:
        return whole, None
    rows = task.support_rows
    frozen = None if frozen is None else frozen[rows]
    support = Images(tokens[rows], labels[rows], task.support_weights, frozen)
    return whole, (support, _query(clip, method, images_B3HW, whole, task))


def _query(clip: Clip, method: Method, images_B3HW: Tensor, whole: Images, selection: Selection) -> Images:
    """Return the embedded query images with their mix."""
    own, mixing = selection.query_rows, selection.mixing
    partner_labels, frozen = None, None
    if mixing is None or mixing.encoded is not None:
        tokens = whole.tokens[selection.encoded_rows]
    else:
        partners = images_B3HW[mixing.partner]
        tokens = embed_images(
            clip, method.augmentation.mixed_images(images_B3HW[own], partners, mixing.drawn)
        )
    if method.prompts.conditional:
        assert whole.frozen is not None
        frozen = whole.frozen[own]
    if mixing is not None:
        partner_labels = whole.labels[mixing.partner]
        if frozen is not None and whole.frozen is not None:
            frozen = mixing.own[:, None] * frozen + mixing.rest[:, None] * whole.frozen[mixing.partner]
            frozen = F.normalize(frozen, dim=-1)
    return Images(tokens, whole.labels[own], selection.query_weights, frozen, mixing, partner_labels)
