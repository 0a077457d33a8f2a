"""Tasks: how a batch becomes support and query, and how the query is augmented."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Mix(NamedTuple):
    """Per query image: its own share `lam` (Q,) and a partner (Q,), an index into the support.

    box (Q, 4): for a mix of regions, top, bottom, left, right of the partner's, as shares of the image side.
    """

    lam: Tensor
    partner: Tensor
    box: Tensor | None = None


class TaskDraw(NamedTuple):
    """One meta task of a batch of B images: (B,) whether each is in the query, and the query's mix.

    The order of the mix is that of the query images in the batch, its partners count support images in the
    order of the batch.
    """

    is_query: Tensor
    mix: Mix | None


class Augmentation(Protocol):
    """Draws how the query images are mixed with support images."""

    @property
    def of_images(self) -> bool:
        """Whether pixels are mixed (by `mixed_images`) rather than features (by lam)."""
        return False

    def draw(self, num_query: int, num_support: int, rng: np.random.Generator) -> Mix | None: ...

    def mixed_images(self, query_Q3HW: Tensor, partners_Q3HW: Tensor, mix: Mix) -> Tensor:
        """Query images with their partners mixed in; only where `of_images`."""
        return query_Q3HW


@dataclass(frozen=True)
class NoAugmentation(Augmentation):
    """Identity: the query images as they are."""

    def draw(self, num_query: int, num_support: int, rng: np.random.Generator) -> None:
        return None


@dataclass(frozen=True)
class FeatureMixup(Augmentation):
    """Mixed feature lam f(query) + (1 - lam) f(support), lam ~ Beta(alpha, beta), on un-normalised features.

    Source: ProMetaR (released: 0.5, 0.5), after MetaMix, ICML 2021.
    """

    alpha: float = 0.5
    beta: float = 0.5

    def draw(self, num_query: int, num_support: int, rng: np.random.Generator) -> Mix:
        lam = torch.from_numpy(rng.beta(self.alpha, self.beta, size=num_query).astype(np.float32))
        return Mix(lam, torch.from_numpy(rng.integers(num_support, size=num_query)))


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


def one_class_out(labels: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> TaskDraw | None:
    """One present class, drawn uniformly, is the query; all other images are the support.

    None where the batch holds one class only. Source: ProMetaR.
    """
    present = labels.unique().numpy(force=True)
    if len(present) < 2:
        return None
    is_query = labels == int(rng.choice(present))
    num_query = int(is_query.sum())
    return TaskDraw(is_query, augmentation.draw(num_query, len(labels) - num_query, rng))


def task_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one step's draws, keyed by (seed, step): a resumed run draws the same."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, 0x7A5C])))
