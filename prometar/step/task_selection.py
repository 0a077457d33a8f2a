"""Which images of a batch a meta task takes, and with what weights: made on the host, where it is drawn.

A device that was asked (how many are in the query, which partners are there) would have to finish all it has
been given before it could answer.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prometar.methods.meta_tasks import Augmentation, Mix, TaskDraw


class Mixing(NamedTuple):
    """What is mixed into Q query images: shares of the own and of the partner's, and the partners.

    partner: (Q,) rows of the batch. encoded: (Q,) rows of the query's tokens that hold the partners; None
    where pixels are mixed, by `pixels`, which has one entry an image of the batch.
    """

    own: Tensor
    rest: Tensor
    partner: Tensor
    encoded: Tensor | None
    pixels: Mix | None


class Selection(NamedTuple):
    """Rows of a batch (None: all of it, in its order) for support and query, and their weights (sum 1).

    query_rows: (R,), whose first Q, as many as weights, are the query; the others are encoded to be mixed in.
    present: a scalar, False where a static task must change nothing; None where the task is compact.
    """

    support_rows: Tensor | None
    support_weights: Tensor
    query_rows: Tensor | None
    query_weights: Tensor
    mixing: Mixing | None
    present: Tensor | None


def select(
    draw: TaskDraw | None, augmentation: Augmentation, num_images: int, *, dtype: torch.dtype, static: bool
) -> Selection:
    """A drawn task's images among the `num_images` of its batch.

    Args:
        draw: None (`static` only): a task that is not present.
        dtype: Of weights and shares.
        static: All images are in both parts, with weight 0 where they do not take part.
    """
    is_query, mix = _by_position(draw, augmentation, num_images)
    all_rows = torch.arange(num_images)
    query = all_rows if static else is_query.nonzero()[:, 0]
    support = all_rows if static else (~is_query).nonzero()[:, 0]
    encoded, mixing = query, None
    if mix is not None:
        partner, place = mix.partner[query], None
        if static:
            place = None if augmentation.of_images else partner
        elif not augmentation.of_images:
            others, place = partner.unique(return_inverse=True)
            encoded, place = torch.cat([query, others]), len(query) + place
        lam = mix.lam[query]
        # 1 - lam is taken in the precision that lam was drawn in, as the released code does.
        shares = lam.to(dtype), (1 - lam).to(dtype)
        mixing = Mixing(*shares, partner, place, mix if augmentation.of_images else None)
    return Selection(
        None if static else support,
        _weights(~is_query, dtype)[support],
        None if static else encoded,
        _weights(is_query, dtype)[query],
        mixing,
        is_query.any() if static else None,
    )


def _weights(chosen: Tensor, dtype: torch.dtype) -> Tensor:
    """Equal weights of the chosen images."""
    return chosen.to(dtype) / chosen.sum().clamp(min=1)


def _by_position(
    draw: TaskDraw | None, augmentation: Augmentation, num_images: int
) -> tuple[Tensor, Mix | None]:
    """The draw with one entry an image of the batch; images that are not in the query mix with themselves."""
    if draw is None:
        nothing = torch.zeros(num_images, dtype=torch.bool)
        draw = TaskDraw(nothing, augmentation.draw(0, num_images, np.random.default_rng(0)))
    is_query = draw.is_query
    if draw.mix is None:
        return is_query, None
    lam, partner = torch.ones(num_images), torch.arange(num_images)
    lam[is_query] = draw.mix.lam.float()
    partner[is_query] = (~is_query).nonzero()[draw.mix.partner, 0]
    box = None
    if draw.mix.box is not None:
        box = draw.mix.box.new_zeros(num_images, 4)
        box[is_query] = draw.mix.box
    return is_query, Mix(lam, partner, box)
