"""Composition of a method from components. Each component is described by a section of the configuration.

The method's name selects a recipe (`prometar.config.recipes`), whose settings can be changed.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from prometar.errors import UserError
from prometar.io.strict_model import StrictModel
from prometar.methods.adapters import ADAPTERS, Adapters, NoAdapters, TowerName
from prometar.methods.averagers import AVERAGERS, Averager
from prometar.methods.features import FEATURES, FeatureFunction, PlainFeatures
from prometar.methods.inner_loop import INNER_LOOPS, InnerSGD
from prometar.methods.logits import LOGITS, CosineLogits, FusedLogits, Logits
from prometar.methods.modulators import MODULATORS, Modulator
from prometar.methods.optimizers import OPTIMIZERS, Optimizer, OptimSection
from prometar.methods.prompts import (
    PROMPTS,
    Leaves,
    NoPrompts,
    Prompts,
    PromptTraits,
    Tensors,
    has_image_prompts,
)
from prometar.methods.regularizers import REGULARIZERS, Regularizer, RegularizerSection
from prometar.methods.section import ComponentSection, Kinds
from prometar.methods.task_augmentations import AUGMENTATIONS, Augmentation, NoAugmentation

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prometar.clip.model import Clip


@dataclass(frozen=True)
class Method:
    """Components of a method. `inner` is None if there is no inner loop, and thus no meta phase.

    Leaves are the learnable tensors of prompts, adapters, feature function and logits. Names of the prompts'
    leaves are as in `Prompts`. Those of the other components start with the name of their section.
    """

    prompts: Prompts
    adapters: Adapters
    features: FeatureFunction
    logits: Logits
    regularizer: Regularizer
    modulator: Modulator
    inner: InnerSGD | None
    augmentation: Augmentation
    averager: Averager
    optimizer: Optimizer

    def initialize(
        self, clip: "Clip", init_ids: "Tensor", num_classes: int, generator: "Generator"
    ) -> Leaves:
        """Return the initial leaves, given the token ids of `prompts.init` and the number of classes."""
        leaves = dict(self.prompts.initialize(clip, init_ids, generator))
        leaves |= _prefixed("adapters", self.adapters.initialize(clip, generator))
        leaves |= _prefixed("features", self.features.initialize(clip, generator))
        return leaves | _prefixed("logits", self.logits.initialize(clip, num_classes, generator))

    def inputs(self, leaves: Leaves) -> Tensors:
        """Return what enters towers, feature function and logits: a differentiable function of the leaves."""
        prompt_leaves = {name: leaf for name, leaf in leaves.items() if section_of(name) == "prompts"}
        inputs = dict(self.prompts.tokens(prompt_leaves))
        inputs |= _prefixed("adapters", self.adapters.inputs(part(leaves, "adapters")))
        for name, leaf in leaves.items():
            if section_of(name) in ("features", "logits"):
                inputs[name] = leaf
        return inputs

    def changes(self, tower: TowerName) -> bool:
        """Return True if learned tensors enter a tower."""
        return self._tokens_enter(tower) or self.adapters.changes(tower)

    def _tokens_enter(self, tower: TowerName) -> bool:
        if tower == "text":
            return self.prompts.num_context > 0 or self.traits.num_inserted > 0
        return has_image_prompts(self.prompts)

    def first_block(self, tower: TowerName, num_blocks: int) -> int:
        """Return the index of the first block that learned tensors enter. All earlier blocks are frozen.

        If no learned tensor enters the tower, the result is `num_blocks`. If prompts enter it without being
        inserted (`Prompts.inserts`), the result is 0.
        """
        first = num_blocks
        if self._tokens_enter(tower):
            if not self.traits.inserts:
                return 0
            first = min(first, _first_block(self.prompts, tower, num_blocks))
        if self.adapters.changes(tower):
            first = min(first, _first_block(self.adapters, tower, num_blocks))
        return first

    @cached_property
    def traits(self) -> PromptTraits:
        """Traits of the prompts, with defaults for members that a custom class lacks."""
        return PromptTraits.of(self.prompts)

    @property
    def learning_sections(self) -> frozenset[str]:
        """Sections of the components that learn something. A custom component is assumed to learn."""
        return frozenset(
            section
            for section, kinds in _WITHOUT_LEAVES.items()
            if not isinstance(getattr(self, section), kinds)
        )

    @property
    def is_untrained(self) -> bool:
        """True if the method learns nothing, like zero-shot CLIP."""
        return not self.learning_sections

    @property
    def changes_blocks(self) -> bool:
        """True if adapters use the blocks' weights, which then must be those of the checkpoint."""
        return self.adapters.changes("text") or self.adapters.changes("vision")

    @property
    def uses_frozen_image_features(self) -> bool:
        return self.regularizer.uses_images or self.prompts.conditional

    @property
    def uses_frozen_text_features(self) -> bool:
        return self.regularizer.uses_text or self.traits.class_aware


