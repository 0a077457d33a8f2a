"""Frozen features, which the regularizers compare prompted ones with, and their stores.

Text features are cached on disk: one safetensors file per entry, in $PROMETAR_CACHE or ~/.cache/prometar,
which can be removed at any time. An entry that is missing, corrupt or another's is computed again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from prometar.clip.model import Clip
from prometar.clip.text import encode_text, text_input
from prometar.clip.vision import embed_images, encode_image
from prometar.clip.weights import read_tensors
from prometar.clip.wording import filled
from prometar.errors import StorageError, UserError
from prometar.io.files import write_atomically

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts to token ids (N, context length)."""

Seen = dict[int, Tensor] | None
"""Frozen features of a plan's images by batch, shared by its runs. None if they are too many to store."""

FORMAT = "prometar-text-features-1"
"""Changes whenever the same weights, names and templates would give other features."""


def frozen_text(
    clip: Clip, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Return `mean_text` of each class in these templates, which have one "{}" each.

    Source: the released code's teacher (60 ImageNet templates).
    """
    texts = [filled(template, name) for name in classnames for template in templates]
    return mean_text(clip, tokenize(texts), len(templates))


@torch.no_grad()
def mean_text(clip: Clip, tokens_NT: Tensor, num_templates: int, *, batch_size: int = 256) -> Tensor:
    """Return the normalized mean (C, E) of un-normalized frozen text features over each class's texts.

    The texts of a class are adjacent. They are encoded in the order of their tokens, so that a batch has
    those that share most: a template's words before the class name run once for all its classes.
    """
    order = torch.from_numpy(np.lexsort(tokens_NT.cpu().numpy().T[::-1]))
    features = torch.empty(len(tokens_NT), clip.embed_dim, dtype=clip.working_dtype, device=clip.device)
    for rows in order.split(batch_size):
        text = text_input(clip, tokens_NT[rows])
        features[rows.to(clip.device)] = encode_text(clip, text).to(features.dtype)
    return F.normalize(features.unflatten(0, (-1, num_templates)).mean(dim=1), dim=-1)


def embedded(clip: Clip, images_B3HW: Tensor, seen: Seen, number: int) -> Tensor:
    """Return `embed_images` of a batch, stored if these are features."""
    return _once(None if clip.image_prompts else seen, number, lambda: embed_images(clip, images_B3HW))


@torch.no_grad()
def frozen_image(clip: Clip, tokens_BTD: Tensor, seen: Seen, number: int) -> Tensor:
    """Return the normalized frozen features (B, E) of a batch's embedded images, stored."""

    def compute() -> Tensor:
        return F.normalize(encode_image(clip, tokens_BTD).to(clip.working_dtype), dim=-1)

    return _once(seen if clip.image_prompts else None, number, compute)


def suffices(clip: Clip, seen: Seen, numbers: Iterable[int] = ()) -> bool:
    """Return True if the stored features replace these batches' images."""
    return not clip.image_prompts and seen is not None and all(number in seen for number in numbers)


def _once(seen: Seen, number: int, compute: Callable[[], Tensor]) -> Tensor:
    if seen is None:
        return compute()
    if number not in seen:
        seen[number] = compute()
    return seen[number]


def cached_text(
    clip: Clip, digest: str, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Return `frozen_text`, from the cache if it has an entry. `digest` is the CLIP's `weights_digest`."""
    key = [FORMAT, digest, f"{clip.dtype} {clip.device.type}", list(classnames), list(templates)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = Path(os.environ.get("PROMETAR_CACHE") or Path.home() / ".cache" / "prometar")
    path = folder / "text-features" / f"{name}.safetensors"
    # If an entry is missing or corrupt, or the folder cannot be written, the features are computed.
    with suppress(UserError):
        stored = read_tensors(path, "it is computed again")[0].get("features")
        if stored is not None and stored.shape == (len(classnames), clip.embed_dim):
            return stored.to(clip.device)
    features = frozen_text(clip, tokenize, classnames, templates)
    with suppress(StorageError):
        write_atomically(path, save({"features": features.cpu().contiguous()}))
    return features
