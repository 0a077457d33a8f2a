"""A frozen CLIP, a set of classes, and prompts: everything that is fixed while a method trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.clip import Clip
from prometar.backbone.frozen_features import mean_text, readable
from prometar.backbone.text import TextInput, encode_text, text_input, text_pass
from prometar.backbone.tower import Pass
from prometar.backbone.vision import encode_image, image_pass
from prometar.methods.prompts import Leaves, Prompts, layers


@dataclass(frozen=True)
class Model:
    """Feature maps of the prompted CLIP for fixed classes, and the frozen text features they are held to.

    text: what the text tower sees of the classes; where it learns nothing, their features (C, E) at once.
    """

    clip: Clip
    prompts: Prompts
    text: TextInput | Tensor
    frozen_text_CE: Tensor | None = None

    def text_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Normalised text features (C, E) with the tokens that `prompts.tokens` made."""
        if isinstance(self.text, Tensor):
            return self.text
        features = encode_text(self.clip, self.text, self._layers(tokens, "text"))
        return F.normalize(features.to(self.clip.working_dtype), dim=-1)

    def image_features(self, tokens: Mapping[str, Tensor], images_BTD: Tensor) -> Tensor:
        """Un-normalised image features (B, E) of embedded images (`backbone.vision.embed_images`)."""
        features = encode_image(self.clip, images_BTD, self._layers(tokens, "vision"))
        return features.to(self.clip.working_dtype)

    def run(self, tokens: Mapping[str, Tensor], images_BTD: Tensor) -> Towers:
        """Both features with what their derivatives need; no graph is recorded."""
        with torch.no_grad():
            passes: dict[str, Pass] = {}
            features: Leaves = {}
            text, image = (self._layers(tokens, tower) for tower in ("text", "vision"))
            if text and isinstance(self.text, TextInput):
                features["text"], passes["text"] = text_pass(self.clip, self.text, text)
            if image:
                features["vision"], passes["vision"] = image_pass(self.clip, images_BTD, image)
            fixed_CE = None if text else self.text_features({})
            fixed_BE = None if image else self.image_features({}, images_BTD)
            features = {tower: value.to(self.clip.working_dtype) for tower, value in features.items()}
        return Towers(self.clip.dtype, passes, features, fixed_CE, fixed_BE)

    def _layers(self, tokens: Mapping[str, Tensor], tower: str) -> dict[int, Tensor]:
        """Towers run in the precision of their weights."""
        return {layer: token.to(self.clip.dtype) for layer, token in layers(tokens, tower).items()}

    def logits(self, image_BE: Tensor, text_CE: Tensor) -> Tensor:
        """s f . g_c of un-normalised image and normalised text features, (B, C)."""
        return self.clip.logit_scale * F.normalize(image_BE, dim=-1) @ text_CE.T


@dataclass(frozen=True)
class Towers:
    """One run of both towers: un-normalised features by tower, `text` (C, E) and `vision` (B, E), and passes.

    A tower without prompts has none of both; then its features, the text's normalised, are fixed.
    """

    dtype: torch.dtype
    passes: Mapping[str, Pass]
    features: Leaves
    fixed_text_CE: Tensor | None
    fixed_image_BE: Tensor | None

    def both(self, features: Leaves) -> tuple[Tensor, Tensor]:
        """Normalised text features and un-normalised image features, given those that change."""
        text_CE, image_BE = self.fixed_text_CE, self.fixed_image_BE
        if "text" in features:
            text_CE = F.normalize(features["text"], dim=-1)
        image_BE = features.get("vision", image_BE)
        assert text_CE is not None
        assert image_BE is not None
        return text_CE, image_BE

    @torch.no_grad()
    def pull(self, cotangents: Leaves, *, again: bool = False) -> Leaves:
        """K cotangents of the features, each (K, N, E), to those of the tokens, each (K, P, D)."""
        return self._named(
            {
                tower: one.pull(cotangents[tower].to(self.dtype), again=again)
                for tower, one in self.passes.items()
            },
            like=cotangents,
        )

    @torch.no_grad()
    def push(self, tangents: Leaves) -> Leaves:
        """K tangents of the tokens to those of the features; the inverse shapes of `pull`."""
        pushed = {}
        for tower, one in self.passes.items():
            own = {layer: tangent.to(self.dtype) for layer, tangent in layers(tangents, tower).items()}
            pushed[tower] = one.push(own).to(self.features[tower].dtype)
        return pushed

    @torch.no_grad()
    def second(self, cotangents: Leaves) -> Leaves:
        """Gradients at the tokens, (P, D), of <r, features> + sum_k <g_k, J t_k>; r (N, E) by tower."""
        return self._named(
            {tower: one.second(cotangents[tower].to(self.dtype)) for tower, one in self.passes.items()},
            like=cotangents,
        )

    def _named(self, found: Mapping[str, Mapping[int, Tensor]], *, like: Leaves) -> Leaves:
        return {
            f"{tower}.{layer}": tensor.to(like[tower].dtype)
            for tower, by_layer in found.items()
            for layer, tensor in by_layer.items()
        }


def prompt_texts(classnames: Sequence[str], prompts: Prompts, *, init: str, template: str) -> list[str]:
    """One text a class, "<init> <name>.", where a context is learned.

    Else one for each of the prompts' templates, or for the data set's own; a class's follow each other.

    Where more context tokens are learned than `init` has words, a placeholder word stands for each, as in
    the released code.
    """
    names = [readable(name) for name in classnames]
    if not prompts.num_context:
        return [each.format(name) for name in names for each in prompts.templates or (template,)]
    prefix = init if prompts.num_context <= len(init.split()) else " ".join(["X"] * prompts.num_context)
    return [f"{prefix} {name}." for name in names]


def build_model(
    clip: Clip, prompts: Prompts, tokens_NT: Tensor, frozen_text_CE: Tensor | None = None
) -> Model:
    """The model of classes whose `prompt_texts` have these token ids.

    `frozen_text_CE`: frozen text features (C, E), if a regularizer uses them.
    """
    if prompts.num_context:
        text: TextInput | Tensor = text_input(clip, tokens_NT, num_context=prompts.num_context)
    else:
        text = mean_text(clip, tokens_NT, len(prompts.templates) or 1)
    return Model(clip, prompts, text, frozen_text_CE)