_WITHOUT_LEAVES: dict[str, tuple[type, ...]] = {
    "prompts": (NoPrompts,),
    "adapters": (NoAdapters,),
    "features": (PlainFeatures,),
    "logits": (CosineLogits, FusedLogits),
}
"""Classes of components without leaves, by section."""

LEARNING_SECTIONS = frozenset(_WITHOUT_LEAVES)
"""Sections of the components that may have leaves. The gate's tensors are not leaves."""


def _first_block(component: Prompts | Adapters, tower: TowerName, num_blocks: int) -> int:
    """Return the first block that a component changes. Custom classes may lack the method."""
    method = getattr(component, "first_block", None)
    return 0 if method is None else int(method(tower, num_blocks))


_PREFIXES = ("adapters", "features", "logits")
"""Sections whose name starts the names of their leaves. Names of the prompts' leaves have no prefix."""


def section_of(leaf_name: str) -> str:
    """Return the section of the component that has a leaf.

    Example:
        >>> section_of("text.0"), section_of("adapters.text.5.down.weight")
        ('prompts', 'adapters')
    """
    prefix, _, _ = leaf_name.partition(".")
    return prefix if prefix in _PREFIXES else "prompts"


def part(tensors: Tensors, section: str) -> Tensors:
    """Return the tensors of one of the sections adapters, features and logits, without the section's name."""
    prefix = f"{section}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _prefixed(section: str, tensors: Tensors) -> Tensors:
    """Return tensors whose names start with the name of a section. Inverse of `part`."""
    return {f"{section}.{name}": tensor for name, tensor in tensors.items()}


KINDS: dict[str, Kinds] = {
    "prompts": PROMPTS,
    "adapters": ADAPTERS,
    "features": FEATURES,
    "logits": LOGITS,
    "regularizer": REGULARIZERS,
    "modulator": MODULATORS,
    "inner": INNER_LOOPS,
    "task": AUGMENTATIONS,
    "averager": AVERAGERS,
    "optim": OPTIMIZERS,
}
"""Kinds of the component that each section describes (`task`: the augmentation)."""


class MethodConfig(StrictModel):
    """Part of `Config` that determines the method: a section per component."""

    method: str
    prompts: Annotated[Prompts, KINDS["prompts"]]
    adapters: Annotated[Adapters, KINDS["adapters"]]
    features: Annotated[FeatureFunction, KINDS["features"]]
    logits: Annotated[Logits, KINDS["logits"]]
    regularizer: Annotated[RegularizerSection, KINDS["regularizer"]]
    modulator: Annotated[ComponentSection, KINDS["modulator"]]
    inner: Annotated[ComponentSection, KINDS["inner"]]
    task: Annotated[ComponentSection, KINDS["task"]]
    averager: Annotated[ComponentSection, KINDS["averager"]]
    optim: Annotated[OptimSection, KINDS["optim"]]


def no_image_prompts_error(config: MethodConfig) -> UserError:
    """Return the error for features that read the outputs of image prompts, if there are no such prompts."""
    return UserError(
        f"features.kind={config.features.selected_kind} reads the outputs of image prompts, "
        f"but prompts.kind={config.prompts.selected_kind} has none. "
        "Choose prompts that enter the image tower."
    )


def build(config: MethodConfig) -> Method:
    """Build the method that a configuration describes.

    Raises:
        UserError: a custom component cannot be imported or constructed, or components do not fit together.

    Example:
        >>> from prometar.config.settings import Config
        >>> build(Config()).modulator
        Gate(kind='gate', reduction=8)
    """
    prompts = config.prompts.component()
    adapters = config.adapters.component()
    features = config.features.component()
    logits = config.logits.component()
    inner = config.inner.component()
    if features.reads_image_prompts and not has_image_prompts(prompts):
        raise no_image_prompts_error(config)
    if logits.needs_representation and not features.reads_image_prompts:
        raise UserError(
            f"logits.kind={config.logits.selected_kind} needs a second image feature. "
            "Set features.kind=representation, or logits.kind=cosine."
        )

    modulator = config.modulator.component()
    augmentation = NoAugmentation()  # without an inner loop, there are no meta tasks to augment
    if inner is not None:
        augmentation = config.task.component()
    method = Method(
        prompts=prompts,
        adapters=adapters,
        features=features,
        logits=logits,
        regularizer=Regularizer(),  # replaced below, because it depends on what the method changes
        modulator=modulator,
        inner=inner,
        augmentation=augmentation,
        averager=config.averager.component(),
        optimizer=config.optim.component(),
    )

    regularizer = config.regularizer.build(
        changes_text=method.changes("text") or features.changes_text,
        changes_images=method.changes("vision") or features.changes_images,
    )
    if (regularizer.texts or regularizer.draw) and method.traits.class_aware:
        raise UserError(
            f"regularizer.texts and regularizer.draw do not fit prompts.kind={config.prompts.selected_kind}, "
            "whose tokens depend on the same features. Use templates."
        )
    return replace(method, regularizer=regularizer)
