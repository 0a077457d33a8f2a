"""A backbone in this process, with what has been computed with it: both are kept, and given up, together."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from prometar.clip.expected_tensors import all_finite
from prometar.clip.feature_cache import cached_text, text_digest
from prometar.clip.frozen_features import Seen
from prometar.clip.openclip import Backbone
from prometar.data.streaming.plan import Plan
from prometar.errors import UserError
from prometar.kept import Kept

_MIB = 1024**2
Features = Kept[dict[int, Tensor]]


def _features() -> Features:
    """Of plans' images; 65,000 of ViT-B/16 in float32 are the most of one plan."""
    return Kept(most=256 * _MIB, most_each=128 * _MIB)


@dataclass(frozen=True)
class Loaded:
    """A backbone and its precision; teachers: frozen text features; trained, scored: features of images."""

    backbone: Backbone
    precision: str
    teachers: Kept[Tensor] = field(default_factory=lambda: Kept(most=64 * _MIB, most_each=64 * _MIB))
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
        """Frozen text features of classes (C, E).

        Raises:
            UserError: they are not finite.
        """
        found = self.teachers.find((classes, templates))
        if found is not None:
            return found
        clip, tokenize = self.backbone.clip, self.backbone.tokenize
        features = cached_text(clip, self._text_digest, tokenize, classes, templates)
        if not all_finite(features):
            raise UserError(
                f"the text features of {self.backbone.name} in {self.precision} are not finite: take another "
                "precision"
            )
        return self.teachers.put((classes, templates), features, features.nbytes)

    def seen(self, kept: Features, plan: Plan, *key: Hashable) -> Seen:
        """What is known of a plan's images; `key` is all that tells them from those of equal plans."""
        clip = self.backbone.clip
        num_bytes = plan.num_rows * clip.embed_dim * clip.working_dtype.itemsize
        if not kept.takes(num_bytes):
            return Seen()
        whole = (plan.digest, *key)
        known = kept.find(whole)
        return Seen(kept.put(whole, {}, num_bytes) if known is None else known)
