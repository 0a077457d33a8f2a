"""The composition of a method from the parts in a configuration's sections.

A method's name selects its recipe (`prometar.config.recipes`), which sets the sections. Nothing here or
downstream tests a name, so any part can be combined with any other: an ablation is a setting.
"""

from dataclasses import dataclass, field
from typing import Any

from prometar.io.plain_data import PlainData
from prometar.methods.augmentations import AnyAugmentation, Augmentation, FeatureMixup, NoAugmentation
from prometar.methods.averagers import AnyAverager, Averager, Last
from prometar.methods.inner_loop import AnyInnerLoop, InnerSGD, NoInnerLoop
from prometar.methods.modulators import AnyModulator, Gate, Modulator
from prometar.methods.part import Custom, Part
from prometar.methods.prompts import AnyPrompts, IndependentPrompts, Prompts
from prometar.methods.regularizers import AnyRegularizer, Distances, Regularizer


@dataclass(frozen=True)
class Method:
    """Prompts x regularizer x modulator x inner loop x task augmentation x averager.

    `inner` is None if there is no meta phase.
    """

    prompts: Prompts
    regularizer: Regularizer
    modulator: Modulator
    inner: InnerSGD | None
    augmentation: Augmentation
    averager: Averager = field(default_factory=Last)

    @property
    def uses_images(self) -> bool:
        """True if the frozen CLIP's image features are needed."""
        return self.regularizer.uses_images or self.prompts.conditional


class Sections(PlainData):
    """The sections of a configuration that determine a method. The defaults are ProMetaR's."""

    method: str = "prometar"
    prompts: AnyPrompts = IndependentPrompts()
    regularizer: AnyRegularizer = Distances()
    modulator: AnyModulator = Gate()
    inner: AnyInnerLoop = InnerSGD()
    task: AnyAugmentation = FeatureMixup()
    averager: AnyAverager = Last()


def build(config: Sections) -> Method:
    """Return the composition that a configuration describes.

    Raises:
        UserError: a custom component cannot be loaded or made.

    Example:
        >>> from prometar.config.settings import Config
        >>> build(Config()).modulator
        Gate(kind='gate', reduction=8)
    """
    prompts = build_prompts(config)
    inner = None if isinstance(config.inner, NoInnerLoop) else _made(config.inner)
    return Method(
        prompts,
        config.regularizer.regularizer(prompts),
        _made(config.modulator),
        inner,
        NoAugmentation() if inner is None else _made(config.task),  # without tasks nothing is augmented
        _made(config.averager),
    )


def build_prompts(config: Sections) -> Prompts:
    """Return only the prompts of a configuration, which is all that inference needs."""
    prompts: Prompts = _made(config.prompts)
    return prompts


def _made(part: Part) -> Any:
    return part.component() if isinstance(part, Custom) else part
