"""Composition of a method from components. Each component is described by a section of the configuration.

The method's name selects a recipe (`prometar.config.recipes`), whose settings can be changed.
"""

from dataclasses import dataclass

from prometar.io.strict_model import StrictModel
from prometar.methods.averagers import AnyAverager, Averager, Last
from prometar.methods.inner_loop import AnyInnerLoop, InnerSGD
from prometar.methods.modulators import AnyModulator, Gate, Modulator
from prometar.methods.prompts import AnyPrompts, IndependentPrompts, Prompts
from prometar.methods.regularizers import AnyRegularizer, BuiltInDistances, Regularizer
from prometar.methods.task_augmentations import AnyAugmentation, Augmentation, FeatureMixup, NoAugmentation


@dataclass(frozen=True)
class Method:
    """Components of a method. `inner` is None if there is no inner loop, and thus no meta phase."""

    prompts: Prompts
    regularizer: Regularizer
    modulator: Modulator
    inner: InnerSGD | None
    augmentation: Augmentation
    averager: Averager

    @property
    def uses_frozen_image_features(self) -> bool:
        return self.regularizer.uses_images or self.prompts.conditional


class MethodConfig(StrictModel):
    """Part of `Config` that determines the method: a section per component (`task` for the augmentation)."""

    method: str = "prometar"
    prompts: AnyPrompts = IndependentPrompts()
    regularizer: AnyRegularizer = BuiltInDistances()
    modulator: AnyModulator = Gate()
    inner: AnyInnerLoop = InnerSGD()
    task: AnyAugmentation = FeatureMixup()
    averager: AnyAverager = Last()


def build(config: MethodConfig) -> Method:
    """Build the method that a configuration describes.

    Raises:
        UserError: a custom component cannot be imported or constructed.

    Example:
        >>> from prometar.config.settings import Config
        >>> build(Config()).modulator
        Gate(kind='gate', reduction=8)
    """
    prompts, inner = config.prompts.component(), config.inner.component()
    regularizer, modulator = config.regularizer.build(prompts), config.modulator.component()
    augmentation = NoAugmentation() if inner is None else config.task.component()  # only meta tasks use it
    return Method(prompts, regularizer, modulator, inner, augmentation, config.averager.component())
