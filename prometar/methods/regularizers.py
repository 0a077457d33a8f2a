"""Regularizers: weighted sums of distances between features of the prompted and the frozen CLIP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from prometar.methods.part import Chosen, CustomPart, Part
from prometar.methods.prompts import Prompts, enters_images

if TYPE_CHECKING:
    from torch import Tensor


class Views(NamedTuple):
    """Features of the prompted and the frozen CLIP of a batch. Frozen ones are given if they are used.

    text_CE, image_BE: normalised features, the text's (B, C, E) where it sees the images; weights_B: of the
    images, sum 1; scale: of the logits.
    """

    text_CE: "Tensor"
    frozen_text_CE: "Tensor | None"
    image_BE: "Tensor"
    frozen_image_BE: "Tensor | None"
    weights_B: "Tensor"
    scale: "Tensor"


def similarity(image_BE: "Tensor", text_CE: "Tensor") -> "Tensor":
    """f . g_c, (B, C); of each image with its own text features where these are (B, C, E)."""
    return image_BE @ text_CE.T if text_CE.ndim == 2 else (text_CE @ image_BE[:, :, None])[:, :, 0]


Distance = Callable[["Tensor", "Tensor"], "Tensor"]
"""Rows of features (N, E) and the frozen ones to one distance a row (N,)."""


def l1(a: "Tensor", b: "Tensor") -> "Tensor":
    """mean |a - b| over dimensions."""
    difference = a - b
    # |x| = x sgn(x), whose sign has no derivative: torch would carry the zeros that it has for it through the
    # second derivative, and import its compiler for them.
    return (difference * difference.detach().sgn()).mean(dim=-1)


def l2(a: "Tensor", b: "Tensor") -> "Tensor":
    """mean (a - b)^2 over dimensions."""
    return (a - b).square().mean(dim=-1)


def cosine(a: "Tensor", b: "Tensor") -> "Tensor":
    """1 - a . b; the features are normalised."""
    return 1 - (a * b).sum(dim=-1)


@runtime_checkable
class Term(Protocol):
    """One unweighted distance, by name, and which frozen features it needs."""

    @property
    def name(self) -> str: ...

    @property
    def uses_text(self) -> bool: ...

    @property
    def uses_images(self) -> bool: ...

    def __call__(self, views: Views) -> "Tensor": ...


@dataclass(frozen=True)
class TextDistance:
    """Mean over classes of d(g, g0); `distance` a row. Source: ProMetaR; KgCoOp (CVPR 2023)."""

    distance: Distance = l1
    name: str = "text"
    uses_text: bool = True
    uses_images: bool = False

    def __call__(self, views: Views) -> "Tensor":
        assert views.frozen_text_CE is not None
        ours, width = views.text_CE, views.text_CE.shape[-1]
        if ours.ndim == 2:
            return self.distance(ours, views.frozen_text_CE).mean()
        rows = views.frozen_text_CE.expand_as(ours).reshape(-1, width)  # (B, C, E), where texts see images
        distance = self.distance(ours.reshape(-1, width), rows).view(ours.shape[:-1]).mean(dim=-1)
        return (distance * views.weights_B).sum()


@dataclass(frozen=True)
class ImageDistance:
    """Weighted mean over images of d(f, f0); `distance` a row. Source: ProMetaR."""

    distance: Distance = l1
    name: str = "image"
    uses_text: bool = False
    uses_images: bool = True

    def __call__(self, views: Views) -> "Tensor":
        assert views.frozen_image_BE is not None
        return (self.distance(views.image_BE, views.frozen_image_BE) * views.weights_B).sum()


@dataclass(frozen=True)
class LogitsDivergence:
    """Mean over images and classes of p log(p / q) of the frozen CLIP's probabilities p and ours q.

    Source: PromptSRC (ICCV 2023), whose released code divides by images times classes.
    """

    name: str = "logits"
    uses_text: bool = True
    uses_images: bool = True

    def __call__(self, views: Views) -> "Tensor":
        from torch.nn.functional import kl_div

        assert views.frozen_text_CE is not None
        assert views.frozen_image_BE is not None
        ours = (views.scale * similarity(views.image_BE, views.text_CE)).log_softmax(dim=-1)
        frozen = (views.scale * views.frozen_image_BE @ views.frozen_text_CE.T).log_softmax(dim=-1)
        by_image = kl_div(ours, frozen, reduction="none", log_target=True).mean(dim=-1)
        return (by_image * views.weights_B).sum()


@dataclass(frozen=True)
class Regularizer:
    """sum of weight * term; without terms it is the identity: nothing is held to the frozen features.

    Weights are in units of the loss (released: text l1 50, image l1 20). `templates`: the frozen text
    features are their mean; none: those of the dataset's own template, in the wording `wording`.
    """

    terms: tuple[tuple[Term, float], ...] = ()
    templates: tuple[str, ...] = ()
    wording: str = "template"

    @property
    def uses_text(self) -> bool:
        return any(term.uses_text for term, _ in self.terms)

    @property
    def uses_images(self) -> bool:
        return any(term.uses_images for term, _ in self.terms)

    def __call__(self, views: Views) -> "tuple[Tensor | None, dict[str, Tensor]]":
        """Return the weighted sum (None without terms), and the unweighted distances by name."""
        distances = {term.name: term(views) for term, _ in self.terms}
        weighted = [weight * distances[term.name] for term, weight in self.terms]
        return (sum(weighted[1:], weighted[0]) if weighted else None), distances


class NoRegularizer(Part):
    """Identity: nothing is held to the frozen features."""

    kind: Literal["none"] = "none"

    def regularizer(self, prompts: Prompts) -> Regularizer:
        return Regularizer()


class _Distances(Part):
    """Distances of prompted from frozen features; a weight of 0 switches a term off.

    `logits_weight`: of the divergence of the class probabilities. `teacher`: the frozen text features are
    the mean of 60 templates, or those of the dataset's own template: as it is, as a sentence about a photo,
    or with the class name last.
    """

    text_weight: float = Field(default=50.0, ge=0)
    image_weight: float = Field(default=20.0, ge=0)
    logits_weight: float = Field(default=0.0, ge=0)
    teacher: Literal["ensemble", "template", "photo", "name_last"] = "ensemble"

    @property
    def distance(self) -> "Distance | Term":
        """Distance for both towers, or a term whose weight is one of its own settings."""
        raise NotImplementedError

    def regularizer(self, prompts: Prompts) -> Regularizer:
        """Return the weighted sum of the terms that can have a gradient with these prompts."""
        from prometar.clip.openclip import TEMPLATES

        known, terms = self.distance, list[tuple[Term, float]]()
        if isinstance(known, Term):
            terms.append((known, 1.0))
        else:  # the features of a tower without prompts are constant
            if prompts.num_context > 0:
                terms.append((TextDistance(known), self.text_weight))
            if enters_images(prompts):
                terms.append((ImageDistance(known), self.image_weight))
        terms.append((LogitsDivergence(), self.logits_weight))
        used = tuple((term, weight) for term, weight in terms if weight)
        return Regularizer(used, TEMPLATES if self.teacher == "ensemble" else (), self.teacher)


class Distances(_Distances):
    """mean |a - b| (ProMetaR), mean (a - b)^2, or 1 - cosine (KgCoOp, CVPR 2023)."""

    kind: Literal["l1", "l2", "cosine"] = "l1"

    @property
    def distance(self) -> Distance:
        return {"l1": l1, "l2": l2, "cosine": cosine}[self.kind]


class CustomRegularizer(CustomPart, _Distances):
    """A custom distance, or a custom `Term`."""

    @property
    def distance(self) -> "Distance | Term":
        found: Distance | Term = self.component()
        return found


AnyRegularizer = Chosen[NoRegularizer | Distances, CustomRegularizer]
