"""Tasks: how a batch becomes support and query, and how the query is augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class TaskDraw(NamedTuple):
    """One meta task of a batch.

    support, query: indices into the batch, in batch order; lam: (Q,) share of the query image in the mixed
    feature; mix: (Q,) partners, indices into `support`. Without mixing lam and mix are None.
    """

    support: Tensor
    query: Tensor
    lam: Tensor | None
    mix: Tensor | None


class Augmentation(Protocol):
    """Draws lam and the partners of the query images."""

    def draw(
        self, num_query: int, num_support: int, rng: np.random.Generator
    ) -> tuple[Tensor | None, Tensor | None]: ...


@dataclass(frozen=True)
class NoAugmentation:
    """Identity: the query images as they are."""

    def draw(self, num_query: int, num_support: int, rng: np.random.Generator) -> tuple[None, None]:
        return None, None


@dataclass(frozen=True)
class FeatureMixup:
    """Mixed feature lam f(query) + (1 - lam) f(support), lam ~ Beta(alpha, beta), on un-normalised features.

    Source: ProMetaR (released: 0.5, 0.5), after MetaMix, ICML 2021.
    """

    alpha: float = 0.5
    beta: float = 0.5

    def draw(self, num_query: int, num_support: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        lam = torch.from_numpy(rng.beta(self.alpha, self.beta, size=num_query).astype(np.float32))
        return lam, torch.from_numpy(rng.integers(num_support, size=num_query))


def one_class_out(labels: Tensor, augmentation: Augmentation, rng: np.random.Generator) -> TaskDraw | None:
    """One present class, drawn uniformly, is the query; all other images are the support.

    None where the batch holds one class only. Source: ProMetaR.
    """
    present = labels.unique().numpy(force=True)
    if len(present) < 2:
        return None
    support, query = split_off(labels, int(rng.choice(present)))
    lam, mix = augmentation.draw(len(query), len(support), rng)
    return TaskDraw(support, query, lam, mix)


def split_off(labels: Tensor, query_label: int) -> tuple[Tensor, Tensor]:
    """Indices (support, query) of a batch, both in batch order."""
    is_query = labels == query_label
    return (~is_query).nonzero().squeeze(1), is_query.nonzero().squeeze(1)


def task_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one step's draws, keyed by (seed, step): a resumed run draws the same."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step, 0x7A5C])))
