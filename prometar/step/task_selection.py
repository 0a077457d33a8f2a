"""Meta tasks: support and query images of a batch with their weights, selected on the host.

A selection on the device would synchronize, as its shapes depend on data.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prometar.methods.augmentations import Augmentation, Mix


class TaskDraw(NamedTuple):
    """Meta task of a batch of B images: a mask (B,) of the query, and the query's mix.

    The mix is in the order of the query images in the batch. Its partners count support images in the
    order of the batch.
    """

    is_query: Tensor
    mix: Mix | None


def one_class_out(labels: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> TaskDraw | None:
    """Draw one present class as the query; all other images are the support.

    None if the batch holds only one class. Source: ProMetaR.
    """
    present = labels.unique().numpy(force=True)
    if len(present) < 2:
        return None
    is_query = labels == int(rng.choice(present))
    num_query = int(is_query.sum())
    return TaskDraw(is_query, augmentation.draw(num_query, len(labels) - num_query, rng))


def task_rng(seed: int, step: int) -> np.random.Generator:
    """Return the generator of one step's draws, keyed by (seed, step): a resumed run draws the same."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, 0x7A5C])))


class Mixing(NamedTuple):
    """Mixture of Q query images: shares of the own and of the partner's, and the partners.

    partner: (Q,) rows of the batch. encoded: (Q,) rows of the query's tokens that hold the partners; None
    where pixels are mixed, by `pixels`.
    """

    own: Tensor
    rest: Tensor
    partner: Tensor
    encoded: Tensor | None
    pixels: Mix | None


class Selection(NamedTuple):
    """Rows of a batch for support and query, and their weights (sum 1).

    query_rows: (R,), whose first Q, as many as weights, are the query; the others are encoded to be mixed in.
    """

    support_rows: Tensor
    support_weights: Tensor
    query_rows: Tensor
    query_weights: Tensor
    mixing: Mixing | None


def select(draw: TaskDraw, augmentation: Augmentation, *, dtype: torch.dtype) -> Selection:
    """Return the rows of a task in its batch. `dtype` is that of weights and shares."""
    query, support = draw.is_query.nonzero()[:, 0], (~draw.is_query).nonzero()[:, 0]
    encoded, mixing = query, None
    if (mix := draw.mix) is not None:
        partner, place = support[mix.partner], None
        if not augmentation.of_images:
            others, place = partner.unique(return_inverse=True)
            encoded, place = torch.cat([query, others]), len(query) + place
        # 1 - lam is taken in the precision that lam was drawn in, as the released code does.
        shares = mix.lam.to(dtype), (1 - mix.lam).to(dtype)
        mixing = Mixing(*shares, partner, place, mix if augmentation.of_images else None)
    return Selection(support, _equal(len(support), dtype), encoded, _equal(len(query), dtype), mixing)


def _equal(number: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(number, dtype=dtype) / number
