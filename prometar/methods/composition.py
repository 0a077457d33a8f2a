"""The composition of a method from the parts in a configuration's sections.

A method's name selects its recipe (`prometar.config.recipes`), which sets the sections. Nothing here or
downstream tests a name, so any part can be combined with any other: an ablation is a setting.
"""

from dataclasses import dataclass

from prometar.io.plain_data import PlainData
from prometar.methods.augmentations import AnyAugmentation, Augmentation, FeatureMixup, NoAugmentation
from prometar.methods.averagers import AnyAverager, Averager, Last
from prometar.methods.inner_loop import AnyInnerLoop, InnerSGD
from prometar.methods.modulators import AnyModulator, Gate, Modulator
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
    averager: Averager

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
    prompts, inner = config.prompts.component(), config.inner.component()
    return Method(
        prompts,
        config.regularizer.regularizer(prompts),
        config.modulator.component(),
        inner,
        NoAugmentation() if inner is None else config.task.component(),  # without tasks nothing is augmented
        config.averager.component(),
    )
