"""Cache of the inputs that several runs share: weights, datasets, features and evaluation images."""

import json
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

from cachetools import LRUCache
from torch import Tensor

from prometar.clip.features import FeatureCache, cached_text_features
from prometar.clip.openclip import Backbone
from prometar.config.sections import BackboneConfig
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.streaming.stream import Batch
from prometar.training.backbone import load_configured_backbone

Value = TypeVar("Value")

MAX_BACKBONES = 2
"""Maximum number of backbones in a `RunCache`, of which each fills much memory.

Two are enough for the folded and the original weights of one backbone.
"""

MAX_DATASETS = 16
"""Maximum number of datasets in a `RunCache`.

Eleven datasets of the benchmark and four variants of ImageNet fit.
"""

MAX_TEXT_FEATURES = 2 * MAX_DATASETS
"""Maximum number of text features in a `RunCache`: base classes and new classes of each dataset."""

MAX_FEATURE_BYTES = 512 * 2**20
"""Maximum total size of the image features in a `RunCache`, in bytes."""

MAX_BATCH_BYTES = 2 * 2**30
"""Maximum total size of the evaluation images in a `RunCache`, in bytes."""


class _ReservedFeatures(NamedTuple):
    """Image features that are computed and added later, and the bytes that all of them need."""

    num_bytes: int
    features: FeatureCache


class RunCache:
    """Inputs that runs in one process share. The least recently used entries are dropped.

    A process that trains several runs creates one cache and passes it to `build_run`. For example, a worker
    of a study keeps its cache between jobs. Runs that are built with different caches share nothing.

    Attributes:
        evaluation_batches: Batches of each image order, dataset and backbone. They can be reused because
            images are not augmented for evaluation. An entry must not be larger than `MAX_BATCH_BYTES`.
    """

    def __init__(self) -> None:
        self._backbones: LRUCache[Hashable, Backbone] = LRUCache(MAX_BACKBONES)
        self._datasets: LRUCache[Hashable, Dataset] = LRUCache(MAX_DATASETS)
        self._text_features: LRUCache[Hashable, Tensor] = LRUCache(MAX_TEXT_FEATURES)
        self._image_features: LRUCache[Hashable, _ReservedFeatures] = LRUCache(
            MAX_FEATURE_BYTES, getsizeof=lambda entry: entry.num_bytes
        )
        self.evaluation_batches: LRUCache[Hashable, Sequence[Batch]] = LRUCache(
            MAX_BATCH_BYTES, getsizeof=_num_bytes
        )

    def backbone(self, config: BackboneConfig, *, folded: bool) -> Backbone:
        """Return a backbone. Arguments and errors are those of `load_configured_backbone`."""
        key = (config, folded)
        return _cached(self._backbones, key, lambda: load_configured_backbone(config, folded=folded))

    def dataset(self, name: str, root: str | None, args_json: str, code_digest: str) -> Dataset:
        """Return a dataset. Other arguments and the errors are those of `open_dataset`.

        Args:
            args_json: Arguments of a custom dataset, as JSON.
            code_digest: sha256 of a custom dataset's source file, or "". A dataset whose code has changed is
                opened again.
        """
        key = (name, root, args_json, code_digest)
        return _cached(self._datasets, key, lambda: open_dataset(name, root, json.loads(args_json)))

    def text_features(
        self, config: BackboneConfig, classes: tuple[str, ...], templates: tuple[str, ...], *, folded: bool
    ) -> Tensor:
        """Return the features (C, E) of class texts from the frozen CLIP (`cached_text_features`)."""

        def compute() -> Tensor:
            backbone = self.backbone(config, folded=folded)
            digest = backbone.digest
            if not folded:  # original weights give other rounding errors than folded weights
                digest += " not folded"
            return cached_text_features(backbone.clip, digest, backbone.tokenize, classes, templates)

        return _cached(self._text_features, (config, folded, classes, templates), compute)

    def image_features(self, key: Hashable, num_bytes: int) -> FeatureCache | None:
        """Return the cached image features of `key`, or None if they could fill more than 1/4 of the cache.

        Args:
            key: Identifies the images, their order and the backbone.
            num_bytes: Bytes of all features, once they have been computed.
        """
        if num_bytes > MAX_FEATURE_BYTES // 4:
            return None
        return _cached(self._image_features, key, lambda: _ReservedFeatures(num_bytes, {})).features


def _num_bytes(batches: Sequence[Batch]) -> int:
    """Return the bytes of the images in batches."""
    return sum(batch.images.nbytes for batch in batches)


def _cached(cache: LRUCache[Hashable, Value], key: Hashable, compute: Callable[[], Value]) -> Value:
    """Return the value of `key`, which is computed and cached if it is missing."""
    if key not in cache:
        cache[key] = compute()
    return cache[key]
