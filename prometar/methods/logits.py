"""Logits: the task loss in training, and the scores of base and of new classes in tests."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from prometar.methods.features import Features, similarity
from prometar.methods.prompts import Leaves, sample_linear
from prometar.methods.section import ComponentSection, CustomKindSection, Kinds

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prometar.clip.model import Clip


def cross_entropy(logits_BC: "Tensor", labels_B: "Tensor", weights_B: "Tensor") -> "Tensor":
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
    """True if classes of other datasets are new classes, also if they have the training classes' names."""

    def initialize(self, clip: "Clip", num_classes: int, generator: "Generator") -> Leaves:
        """Return the initial learnable tensors, given the number of training classes."""
        return {}

    def loss(
        self, leaves: Leaves, features: Features, labels_B: "Tensor", weights_B: "Tensor", scale: "Tensor"
    ) -> "Tensor":
        """Return the task loss. Default: the weighted cross-entropy of the logits of base classes."""
        logits_BC = self(leaves, features, scale, new_classes=False)
        return cross_entropy(logits_BC, labels_B, weights_B)

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
    Loss: weight CE(s cos(f, t)) + (1 - weight) CE(s cos(r, t)).
    s is `scale`, or CLIP's logit scale if `scale` is null. Requires `features.kind=representation`.
    Source: "MMRL", CVPR 2025 (published: weight 0.7, scale 100, a constant in its code). As in its code, the
    classes of other datasets are new classes, also those of the variants of ImageNet after training on it.
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
        main_loss = cross_entropy(main_BC, labels_B, weights_B)
        return self.weight * main_loss + (1 - self.weight) * cross_entropy(
            representation_BC, labels_B, weights_B
        )

    def __call__(self, leaves: Leaves, features: Features, scale: "Tensor", *, new_classes: bool) -> "Tensor":
        main_BC, representation_BC = self._parts(features, scale)
        if new_classes:
            return main_BC
        return self.weight * main_BC + (1 - self.weight) * representation_BC


class LinearHead(Logits):
    """Cosine logits S, and a linear head H on scaled and shifted features, for the training classes only.

    H(x; k) = W (a_k * x + b_k) + d for features x (not normalized) of kind k, image or text. W (C, E), d (C).
    Loss: (1 - weight) CE(S, y) + weight CE(H), where CE(H) is the mean over H(f; image) of each image and
    H(t_y; text) of its class, both with the image's label y. a_k starts as 1, b_k as 0, W and d as in
    torch.nn.Linear. Base classes: (1 - weight) S + weight H(f; image). New classes: S.
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
        similarity_loss = cross_entropy(scale * features.cosines_BC, labels_B, weights_B)
        text = features.text_CE
        if text.ndim == 2:
            own_text_BE = text[labels_B]
        else:
            own_text_BE = text.gather(1, labels_B[:, None, None].expand(-1, 1, text.shape[-1]))[:, 0]
        head_losses = [
            cross_entropy(self._head(leaves, kind, x_BE), labels_B, weights_B)
            for kind, x_BE in (("text", own_text_BE), ("image", features.image_BE))
        ]
        return (1 - self.weight) * similarity_loss + self.weight * (head_losses[0] + head_losses[1]) / 2

    def __call__(self, leaves: Leaves, features: Features, scale: "Tensor", *, new_classes: bool) -> "Tensor":
        similarity_BC = scale * features.cosines_BC
        if new_classes:
            return similarity_BC
        return (1 - self.weight) * similarity_BC + self.weight * self._head(
            leaves, "image", features.image_BE
        )


class CustomLogits(CustomKindSection, Logits):
    """Custom logits."""


LOGITS = Kinds(
    {"cosine": CosineLogits, "fused": FusedLogits, "linear_head": LinearHead},
    default="cosine",
    custom=CustomLogits,
)
