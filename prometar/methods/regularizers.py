"""Regularizers: weighted sums of terms that compare features of the prompted and the frozen CLIP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from prometar.methods.features import similarity
from prometar.methods.section import ComponentSection, CustomKindSection, Kinds

if TYPE_CHECKING:
    from torch import Tensor


class RegularizerInputs(NamedTuple):
    """Normalized prompted and frozen features of a batch. Frozen features are None unless a term uses them.

    Args:
        text_CE: Text features (C, E) of C classes, or (B, C, E) if they depend on the B images.
        weights_B: Weights of the images. The sum of the weights is 1.
        scale: Factor that turns cosine similarities into logits.
    """

    text_CE: "Tensor"
    frozen_text_CE: "Tensor | None"
    image_BE: "Tensor"
    frozen_image_BE: "Tensor | None"
    weights_B: "Tensor"
    scale: "Tensor"


Distance = Callable[["Tensor", "Tensor"], "Tensor"]
"""Function that returns the distances (N,) between corresponding rows of two tensors (N, E) of features."""


def l1(a: "Tensor", b: "Tensor") -> "Tensor":
    """Return the mean of |a - b| over the feature dimensions."""
    difference = a - b
    # To differentiate abs() twice, torch imports its compiler, which is slow. x sgn(x) avoids the import.
    return (difference * difference.detach().sgn()).mean(dim=-1)


def l2(a: "Tensor", b: "Tensor") -> "Tensor":
    """Return the mean of (a - b)^2 over the feature dimensions."""
    return (a - b).square().mean(dim=-1)


def cosine(a: "Tensor", b: "Tensor") -> "Tensor":
    """Return 1 - a . b for normalized features."""
    return 1 - (a * b).sum(dim=-1)


@runtime_checkable
class Term(Protocol):
    """Unweighted scalar term. `uses_text` and `uses_images` state which frozen features the term needs."""

    @property
    def name(self) -> str: ...

    @property
    def uses_text(self) -> bool: ...

    @property
    def uses_images(self) -> bool: ...

    def __call__(self, inputs: RegularizerInputs) -> "Tensor": ...


@dataclass(frozen=True)
class TextDistance:
    """Mean distance between prompted and frozen text features. Source: ProMetaR; KgCoOp (CVPR 2023)."""

    distance: Distance = l1
    name: str = "text"
    uses_text: bool = True
    uses_images: bool = False

    def __call__(self, inputs: RegularizerInputs) -> "Tensor":
        assert inputs.frozen_text_CE is not None
        text = inputs.text_CE
        if text.ndim == 2:
            return self.distance(text, inputs.frozen_text_CE).mean()
        # (B, C, E): distances take rows, so images and classes are flattened first.
        width = text.shape[-1]
        frozen = inputs.frozen_text_CE.expand_as(text).reshape(-1, width)
        distances = self.distance(text.reshape(-1, width), frozen)
        distances_B = distances.view(text.shape[:-1]).mean(dim=-1)
        return (distances_B * inputs.weights_B).sum()


@dataclass(frozen=True)
class ImageDistance:
    """Mean distance between prompted and frozen image features, weighted by `weights_B`. Source: ProMetaR."""

    distance: Distance = l1
    name: str = "image"
    uses_text: bool = False
    uses_images: bool = True

    def __call__(self, inputs: RegularizerInputs) -> "Tensor":
        assert inputs.frozen_image_BE is not None
        return (self.distance(inputs.image_BE, inputs.frozen_image_BE) * inputs.weights_B).sum()


@dataclass(frozen=True)
class LogitsDivergence:
    """Mean of p log(p / q) over classes, then images (weighted). p, q: frozen and prompted probabilities.

    Source: PromptSRC (ICCV 2023), whose code also averages over both images and classes.
    """

    name: str = "logits"
    uses_text: bool = True
    uses_images: bool = True

    def __call__(self, inputs: RegularizerInputs) -> "Tensor":
        from torch.nn.functional import kl_div

        assert inputs.frozen_text_CE is not None
        assert inputs.frozen_image_BE is not None
        prompted = (inputs.scale * similarity(inputs.image_BE, inputs.text_CE)).log_softmax(dim=-1)
        frozen = (inputs.scale * inputs.frozen_image_BE @ inputs.frozen_text_CE.T).log_softmax(dim=-1)
        by_image = kl_div(prompted, frozen, reduction="none", log_target=True).mean(dim=-1)
        return (by_image * inputs.weights_B).sum()


@dataclass(frozen=True)
class Regularizer:
    """Weighted sum of terms. `terms` contains pairs (term, weight).

    The frozen text features are averaged over `templates`. If `templates` is empty, the dataset's
    template called `template_name` is used. The main template of a dataset is called "template".
    If `texts` is the path of a JSON file, its texts of each class replace the templates. If `draw` is True,
    the features are not averaged. Each step then uses the features of one text, whose index is the same for
    all classes.
    """

    terms: tuple[tuple[Term, float], ...] = ()
    templates: tuple[str, ...] = ()
    template_name: str = "template"
    texts: str | None = None
    draw: bool = False

    @property
    def uses_text(self) -> bool:
        return any(term.uses_text for term, _ in self.terms)

    @property
    def uses_images(self) -> bool:
        return any(term.uses_images for term, _ in self.terms)

    def __call__(self, inputs: RegularizerInputs) -> "tuple[Tensor | None, dict[str, Tensor]]":
        """Return the weighted sum (None if there are no terms), and the unweighted terms by name."""
        weighted: list[Tensor] = []
        by_name: dict[str, Tensor] = {}
        for term, weight in self.terms:
            value = term(inputs)
            weighted.append(weight * value)
            by_name[term.name] = value
        if not weighted:
            return None, by_name
        return sum(weighted[1:], weighted[0]), by_name


class RegularizerSection(ComponentSection):
    """Base class of the sections of regularizers."""

    def build(self, *, changes_text: bool, changes_images: bool) -> Regularizer:
        """Return the regularizer of a method that changes text features, image features or both."""
        return Regularizer()


class NoRegularizer(RegularizerSection):
    """No regularizer."""

    kind: Literal["none"] = "none"


class _DistanceSettings(RegularizerSection):
    """Settings of distances between prompted and frozen features. A weight of 0 disables its term.

    `logits_weight` is the weight of `LogitsDivergence`. `teacher` selects the templates of the frozen text
    features: "ensemble" averages 60, other values select one of the dataset's. For DTD, these are "template"
    ("{} texture."), "photo" ("a photo of a {}, a type of texture.") and "name_last" ("a texture of {}.").
    `texts`: JSON file {class: [text, ...]} whose texts replace the templates. `draw`: in each step, compare
    with one text, drawn uniformly, instead of the average (CoPrompt, ICLR 2024).
    """

    text_weight: float = Field(default=50.0, ge=0)
    image_weight: float = Field(default=20.0, ge=0)
    logits_weight: float = Field(default=0.0, ge=0)
    teacher: Literal["ensemble", "template", "photo", "name_last"] = "ensemble"
    texts: str | None = None
    draw: bool = False

    def build(self, *, changes_text: bool, changes_images: bool) -> Regularizer:
        """Return the weighted sum of all terms whose weight is not 0.

        Text and image features that the method does not change have no distance to the frozen ones.
        In a subclass, `component()` returns a `Distance` for both towers, or a `Term` with weight 1.
        """
        from prometar.clip.openclip import TEMPLATES

        component = self.component()
        terms: list[tuple[Term, float]] = []
        if isinstance(component, Term):
            terms.append((component, 1.0))
        else:
            if changes_text:
                terms.append((TextDistance(component), self.text_weight))
            if changes_images:
                terms.append((ImageDistance(component), self.image_weight))
        terms.append((LogitsDivergence(), self.logits_weight))
        used = tuple((term, weight) for term, weight in terms if weight)
        return Regularizer(
            terms=used,
            templates=TEMPLATES if self.teacher == "ensemble" else (),
            template_name=self.teacher,
            texts=self.texts,
            draw=self.draw,
        )


class BuiltInDistances(_DistanceSettings):
    """Built-in distances: l1 (ProMetaR), l2, or cosine (KgCoOp, CVPR 2023)."""

    kind: Literal["l1", "l2", "cosine"] = "l1"

    def component(self) -> Distance:
        return {"l1": l1, "l2": l2, "cosine": cosine}[self.kind]


class CustomRegularizer(CustomKindSection, _DistanceSettings):
    """Custom distance or `Term`."""


REGULARIZERS = Kinds(
    {"none": NoRegularizer, "l1": BuiltInDistances, "l2": BuiltInDistances, "cosine": BuiltInDistances},
    default="l1",
    custom=CustomRegularizer,
)
