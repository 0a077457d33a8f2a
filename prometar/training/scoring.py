"""Accuracy of trained prompts: classes are encoded once, images in large batches."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from prometar.clip.features import Seen, embedded, frozen_image
from prometar.clip.openclip import Backbone
from prometar.data.streaming.stream import Batch
from prometar.device import fetch, send
from prometar.errors import WorkError
from prometar.step.prompted_clip import Model


def classify(
    backbone: Backbone, model: Model, leaves: Mapping[str, Tensor], seen: Seen = None
) -> Callable[[Tensor, int], Tensor]:
    """Return a function from uint8 images (B, H, W, 3) and their batch's number to logits (B, C).

    Classes are encoded once, or once per image if the text depends on it.

    Args:
        seen: Cached features of the batches.
    """
    with torch.no_grad():
        prompts = model.prompts.tokens(dict(leaves))
        text_CE = None if model.prompts.conditional else model.text_features(prompts)

    @torch.no_grad()
    def logits(images: Tensor, number: int) -> Tensor:
        tokens = embedded(backbone.clip, backbone.normalize(images), seen, number)
        image_BE, known_CE = model.image_features(prompts, tokens), text_CE
        if known_CE is None:
            known_CE = model.text_features(prompts, frozen_image(backbone.clip, tokens, seen, number))
        return model.logits(image_BE, known_CE)

    return logits


def accuracy(
    backbone: Backbone,
    model: Model,
    leaves: Mapping[str, Tensor],
    batches: Iterable[Batch],
    seen: Seen = None,
) -> float:
    """Return the accuracy in percent on the batches' images among the classes of `model`.

    Raises:
        WorkError: a logit is not finite. Such a model has no score.
    """
    logits, device, total = classify(backbone, model, leaves, seen), backbone.clip.device, 0
    correct = torch.zeros((), dtype=torch.long, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for batch in batches:
        images, labels = send((torch.from_numpy(batch.images), torch.from_numpy(batch.labels)), device)
        found = logits(images, batch.step)
        correct += (found.argmax(dim=-1) == labels).sum()
        finite &= found.isfinite().all()
        total += len(batch.labels)
    # Read once: reading after each batch would synchronize with the GPU.
    right, whole = fetch((correct, finite))
    if not whole:
        raise not_finite(backbone)
    return 100 * int(right) / total


def not_finite(backbone: Backbone) -> WorkError:
    """Return the error of a model with NaN or infinite logits."""
    kind = str(backbone.clip.dtype).removeprefix("torch.")
    return WorkError(
        f"logits of {backbone.name} in {kind} are not finite: its prompts or its precision overflow"
    )
