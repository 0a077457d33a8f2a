"""Methods as values: a composition of parts, made of a configuration's sections.

A method's name stands for its recipe (`prometar.config.recipes`), which is where the sections start from.
Nothing here or downstream tests a name, so any part goes with any other: an ablation, or one method's parts
on another's prompts, is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prometar.backbone.openclip import TEMPLATES
from prometar.config.recipes import NAMES
from prometar.config.settings import Config
from prometar.methods.averagers import Averager, Gaussian, Last
from prometar.methods.conditional import ConditionalPrompts
from prometar.methods.coupled import CoupledPrompts
from prometar.methods.gradient_modulators import Constant, Gate, Modulator, Projection
from prometar.methods.inner_loop import InnerLoop, InnerSGD
from prometar.methods.meta_tasks import Augmentation, FeatureMixup, NoAugmentation
from prometar.methods.pixelmixes import CutMix, InputMixup
from prometar.methods.prompts import IndependentPrompts, NoPrompts, Prompts
from prometar.methods.regularizers import ImageDistance, LogitsDivergence, Regularizer, Term, TextDistance

METHODS = NAMES
"""The methods' names; adding one means adding a recipe."""


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
        UserError: sections that do not fit each other.

    Example:
        >>> build(Config()).modulator
        Gate(reduction=8)
    """
    return Method(
        _prompts(config),
        _regularizer(config),
        _modulator(config),
        _inner(config),
        _augmentation(config),
        _averager(config),
    )


def _prompts(config: Config) -> Prompts:
    p = config.prompts
    templates = {"template": (), "init": (f"{p.init} {{}}.",), "ensemble": TEMPLATES}[p.frozen_text]
    if p.kind == "none":
        return NoPrompts(templates)
    if p.kind == "conditional":
        return ConditionalPrompts(p.text_length, p.init_std, p.reduction)
    if p.kind == "coupled":
        return CoupledPrompts(p.text_length, p.text_depth, p.init_std)
    lengths = (p.text_length, p.text_depth, p.vision_length, p.vision_depth)
    return IndependentPrompts(*lengths, p.init_std, () if p.text_depth else templates, p.init_padding)


def _regularizer(config: Config) -> Regularizer:
    r = config.regularizer
    if r.kind == "none":
        return Regularizer()
    terms: dict[Term, float] = {
        TextDistance(r.kind): r.text_weight,
        ImageDistance(r.kind): r.image_weight,
        LogitsDivergence(): r.logits_weight,
    }
    used = {term: weight for term, weight in terms.items() if weight}
    if not used:
        return Regularizer()
    templates = TEMPLATES if r.teacher == "ensemble" else ()
    return Regularizer(tuple(used), tuple(used.values()), templates, r.teacher)


def _modulator(config: Config) -> Modulator:
    m = config.modulator
    if m.kind == "gate":
        return Gate(m.reduction)
    if m.kind == "projection":
        return Projection(m.share)
    return Constant(1.0 if m.kind == "add" else m.value)


def _inner(config: Config) -> InnerLoop | None:
    i = config.inner
    return None if i.kind == "none" else InnerSGD(i.lr, i.outer_weight, i.order == "second")


def _augmentation(config: Config) -> Augmentation:
    t = config.task
    if t.augmentation == "none":
        return NoAugmentation()
    if t.augmentation == "feature_mixup":
        return FeatureMixup(t.mixup_alpha, t.mixup_beta)
    return (InputMixup if t.augmentation == "input_mixup" else CutMix)(t.mixup_alpha, t.mixup_beta)


def _averager(config: Config) -> Averager:
    a = config.averager
    return Last() if a.kind == "last" else Gaussian(a.mean, a.std)
