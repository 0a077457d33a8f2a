"""Prompted CLIP for fixed classes. B images, C classes, R rows of packed texts, T tokens, widths D and E."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import mean_text_features
from prometar.clip.model import Clip
from prometar.clip.text import TextInput, encode_text, text_input, text_pass
from prometar.clip.vision import encode_image, image_pass
from prometar.clip.wording import fill_template, readable
from prometar.errors import UserError
from prometar.methods.prompts import Prompts, Tensors, tokens_by_layer
from prometar.methods.regularizers import similarity
from prometar.step.towers import AutodiffPass, TowerPass, TowerPasses

_MAX_TEXT_ROWS = 256  # text rows (clip/text.py) per chunk of vmap, which has at least one image


@dataclass(frozen=True)
class PromptedClip:
    """Frozen CLIP and prompts for fixed classes. Methods take `tokens`, results of `prompts.tokens`.

    text: Input of the text tower, or the normalized text features (C, E) if no text prompt is learned.
    frozen_text_CE: Text features of the frozen CLIP, to compare with. None if they are not used.
    """

    clip: Clip
    prompts: Prompts
    text: TextInput | Tensor
    frozen_text_CE: Tensor | None = None

    def text_features(self, tokens: Tensors, frozen_BE: Tensor | None = None) -> Tensor:
        """Return the normalized text features (C, E), given the prompt tokens from `prompts.tokens`.

        If prompts are conditional (depend on the image), pass frozen image features. The result is (B, C, E).
        """
        text = self.text
        if isinstance(text, Tensor):
            return text
        if self.prompts.conditional:
            features = self._text_per_image(text, tokens, frozen_BE)
        else:
            features = encode_text(self.clip, text, self._by_layer(tokens, "text"))
        return F.normalize(features.to(self.clip.working_dtype), dim=-1)

    def _text_per_image(self, text: TextInput, tokens: Tensors, frozen_BE: Tensor | None) -> Tensor:
        """Return the unnormalized text features (B, C, E) of conditional prompts."""
        assert frozen_BE is not None, "conditional prompts require frozen image features"
        conditioned = self._by_layer(self.prompts.condition_tokens(dict(tokens), frozen_BE), "text")
        chunk_size = max(1, _MAX_TEXT_ROWS // len(text.embedded_RTD))
        with torch.enable_grad():  # without gradients, torch fuses attention, which vmap does not support
            return torch.vmap(lambda t: encode_text(self.clip, text, t), chunk_size=chunk_size)(conditioned)

    def image_features(self, tokens: Tensors, images_BTD: Tensor) -> Tensor:
        """Return the unnormalized features (B, E) of images that `embed_images` has embedded."""
        features = encode_image(self.clip, images_BTD, self._by_layer(tokens, "vision"))
        return features.to(self.clip.working_dtype)

    @torch.no_grad()
    def forward(self, tokens: Tensors, images_BTD: Tensor, frozen_BE: Tensor | None = None) -> TowerPasses:
        """Run both towers, and save what their derivatives need, but no autograd graph."""
        text, working, passes = self.text, self.clip.working_dtype, dict[str, TowerPass]()
        features, text_CE, image_BE = dict[str, Tensor](), None, None
        text_tokens, vision_tokens = self._by_layer(tokens, "text"), self._by_layer(tokens, "vision")
        if isinstance(text, TextInput) and self.prompts.conditional:
            tower_pass = AutodiffPass(lambda t: self._text_per_image(text, t, frozen_BE).to(working), tokens)
            features["text"], passes["text"] = tower_pass.features, tower_pass
        elif isinstance(text, TextInput) and text_tokens:
            features["text"], passes["text"] = text_pass(self.clip, text, text_tokens)
        else:
            text_CE = self.text_features({})
        if vision_tokens:
            features["vision"], passes["vision"] = image_pass(self.clip, images_BTD, vision_tokens)
        else:
            image_BE = self.image_features({}, images_BTD)
        features = {tower: value.to(working) for tower, value in features.items()}
        return TowerPasses(self.clip.dtype, passes, features, text_CE, image_BE)

    def _by_layer(self, tokens: Tensors, tower: str) -> dict[int, Tensor]:
        """Return the tokens of one tower by layer, in the precision of the weights."""
        return {layer: token.to(self.clip.dtype) for layer, token in tokens_by_layer(tokens, tower).items()}

    def logits(self, image_BE: Tensor, text_CE: Tensor) -> Tensor:
        """Return the logits (B, C): cosines times the logit scale. `text_CE` must already be normalized."""
        return self.clip.logit_scale * similarity(F.normalize(image_BE, dim=-1), text_CE)


def prompt_texts(classnames: Sequence[str], prompts: Prompts, *, init: str, template: str) -> list[str]:
    """Return the texts of the classes, grouped by class.

    If `prompts` learns a context (text tokens before the name), each class has the text "<init> <name>."
    If `init` has fewer words than the context has tokens, <init> is one X per token, as in ProMetaR.
    Without a context, each class has one text per template: `prompts.templates`, or `template` if empty.

    Raises:
        UserError: a template does not contain {} exactly once.
    """
    if not prompts.num_context:
        return [fill_template(text, name) for name in classnames for text in prompts.templates or (template,)]
    prefix = init if prompts.num_context <= len(init.split()) else " ".join(["X"] * prompts.num_context)
    return [f"{prefix} {readable(name)}." for name in classnames]


def build_model(
    clip: Clip, prompts: Prompts, ids_NT: Tensor, frozen_text_CE: Tensor | None = None
) -> PromptedClip:
    """Return the prompted CLIP of the classes, given the token ids of their `prompt_texts`.

    Raises:
        UserError: the words before the class names have fewer tokens than the learned context.
    """
    if prompts.num_context:
        start = clip.num_start
        if len({tuple(ids[start : start + prompts.num_context]) for ids in ids_NT.tolist()}) > 1:
            raise UserError(
                f"The words before the class names have fewer than {prompts.num_context} tokens, so prompts "
                f"would replace parts of class names. Use {prompts.num_context} common words in prompts.init."
            )
        text: TextInput | Tensor = text_input(clip, ids_NT, num_context=prompts.num_context)
    else:
        text = mean_text_features(clip, ids_NT, len(prompts.templates) or 1)
    return PromptedClip(clip, prompts, text, frozen_text_CE)
