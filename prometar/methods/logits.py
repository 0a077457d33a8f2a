"""Logits: the task loss in training, and the scores of base and of new classes in tests."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from prometar.methods.features import Features, similarity
from prometar.methods.prompts import Leaves, sample_linear
from prometar.methods.section import ComponentSection, CustomKindSection, Kinds

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prometar.clip.model import Clip


def weighted_cross_entropy(logits_BC: "Tensor", labels_B: "Tensor", weights_B: "Tensor") -> "Tensor":
    """Return the weighted sum of the images' cross-entropies (the mean, if all weights are 1 / B)."""
    from torch.nn.functional import cross_entropy

    return (cross_entropy(logits_BC, labels_B, reduction="none") * weights_B).sum()


class Logits(ComponentSection):
    """Base class of logits. B images, C classes, features of width E.

    `scale` is CLIP's logit scale s, the factor that turns cosines into logits.
    """

    needs_representation: ClassVar[bool] = False
    """True if the logits use `Features.representation_BE`."""

    is_for_training_dataset: ClassVar[bool] = False
    """True if the logits of base classes are used on the training dataset only.

    On other datasets, all classes then count as new, even if they have the names of the training classes.
    """

    def initialize(self, clip: "Clip", num_classes: int, generator: "Generator") -> Leaves:
        """Return the initial learnable tensors, given the number of training classes."""
        return {}

    def loss(
        self, leaves: Leaves, features: Features, labels_B: "Tensor", weights_B: "Tensor", scale: "Tensor"
    ) -> "Tensor":
        """Return the task loss. Default: the weighted cross-entropy of the logits of base classes."""
        logits_BC = self(leaves, features, scale, new_classes=False)
        return weighted_cross_entropy(logits_BC, labels_B, weights_B)

    def __call__(self, leaves: Leaves, features: Features, scale: "Tensor", *, new_classes: bool) -> "Tensor":
        """Return the logits (B, C). `new_classes`: True if the classes are not the training classes.

        See also `is_for_training_dataset`.
        """
        return scale * features.cosines_BC


class CosineLogits(Logits):
    """Logits s cos(f, t_c) of image feature f and text features t_c, as in CLIP."""

    kind: Literal["cosine"] = "cosine"


class FusedLogits(Logits):
    """Logits of two image features: the main feature f and the representation feature r.

    Base classes: s (weight cos(f, t_c) + (1 - weight) cos(r, t_c)). New classes: s cos(f, t_c).
    Loss: weight CE(s cos(f, t)) + (1 - weight) CE(s cos(r, t)), where CE is the cross-entropy.
    s is `scale`, or CLIP's logit scale if `scale` is null. Requires `features.kind=representation`.
    Source: "MMRL", CVPR 2025 (published: weight 0.7). Its code fixes the scale to 100, and treats all classes
    of other datasets as new. An example is ImageNet-V2 after training on ImageNet.
    """

    needs_representation: ClassVar[bool] = True
    is_for_training_dataset: ClassVar[bool] = True

    kind: Literal["fused"] = "fused"
    weight: float = Field(default=0.7, ge=0, le=1)
    scale: float | None = Field(default=100.0, gt=0, le=1000)

    def _parts(self, features: Features, scale: "Tensor") -> "tuple[Tensor, Tensor]":
        from torch.nn.functional import normalize

        assert features.representation_BE is not None
        factor = scale if self.scale is None else self.scale
        representation_BE = normalize(features.representation_BE, dim=-1)
        representation_BC = factor * similarity(representation_BE, features.unit_text_CE)
        return factor * features.cosines_BC, representation_BC

    def loss(
        self, leaves: Leaves, features: Features, labels_B: "Tensor", weights_B: "Tensor", scale: "Tensor"
    ) -> "Tensor":
        main_BC, representation_BC = self._parts(features, scale)
        main_loss = weighted_cross_entropy(main_BC, labels_B, weights_B)
        representation_loss = weighted_cross_entropy(representation_BC, labels_B, weights_B)
        return self.weight * main_loss + (1 - self.weight) * representation_loss

    def __call__(self, leaves: Leaves, features: Features, scale: "Tensor", *, new_classes: bool) -> "Tensor":
        main_BC, representation_BC = self._parts(features, scale)
        if new_classes:
            return main_BC
        return self.weight * main_BC + (1 - self.weight) * representation_BC


