"""Features: tensors that the towers return, and learned functions of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from prometar.methods.prompts import Leaves, sample_linear, sample_normal
from prometar.methods.section import ComponentSection, CustomKindSection, Kinds

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prometar.clip.model import Clip


@dataclass(frozen=True)
class Features:
    """Features of C classes and B images, from which losses and logits are computed.

    Args:
        text_CE: Text features (C, E), or (B, C, E) if they depend on the images. Not normalized, unless
            `text_is_normalized`, as for texts that are encoded only once.
        image_BE: Image features, not normalized.
        prompts_BD: Mean over the image prompts' outputs of the last block after the tower's final LayerNorm,
            (B, D). None unless a part reads it.
        representation_BE: Second image feature, not normalized. None unless a part adds it.
    """

    text_CE: "Tensor"
    image_BE: "Tensor"
    prompts_BD: "Tensor | None" = None
    representation_BE: "Tensor | None" = None
    text_is_normalized: bool = False

    @cached_property
    def unit_text_CE(self) -> "Tensor":
        """Normalized text features."""
        from prometar.clip.function import normalize

        return self.text_CE if self.text_is_normalized else normalize(self.text_CE)

    @cached_property
    def unit_image_BE(self) -> "Tensor":
        """Normalized image features."""
        from prometar.clip.function import normalize

        return normalize(self.image_BE)

    @cached_property
    def cosines_BC(self) -> "Tensor":
        """Cosines of image and text features."""
        return similarity(self.unit_image_BE, self.unit_text_CE)

    def for_images(self, function: "Callable[[Tensor], Tensor]") -> "Features":
        """Apply a function to the rows (images) of each image feature."""
        image_BE = function(self.image_BE)
        if self.representation_BE is None:
            return replace(self, image_BE=image_BE)
        return replace(self, image_BE=image_BE, representation_BE=function(self.representation_BE))


def similarity(image_BE: "Tensor", text_CE: "Tensor") -> "Tensor":
    """Return dot products (B, C) of image features and text features, which may be (B, C, E)."""
    if text_CE.ndim == 2:
        return image_BE @ text_CE.T
    return (text_CE @ image_BE[:, :, None])[:, :, 0]


class FeatureFunction(ComponentSection):
    """Base class of functions of the towers' features. By default, features are used as they are."""

    reads_image_prompts: ClassVar[bool] = False
    """True if the function needs `Features.prompts_BD`, and thus prompts that enter the image tower."""
    changes_text: ClassVar[bool] = False
    changes_images: ClassVar[bool] = False

    def initialize(self, clip: "Clip", generator: "Generator") -> Leaves:
        """Return the initial learnable tensors."""
        return {}

    def __call__(self, leaves: Leaves, features: Features) -> Features:
        """Return the features from which losses and logits are computed, given those of the towers."""
        return features


class PlainFeatures(FeatureFunction):
    """No function: the class token's feature and the text feature, as in CLIP."""

    kind: Literal["none"] = "none"


class BottleneckAdapters(FeatureFunction):
    """Adapted features f' = share * g(f) + (1 - share) * f, with g(f) = relu(W_out relu(W_in f)).

    Text and images have their own W_in (E / reduction, E), W_out (E, E / reduction) and share. No biases.
    Source: "CoPrompt", ICLR 2024 (published: reduction 4, shares 0.2 for text and 0.1 for images), after
    CLIP-Adapter.
    """

    changes_text: ClassVar[bool] = True
    changes_images: ClassVar[bool] = True

    kind: Literal["bottleneck"] = "bottleneck"
    reduction: int = Field(default=4, ge=1)
    text_share: float = Field(default=0.2, ge=0, le=1)
    image_share: float = Field(default=0.1, ge=0, le=1)

    def initialize(self, clip: "Clip", generator: "Generator") -> Leaves:
        leaves: Leaves = {}
        width = clip.embed_dim
        hidden = max(1, width // self.reduction)
        for name in ("image", "text"):
            leaves[f"{name}.in"] = sample_linear(
                (hidden, width), width, like=clip.logit_scale, generator=generator
            )
            leaves[f"{name}.out"] = sample_linear(
                (width, hidden), hidden, like=clip.logit_scale, generator=generator
            )
        return leaves

    def __call__(self, leaves: Leaves, features: Features) -> Features:
        def adapted(name: str, feature: "Tensor", share: float) -> "Tensor":
            hidden = (feature @ leaves[f"{name}.in"].T).relu()
            return share * (hidden @ leaves[f"{name}.out"].T).relu() + (1 - share) * feature

        return replace(
            features,
            text_CE=adapted("text", features.text_CE, self.text_share),
            image_BE=adapted("image", features.image_BE, self.image_share),
            text_is_normalized=False,
        )


class RepresentationTokens(FeatureFunction):
    """Second image feature r = mean_p LN(z_p) W.

    z_p: output of image prompt p in the last block. LN: final LayerNorm of the image tower, of width D.
    W (D, E) is learned, and starts as N(0, 1 / D). `logits.kind=fused` uses r.
    Source: "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025.
    """

    reads_image_prompts: ClassVar[bool] = True

    kind: Literal["representation"] = "representation"

    def initialize(self, clip: "Clip", generator: "Generator") -> Leaves:
        shape = (clip.vision.width, clip.embed_dim)
        std = clip.vision.width**-0.5
        return {"projection": sample_normal(shape, std, like=clip.logit_scale, generator=generator)}

    def __call__(self, leaves: Leaves, features: Features) -> Features:
        assert features.prompts_BD is not None
        return replace(features, representation_BE=features.prompts_BD @ leaves["projection"])


class CustomFeatures(CustomKindSection, FeatureFunction):
    """Custom function of features."""


FEATURES = Kinds(
    {"none": PlainFeatures, "bottleneck": BottleneckAdapters, "representation": RepresentationTokens},
    default="none",
    custom=CustomFeatures,
)
