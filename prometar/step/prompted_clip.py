"""Prompted CLIP for fixed classes. B images, C classes, R rows of packed texts, T tokens, widths D and E."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prometar.clip.adapted import ChangeBlock, Parallel, adapted_image, adapted_text
from prometar.clip.features import mean_text_features
from prometar.clip.model import Clip
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

_MAX_TEXT_ROWS = 256  # text rows (clip/text.py) per chunk of vmap, which has at least one image


@dataclass(frozen=True)
class PromptedClip:
    """Frozen CLIP with a method's learned parts, for fixed classes.

    Methods take `inputs`, the results of `Method.inputs`.

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
        """Return the text features (C, E): normalized if constant, otherwise not.

        If prompts are conditional (depend on the image), pass frozen image features. The result is (B, C, E).
        """
        if isinstance(self.text, Tensor):
            return self.text
        if self._text_needs_autodiff:
            return self._adapted_text(self.text, inputs, frozen_BE, differentiable_twice=False)
        features = encode_text(self.clip, self.text, self._by_layer(inputs, "text"))
        return features.to(self.clip.working_dtype)

    def image_features(self, inputs: Tensors, images: EmbeddedImages) -> Tensors:
        """Return unnormalized features "vision" (B, E), and "vision.prompts" (B, D) if they are read."""
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

        Towers that only have tokens with hand-written derivatives store no autograd graph.

        Args:
            inputs: Results of `Method.inputs`.
            images: Embedded images.
            frozen_BE: Features of the frozen CLIP, for conditional prompts.
            differentiable_twice: True if second derivatives are needed, too.
        """
        text = self.text
        working_dtype = self.clip.working_dtype
        passes: dict[str, TowerPass] = {}
        outputs: Tensors = {name: each for name, each in inputs.items() if section_of(name) in _AFTER_TOWERS}
        text_CE: Tensor | None = None
        image_BE: Tensor | None = None
        if isinstance(text, Tensor):
            text_CE = text
        elif self._text_needs_autodiff:
            text_function = partial(
                self._adapted_text, text, frozen_BE=frozen_BE, differentiable_twice=differentiable_twice
            )
            autodiff_text = AutodiffPass(
                lambda own: {"text": text_function(own)}, self._tower_inputs(inputs, "text")
            )
            passes["text"] = autodiff_text
            outputs |= autodiff_text.values
        else:
            features, passes["text"] = text_pass(self.clip, text, self._by_layer(inputs, "text"))
            outputs["text"] = features.to(working_dtype)
        if not self.method.changes("vision"):
            image_BE = self.image_features({}, images)["vision"]
        elif self._vision_needs_autodiff:
            image_function = partial(
                self._adapted_images, images=images, differentiable_twice=differentiable_twice
            )
            autodiff_vision = AutodiffPass(image_function, self._tower_inputs(inputs, "vision"))
            passes["vision"] = autodiff_vision
            outputs |= autodiff_vision.values
        else:
            assert isinstance(images, ImageTokens)
            features, passes["vision"] = image_pass(self.clip, images, self._by_layer(inputs, "vision"))
            outputs["vision"] = features.to(working_dtype)
        return TowerPasses(self.clip.dtype, passes, outputs, text_CE, image_BE)

    def final_features(self, inputs: Tensors, features: Features) -> Features:
        """Apply the method's function of features to the towers' features."""
        return self.method.features(part(inputs, "features"), features)

    def features(self, inputs: Tensors, text: Tensor, images: Tensors) -> Features:
        """Return the final features, given the results of `text_features` and `image_features`."""
        constant = isinstance(self.text, Tensor)
        features = Features(text, images["vision"], images.get("vision.prompts"), text_is_normalized=constant)
        return self.final_features(inputs, features)

    def logits(self, inputs: Tensors, features: Features) -> Tensor:
        """Return the logits (B, C), given the final features."""
        leaves = part(inputs, "logits")
        return self.method.logits(leaves, features, self.clip.logit_scale, new_classes=self.new_classes)

    @property
    def _text_needs_autodiff(self) -> bool:
        prompts = self.method.prompts
        traits = self.method.traits
        special = prompts.conditional or traits.class_aware or traits.inserts
        return special or self.method.adapters.changes("text")

    @property
    def _vision_needs_autodiff(self) -> bool:
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
            chunk_size = max(1, _MAX_TEXT_ROWS // len(text.embedded_RTD))
            features = torch.vmap(encode, chunk_size=chunk_size)(by_layer)
        else:
            features = encode(by_layer)
        features = features.to(self.clip.working_dtype)
        if self.num_texts > 1:
            features = features.unflatten(-2, (-1, self.num_texts)).mean(dim=-2)
        return features

    def _adapted_images(
        self, inputs: Tensors, images: EmbeddedImages, *, differentiable_twice: bool
    ) -> Tensors:
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
        own: Tensors = {}
        for name, each in inputs.items():
            section = section_of(name)
            # Prompts that are not named after a tower are those of texts.
            tower_of_prompt = "vision" if name.startswith("vision.") else "text"
            if section == "adapters" or (section == "prompts" and tower_of_prompt == tower):
                own[name] = each
        return own

    def _change_block(self, tower: TowerName, inputs: Tensors) -> ChangeBlock:
        own = part(inputs, "adapters")
        num_blocks = len(getattr(self.clip, tower).blocks)
        return lambda index, block: self.method.adapters.block(Place(tower, index, num_blocks), block, own)

    def _parallel(self, tower: TowerName, inputs: Tensors) -> Parallel:
        own = part(inputs, "adapters")
        num_blocks = len(getattr(self.clip, tower).blocks)
        return lambda index, x: self.method.adapters.parallel(Place(tower, index, num_blocks), x, own)

    def _by_layer(self, tokens: Tensors, tower: str) -> dict[int, Tensor]:
        """Return the tokens of one tower by layer, in the precision of the weights."""
        return {layer: token.to(self.clip.dtype) for layer, token in tokens_by_layer(tokens, tower).items()}


_AFTER_TOWERS = ("features", "logits")  # sections whose tensors enter after the towers


def class_templates(prompts: Prompts, *, init: str, templates: Mapping[str, str]) -> tuple[str, ...]:
    """Return the templates of the class texts. Several are averaged.

    With a learned context, the text is "<init> <name>.". If `init` has fewer words than the context has
    tokens, <init> is one X per token, as in ProMetaR. Class-aware prompts replace the first words of a
    template. If fewer words than tokens precede the name, these words are one X per token, as in TCP.
    Without a context, the templates are `prompts.templates`, or the dataset's main template.

    Args:
        prompts: Prompt component.
        init: Words of the setting `prompts.init`.
        templates: The dataset's templates by name: "template" (the main one), and others such as "photo".
    """
    traits = PromptTraits.of(prompts)
    if traits.class_aware:
        template = traits.text_template or templates.get("photo", "a photo of a {}.")
        words, name, rest = template.partition("{}")
        return (f"{_prefix(words.strip(), prompts.num_context)} {name}{rest}",)
    if not prompts.num_context:
        return prompts.templates or (templates["template"],)
    return (f"{_prefix(init, prompts.num_context)} {{}}.",)


def _prefix(words: str, num_tokens: int) -> str:
    """Return the words, or one X per token if there are fewer words than tokens."""
    return words if num_tokens <= len(words.split()) else " ".join(["X"] * num_tokens)


def prompt_texts(
    classnames: Sequence[str],
    prompts: Prompts,
    *,
    init: str,
    template: str,
    templates: Mapping[str, str] = {},
) -> list[str]:
    """Return the texts of the classes, grouped by class (`class_templates`). `template`: the main template.

    Raises:
        UserError: a template does not contain {} exactly once.
    """
    chosen = class_templates(prompts, init=init, templates={**templates, "template": template})
    return [fill_template(each, name) for name in classnames for each in chosen]


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
    prompts = method.prompts
    traits = method.traits
    num_context = prompts.num_context
    num_texts = 1
    if not num_context and prompts.templates:
        num_texts = len(prompts.templates)
    if num_context:
        start = clip.num_start
        if len({tuple(ids[start : start + num_context]) for ids in ids_NT.tolist()}) > 1:
            setting = "prompts.template" if traits.class_aware else "prompts.init"
            raise UserError(
                f"The words before the class names have fewer than {num_context} tokens, so prompts "
                f"would replace parts of class names. Use {num_context} common words in {setting}."
            )
    if method.changes("text"):
        whole_text = text_input(
            clip,
            ids_NT,
            num_context=num_context or traits.num_inserted,
            inserted=traits.inserts,
            packed=not traits.class_aware,
        )
        first_block = method.first_block("text", len(clip.text.blocks))
        text: TextInput | Tensor = before_block(clip, whole_text, first_block)
    else:
        text = mean_text_features(clip, ids_NT, num_texts)
        num_texts = 1
    return PromptedClip(clip, method, text, frozen_text_CE, num_texts, new_classes)
