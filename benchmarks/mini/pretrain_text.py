"""Second stage of pre-training: the text tower of `mini`, on poor captions, with a frozen vision tower.

Shape legend: B = batch, L = caption length, V = used tokens, D = embedding, W = text width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .captions import PLAIN, CaptionSettings, Corpus, draw_words
from .pretrain_vision import LOG_INTERVAL, Images, batches, normalize, optimizer_of, rate


@dataclass(frozen=True)
class TextSettings:
    """Settings of the second stage.

    Args:
        steps: Number of steps.
        batch: Number of images, each with one caption, per step.
        lr: Peak learning rate.
        weight_decay: Decay of the tower's matrices.
        first_scale: Initial logit scale.
        largest_scale: Maximum logit scale.
    """

    steps: int = 1000
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    first_scale: float = 25.0
    largest_scale: float = 100.0


def encode_text(model: Any, rows: Tensor, tokens: Tensor) -> Tensor:
    """Return features (B, D) of captions (B, L) whose token embeddings are `rows` (V, W).

    The tower is causal, so tokens after end-of-text have no effect on the features. Captions can therefore be
    shorter than CLIP's context.
    """
    length = tokens.shape[1]
    hidden = rows[tokens] + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    end_of_text = tokens.argmax(1)  # the end-of-text token has the largest position in `Corpus.used`
    ends = model.ln_final(hidden[torch.arange(len(tokens)), end_of_text])
    return ends @ model.text_projection


@torch.no_grad()
def image_features(visual: nn.Module, images: Images, batch: int = 512) -> Tensor:
    """Return the normalized features (N, D) of all images."""
    return torch.cat([F.normalize(visual(normalize(part)), dim=-1) for part in images.pixels.split(batch)])


def draw_captions(
    images: Images, index: Tensor, corpus: Corpus, captions: CaptionSettings, rng: np.random.Generator
) -> Tensor:
    """Return the tokens (B, L) of a random caption of each image.

    Args:
        images: The images, whose labels and colors determine captions.
        index: (B,) indices of the captioned images.
        corpus: Parts of all captions.
        captions: Shares of captions.
        rng: Generator that draws context, word and color.
    """
    num_captions = len(index)
    is_plain = rng.random(num_captions) < captions.plain_share
    plain = rng.integers(0, len(PLAIN), num_captions)
    other = rng.integers(len(PLAIN), len(corpus.contexts), num_captions)
    contexts = np.where(is_plain, plain, other)

    words = draw_words(images.labels[index].numpy(), rng)

    is_colored = rng.random(num_captions) < captions.color
    colors = np.where(is_colored, images.colors[index].numpy() + 1, 0)  # 0 means no color
    return corpus.tokens(contexts.tolist(), words.tolist(), colors.tolist())


def train_text(
    model: Any,
    features: Tensor,
    images: Images,
    corpus: Corpus,
    *,
    settings: TextSettings,
    captions: CaptionSettings,
    seed: int,
    log: Callable[[str], None],
) -> Tensor:
    """Train the text tower in place, by CLIP's contrastive loss.

    Args:
        model: open_clip model.
        features: (N, D) normalized features of the images, which are not trained.
        images: The images, whose labels and colors determine captions.
        corpus: Parts of all captions.
        settings: Settings of the stage.
        captions: Shares of captions.
        seed: Seed of the order of images and of the captions.
        log: Function that logs a line.

    Returns:
        (V, W) trained embeddings of the tokens `corpus.used`. The embeddings in `model` are not changed.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = nn.Parameter(model.token_embedding.weight.detach()[corpus.used].clone())
    model.logit_scale.data.fill_(math.log(settings.first_scale))
    tower = [*model.transformer.parameters(), *model.ln_final.parameters(), model.text_projection]
    undecayed = [model.positional_embedding, model.logit_scale, rows]
    optimizer = optimizer_of(tower, settings.weight_decay, undecayed)
    target = torch.arange(settings.batch)  # the caption of image k is text k

    for step, index in enumerate(batches(len(features), settings.batch, settings.steps, generator)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, settings.steps, settings.lr)

        tokens = draw_captions(images, index, corpus, captions, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            text = encode_text(model, rows, tokens)
        text = F.normalize(text.float(), dim=-1)
        logits = model.logit_scale.exp() * features[index] @ text.T
        loss_of_images = F.cross_entropy(logits, target)
        loss_of_texts = F.cross_entropy(logits.T, target)
        loss = 0.5 * (loss_of_images + loss_of_texts)

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        model.logit_scale.data.clamp_(0.0, math.log(settings.largest_scale))
        if (step + 1) % LOG_INTERVAL == 0:
            log(f"text step {step + 1} loss {loss:.3f} scale {model.logit_scale.exp():.1f}")
    return rows.detach()
