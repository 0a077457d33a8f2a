"""Frozen text features on disk, so that the next process need not compute them.

One safetensors file an entry, in $PROMETAR_CACHE or ~/.cache/prometar, which can be removed at any time. The
cache decides nothing: an entry that is missing, damaged or another's is computed, and where none can be
written none is kept.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prometar.clip.frozen_features import Tokenize, frozen_text
from prometar.clip.model import Clip
from prometar.clip.weights_digest import weights_digest
from prometar.errors import StorageError
from prometar.io.files import write_atomically

FORMAT = "prometar-text-features-1"
"""Changes whenever the same weights, names and templates would give other features."""

_OF_IMAGES: dict[str, Any] = dict.fromkeys((
    "vision", "patch_weight", "class_embedding", "vision_positions", "ln_pre_weight", "ln_pre_bias",
    "ln_post_weight", "ln_post_bias", "vision_projection", "vision_projection_bias", "logit_scale", "pool",
    "closed",
))  # fmt: skip


def text_digest(clip: Clip) -> str:
    """All that text features depend on in a CLIP; a third of a second for ViT-B/16."""
    # By exclusion: a tensor that is added to `Clip` counts until it is known not to matter.
    of_texts = weights_digest(replace(clip, **_OF_IMAGES))
    return f"{of_texts} {clip.dtype} {clip.device.type} {getattr(clip.text, 'scale', None)}"


def cached_text(
    clip: Clip, digest: str, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """`frozen_text`, from the cache where it is there. `digest` is the CLIP's `text_digest`."""
    key = [FORMAT, digest, list(classnames), list(templates)]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = _folder()
    features = _read(folder / f"{name}.safetensors", name) if folder else None
    if features is not None and features.shape == (len(classnames), clip.embed_dim):
        return features.to(clip.device)
    features = frozen_text(clip, tokenize, classnames, templates)
    if folder:
        _write(folder / f"{name}.safetensors", name, features.cpu().contiguous())
    return features


def _folder() -> Path | None:
    """Where entries lie; None for a user without a home."""
    if asked := os.environ.get("PROMETAR_CACHE"):
        return Path(asked) / "text-features"
    try:
        return Path.home() / ".cache" / "prometar" / "text-features"
    except RuntimeError:
        return None


def _read(path: Path, name: str) -> Tensor | None:
    """An entry; None where there is none that can be trusted."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned into torch's own alignment: kernels sum in another order over unaligned memory.
            features = file.get_tensor("features").clone()
    except (OSError, SafetensorError):
        return None
    return features if metadata == _told(name, features) else None


def _write(path: Path, name: str, features: Tensor) -> None:
    """Put an entry in place whole, if the folder can be written."""
    with suppress(StorageError):
        write_atomically(path, save({"features": features}, _told(name, features)))


def _told(name: str, features: Tensor) -> dict[str, str]:
    """An entry's metadata; safetensors themselves would not notice a changed byte."""
    digest = hashlib.sha256(features.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    return {"format": FORMAT, "name": name, "sha256": digest}
