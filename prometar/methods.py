"""Methods as values: a named constructor returns a composition of parts.

Adding a method means adding a row to `METHODS`; nothing downstream tests a method's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from prometar.config import Config
from prometar.errors import UserError
from prometar.parts.averagers import Averager, Last
from prometar.parts.inner import InnerLoop, InnerSGD
from prometar.parts.modulators import Constant, Gate, Modulator
from prometar.parts.prompts import IndependentPrompts, NoPrompts, Prompts
from prometar.parts.regularizers import ImageDistance, Regularizer, Term, TextDistance
from prometar.parts.tasks import Augmentation, FeatureMixup, NoAugmentation


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


def zero_shot(config: Config) -> Method:
    """The frozen CLIP: no leaves, nothing to train."""
    return Method(NoPrompts(), Regularizer(), Constant(), None, NoAugmentation())


def ivlp(config: Config) -> Method:
    """Independent vision-language prompts, task loss alone."""
    return Method(_prompts(config), Regularizer(), Constant(), None, NoAugmentation())


def ivlp_regularized(config: Config) -> Method:
    """IVLP with the regularizers at their full weights, no gate, no meta phase."""
    return Method(_prompts(config), _regularizer(config), Constant(), None, NoAugmentation())


def prometar(config: Config) -> Method:
    """ProMetaR: every part as its section of the configuration says.

    Source: "Prompt Learning via Meta-Regularization", CVPR 2024 (arXiv 2404.00851).
    """
    return Method(
        _prompts(config), _regularizer(config), _modulator(config), _inner(config), _augmentation(config)
    )


METHODS: dict[str, Callable[[Config], Method]] = {
    "zero-shot": zero_shot,
    "ivlp": ivlp,
    "ivlp-regularized": ivlp_regularized,
    "prometar": prometar,
}


def build(config: Config) -> Method:
    """The method that `config` names.

    Raises:
        UserError: an unknown name.

    Example:
        >>> build(Config()).modulator
        Gate(reduction=8)
    """
    if config.method not in METHODS:
        raise UserError(f"unknown method '{config.method}': choose one of {', '.join(METHODS)}")
    return METHODS[config.method](config)


def _prompts(config: Config) -> Prompts:
    p = config.prompts
    return IndependentPrompts(p.text_length, p.text_depth, p.vision_length, p.vision_depth, p.init_std)


def _regularizer(config: Config) -> Regularizer:
    r = config.regularizer
    if r.kind == "none":
        return Regularizer()
    terms: dict[Term, float] = {TextDistance(r.kind): r.text_weight, ImageDistance(r.kind): r.image_weight}
    used = {term: weight for term, weight in terms.items() if weight}
    return Regularizer(tuple(used), tuple(used.values()))


def _modulator(config: Config) -> Modulator:
    m = config.modulator
    if m.kind == "gate":
        return Gate(m.reduction)
    return Constant(1.0 if m.kind == "add" else m.value)


def _inner(config: Config) -> InnerLoop | None:
    i = config.inner
    return None if i.kind == "none" else InnerSGD(i.lr, i.outer_weight, i.order == "second")


def _augmentation(config: Config) -> Augmentation:
    t = config.task
    return NoAugmentation() if t.augmentation == "none" else FeatureMixup(t.mixup_alpha, t.mixup_beta)
