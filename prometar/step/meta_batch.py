"""Inputs of a step: the embedded images of a batch, and its meta task (support and query images).

Support and query are selected on the CPU. Their sizes depend on the labels, so selecting them on a GPU would
synchronize with it.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import FeatureCache, cached_embedding, frozen_image
from prometar.clip.model import Clip
from prometar.clip.vision import embed_images
from prometar.methods.augmentations import Augmentation, Mix
from prometar.methods.composition import Method


class QueryMix(NamedTuple):
    """Mix of Q query images with their partners. All tensors are (Q,), except `mix.box`, which is (Q, 4).

    share, partner_share: Shares of the query images and of their partners.
    batch_rows: Rows of the partners in the batch.
    token_rows: Rows of the partners in the query tokens. None if pixels are mixed.
    """

    share: Tensor
    partner_share: Tensor
    batch_rows: Tensor
    token_rows: Tensor | None
    mix: Mix


class Selection(NamedTuple):
    """Rows of support and query in a batch. Support weights sum to 1, and so do query weights.

    encoded_rows: (R,) rows of the Q query images, then of the partners whose features are mixed in.
    """

    support_rows: Tensor
    support_weights: Tensor
    encoded_rows: Tensor
    query_weights: Tensor
    mixing: QueryMix | None

    @property
    def query_rows(self) -> Tensor:
        return self.encoded_rows[: len(self.query_weights)]


def leave_one_class_out(
    labels: Tensor, augmentation: Augmentation, rng: np.random.Generator, *, dtype: torch.dtype
) -> Selection | None:
    """Sample one class of the batch. Its images are the query, all others are the support. Source: ProMetaR.

    Return None if the batch contains only one class. `dtype`: dtype of weights and shares.
    """
    present = labels.unique().numpy(force=True)
    if len(present) < 2:
        return None
    is_query = labels == int(rng.choice(present))
    num_query = int(is_query.sum())
    mix = augmentation.draw(num_query, len(labels) - num_query, rng)
    return select(is_query, mix, mixes_pixels=augmentation.mixes_pixels, dtype=dtype)


def task_rng(seed: int, step: int) -> np.random.Generator:
    """Return the random generator of a meta task. It depends only on (seed, step), so runs can resume."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, 0x7A5C])))


def select(is_query: Tensor, mix: Mix | None, *, mixes_pixels: bool, dtype: torch.dtype) -> Selection:
    """Return the selection of a meta task from a batch of B images.

    Args:
        is_query: (B,) mask.
        mix: Mix of the query images. Its partners index the support images in batch order.
        mixes_pixels: True if pixels are mixed, False if features are.
    """
    query, support = is_query.nonzero()[:, 0], (~is_query).nonzero()[:, 0]
    encoded, mixing = query, None
    if mix is not None:
        partner, token_rows = support[mix.partner], None
        if not mixes_pixels:
            others, inverse = partner.unique(return_inverse=True)
            encoded, token_rows = torch.cat([query, others]), len(query) + inverse
        # The published code computes 1 - lam in the precision of lam.
        mixing = QueryMix(mix.lam.to(dtype), (1 - mix.lam).to(dtype), partner, token_rows, mix)
    support_weights, query_weights = (torch.ones(len(r), dtype=dtype) / len(r) for r in (support, query))
    return Selection(support, support_weights, encoded, query_weights, mixing)


class Embeddings(NamedTuple):
    """Embedded images of a batch, of the support, or of the query.

    Args:
        tokens: (R, T, D) embedded images. The first B have labels. The others are partners to mix in.
        labels, weights: (B,). Weights sum to 1.
        frozen: (B, E) frozen features, mixed like the images. None if not used.
        mixing, partner_labels: Mix of the query images, and labels (B,) of their partners.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    frozen: Tensor | None
    mixing: QueryMix | None = None
    partner_labels: Tensor | None = None


Task = tuple[Embeddings, Embeddings]
"""Meta task: support and query."""


def make_batch(
    clip: Clip,
    method: Method,
    images_B3HW: Tensor,
    labels: Tensor,
    selection: Selection | None,
    *,
    cache: FeatureCache | None = None,
    step: int = 0,
) -> tuple[Embeddings, Task | None]:
    """Embed normalized images only once per step. Return the whole batch and the meta task.

    Args:
        images_B3HW, labels: Images in the precision and on the device of the backbone, and labels (B,).
        selection: Selection of the meta task, on the device of the images. None if there is no meta task.
        cache: Cached image features, by step.
    """
    tokens, labels = cached_embedding(clip, images_B3HW, cache, step), labels.to(images_B3HW.device)
    frozen = frozen_image(clip, tokens, cache, step) if method.uses_frozen_images else None
    weights = torch.full((len(labels),), 1 / len(labels), dtype=clip.working_dtype, device=tokens.device)
    whole = Embeddings(tokens, labels, weights, frozen)
    if selection is None:
        return whole, None
    rows = selection.support_rows
    frozen = None if frozen is None else frozen[rows]
    support = Embeddings(tokens[rows], labels[rows], selection.support_weights, frozen)
    return whole, (support, _query(clip, method, images_B3HW, whole, selection))


def _query(clip: Clip, method: Method, images: Tensor, whole: Embeddings, selection: Selection) -> Embeddings:
    """Return the embedded query images, and how they are mixed."""
    query_rows, weights, mixing = selection.query_rows, selection.query_weights, selection.mixing
    partner_labels, frozen = None, None
    if mixing is None or mixing.token_rows is not None:
        tokens = whole.tokens[selection.encoded_rows]
    else:
        partners = images[mixing.batch_rows]
        tokens = embed_images(
            clip, method.augmentation.mixed_images(images[query_rows], partners, mixing.mix)
        )
    if method.prompts.conditional:
        assert whole.frozen is not None
        frozen = whole.frozen[query_rows]
    if mixing is not None:
        partner_labels = whole.labels[mixing.batch_rows]
        if frozen is not None and whole.frozen is not None:
            share, partner_share = mixing.share[:, None], mixing.partner_share[:, None]
            frozen = share * frozen + partner_share * whole.frozen[mixing.batch_rows]
            frozen = F.normalize(frozen, dim=-1)
    return Embeddings(tokens, whole.labels[query_rows], weights, frozen, mixing, partner_labels)
