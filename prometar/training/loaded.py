"""A backbone in this process, with the features computed with it."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property

from cachetools import LRUCache
from torch import Tensor

from prometar.clip.features import Seen, cached_text, text_digest
from prometar.clip.openclip import Backbone
from prometar.clip.weights import all_finite
from prometar.data.streaming.plan import Plan
from prometar.errors import UserError

_MIB = 2**20
Features = LRUCache[Hashable, tuple[int, dict[int, Tensor]]]
"""Features of plans' images by batch, each with the bytes that all batches take."""


def _features() -> Features:
    return LRUCache(256 * _MIB, getsizeof=lambda sized: sized[0])


def _texts() -> LRUCache[Hashable, Tensor]:
    return LRUCache(64 * _MIB, getsizeof=lambda features: features.nbytes)


@dataclass(frozen=True)
class Loaded:
    """A backbone and its precision, with features of texts, and of images in training and evaluation."""

    backbone: Backbone
    precision: str
    texts: LRUCache[Hashable, Tensor] = field(default_factory=_texts)
    trained: Features = field(default_factory=_features)
    scored: Features = field(default_factory=_features)

    @cached_property
    def for_text_prompts(self) -> Backbone:
        """The backbone for prompts that leave the image tower alone, with the same weights."""
        return replace(self.backbone, clip=replace(self.backbone.clip, image_prompts=False))

    @cached_property
    def _text_digest(self) -> str:
        return text_digest(self.backbone.clip)

    def teacher(self, classes: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
        """Return frozen text features of classes (C, E).

        Raises:
            UserError: they are not finite.
        """
        key = (classes, templates)
        if key in self.texts:
            return self.texts[key]
        clip, tokenize = self.backbone.clip, self.backbone.tokenize
        features = cached_text(clip, self._text_digest, tokenize, classes, templates)
        if not all_finite(features):
            raise UserError(
                f"the text features of {self.backbone.name} in {self.precision} are not finite: take another "
                "precision"
            )
        if features.nbytes <= self.texts.maxsize:
            self.texts[key] = features
        return features

    def seen(self, cache: Features, plan: Plan, *source: Hashable) -> Seen:
        """Return the cached features of a plan's images.

        Args:
            source: Distinguishes the images from those of equal plans.
        """
        clip = self.backbone.clip
        num_bytes = plan.num_rows * clip.embed_dim * clip.working_dtype.itemsize
        if num_bytes > cache.maxsize // 2:
            return Seen()
        key = (plan.digest, *source)
        if key not in cache:
            cache[key] = (num_bytes, {})
        return Seen(cache[key][1])
