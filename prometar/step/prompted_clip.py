"""Prompted CLIP for fixed classes.

Shape suffixes: B images, C classes, N texts, towers of width D, features of width E.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prometar.clip.adapted import ChangeBlock, Parallel, adapted_image, adapted_text
from prometar.clip.features import mean_text_features
from prometar.clip.model import Block, Clip
from prometar.clip.text import TextInput, before_block, encode_text, text_input, text_pass
from prometar.clip.vision import EmbeddedImages, ImageTokens, encode_image, image_pass
from prometar.clip.wording import fill_template
from prometar.errors import UserError
from prometar.methods.adapters import Place, TowerName
from prometar.methods.composition import Method, part, section_of
from prometar.methods.features import Features
from prometar.methods.prompts import Prompts, PromptTraits, Tensors, tokens_by_layer
from prometar.step.autodiff import AutodiffPass
from prometar.step.towers import TowerPass, TowerPasses

_MAX_TEXT_ROWS = 256
"""Largest number of text rows (`prometar.clip.text`) that are encoded together, to limit memory.

Conditional prompts require the rows of all texts for each image. So images are processed in chunks with at
most this number of text rows, but with at least one image.
"""

_AFTER_TOWERS = ("features", "logits")
"""Sections of a method whose tensors do not enter the towers, but are used with their outputs."""


@dataclass(frozen=True)
class PromptedClip:
    """Frozen CLIP with a method's learned parts, for fixed classes.

    The argument `inputs` of the methods is a result of `Method.inputs`.

    Args:
        clip: Frozen CLIP. Folded, unless the method's adapters change blocks.
        method: Components of the method.
        text: Input of the text tower, or the normalized text features (C, E) if the tower is unchanged.
        frozen_text_CE: Text features of the frozen CLIP, for the regularizer and for class-aware prompts.
            None if they are not used. (N, C, E) if the regularizer draws one of N texts per step.
        num_texts: Number of consecutive texts per class in `text`, whose features are averaged.
        new_classes: True if the classes are not the training classes.
    """

    clip: Clip
    method: Method
    text: TextInput | Tensor
    frozen_text_CE: Tensor | None = None
    num_texts: int = 1
    new_classes: bool = False

    def text_features(self, inputs: Tensors, frozen_BE: Tensor | None = None) -> Tensor:
        """Return the text features (C, E), normalized only if the text tower is unchanged.

        If prompts are conditional (depend on the image), pass frozen image features. The result is (B, C, E).
        """
        if isinstance(self.text, Tensor):
            return self.text
        if self._text_needs_autodiff:
            return self._adapted_text(self.text, inputs, frozen_BE, differentiable_twice=False)
        features = encode_text(self.clip, self.text, self._by_layer(inputs, "text"))
        return features.to(self.clip.working_dtype)

    def image_features(self, inputs: Tensors, images: EmbeddedImages) -> Tensors:
        """Return unnormalized features "vision" (B, E) of images.

        If the method's `features` read image prompts, also return their outputs "vision.prompts" (B, D).
        """
        if self._vision_needs_autodiff:
            return self._adapted_images(inputs, images, differentiable_twice=False)
        features = encode_image(self.clip, images, self._by_layer(inputs, "vision"))
        return {"vision": features.to(self.clip.working_dtype)}

    @torch.no_grad()
    def forward(
        self,
        inputs: Tensors,
        images: EmbeddedImages,
        frozen_BE: Tensor | None = None,
        *,
        differentiable_twice: bool = False,
    ) -> TowerPasses:
        """Run both towers, and save what their derivatives need.

        A tower is run without an autograd graph if all its derivatives are hand-written (`image_pass` and
        `text_pass`).

        Args:
            inputs: Results of `Method.inputs`.
            images: Embedded images.
            frozen_BE: Features of the frozen CLIP, for conditional prompts.
            differentiable_twice: True if second derivatives are needed, too.
        """
        passes: dict[str, TowerPass] = {}
        tower_outputs: Tensors = {}

        constant_text_CE: Tensor | None = None
        if isinstance(self.text, Tensor):
            constant_text_CE = self.text
        else:
            passes["text"], text_outputs = self._text_pass(
                self.text, inputs, frozen_BE, differentiable_twice=differentiable_twice
            )
            tower_outputs |= text_outputs

        constant_image_BE: Tensor | None = None
        if self.method.changes("vision"):
            passes["vision"], image_outputs = self._image_pass(
                inputs, images, differentiable_twice=differentiable_twice
            )
            tower_outputs |= image_outputs
        else:
            constant_image_BE = self.image_features({}, images)["vision"]

        working_dtype = self.clip.working_dtype
        outputs = {name: tensor for name, tensor in inputs.items() if section_of(name) in _AFTER_TOWERS}
        outputs |= {name: output.to(working_dtype) for name, output in tower_outputs.items()}
        return TowerPasses(self.clip.dtype, passes, outputs, constant_text_CE, constant_image_BE)

    def _text_pass(
        self, text: TextInput, inputs: Tensors, frozen_BE: Tensor | None, *, differentiable_twice: bool
    ) -> tuple[TowerPass, Tensors]:
        """Return a pass through the text tower, and its output "text"."""
        if not self._text_needs_autodiff:
            features, text_tower_pass = text_pass(self.clip, text, self._by_layer(inputs, "text"))
            return text_tower_pass, {"text": features}

        def text_outputs(tower_inputs: Tensors) -> Tensors:
            features = self._adapted_text(
                text, tower_inputs, frozen_BE, differentiable_twice=differentiable_twice
            )
            return {"text": features}

        autodiff_pass = AutodiffPass(text_outputs, self._tower_inputs(inputs, "text"))
        return autodiff_pass, autodiff_pass.values

    def _image_pass(
        self, inputs: Tensors, images: EmbeddedImages, *, differentiable_twice: bool
    ) -> tuple[TowerPass, Tensors]:
        """Return a pass through the image tower, and its outputs, named as by `image_features`."""
        assert isinstance(images, ImageTokens)
        if not self._vision_needs_autodiff:
            features, image_tower_pass = image_pass(self.clip, images, self._by_layer(inputs, "vision"))
            return image_tower_pass, {"vision": features}

        image_outputs = partial(
            self._adapted_images, images=images, differentiable_twice=differentiable_twice
        )
        autodiff_pass = AutodiffPass(image_outputs, self._tower_inputs(inputs, "vision"))
        return autodiff_pass, autodiff_pass.values

    def final_features(self, inputs: Tensors, features: Features) -> Features:
        """Return the features after the method's component `features`, given those of the towers."""
        leaves = part(inputs, "features")
        return self.method.features(leaves, features)

    def features(self, inputs: Tensors, text: Tensor, images: Tensors) -> Features:
        """Return the final features, given the results of `text_features` and `image_features`."""
        features_of_towers = Features(
            text,
            images["vision"],
            images.get("vision.prompts"),
            text_is_normalized=isinstance(self.text, Tensor),
        )
        return self.final_features(inputs, features_of_towers)

    def logits(self, inputs: Tensors, features: Features) -> Tensor:
        """Return the logits (B, C), given the final features."""
        leaves = part(inputs, "logits")
        return self.method.logits(leaves, features, self.clip.logit_scale, new_classes=self.new_classes)

    @property
    def _text_needs_autodiff(self) -> bool:
        """True if the text tower is changed in ways that have no hand-written derivatives."""
        traits = self.method.traits
        prompts_need_autodiff = self.method.prompts.conditional or traits.class_aware or traits.inserts
        return prompts_need_autodiff or self.method.adapters.changes("text")

    @property
    def _vision_needs_autodiff(self) -> bool:
        """True if the image tower is changed in ways that have no hand-written derivatives."""
        reads_prompts = self.method.features.reads_image_prompts
        return self.method.traits.inserts or reads_prompts or self.method.adapters.changes("vision")

    def _adapted_text(
        self, text: TextInput, inputs: Tensors, frozen_BE: Tensor | None, *, differentiable_twice: bool
    ) -> Tensor:
        """Return unnormalized text features (C, E), or (B, C, E) if prompts are conditional."""
        prompts = self.method.prompts
        tokens = dict(inputs)
        if self.method.traits.class_aware:
            assert self.frozen_text_CE is not None, "class-aware prompts require frozen text features"
            tokens = prompts.condition_tokens(tokens, self.frozen_text_CE)
        elif prompts.conditional:
            assert frozen_BE is not None, "conditional prompts require frozen image features"
            tokens = prompts.condition_tokens(tokens, frozen_BE)
            differentiable_twice = True  # vmap does not support fused attention

        encode = partial(
            adapted_text,
            self.clip,
            text,
            inserts=self.method.traits.inserts,
            change_block=self._change_block("text", inputs),
            parallel=self._parallel("text", inputs),
            differentiable_twice=differentiable_twice,
        )
        by_layer = self._by_layer(tokens, "text")

        if prompts.conditional:
            num_rows_per_image = len(text.embedded_RTD)
            images_per_chunk = max(1, _MAX_TEXT_ROWS // num_rows_per_image)
            encode_for_images = torch.vmap(encode, chunk_size=images_per_chunk)
            features = encode_for_images(by_layer)
        else:
            features = encode(by_layer)

        features = features.to(self.clip.working_dtype)
        if self.num_texts > 1:
            by_class_and_text = features.unflatten(-2, (-1, self.num_texts))
            features = by_class_and_text.mean(dim=-2)
        return features

    def _adapted_images(
        self, inputs: Tensors, images: EmbeddedImages, *, differentiable_twice: bool
    ) -> Tensors:
        """Return what `image_features` returns, computed by plain functions that autograd differentiates."""
        assert isinstance(images, ImageTokens)
        features_BE, prompts_BD = adapted_image(
            self.clip,
            images,
            self._by_layer(inputs, "vision"),
            skips_ln_pre=self.method.traits.inserts,
            change_block=self._change_block("vision", inputs),
            parallel=self._parallel("vision", inputs),
            reads_prompts=self.method.features.reads_image_prompts,
            differentiable_twice=differentiable_twice,
        )
        outputs = {"vision": features_BE.to(self.clip.working_dtype)}
        if prompts_BD is not None:
            outputs["vision.prompts"] = prompts_BD.to(self.clip.working_dtype)
        return outputs

    def _tower_inputs(self, inputs: Tensors, tower: TowerName) -> Tensors:
        """Return the inputs on which a tower can depend: its prompts, and all adapters' tensors."""
        tower_inputs: Tensors = {}
        for name, tensor in inputs.items():
            section = section_of(name)
            # Text prompts can also have names without a tower, such as those of the network of CoCoOp.
            tower_of_prompt = "vision" if name.startswith("vision.") else "text"
            is_prompt_of_tower = section == "prompts" and tower_of_prompt == tower
            if section == "adapters" or is_prompt_of_tower:
                tower_inputs[name] = tensor
        return tower_inputs

    def _change_block(self, tower: TowerName, inputs: Tensors) -> ChangeBlock:
        """Return the function that applies the method's adapters to the weights of a block."""
        adapter_inputs = part(inputs, "adapters")
        num_blocks = len(getattr(self.clip, tower).blocks)

        def change(index: int, block: Block) -> Block:
            return self.method.adapters.block(Place(tower, index, num_blocks), block, adapter_inputs)

        return change

    def _parallel(self, tower: TowerName, inputs: Tensors) -> Parallel:
        """Return the function that computes what the method's adapters add to the output of a block."""
        adapter_inputs = part(inputs, "adapters")
        num_blocks = len(getattr(self.clip, tower).blocks)

        def added(index: int, normed: Tensor) -> Tensor | None:
            return self.method.adapters.parallel(Place(tower, index, num_blocks), normed, adapter_inputs)

        return added

    def _by_layer(self, tokens: Tensors, tower: str) -> dict[int, Tensor]:
        """Return the tokens of one tower by layer, in the precision of the weights."""
        by_layer = tokens_by_layer(tokens, tower)
        return {layer: tokens_PD.to(self.clip.dtype) for layer, tokens_PD in by_layer.items()}


def class_templates(prompts: Prompts, *, init: str, templates: Mapping[str, str]) -> tuple[str, ...]:
    """Return the templates of the class texts. If there are several, their text features are averaged.

    - Learned context: `init`, then "{}.". If `init` has fewer words than the context has tokens, one X per
      token replaces `init`, as in ProMetaR.
    - Class-aware prompts: their own template, otherwise the dataset's template "photo", otherwise
      "a photo of a {}.". The prompts replace its first words. If fewer words than tokens precede the class
      name, one X per token replaces these words, as in TCP.
    - No context: `prompts.templates`, otherwise the dataset's main template.

    Args:
        prompts: Prompt component.
        init: Words of the setting `prompts.init`.
        templates: The dataset's templates by name: "template" (the main one), and others such as "photo".
    """
    traits = PromptTraits.of(prompts)
    if traits.class_aware:
        template = traits.text_template or templates.get("photo", "a photo of a {}.")
        # A template without "{}" stays without it, so that `prompt_texts` rejects it.
        before_name, placeholder, after_name = template.partition("{}")
        context = _words_or_xs(before_name.strip(), prompts.num_context)
        return (f"{context} {placeholder}{after_name}",)
    if prompts.num_context:
        context = _words_or_xs(init, prompts.num_context)
        return (context + " {}.",)
    if prompts.templates:
        return prompts.templates
    return (templates["template"],)


def _words_or_xs(words: str, num_tokens: int) -> str:
    """Return the words, or one X per token if there are fewer words than tokens."""
    if len(words.split()) >= num_tokens:
        return words
    return " ".join(["X"] * num_tokens)


def prompt_texts(
    classnames: Sequence[str],
    prompts: Prompts,
    *,
    init: str,
    template: str,
    templates: Mapping[str, str] = {},
) -> list[str]:
    """Return the texts of the classes: all texts of the first class, then those of the second one, and so on.

    Args:
        classnames: Names of the classes.
        prompts: Prompt component.
        init: Words of the setting `prompts.init`.
        template: The dataset's main template.
        templates: The dataset's other templates by name, such as "photo".

    Raises:
        UserError: a template does not contain {} exactly once.
    """
    chosen = class_templates(prompts, init=init, templates={**templates, "template": template})
    texts: list[str] = []
    for name in classnames:
        texts += [fill_template(chosen_template, name) for chosen_template in chosen]
    return texts


def build_model(
    clip: Clip,
    method: Method,
    ids_NT: Tensor,
    frozen_text_CE: Tensor | None = None,
    *,
    new_classes: bool = False,
) -> PromptedClip:
    """Return the prompted CLIP of the classes, given the token ids of their `prompt_texts`.

    Args:
        clip, method, frozen_text_CE, new_classes: see `PromptedClip`.
        ids_NT: Token ids of the texts.

    Raises:
        UserError: the words before the class names have fewer tokens than the learned context.
    """
    if method.prompts.num_context:
        _require_equal_context(clip, method, ids_NT)
    num_texts = 1
    if not method.prompts.num_context and method.prompts.templates:
        num_texts = len(method.prompts.templates)

    if not method.changes("text"):
        text_CE = mean_text_features(clip, ids_NT, num_texts)
        return PromptedClip(clip, method, text_CE, frozen_text_CE, new_classes=new_classes)

    # The results of the blocks that the method does not change are computed once.
    first_changed_block = method.first_block("text", len(clip.text.blocks))
    text = before_block(clip, _whole_text_input(clip, method, ids_NT), first_changed_block)
    return PromptedClip(clip, method, text, frozen_text_CE, num_texts, new_classes)


def _require_equal_context(clip: Clip, method: Method, ids_NT: Tensor) -> None:
    """Check that all texts have the same tokens in place of the learned context.

    Raises:
        UserError: texts differ in these tokens, so at least one of them belongs to a class name.
    """
    num_context = method.prompts.num_context
    start = clip.num_start
    stop = start + num_context
    # Compared as lists, because the fake tensors of benchmarks/counting.py do not support a slice of ids.
    replaced = {tuple(ids[start:stop]) for ids in ids_NT.tolist()}
    if len(replaced) > 1:
        setting = "prompts.template" if method.traits.class_aware else "prompts.init"
        raise UserError(
            f"The words before the class names have fewer than {num_context} tokens, so prompts "
            f"would replace parts of class names. Use {num_context} common words in {setting}."
        )


def _whole_text_input(clip: Clip, method: Method, ids_NT: Tensor) -> TextInput:
    """Return the input of the first block of the text tower."""
    traits = method.traits
    return text_input(
        clip,
        ids_NT,
        num_context=method.prompts.num_context or traits.num_inserted,
        inserted=traits.inserts,
        packed=not traits.class_aware,
    )
