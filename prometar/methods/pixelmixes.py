"""Augmentations of the query that mix pixels: the images are embedded after the mix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prometar.methods.meta_tasks import FeatureMixup, Mix


@dataclass(frozen=True)
class InputMixup(FeatureMixup):
    """x = lam x_query + (1 - lam) x_support, lam ~ Beta(alpha, beta).

    Source: "mixup", ICLR 2018; here between query and support, and with the same draws as `FeatureMixup`.
    """

    of_images: bool = True

    def mixed_images(self, query_Q3HW: Tensor, partners_Q3HW: Tensor, mix: Mix) -> Tensor:
        lam = mix.lam.to(query_Q3HW)[:, None, None, None]
        return lam * query_Q3HW + (1 - lam) * partners_Q3HW


@dataclass(frozen=True)
class CutMix(FeatureMixup):
    """A box of a support image in each query image; lam is the share of the image that the box leaves.

    The box's sides are sqrt(1 - l) of the image's, l ~ Beta(alpha, beta), its centre is uniform, and what
    lies outside is cut off. A pixel that the box's edge crosses is mixed by the covered share: lam is then
    the exact share of the query for every image size, where the original rounds the box to whole pixels.

    Source: "CutMix", ICCV 2019; here between query and support.
    """

    of_images: bool = True

    def draw(self, num_query: int, num_support: int, rng: np.random.Generator) -> Mix:
        mix = super().draw(num_query, num_support, rng)
        half = (1 - mix.lam.double()).sqrt() / 2
        down, right = torch.from_numpy(rng.random((2, num_query)))
        edges = [down - half, down + half, right - half, right + half]
        box = torch.stack(edges, dim=1).clamp(0, 1)
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        return Mix((1 - area).float(), mix.partner, box.float())

    def mixed_images(self, query_Q3HW: Tensor, partners_Q3HW: Tensor, mix: Mix) -> Tensor:
        assert mix.box is not None
        box, (height, width) = mix.box.to(query_Q3HW), query_Q3HW.shape[-2:]
        rows, columns = _covered(box[:, 0], box[:, 1], height), _covered(box[:, 2], box[:, 3], width)
        mask = rows[:, None, :, None] * columns[:, None, None, :]
        return query_Q3HW + mask * (partners_Q3HW - query_Q3HW)


def _covered(start_Q: Tensor, stop_Q: Tensor, side: int) -> Tensor:
    """(Q, side): the share of each pixel between start and stop, which are shares of the side."""
    pixel = torch.arange(side, device=start_Q.device, dtype=start_Q.dtype)
    begin = torch.maximum(start_Q[:, None] * side, pixel)
    return (torch.minimum(stop_Q[:, None] * side, pixel + 1) - begin).clamp(min=0)
