"""Run: the fixed inputs of one training run, built from a configuration."""

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor

from prometar.clip.features import FeatureCache, Tokenize, cached_text_features, mean_text_features
from prometar.clip.model import Clip
from prometar.clip.openclip import Backbone, load_backbone
from prometar.clip.wording import fill_template
from prometar.config.sections import BackboneConfig
from prometar.config.settings import Config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.class_texts import read_texts, texts_of
from prometar.data.datasets.dataset import Dataset, classnames
from prometar.data.splits.objective import objective_of, split_dataset
from prometar.data.streaming.order import ImageOrder, eval_order
from prometar.data.streaming.transforms import TransformSpec
from prometar.device import default_device
from prometar.errors import UserError
from prometar.io.custom import is_custom, source_digest
from prometar.methods.component_check import check_components
from prometar.methods.composition import Method, build
from prometar.methods.regularizers import Regularizer
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts
from prometar.step.state import State
from prometar.training.drift import DRIFT_TEMPLATE, OutOfDomain, out_of_domain_names

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""dtype of the towers for each `backbone.precision`."""


@dataclass(frozen=True)
class EvaluationSet:
    """Images that are evaluated together, and their classes.

    Args:
        order, model: Order of the images, and prompted CLIP for their classes.
        cache: Cached features of the images, None if they would be too large.
    """

    order: ImageOrder
    model: PromptedClip
    cache: FeatureCache | None


@dataclass(frozen=True)
class Run:
    """Fixed inputs of one training run. Its state, which changes, is in `Session`.

    Args:
        order, cache: Order of the training images, and their cached features (None if too large).
        cache_key: Key of the dataset and the backbone in caches.
        out_of_domain: What drift is measured with, or None if it is not measured.
        code_digests: sha256 of each custom component's source file, keyed by reference `package.module:Name`.
        val_per_class: Maximum number of validation images per class.
        text_digest: sha256 of the file `regularizer.texts`, or "".
    """

    config: Config
    objective: str
    dataset: Dataset
    backbone: Backbone
    method: Method
    model: PromptedClip
    order: ImageOrder
    evaluations: Mapping[str, EvaluationSet]
    cache: FeatureCache | None
    cache_key: tuple[Hashable, ...]
    out_of_domain: OutOfDomain | None
    code_digests: dict[str, str]
    val_per_class: int
    text_digest: str = ""

    @cached_property
    def digest(self) -> str:
        """Identity of the run: sha256 of settings, objective, image orders, texts and custom components."""
        orders = {"": self.order, **{name: e.order for name, e in sorted(self.evaluations.items())}}
        lines = [json.dumps(self.config.identity()), self.objective, self.dataset.template]
        lines += [f"{name} {template}" for name, template in sorted(self.dataset.templates.items())]
        lines += [f"{name} {order.digest} {classnames(order.items)}" for name, order in orders.items()]
        lines += [f"{ref} {digest}" for ref, digest in self.code_digests.items()]
        lines += [f"texts {self.text_digest}"] if self.text_digest else []
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def backbone_of(config: BackboneConfig, *, folded: bool = True) -> Backbone:
    """Load a backbone in its configured precision on the default device of this process.

    `folded` is False for methods that change blocks (`Method.changes_blocks`).
    """
    dtype, device = DTYPES[config.precision], default_device()
    backbone = load_backbone(config.name, config.pretrained, dtype=dtype, device=device, folded=folded)
    return replace(backbone, tf32=config.precision == "tf32")


cached_backbone = lru_cache(maxsize=2)(backbone_of)


@lru_cache(maxsize=16)
def _cached_dataset(name: str, root: str | None, args_json: str, code_digest: str) -> Dataset:
    # `code_digest` is only part of the cache key, so that a custom dataset is reopened if its code changes.
    return open_dataset(name, root, json.loads(args_json))


@lru_cache(maxsize=32)
def _text_features(
    config: BackboneConfig, folded: bool, classes: tuple[str, ...], templates: tuple[str, ...]
) -> Tensor:
    backbone = cached_backbone(config, folded=folded)
    return cached_text_features(backbone.clip, backbone.digest, backbone.tokenize, classes, templates)


_IMAGE_FEATURES: LRUCache[Hashable, tuple[int, dict[int, Tensor]]] = LRUCache(
    512 * 2**20, getsizeof=lambda entry: entry[0]
)
"""For each image order, dataset and backbone: the bytes that all features need, and those cached so far."""


def _feature_cache(
    clip: Clip, method: Method, order: ImageOrder, cache_key: tuple[Hashable, ...]
) -> FeatureCache | None:
    """Return an image order's feature cache, or None if it could fill more than 1/4 of `_IMAGE_FEATURES`."""
    num_bytes = order.num_rows * clip.embed_dim * clip.working_dtype.itemsize
    if num_bytes > _IMAGE_FEATURES.maxsize // 4:
        return None
    key = (order.digest, method.changes("vision"), *cache_key)
    if key not in _IMAGE_FEATURES:
        _IMAGE_FEATURES[key] = (num_bytes, {})
    return _IMAGE_FEATURES[key][1]


def clear_caches() -> None:
    """Clear the caches of backbones, datasets and features in this process."""
    for cached in (cached_backbone, _cached_dataset, _text_features):
        cached.cache_clear()
    _IMAGE_FEATURES.clear()