class LinearHead(Logits):
    """Cosine logits S, and a linear head H on scaled and shifted features, for the training classes only.

    H(x; k) = W (a_k * x + b_k) + d for features x (not normalized) of kind k, image or text. W (C, E), d (C).
    Loss of an image f with label y, where CE is the cross-entropy and t_y the text feature of class y:
    (1 - weight) CE(S, y) + weight [CE(H(f; image), y) + CE(H(t_y; text), y)] / 2.
    Base classes: (1 - weight) S + weight H(f; image). New classes: S.
    Initial values: 1 for a_k, 0 for b_k, and those of torch.nn.Linear for W and d.
    Source: "DePT: Decoupled Prompt Tuning", CVPR 2024 (published: weight 0.7, lr factor 6.5 for the head).
    Its code uses the head for all variants of ImageNet. We use it for those that have the training classes
    (V2, -Sketch), and S for those with fewer classes (-A, -R).
    """

    kind: Literal["linear_head"] = "linear_head"
    weight: float = Field(default=0.7, ge=0, le=1)

    def initialize(self, clip: "Clip", num_classes: int, generator: "Generator") -> Leaves:
        width = clip.embed_dim
        weight = sample_linear((num_classes, width), width, like=clip.logit_scale, generator=generator)
        leaves: Leaves = {
            "weight": weight,
            "bias": sample_linear((num_classes,), width, like=clip.logit_scale, generator=generator),
        }
        for kind in ("image", "text"):
            leaves[f"{kind}.scale"] = weight.new_ones(width)
            leaves[f"{kind}.shift"] = weight.new_zeros(width)
        return leaves

    def _head(self, leaves: Leaves, kind: str, x_NE: "Tensor") -> "Tensor":
        shifted_NE = leaves[f"{kind}.scale"] * x_NE + leaves[f"{kind}.shift"]
        return shifted_NE @ leaves["weight"].T + leaves["bias"]

    def loss(
        self, leaves: Leaves, features: Features, labels_B: "Tensor", weights_B: "Tensor", scale: "Tensor"
    ) -> "Tensor":
        similarity_loss = weighted_cross_entropy(scale * features.cosines_BC, labels_B, weights_B)
        own_text_BE = _text_of_labels(features.text_CE, labels_B)
        text_loss = weighted_cross_entropy(self._head(leaves, "text", own_text_BE), labels_B, weights_B)
        image_loss = weighted_cross_entropy(
            self._head(leaves, "image", features.image_BE), labels_B, weights_B
        )
        return (1 - self.weight) * similarity_loss + self.weight * (text_loss + image_loss) / 2

    def __call__(self, leaves: Leaves, features: Features, scale: "Tensor", *, new_classes: bool) -> "Tensor":
        similarity_BC = scale * features.cosines_BC
        if new_classes:
            return similarity_BC
        head_BC = self._head(leaves, "image", features.image_BE)
        return (1 - self.weight) * similarity_BC + self.weight * head_BC


def _text_of_labels(text_CE: "Tensor", labels_B: "Tensor") -> "Tensor":
    """Return the text feature (B, E) of each image's label, from text features (C, E) or (B, C, E)."""
    if text_CE.ndim == 2:
        return text_CE[labels_B]
    # Each image has its own text features. Row b of the index selects row labels_B[b] of text_CE[b].
    index_B1E = labels_B[:, None, None].expand(-1, 1, text_CE.shape[-1])
    return text_CE.gather(1, index_B1E)[:, 0]


class CustomLogits(CustomKindSection, Logits):
    """Custom logits."""


LOGITS = Kinds(
    {"cosine": CosineLogits, "fused": FusedLogits, "linear_head": LinearHead},
    default="cosine",
    custom=CustomLogits,
)
