"""Frozen features and their caches. Regularizers compare prompted features with frozen features.

Text features are cached in $PROMETAR_CACHE or ~/.cache/prometar. The name of each file is a hash of weights,
precision, device, class names and templates. Missing and corrupt files are recomputed, so all may be deleted.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from prometar.clip.model import Clip
from prometar.clip.text import encode_text, text_input
from prometar.clip.vision import EmbeddedImages, ImageFeatures, ImageTokens, embed_images, encode_image
from prometar.clip.weights import read_tensors
from prometar.clip.wording import fill_template
from prometar.errors import InfrastructureError, UserError
from prometar.io.files import cache_folder, write_atomically

Tokenize = Callable[[Sequence[str]], Tensor]
"""Function that maps N texts to token ids (N, context length)."""

FeatureCache = dict[int, Tensor]
"""Image features (B, E) of the frozen CLIP, by batch number.

They are normalized if the method changes the image tower. Otherwise, they are the tower's features before
normalization.
"""

FORMAT = "prometar-text-features-1"
"""Part of the cache key. Change it if new code computes different features from the same inputs."""


def frozen_text_features(
    clip: Clip, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Return the normalized text feature (C, E) of each class, averaged over the templates."""
    texts = [fill_template(template, name) for name in classnames for template in templates]
    return mean_text_features(clip, tokenize(texts), len(templates))


@torch.no_grad()
def mean_text_features(clip: Clip, ids_NT: Tensor, num_templates: int, *, batch_size: int = 256) -> Tensor:
    """Average each class's features over its texts, then normalize the averages (C, E).

    `ids_NT` contains the token ids of `num_templates` consecutive texts per class. Texts are encoded in
    lexicographic order, because `encode_text` computes each shared prefix of a batch only once.
    """
    columns = ids_NT.cpu().numpy().T
    order = torch.from_numpy(np.lexsort(columns[::-1]))  # lexsort sorts by its last key first
    features = torch.empty(len(ids_NT), clip.embed_dim, dtype=clip.working_dtype, device=clip.device)
    for rows in order.split(batch_size):
        text = text_input(clip, ids_NT[rows])
        features[rows.to(clip.device)] = encode_text(clip, text).to(features.dtype)
    return F.normalize(features.unflatten(0, (-1, num_templates)).mean(dim=1), dim=-1)


@torch.no_grad()
def cached_embedding(
    clip: Clip, images_B3HW: Tensor, cache: FeatureCache | None, number: int, *, changes_vision: bool
) -> EmbeddedImages:
    """Embed the images of batch `number` for a method.

    Return the input tokens of the image tower if the method changes the tower (`changes_vision`). Otherwise,
    return the tower's features, which are cached.
    """
    if changes_vision:
        return embed_images(clip, images_B3HW)
    features_BE = _cached(cache, number, lambda: encode_image(clip, embed_images(clip, images_B3HW)))
    return ImageFeatures(features_BE)


@torch.no_grad()
def frozen_image_features(
    clip: Clip, images: EmbeddedImages, cache: FeatureCache | None, number: int
) -> Tensor:
    """Return normalized features (B, E) of the frozen CLIP for the images of batch `number`."""
    # If `images` are `ImageFeatures`, the cache holds them unnormalized under the same number, so do not
    # use it here.
    used_cache = cache if isinstance(images, ImageTokens) else None
    dtype = clip.working_dtype
    return _cached(used_cache, number, lambda: F.normalize(encode_image(clip, images).to(dtype), dim=-1))


def can_skip_images(cache: FeatureCache | None, numbers: Iterable[int], *, changes_vision: bool) -> bool:
    """Return True if the images of these batches are not needed, because their features are cached."""
    return not changes_vision and cache is not None and all(number in cache for number in numbers)


def _cached(cache: FeatureCache | None, number: int, compute: Callable[[], Tensor]) -> Tensor:
    if cache is None:
        return compute()
    if number not in cache:
        cache[number] = compute()
    return cache[number]


def cached_text_features(
    clip: Clip, weights_digest: str, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Return the result of `frozen_text_features`, cached on disk."""
    key = [FORMAT, weights_digest, f"{clip.dtype} {clip.device.type}", list(classnames), list(templates)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = cache_folder() / "text-features" / f"{name}.safetensors"
    # A cache that cannot be read or written is ignored, because the features can be recomputed.
    with suppress(UserError, InfrastructureError):
        stored = read_tensors(path, fix="")[0].get("features")
        if stored is not None and stored.shape == (len(classnames), clip.embed_dim):
            return stored.to(clip.device)
    features = frozen_text_features(clip, tokenize, classnames, templates)
    with suppress(InfrastructureError):
        write_atomically(path, save({"features": features.cpu().contiguous()}))
    return features