def build_run(config: Config, objective: str, *, val_per_class: int = 20) -> Run:
    """Build a run. Its dataset and backbone are cached in this process.

    Raises:
        UserError: the configuration, the data or the weights are invalid.
    """
    method = build(config)
    code_digest = source_digest(config.data.reference) if config.data.reference else ""
    dataset_key = (config.data.name, config.data.root, json.dumps(config.data.args), code_digest)
    dataset = _cached_dataset(*dataset_key)
    folded = not method.changes_blocks
    backbone = cached_backbone(config.backbone, folded=folded)
    if config.custom_components:
        check_components(config, backbone.clip)
    clip, cache_key = backbone.clip, (config.backbone, *dataset_key, repr(dataset.source))
    augment, train, shots = config.augment, config.train, config.data.shots
    _require_compatible(config, method)
    split = split_dataset(objective, dataset, shots=shots, seed=train.seed, val_per_class=val_per_class)

    regularizer = method.regularizer
    teachers = regularizer.templates or (dataset.template_named(regularizer.template_name),)

    def frozen_of(names: tuple[str, ...]) -> Tensor:
        return _text_features(config.backbone, folded, names, teachers)

    def model_of(names: tuple[str, ...], frozen_text: Tensor | None = None) -> PromptedClip:
        if method.traits.class_aware:
            frozen_text = frozen_of(names)
        texts = prompt_texts(
            names,
            method.prompts,
            init=config.prompts.init,
            template=dataset.template,
            templates=dataset.templates,
        )
        new_classes = names != split.classnames
        return build_model(clip, method, backbone.tokenize(texts), frozen_text, new_classes=new_classes)

    frozen_text: Tensor | None = None
    text_digest = ""
    if regularizer.uses_text and (regularizer.texts or regularizer.draw):
        frozen_text, text_digest = described_text_features(
            clip, backbone.tokenize, split.classnames, regularizer, teachers
        )
    elif regularizer.uses_text:
        frozen_text = frozen_of(split.classnames)

    orders = {
        name: eval_order(items, size=clip.image_size, exif_rotation=dataset.exif_rotation)
        for name, items in split.evaluations.items()
    }
    evaluations = {
        name: EvaluationSet(
            order, model_of(classnames(order.items)), _feature_cache(clip, method, order, cache_key)
        )
        for name, order in orders.items()
    }
    crop_scale = (augment.crop_scale_min, augment.crop_scale_max)
    transform = TransformSpec(
        clip.image_size,
        train=True,
        crop_scale=crop_scale,
        flip=augment.flip,
        jitter=augment.jitter,
        exif_rotation=dataset.exif_rotation,
        views=augment.views,
    )
    order = ImageOrder(
        split.train, transform, batch_size=train.batch_size, epochs=train.epochs, seed=train.seed
    )
    out_of_domain = None
    if objective_of(objective).predicts_new:
        names = out_of_domain_names(dataset, backbone.vocabulary)
        out_of_domain = OutOfDomain(
            model=model_of(names),
            frozen_names_VE=_text_features(config.backbone, folded, names, (DRIFT_TEMPLATE,)),
            frozen_classes_CE=_text_features(config.backbone, folded, split.classnames, (DRIFT_TEMPLATE,)),
        )
    components = (*config.custom_components.values(), objective)
    return Run(
        config=config,
        objective=objective,
        dataset=dataset,
        backbone=backbone,
        method=method,
        model=model_of(split.classnames, frozen_text),
        order=order,
        evaluations=evaluations,
        cache=_feature_cache(clip, method, order, cache_key),
        cache_key=cache_key,
        out_of_domain=out_of_domain,
        code_digests={name: source_digest(name) for name in components if is_custom(name)},
        val_per_class=val_per_class,
        text_digest=text_digest,
    )


def _require_compatible(config: Config, method: Method) -> None:
    """Raise a UserError if two views do not fit the method."""
    if config.augment.views > 1 and method.prompts.conditional:
        raise UserError("augment.views=2 does not fit prompts.kind=conditional. Use one view.")


def described_text_features(
    clip: Clip,
    tokenize: Tokenize,
    names: tuple[str, ...],
    regularizer: Regularizer,
    templates: tuple[str, ...],
) -> tuple[Tensor, str]:
    """Return normalized frozen text features of a regularizer with `texts` or `draw`, and the file's digest.

    The features are (C, E), averages over the texts of each class, or (N, C, E) if one of N texts is drawn.

    Raises:
        UserError: the file is missing or invalid, or lacks a class.
    """
    digest = ""
    by_class = [tuple(fill_template(template, name) for template in templates) for name in names]
    if regularizer.texts:
        texts, digest = read_texts(Path(regularizer.texts))
        by_class = texts_of(texts, names, path=regularizer.texts, equal_numbers=regularizer.draw)
    features = [mean_text_features(clip, tokenize(each), 1) for each in by_class]
    if regularizer.draw:
        return torch.stack(features, dim=1), digest
    return torch.stack([F.normalize(each.mean(dim=0), dim=-1) for each in features]), digest


def initial_state(run: Run) -> State:
    """Return the initial state, sampled with the seed of the run."""
    generator = torch.Generator().manual_seed(run.config.train.seed)
    init_ids = run.backbone.token_ids(run.config.prompts.init)
    num_classes = len(classnames(run.order.items))
    leaves = run.method.initialize(run.backbone.clip, init_ids, num_classes, generator)
    gate = run.method.modulator.initialize(run.method.inputs(leaves), generator)
    return State.start(leaves, gate, run.method.optimizer)
