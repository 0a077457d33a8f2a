"""Regularizers: distances of prompted features from the frozen CLIP's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

Pair = tuple[Tensor, Tensor | None]
"""Prompted and frozen features, both normalised."""


class Terms(NamedTuple):
    """Unweighted distances of the text and the image features; a term that is switched off is None."""

    text: Tensor | None
    image: Tensor | None


class Regularizer(Protocol):
    """`terms` are the unweighted distances, `total` what is minimised (None: nothing)."""

    @property
    def uses_text(self) -> bool:
        """Whether frozen text features are needed; else `terms` may be given None for them."""
        ...

    @property
    def uses_images(self) -> bool:
        """Whether frozen image features are needed; else `terms` may be given None for them."""
        ...

    def terms(self, text: Pair, image: Pair) -> Terms:
        """Distances of (prompted, frozen) normalised features: text (C, E) and image (B, E)."""
        ...

    def total(self, terms: Terms) -> Tensor | None:
        """The weighted sum."""
        ...


@dataclass(frozen=True)
class NoRegularizer:
    """Identity: nothing is held to the frozen features."""

    uses_text: bool = False
    uses_images: bool = False

    def terms(self, text: Pair, image: Pair) -> Terms:
        return Terms(None, None)

    def total(self, terms: Terms) -> Tensor | None:
        return None


def l1(a: Tensor, b: Tensor) -> Tensor:
    """mean |a - b| over rows and dimensions."""
    return (a - b).abs().mean()


def l2(a: Tensor, b: Tensor) -> Tensor:
    """mean (a - b)^2 over rows and dimensions."""
    return (a - b).square().mean()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """mean 1 - a . b over rows; the features are normalised."""
    return (1 - (a * b).sum(dim=-1)).mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2, "cosine": cosine}


@dataclass(frozen=True)
class FeatureDistance:
    """text_weight * d(g, g0) + image_weight * d(f, f0) on normalised features.

    Args: `kind` in l1, l2, cosine; weights in units of the loss (released: l1, 50 and 20).
    Source: ProMetaR, after PromptSRC's self-consistency losses (ICCV 2023).
    """

    kind: str = "l1"
    text_weight: float = 50.0
    image_weight: float = 20.0

    def __post_init__(self) -> None:
        if self.kind not in DISTANCES:
            raise ValueError(f"unknown distance {self.kind!r}: expected one of {', '.join(DISTANCES)}")

    @property
    def uses_text(self) -> bool:
        return self.text_weight > 0

    @property
    def uses_images(self) -> bool:
        return self.image_weight > 0

    def terms(self, text: Pair, image: Pair) -> Terms:
        return Terms(
            self._distance(text) if self.uses_text else None,
            self._distance(image) if self.uses_images else None,
        )

    def _distance(self, pair: Pair) -> Tensor:
        prompted, frozen = pair
        assert frozen is not None, "this regularizer needs frozen features"
        return DISTANCES[self.kind](prompted, frozen)

    def total(self, terms: Terms) -> Tensor | None:
        weighted = [
            weight * term
            for weight, term in ((self.text_weight, terms.text), (self.image_weight, terms.image))
            if term is not None
        ]
        return sum(weighted[1:], weighted[0]) if weighted else None
