"""A frozen CLIP, a set of classes, and prompts: everything that is fixed while a method trains."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import mean_text
from prometar.clip.model import Clip
from prometar.clip.text import TextInput, encode_text, text_input, text_pass
from prometar.clip.vision import encode_image, image_pass
from prometar.clip.wording import filled, readable
from prometar.errors import UserError
from prometar.methods.prompts import Leaves, Prompts, layers
from prometar.methods.regularizers import similarity
from prometar.step.towers import Derived, Run, Towers

_MOST_ROWS = 256  # of text tokens that are encoded at once where each image has its own


@dataclass(frozen=True)
class Model:
    """Feature maps of the prompted CLIP for fixed classes, and their frozen text features.

    text: Input of the text tower, or features (C, E) if it learns nothing.
    """

    clip: Clip
    prompts: Prompts
    text: TextInput | Tensor
    frozen_text_CE: Tensor | None = None

    def text_features(self, tokens: Leaves, frozen_BE: Tensor | None = None) -> Tensor:
        """Normalised text features (C, E) with the tokens that `prompts.tokens` made.

        frozen_BE: images' frozen features; where prompts are conditional each has its own text, (B, C, E).
        """
        text = self.text
        if isinstance(text, Tensor):
            return text
        if self.prompts.conditional:
            features = self._text_of_each(text, tokens, frozen_BE)
        else:
            features = encode_text(self.clip, text, self._layers(tokens, "text"))
        return F.normalize(features.to(self.clip.working_dtype), dim=-1)

    def _text_of_each(self, text: TextInput, tokens: Leaves, frozen_BE: Tensor | None) -> Tensor:
        """Un-normalised text features (B, C, E) as each image's tokens make them."""
        assert frozen_BE is not None, "conditional prompts see images"
        seen = self._layers(self.prompts.seeing(dict(tokens), frozen_BE), "text")
        at_once = max(1, _MOST_ROWS // len(text.embedded_RTD))
        with torch.enable_grad():  # without, attention is a fused kernel, which cannot be mapped
            return torch.vmap(lambda t: encode_text(self.clip, text, t), chunk_size=at_once)(seen)

    def image_features(self, tokens: Leaves, images_BTD: Tensor) -> Tensor:
        """Un-normalised image features (B, E) of embedded images (`backbone.vision.embed_images`)."""
        features = encode_image(self.clip, images_BTD, self._layers(tokens, "vision"))
        return features.to(self.clip.working_dtype)

    @torch.no_grad()
    def run(self, tokens: Leaves, images_BTD: Tensor, frozen_BE: Tensor | None = None) -> Towers:
        """Features of both towers with what their derivatives need; no graph is recorded."""
        text, working, runs = self.text, self.clip.working_dtype, dict[str, Run]()
        features, text_CE, image_BE = Leaves(), None, None
        own, vision = self._layers(tokens, "text"), self._layers(tokens, "vision")
        if isinstance(text, TextInput) and self.prompts.conditional:
            each = Derived(lambda t: self._text_of_each(text, t, frozen_BE).to(working), tokens)
            features["text"], runs["text"] = each.features, each
        elif isinstance(text, TextInput) and own:
            features["text"], runs["text"] = text_pass(self.clip, text, own)
        else:
            text_CE = self.text_features({})
        if vision:
            features["vision"], runs["vision"] = image_pass(self.clip, images_BTD, vision)
        else:
            image_BE = self.image_features({}, images_BTD)
        features = {tower: value.to(working) for tower, value in features.items()}
        return Towers(self.clip.dtype, runs, features, text_CE, image_BE)

    def _layers(self, tokens: Leaves, tower: str) -> dict[int, Tensor]:
        """Towers run in the precision of their weights."""
        return {layer: token.to(self.clip.dtype) for layer, token in layers(tokens, tower).items()}

    def logits(self, image_BE: Tensor, text_CE: Tensor) -> Tensor:
        """s f . g_c of un-normalised image and normalised text features, (B, C)."""
        return self.clip.logit_scale * similarity(F.normalize(image_BE, dim=-1), text_CE)


def prompt_texts(classnames: Sequence[str], prompts: Prompts, *, init: str, template: str) -> list[str]:
    """Return the texts of classes. Those of a class are adjacent.

    With a learned context there is one text per class, "<init> <name>.". If it has more tokens than `init`
    has words, each is a placeholder word, as in the released code. Otherwise there is one text per template.

    Raises:
        UserError: a template does not hold {} once.
    """
    if not prompts.num_context:
        return [filled(each, name) for name in classnames for each in prompts.templates or (template,)]
    prefix = init if prompts.num_context <= len(init.split()) else " ".join(["X"] * prompts.num_context)
    return [f"{prefix} {readable(name)}." for name in classnames]


def build_model(
    clip: Clip, prompts: Prompts, tokens_NT: Tensor, frozen_text_CE: Tensor | None = None
) -> Model:
    """Return the model of classes whose `prompt_texts` have these token ids.

    `frozen_text_CE`: frozen text features (C, E), if a regularizer uses them.

    Raises:
        UserError: the context's words are fewer tokens than are learned.
    """
    if prompts.num_context:
        start = clip.num_start
        if len({tuple(ids[start : start + prompts.num_context]) for ids in tokens_NT.tolist()}) > 1:
            raise UserError(
                f"the backbone's tokenizer makes fewer than {prompts.num_context} tokens of the context's "
                "words, and prompts would stand for parts of names: take other words (prompts.init)"
            )
        text: TextInput | Tensor = text_input(clip, tokens_NT, num_context=prompts.num_context)
    else:
        text = mean_text(clip, tokens_NT, len(prompts.templates) or 1)
    return Model(clip, prompts, text, frozen_text_CE)
