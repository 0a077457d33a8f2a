"""Methods as values: a composition of parts, made of a configuration's sections.

A method's name stands for its recipe (`prometar.config.recipes`), which is where the sections start from.
Nothing here or downstream tests a name, so any part goes with any other: an ablation, or one method's parts
on another's prompts, is a setting.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prometar.clip.openclip import TEMPLATES
from prometar.config.settings import Config, PromptsConfig, RegularizerConfig, Section
from prometar.io.custom import make
from prometar.methods.averagers import Averager, Gaussian, Last
from prometar.methods.gradient_modulators import Constant, Gate, Modulator, Projection
from prometar.methods.inner_loop import InnerLoop, InnerSGD
from prometar.methods.meta_tasks import Augmentation, CutMix, FeatureMixup, InputMixup, NoAugmentation
from prometar.methods.prompts import (
    ConditionalPrompts,
    CoupledPrompts,
    IndependentPrompts,
    NoPrompts,
    Prompts,
    enters_images,
)
from prometar.methods.regularizers import (
    DISTANCES,
    Distance,
    ImageDistance,
    LogitsDivergence,
    Regularizer,
    Term,
    TextDistance,
)


@dataclass(frozen=True)
class Method:
    """Prompts x regularizer x modulator x inner loop x task augmentation x averager.

    `inner` None is the identity of that axis: no meta phase.
    """

    prompts: Prompts
    regularizer: Regularizer
    modulator: Modulator
    inner: InnerLoop | None
    augmentation: Augmentation
    averager: Averager = field(default_factory=Last)

    @property
    def uses_images(self) -> bool:
        """Whether the frozen CLIP's image features are needed."""
        return self.regularizer.uses_images or self.prompts.conditional


def build(config: Config) -> Method:
    """The composition that a configuration describes.

    Raises:
        UserError: sections that do not fit each other, or a part of one's own that cannot be made.

    Example:
        >>> build(Config()).modulator
        Gate(reduction=8)
    """
    inner = _part(INNER_LOOPS, config.inner)
    augmentation = _part(AUGMENTATIONS, config.task)
    prompts = build_prompts(config)
    return Method(
        prompts,
        _regularizer(config.regularizer, prompts),
        _part(MODULATORS, config.modulator),
        inner,
        NoAugmentation() if inner is None else augmentation,  # without tasks there is nothing to augment
        _part(AVERAGERS, config.averager),
    )


def build_prompts(config: Config) -> Prompts:
    """The prompts of a configuration alone: all that is needed where nothing is trained."""
    found: Prompts = _part(PROMPTS, config.prompts)
    return found


def _part(kinds: "Kinds", section: Section) -> Any:
    if section.reference is None:
        return kinds[section.chosen](section)
    return make(section.reference, section.args)


def _regularizer(r: RegularizerConfig, prompts: Prompts) -> Regularizer:
    terms = _own_terms(r, r.reference) if r.reference else REGULARIZERS[r.kind](r)
    used = [(term, weight) for term, weight in terms if weight and _is_felt(term, prompts)]
    if not used:
        return Regularizer()
    templates = TEMPLATES if r.teacher == "ensemble" else ()
    held, weights = zip(*used, strict=True)
    return Regularizer(held, weights, templates, r.teacher)


def _is_felt(term: Term, prompts: Prompts) -> bool:
    """Whether a term can have a gradient: features of a tower without prompts stay where they are."""
    if isinstance(term, TextDistance):
        return prompts.num_context > 0
    return enters_images(prompts) or not isinstance(term, ImageDistance)


Terms = list[tuple[Term, float]]


def _held(distance: Distance, r: RegularizerConfig) -> Terms:
    """Both towers' features held by one distance, and the class probabilities."""
    return [
        (TextDistance(distance), r.text_weight),
        (ImageDistance(distance), r.image_weight),
        (LogitsDivergence(), r.logits_weight),
    ]


def _own_terms(r: RegularizerConfig, reference: str) -> Terms:
    """A part of one's own is a term, whose weight is its own matter, or a distance."""
    part = make(reference, r.args)
    if hasattr(part, "uses_text"):  # a term
        return [(part, 1.0), (LogitsDivergence(), r.logits_weight)]
    return _held(part, r)


def _templates(p: PromptsConfig) -> tuple[str, ...]:
    return {"template": (), "init": (f"{p.init} {{}}.",), "ensemble": TEMPLATES}[p.frozen_text]


def _independent(p: PromptsConfig) -> Prompts:
    text = (p.text_length, p.text_depth) if p.text_depth else (0, 0)
    vision = (p.vision_length, p.vision_depth) if p.vision_depth else (0, 0)
    templates = () if p.text_depth else _templates(p)
    return IndependentPrompts(*text, *vision, p.init_std, templates, p.init_padding)


Kinds = Mapping[str, Callable[[Any], Any]]
"""An axis: each kind, made of its section. A row more here, and a name more in `config.settings`."""

PROMPTS: Kinds = {
    "none": lambda p: NoPrompts(_templates(p)),
    "independent": _independent,
    "coupled": lambda p: CoupledPrompts(p.text_length, p.text_depth, p.init_std, padding=p.init_padding),
    "conditional": lambda p: ConditionalPrompts(
        p.text_length, p.init_std, p.reduction, padding=p.init_padding
    ),
}
REGULARIZERS: Kinds = {
    "none": lambda r: [],
    **{name: partial(_held, distance) for name, distance in DISTANCES.items()},
}
MODULATORS: Kinds = {
    "add": lambda m: Constant(1.0),
    "constant": lambda m: Constant(m.value),
    "gate": lambda m: Gate(m.reduction),
    "projection": lambda m: Projection(m.share),
}
INNER_LOOPS: Kinds = {
    "none": lambda i: None,
    "sgd": lambda i: InnerSGD(i.lr, i.outer_weight, i.order == "second"),
}
AUGMENTATIONS: Kinds = {
    "none": lambda t: NoAugmentation(),
    "feature_mixup": lambda t: FeatureMixup(t.mixup_alpha, t.mixup_beta),
    "input_mixup": lambda t: InputMixup(t.mixup_alpha, t.mixup_beta),
    "cutmix": lambda t: CutMix(t.mixup_alpha, t.mixup_beta),
}
AVERAGERS: Kinds = {"last": lambda a: Last(), "gaussian": lambda a: Gaussian(a.mean, a.std)}
