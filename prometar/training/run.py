"""Run: the fixed inputs of one training run, built from a configuration."""

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import FeatureCache, Tokenize, mean_text_features
from prometar.clip.model import Clip
from prometar.clip.openclip import Backbone
from prometar.clip.wording import fill_template
from prometar.config.settings import Config
from prometar.data.datasets.class_texts import read_texts, texts_of
from prometar.data.datasets.dataset import Dataset, classnames
from prometar.data.splits.objective import objective_of, split_dataset
from prometar.data.streaming.order import ImageOrder, eval_order
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import UserError
from prometar.io.custom import is_custom, source_digest
from prometar.methods.component_check import check_components, require_fitting_tower
from prometar.methods.composition import Method, build
from prometar.methods.regularizers import Regularizer
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts
from prometar.step.state import State
from prometar.training.cache import RunCache
from prometar.training.drift import DRIFT_TEMPLATE, OutOfDomain, out_of_domain_names


@dataclass(frozen=True)
class EvaluationSet:
    """Images that are evaluated together, and their classes.

    Args:
        order: Order of the images.
        model: Prompted CLIP for the classes of the images.
        cache: Cached features of the images, None if they would be too large.
    """

    order: ImageOrder
    model: PromptedClip
    cache: FeatureCache | None


@dataclass(frozen=True)
class Run:
    """Fixed inputs of one training run. Its state, which changes, is in `Session`.

    Args:
        order: Order of the training images.
        evaluations: Evaluation sets by name.
        cache: Cached features of the training images, or None if they would be too large.
        shared: Cache that the run shares with the other runs of its process.
        cache_key: Key of the dataset and the backbone in `shared`.
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
    shared: RunCache
    cache_key: tuple[Hashable, ...]
    out_of_domain: OutOfDomain | None
    code_digests: dict[str, str]
    val_per_class: int
    text_digest: str = ""

    @cached_property
    def digest(self) -> str:
        """Identity of the run: sha256 of settings, objective, image orders, texts and custom components."""
        orders = {"": self.order}
        for name, evaluation in sorted(self.evaluations.items()):
            orders[name] = evaluation.order
        lines = [json.dumps(self.config.identity()), self.objective, self.dataset.template]
        lines += [f"{name} {template}" for name, template in sorted(self.dataset.templates.items())]
        lines += [f"{name} {order.digest} {classnames(order.items)}" for name, order in orders.items()]
        lines += [f"{reference} {digest}" for reference, digest in self.code_digests.items()]
        if self.text_digest:
            lines.append(f"texts {self.text_digest}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def build_run(
    config: Config, objective: str, *, val_per_class: int = 20, shared: RunCache | None = None
) -> Run:
    """Build a run.

    Args:
        config: Settings of the run.
        objective: Name of the objective (`prometar.data.splits.objective`).
        val_per_class: Maximum number of validation images per class.
        shared: Cache of what several runs share, such as the backbone. Default: a new cache.

    Raises:
        UserError: the configuration, the data or the weights are invalid.
    """
    shared = shared or RunCache()
    method = build(config)
    code_digest = source_digest(config.data.reference) if config.data.reference else ""
    dataset_key = (config.data.name, config.data.root, json.dumps(config.data.args), code_digest)
    dataset = shared.dataset(*dataset_key)
    folded = not method.changes_blocks
    backbone = shared.backbone(config.backbone, folded=folded)
    if config.custom_components:
        check_components(config, backbone.clip)
    clip = backbone.clip
    cache_key = (config.backbone, *dataset_key, repr(dataset.source))
    _require_compatible(config, method, clip)

    train = config.train
    split = split_dataset(
        objective, dataset, shots=config.data.shots, seed=train.seed, val_per_class=val_per_class
    )

    regularizer = method.regularizer
    teacher_templates = regularizer.templates
    if not teacher_templates:
        teacher_templates = (dataset.template_named(regularizer.template_name),)

    def image_features_of(order: ImageOrder) -> FeatureCache | None:
        num_bytes = order.num_rows * clip.embed_dim * clip.working_dtype.itemsize
        # Features of folded weights and of original weights differ by rounding errors.
        key = (order.digest, method.changes("vision"), folded, *cache_key)
        return shared.image_features(key, num_bytes)

    def frozen_of(names: tuple[str, ...]) -> Tensor:
        return shared.text_features(config.backbone, names, teacher_templates, folded=folded)

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
            clip, backbone.tokenize, split.classnames, regularizer, teacher_templates
        )
    elif regularizer.uses_text:
        frozen_text = frozen_of(split.classnames)

    orders = {
        name: eval_order(items, size=clip.image_size, exif_rotation=dataset.exif_rotation)
        for name, items in split.evaluations.items()
    }
    evaluations = {
        name: EvaluationSet(order, model_of(classnames(order.items)), image_features_of(order))
        for name, order in orders.items()
    }

    augment = config.augment
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

    def drift_text_features(names: tuple[str, ...]) -> Tensor:
        return shared.text_features(config.backbone, names, (DRIFT_TEMPLATE,), folded=folded)

    out_of_domain = None
    if objective_of(objective).predicts_new:
        names = out_of_domain_names(dataset, backbone.vocabulary)
        out_of_domain = OutOfDomain(
            model=model_of(names),
            frozen_names_VE=drift_text_features(names),
            frozen_classes_CE=drift_text_features(split.classnames),
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
        cache=image_features_of(order),
        shared=shared,
        cache_key=cache_key,
        out_of_domain=out_of_domain,
        code_digests={name: source_digest(name) for name in components if is_custom(name)},
        val_per_class=val_per_class,
        text_digest=text_digest,
    )


def _require_compatible(config: Config, method: Method, clip: Clip) -> None:
    """Check that the method fits the image tower and the number of views.

    Raises:
        UserError: it does not.
    """
    require_fitting_tower(config, method, clip)
    if config.augment.views > 1 and method.prompts.conditional:
        raise UserError("augment.views=2 does not fit prompts.kind=conditional. Use one view.")


def described_text_features(
    clip: Clip,
    tokenize: Tokenize,
    names: tuple[str, ...],
    regularizer: Regularizer,
    templates: tuple[str, ...],
) -> tuple[Tensor, str]:
    """Return the frozen text features of a regularizer with `texts` or `draw`, and the digest of the file.

    The features are normalized. Their shape is (C, E) if they are averages over the texts of each class, and
    (N, C, E) if each step draws one of N texts. The digest is "" without a file.

    Args:
        clip: Frozen CLIP.
        tokenize: Tokenizer of the backbone.
        names: Names of the C classes.
        regularizer: Regularizer, whose `texts` is the path of the file, or None.
        templates: Templates of the class texts, which are used without a file.

    Raises:
        UserError: the file is missing or invalid, or lacks a class.
    """
    digest = ""
    if regularizer.texts:
        texts, digest = read_texts(Path(regularizer.texts))
        by_class = texts_of(texts, names, path=regularizer.texts, equal_numbers=regularizer.draw)
    else:
        by_class = [tuple(fill_template(template, name) for template in templates) for name in names]
    features_NE = [mean_text_features(clip, tokenize(class_texts), 1) for class_texts in by_class]
    if regularizer.draw:
        return torch.stack(features_NE, dim=1), digest
    averages_E = [F.normalize(of_class.mean(dim=0), dim=-1) for of_class in features_NE]
    return torch.stack(averages_E), digest


def initial_state(run: Run) -> State:
    """Return the initial state, sampled with the seed of the run."""
    generator = torch.Generator().manual_seed(run.config.train.seed)
    init_ids = run.backbone.token_ids(run.config.prompts.init)
    num_classes = len(classnames(run.order.items))
    leaves = run.method.initialize(run.backbone.clip, init_ids, num_classes, generator)
    gate = run.method.modulator.initialize(run.method.inputs(leaves), generator)
    return State.start(leaves, gate, run.method.optimizer)
