"""Accuracy of trained prompts: classes are encoded once, images in large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from prometar.backbone.openclip import Backbone
from prometar.backbone.vision import embed_images
from prometar.data.streaming.stream import Batch
from prometar.device import send
from prometar.step.prompted_clip import Model


def classify(backbone: Backbone, model: Model, leaves: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """A function from uint8 images (B, H, W, 3) where the backbone is to logits (B, C).

    The classes are encoded once.
    """
    with torch.no_grad():
        prompts = model.prompts.tokens(dict(leaves))
        text_CE = model.text_features(prompts)

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        tokens = embed_images(backbone.clip, backbone.normalise(images))
        return model.logits(model.image_features(prompts, tokens), text_CE)

    return logits


def accuracy(
    backbone: Backbone, model: Model, leaves: Mapping[str, Tensor], batches: Iterable[Batch]
) -> float:
    """Percent of the batches' images whose most likely class of `model` is their label."""
    logits, device, total = classify(backbone, model, leaves), backbone.clip.device, 0
    correct = torch.zeros((), dtype=torch.long, device=device)
    for batch in batches:
        images, labels = send((torch.from_numpy(batch.images), torch.from_numpy(batch.labels)), device)
        correct += (logits(images).argmax(dim=-1) == labels).sum()
        total += len(batch.labels)
    # Read once: asking after every batch would make a GPU wait for the next one.
    return 100 * int(correct) / total
