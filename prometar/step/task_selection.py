"""Which images of a batch a meta task takes, and with what weights: made on the host, where it is drawn.

A device that was asked (how many are in the query, which partners are there) would have to finish all it has
been given before it could answer.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from prometar.methods.meta_tasks import Augmentation, Mix, TaskDraw


class Mixing(NamedTuple):
    """What is mixed into Q query images: shares of the own and of the partner's, and the partners.

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


def select(
    draw: TaskDraw, augmentation: Augmentation, *, dtype: torch.dtype, by_labels: bool = False
) -> Selection:
    """A drawn task's images in its batch.

    Args:
        dtype: Of weights and shares.
        by_labels: How many are encoded follows from the query's class alone, not from which partners were
            drawn: a batch has few shapes to record, and configurations with other partners have one.
    """
    query, support = draw.is_query.nonzero()[:, 0], (~draw.is_query).nonzero()[:, 0]
    encoded, mixing = query, None
    if (mix := draw.mix) is not None:
        partner, place = support[mix.partner], None
        if not augmentation.of_images:
            others, place = _encoded(partner, support, by_labels=by_labels)
            encoded, place = torch.cat([query, others]), len(query) + place
        # 1 - lam is taken in the precision that lam was drawn in, as the released code does.
        shares = mix.lam.to(dtype), (1 - mix.lam).to(dtype)
        mixing = Mixing(*shares, partner, place, mix if augmentation.of_images else None)
    return Selection(support, _equal(len(support), dtype), encoded, _equal(len(query), dtype), mixing)


def _encoded(partner_Q: Tensor, support: Tensor, *, by_labels: bool) -> tuple[Tensor, Tensor]:
    """Rows of the batch that are encoded to be mixed in, and which of them each query image's partner is."""
    if not by_labels:
        return partner_Q.unique(return_inverse=True)
    if len(partner_Q) < len(support):
        return partner_Q, torch.arange(len(partner_Q))
    return support, torch.searchsorted(support, partner_Q)


def _equal(number: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(number, dtype=dtype) / number
