"""Inputs of a step: embedded images with weights, and the meta task as two smaller batches.

Support and query are selected on the host: on the device this would synchronize, as shapes depend on data.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import Seen, embedded, frozen_image
from prometar.clip.model import Clip
from prometar.clip.vision import embed_images
from prometar.methods.augmentations import Augmentation, Mix
from prometar.methods.composition import Method


class Mixing(NamedTuple):
    """Mixture of Q query images: shares of the own and of the partner's, and the partners.

    partner: (Q,) rows of the batch. encoded: (Q,) rows of the query's tokens that hold the partners; None
    where pixels are mixed. drawn: the mix that all of this is made of.
    """

    own: Tensor
    rest: Tensor
    partner: Tensor
    encoded: Tensor | None
    drawn: Mix


class Selection(NamedTuple):
    """Rows of a batch for support and query, and their weights (sum 1).

    encoded_rows: (R,), whose first Q are the query; the others are encoded to be mixed in.
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
    """Draw one present class as the query; all other images are the support.

    None if the batch holds only one class. `dtype` is that of weights and shares. Source: ProMetaR.
    """
    present = labels.unique().numpy(force=True)
    if len(present) < 2:
        return None
    is_query = labels == int(rng.choice(present))
    num_query = int(is_query.sum())
    mix = augmentation.draw(num_query, len(labels) - num_query, rng)
    return select(is_query, mix, of_images=augmentation.of_images, dtype=dtype)


def task_rng(seed: int, step: int) -> np.random.Generator:
    """Return the generator of one step's draws, keyed by (seed, step): a resumed run draws the same."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, 0x7A5C])))


def select(is_query: Tensor, mix: Mix | None, *, of_images: bool, dtype: torch.dtype) -> Selection:
    """Return the rows of a task in its batch of B images.

    Args:
        is_query: Mask (B,).
        mix: In the order of the query images in the batch. Its partners count support images in that order.
        of_images: Pixels are mixed rather than features.
    """
    query, support = is_query.nonzero()[:, 0], (~is_query).nonzero()[:, 0]
    encoded, mixing = query, None
    if mix is not None:
        partner, place = support[mix.partner], None
        if not of_images:
            others, place = partner.unique(return_inverse=True)
            encoded, place = torch.cat([query, others]), len(query) + place
        # 1 - lam is taken in the precision that lam was drawn in, as the released code does.
        mixing = Mixing(mix.lam.to(dtype), (1 - mix.lam).to(dtype), partner, place, mix)
    return Selection(support, _equal(len(support), dtype), encoded, _equal(len(query), dtype), mixing)


def _equal(number: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(number, dtype=dtype) / number


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


Task = tuple[Images, Images]
"""Support and query."""


def make_batch(
    clip: Clip,
    method: Method,
    images_B3HW: Tensor,
    labels: Tensor,
    task: Selection | None,
    *,
    seen: Seen = None,
    step: int = 0,
) -> tuple[Images, Task | None]:
    """Embed a batch of normalised images once for all passes of a step. Return all images, and the task.

    Args:
        images_B3HW: In the backbone's precision, on its device.
        labels: (B,), on the CPU or there.
        task: The meta task, on that device. None if the method or the batch has none.
        seen: Cached features of the images of each `step`.
    """
    tokens, labels = embedded(clip, images_B3HW, seen, step), labels.to(images_B3HW.device)
    frozen = frozen_image(clip, tokens, seen, step) if method.uses_images else None
    weights = torch.full((len(labels),), 1 / len(labels), dtype=clip.working_dtype, device=tokens.device)
    whole = Images(tokens, labels, weights, frozen)
    if task is None:
        return whole, None
    rows = task.support_rows
    frozen = None if frozen is None else frozen[rows]
    support = Images(tokens[rows], labels[rows], task.support_weights, frozen)
    return whole, (support, _query(clip, method, images_B3HW, whole, task))


def _query(clip: Clip, method: Method, images_B3HW: Tensor, whole: Images, selection: Selection) -> Images:
    """Return the selected images, embedded, and what is mixed into them."""
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
