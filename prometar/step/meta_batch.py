"""Inputs of a step: the embedded images of a batch, and its meta task (support and query images).

A task augmentation mixes each query image with a support image, its partner. If it mixes features, the images
of the query are its Q query images, followed by the distinct partners. There are two kinds of row numbers:
`batch_rows` index the images of the batch, and `image_rows` the images of the query.

Support and query are selected on the CPU, because their sizes depend on the labels. A selection on the GPU
would force a synchronization.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import FeatureCache, cached_embedding, frozen_image_features
from prometar.clip.model import Clip
from prometar.clip.vision import EmbeddedImages, ImageTokens, before_block
from prometar.methods.composition import Method
from prometar.methods.task_augmentations import Augmentation, Mix


class Partners(NamedTuple):
    """Support images that `mix` mixes into Q query images. All tensors are (Q,), except `mix.box` (Q, 4).

    Args:
        query_share: Share of each query image.
        partner_share: Share of its partner, 1 minus that of the query image.
        batch_rows: Rows of the partners in the batch.
        image_rows: Rows of the partners in the query's `Embeddings.images`. None if pixels are mixed.
        mix: Drawn partners, shares and boxes.
    """

    query_share: Tensor
    partner_share: Tensor
    batch_rows: Tensor
    image_rows: Tensor | None
    mix: Mix

    @property
    def mixes_pixels(self) -> bool:
        """True if pixels are mixed, False if features are."""
        return self.image_rows is None


class Selection(NamedTuple):
    """Rows of a meta task's images in a batch. Support weights sum to 1, and so do query weights.

    Args:
        support_rows: Rows of the support images.
        support_weights: Weights of the support images in the loss.
        query_and_partner_rows: (R,) rows of the Q query images, then of the partners to be encoded.
        query_weights: (Q,) weights of the query images in the loss.
        partners: Partners of the query images. None if nothing is mixed.
    """

    support_rows: Tensor
    support_weights: Tensor
    query_and_partner_rows: Tensor
    query_weights: Tensor
    partners: Partners | None

    @property
    def query_rows(self) -> Tensor:
        """(Q,) rows of the query images in the batch."""
        return self.query_and_partner_rows[: len(self.query_weights)]


def leave_one_class_out(
    labels: Tensor, augmentation: Augmentation, rng: np.random.Generator, *, dtype: torch.dtype
) -> Selection | None:
    """Sample one class of the batch, whose images become the query. The other images become the support.

    Return None if the batch contains only one class. Weights and shares have the type `dtype`. Source:
    ProMetaR.
    """
    present = labels.unique().numpy(force=True)
    if len(present) < 2:
        return None
    is_query = labels == int(rng.choice(present))
    num_query = int(is_query.sum())
    mix = augmentation.draw(num_query, len(labels) - num_query, rng)
    return select(is_query, mix, mixes_pixels=augmentation.mixes_pixels, dtype=dtype)


def meta_task_rng(seed: int, step: int) -> np.random.Generator:
    """Return the random generator of a meta task. It depends only on seed and step, so runs can resume."""
    # The arbitrary constant distinguishes this generator from those of image orders ([seed, epoch]).
    return np.random.Generator(np.random.PCG64([seed, step, 0x7A5C]))


def select(is_query: Tensor, mix: Mix | None, *, mixes_pixels: bool, dtype: torch.dtype) -> Selection:
    """Return the rows and weights of a meta task in a batch of B images.

    Args:
        is_query: (B,) mask of the query images.
        mix: Mix of the query images. `mix.partner` contains indices into the support images in batch order.
        mixes_pixels: True if pixels are mixed, False if features are.
        dtype: Type of weights and shares.
    """
    query_rows = is_query.nonzero()[:, 0]
    support_rows = (~is_query).nonzero()[:, 0]
    query_and_partner_rows = query_rows
    partners = None
    if mix is not None:
        batch_rows = support_rows[mix.partner]
        image_rows = None
        if not mixes_pixels:
            # Each partner is encoded once, after the query images.
            distinct_rows, partner_of_query = batch_rows.unique(return_inverse=True)
            query_and_partner_rows = torch.cat([query_rows, distinct_rows])
            image_rows = len(query_rows) + partner_of_query
        # As in the published code, 1 - lam is computed in the precision of lam.
        partners = Partners(
            query_share=mix.lam.to(dtype),
            partner_share=(1 - mix.lam).to(dtype),
            batch_rows=batch_rows,
            image_rows=image_rows,
            mix=mix,
        )
    support_weights = torch.ones(len(support_rows), dtype=dtype) / len(support_rows)
    query_weights = torch.ones(len(query_rows), dtype=dtype) / len(query_rows)
    return Selection(
        support_rows=support_rows,
        support_weights=support_weights,
        query_and_partner_rows=query_and_partner_rows,
        query_weights=query_weights,
        partners=partners,
    )


class Embeddings(NamedTuple):
    """Embedded images: the N images of a batch, of the support, or of the query.

    Args:
        images: R images: the N images, then the partners whose features are mixed in (only for the query).
        labels: (N,) labels.
        weights: (N,) weights in the loss, which sum to 1.
        frozen: (N, E) features of the frozen CLIP, mixed like the images. None if not used.
        partners: Partners of the query images. None for batch and support, and if nothing is mixed.
        partner_labels: (N,) labels of the partners. None if `partners` is None.
    """

    images: EmbeddedImages
    labels: Tensor
    weights: Tensor
    frozen: Tensor | None
    partners: Partners | None = None
    partner_labels: Tensor | None = None


MetaTask = tuple[Embeddings, Embeddings]
"""Support and query."""


def embed_batch(
    clip: Clip,
    method: Method,
    images_B3HW: Tensor,
    labels: Tensor,
    selection: Selection | None,
    *,
    second_view_B3HW: Tensor | None = None,
    cache: FeatureCache | None = None,
    step: int = 0,
) -> tuple[Embeddings, MetaTask | None]:
    """Return the embeddings of a batch, and its meta task (None without a selection).

    The meta task reuses the embeddings of the batch. Only images with mixed pixels are embedded anew.

    Args:
        clip: Frozen CLIP.
        method: Components of the method.
        images_B3HW: Normalized images in the backbone's precision and on its device.
        labels: (B,) labels.
        selection: Rows of the meta task, on the device of the images. None if there is no meta task.
        second_view_B3HW: Other augmentations of the images. If given, frozen features are computed from them.
        cache: Cached features of the training images by step.
        step: Current step.
    """
    device = images_B3HW.device
    changes_vision = method.changes("vision")
    images = cached_embedding(clip, images_B3HW, cache, step, changes_vision=changes_vision)
    if changes_vision and isinstance(images, ImageTokens):
        # All passes of the step share the results of the blocks that the method does not change.
        first_changed_block = method.first_block("vision", len(clip.vision.blocks))
        images = before_block(clip, images, first_changed_block)
    labels = labels.to(device)
    frozen: Tensor | None = None
    if method.uses_frozen_image_features and second_view_B3HW is not None:
        second_view = cached_embedding(clip, second_view_B3HW, None, step, changes_vision=changes_vision)
        frozen = frozen_image_features(clip, second_view, None, step)
    elif method.uses_frozen_image_features:
        frozen = frozen_image_features(clip, images, cache, step)
    weights = torch.full((len(labels),), 1 / len(labels), dtype=clip.working_dtype, device=device)
    batch = Embeddings(images, labels, weights, frozen)
    if selection is None:
        return batch, None
    rows = selection.support_rows
    support_frozen = None if frozen is None else frozen[rows]
    support = Embeddings(images[rows], labels[rows], selection.support_weights, support_frozen)
    query = _query(clip, method, images_B3HW, batch, selection)
    return batch, (support, query)


def _query(
    clip: Clip, method: Method, images_B3HW: Tensor, batch: Embeddings, selection: Selection
) -> Embeddings:
    """Return the embeddings of the query images, with their partners."""
    query_rows = selection.query_rows
    weights = selection.query_weights
    partners = selection.partners
    partner_labels = None
    if partners is not None:
        partner_labels = batch.labels[partners.batch_rows]
    if partners is not None and partners.mixes_pixels:
        query_pixels = images_B3HW[query_rows]
        partner_pixels = images_B3HW[partners.batch_rows]
        mixed_pixels = method.augmentation.mixed_images(query_pixels, partner_pixels, partners.mix)
        images = cached_embedding(clip, mixed_pixels, None, 0, changes_vision=method.changes("vision"))
    else:
        images = batch.images[selection.query_and_partner_rows]
    frozen: Tensor | None = None
    # The query loss has no regularizer, so only conditional prompts use frozen features.
    if method.prompts.conditional:
        assert batch.frozen is not None
        frozen = _mixed_frozen(batch.frozen, query_rows, partners)
    return Embeddings(images, batch.labels[query_rows], weights, frozen, partners, partner_labels)


def _mixed_frozen(frozen: Tensor, query_rows: Tensor, partners: Partners | None) -> Tensor:
    """Return the frozen features of the query images, mixed like the images."""
    if partners is None:
        return frozen[query_rows]
    query_share = partners.query_share[:, None]
    partner_share = partners.partner_share[:, None]
    mixed = query_share * frozen[query_rows] + partner_share * frozen[partners.batch_rows]
    return F.normalize(mixed, dim=-1)
