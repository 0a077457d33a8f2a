"""Frozen features, which regularizers compare with prompted features, and their caches.

Text features are cached in $PROMETAR_CACHE or ~/.cache/prometar, in one safetensors file per entry. Missing
and corrupt entries are recomputed, so the folder can be deleted at any time.
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
from prometar.errors import InfrastructureError, UserError
from prometar.io.files import write_atomically

Tokenize = Callable[[Sequence[str]], Tensor]
"""Function from N texts to token ids (N, context length)."""

FeatureCache = dict[int, Tensor]
"""Frozen image features by batch number, shared by all runs with the same data plan."""

FORMAT = "prometar-text-features-1"
"""Version of the features. Bump it if code changes alter them for the same weights, names and templates."""


def frozen_text(
    clip: Clip, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Return the normalized mean feature (C, E) of each class over these templates, each with one "{}".

    The published code does the same with 60 ImageNet templates.
    """
    texts = [filled(template, name) for name in classnames for template in templates]
    return mean_text(clip, tokenize(texts), len(templates))


@torch.no_grad()
def mean_text(clip: Clip, tokens_NT: Tensor, num_templates: int, *, batch_size: int = 256) -> Tensor:
    """Return the normalized mean feature (C, E) of each class. Features are not normalized before averaging.

    The texts of a class are adjacent in `tokens_NT`. They are encoded in lexicographic order, because
    `encode_text` computes each prefix that texts of a batch share only once.
    """
    order = torch.from_numpy(np.lexsort(tokens_NT.cpu().numpy().T[::-1]))
    features = torch.empty(len(tokens_NT), clip.embed_dim, dtype=clip.working_dtype, device=clip.device)
    for rows in order.split(batch_size):
        text = text_input(clip, tokens_NT[rows])
        features[rows.to(clip.device)] = encode_text(clip, text).to(features.dtype)
    return F.normalize(features.unflatten(0, (-1, num_templates)).mean(dim=1), dim=-1)


def cached_embedding(clip: Clip, images_B3HW: Tensor, cache: FeatureCache | None, number: int) -> Tensor:
    """Return the embedded images of a batch. If no prompt enters the image tower, they are cached."""
    return _cached(None if clip.image_prompts else cache, number, lambda: embed_images(clip, images_B3HW))


@torch.no_grad()
def frozen_image(clip: Clip, tokens_BTD: Tensor, cache: FeatureCache | None, number: int) -> Tensor:
    """Return the normalized frozen features (B, E) of a batch of embedded images."""
    # Without image prompts, the tokens are already the cached features, except for the normalization.
    store, dtype = cache if clip.image_prompts else None, clip.working_dtype
    return _cached(store, number, lambda: F.normalize(encode_image(clip, tokens_BTD).to(dtype), dim=-1))


def can_skip_images(clip: Clip, cache: FeatureCache | None, numbers: Iterable[int] = ()) -> bool:
    """Return True if the cached features of these batches replace their images.

    Without `numbers`, return True if images are not needed again after their first use.
    """
    return not clip.image_prompts and cache is not None and all(number in cache for number in numbers)


def _cached(cache: FeatureCache | None, number: int, compute: Callable[[], Tensor]) -> Tensor:
    if cache is None:
        return compute()
    if number not in cache:
        cache[number] = compute()
    return cache[number]


def cached_text(
    clip: Clip, digest: str, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Return `frozen_text`, cached on disk. `digest`: digest of the weights of `clip`."""
    key = [FORMAT, digest, f"{clip.dtype} {clip.device.type}", list(classnames), list(templates)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = Path(os.environ.get("PROMETAR_CACHE") or Path.home() / ".cache" / "prometar")
    path = folder / "text-features" / f"{name}.safetensors"
    # A cache that cannot be read or written is ignored, because the features can be recomputed.
    with suppress(UserError):
        stored = read_tensors(path, "It is recomputed.")[0].get("features")
        if stored is not None and stored.shape == (len(classnames), clip.embed_dim):
            return stored.to(clip.device)
    features = frozen_text(clip, tokenize, classnames, templates)
    with suppress(InfrastructureError):
        write_atomically(path, save({"features": features.cpu().contiguous()}))
    return features
