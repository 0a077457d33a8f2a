"""Vision tower.

The prompt tokens of a layer follow the patches, and replace the prompt tokens of the previous layer. CLIP's
image feature is the output at the class token (CLS). SigLIP's is the attention pool of the patch outputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.function import AnyFunction, Norm, Projection
from prometar.clip.model import Clip
from prometar.clip.tower import AppendedSlots, Layer, LayerPrompts, Pass, PromptedTower, appending_layers


@dataclass(frozen=True)
class ImageTokens:
    """Images as input tokens (B, T, D) of a block of the tower. Indexing selects images.

    Before block 0, these are CLS and patches after `ln_pre`, or SigLIP's patches.
    """

    tokens_BTD: Tensor
    block: int = 0

    def __getitem__(self, rows: Tensor | slice) -> "ImageTokens":
        return ImageTokens(self.tokens_BTD[rows], self.block)


@dataclass(frozen=True)
class ImageFeatures:
    """Images after the tower, if nothing learned enters it: unnormalized features (B, E).

    Indexing selects images.
    """

    features_BE: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "ImageFeatures":
        return ImageFeatures(self.features_BE[rows])


EmbeddedImages = ImageTokens | ImageFeatures


@torch.no_grad()
def embed_images(clip: Clip, images_B3HW: Tensor) -> ImageTokens:
    """Return the input tokens of images, which must be normalized (`Backbone.normalize`)."""
    cudnn: Any = torch.backends.cudnn
    conv_settings = cudnn.conv
    # On GPUs, torch's default for convolutions is TF32, which has 10 instead of 23 mantissa bits.
    previous = conv_settings.fp32_precision
    conv_settings.fp32_precision = "ieee"
    try:
        return ImageTokens(_input_tokens(clip, images_B3HW))
    finally:
        conv_settings.fp32_precision = previous


def _input_tokens(clip: Clip, images_B3HW: Tensor) -> Tensor:
    patches = F.conv2d(images_B3HW, clip.patch_weight, stride=clip.patch_weight.shape[-1])
    tokens = patches.flatten(2).transpose(1, 2)
    if clip.class_embedding is not None:
        tokens = torch.cat([clip.class_embedding.expand(len(tokens), 1, -1), tokens], dim=1)
    tokens = tokens + clip.vision_positions
    if clip.ln_pre_weight is None:
        return tokens
    return Norm(clip.ln_pre_weight, clip.ln_pre_bias, clip.vision.eps).value(tokens)


@torch.no_grad()
def before_block(clip: Clip, images: ImageTokens, block: int) -> ImageTokens:
    """Return the input tokens of a later block: apply the frozen blocks before it."""
    tokens_BTD = images.tokens_BTD
    for frozen in clip.vision.blocks[images.block : block]:
        tokens_BTD = Layer(clip.vision, frozen).value(tokens_BTD)
    return ImageTokens(tokens_BTD, block)


def encode_image(clip: Clip, images: EmbeddedImages, prompts: LayerPrompts | None = None) -> Tensor:
    """Return unnormalized features (B, E) of images. Prompts require `ImageTokens`.

    `ln_pre` also applies to the prompt of layer 0.
    """
    prompts = prompts or {}
    if isinstance(images, ImageFeatures):
        assert not prompts, "the tower was applied without prompts"
        return images.features_BE
    if torch.is_grad_enabled():  # `value` is faster, but autograd cannot differentiate its attention twice
        return image_pass(clip, images, prompts)[0]
    return _prompted_tower(clip, images, prompts).value(images.tokens_BTD, prompts)


def image_pass(clip: Clip, images: ImageTokens, prompts: LayerPrompts) -> tuple[Tensor, Pass]:
    """Return the image features and the `Pass` that computes their derivatives."""
    return _prompted_tower(clip, images, prompts).forward(images.tokens_BTD, prompts)


def _prompted_tower(clip: Clip, images: ImageTokens, prompts: LayerPrompts) -> PromptedTower:
    """Return the blocks from `images.block` on, and what follows them."""
    assert not prompts or images.block == 0, "prompts are numbered from block 0 on"
    tower = clip.vision
    num_image_tokens = images.tokens_BTD.shape[1]
    num_out = 1  # CLS
    if clip.pool is not None:
        num_out = num_image_tokens
    layers = appending_layers(tower, num_image_tokens, prompts, num_out=num_out)[images.block :]
    if clip.pool is not None:
        layers.append(Layer(clip.pool, clip.pool.blocks[0], num_out=1))
    prompt_norm: Norm | None = None
    if clip.ln_pre_weight is not None:
        prompt_norm = Norm(clip.ln_pre_weight, clip.ln_pre_bias, tower.eps)
    head: list[AnyFunction] = []
    if clip.ln_post_weight is not None:
        head.append(Norm(clip.ln_post_weight, clip.ln_post_bias, tower.eps))
    if clip.vision_projection is not None:
        head.append(Projection(clip.vision_projection))
    return PromptedTower(layers, AppendedSlots(num_image_tokens), head, prompt_norm)
