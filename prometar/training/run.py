"""A run: everything that is fixed while it trains, built from a configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from prometar.backbone.clip import Clip
from prometar.backbone.expected_tensors import all_finite
from prometar.backbone.feature_cache import cached_text, text_digest
from prometar.backbone.frozen_features import Seen
from prometar.backbone.openclip import Backbone, load_backbone
from prometar.config.settings import Config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset, classnames
from prometar.data.splits.objective import Problem, own_objective, problem
from prometar.data.streaming.plan import Plan, eval_plan
from prometar.data.streaming.transforms import TransformSpec
from prometar.device import default_device
from prometar.errors import UserError
from prometar.methods.composition import Method, build
from prometar.methods.probing import probe
from prometar.parts.identity import identities
from prometar.step.prompted_clip import Model, build_model, enter_images, prompt_texts
from prometar.step.state import State
from prometar.training.drift import TEMPLATE, Foreign, foreign_to
from prometar.training.kept import Kept

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Evaluation:
    """A set that accuracy is measured on: its plan, the model of its classes, what is known of its images."""

    plan: Plan
    model: Model
    seen: Seen


@dataclass(frozen=True)
class Run:
    """Everything that is fixed while a run trains.

    `backbone`: as its prompts need it. `seen`: what is known of each step's images. `foreign`: what accuracy
    on new classes is predicted with, where the objective does so.
    """

    config: Config
    objective: str
    dataset: Dataset
    backbone: Backbone
    method: Method
    model: Model
    plan: Plan
    evaluations: Mapping[str, Evaluation]
    every_epoch: bool
    seen: Seen
    foreign: Foreign | None

    def model_of(self, names: Sequence[str]) -> Model:
        """Its prompts with other class names."""
        return _model(self.config, self.method, self.backbone, self.dataset, names)

    @property
    def code(self) -> dict[str, str]:
        """What code the user's own parts are: see `prometar.parts.identity`."""
        return identities([*self.config.own.values(), *own_objective(self.objective)])

    @property
    def digest(self) -> str:
        """sha256 (hex) of the configuration, the objective, all plans and own parts: a checkpoint's owner."""
        parts = [self.config.model_dump_json(), self.objective, self.plan.digest]
        parts += [f"{name} {e.plan.digest}" for name, e in sorted(self.evaluations.items())]
        parts += [f"{name} {code}" for name, code in self.code.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


_MOST_RUNS = 16  # of one trial (data sets, seeds, folds) whose data are kept in the process for the next one


@lru_cache(maxsize=2)
def _backbone(name: str, pretrained: str | None, precision: str) -> Backbone:
    return load_backbone(name, pretrained, dtype=DTYPES[precision], device=default_device())


@lru_cache(maxsize=2)
def _for_text_prompts(name: str, pretrained: str | None, precision: str) -> Backbone:
    backbone = _backbone(name, pretrained, precision)
    return replace(backbone, clip=replace(backbone.clip, image_prompts=False))


@lru_cache(maxsize=_MOST_RUNS)
def _dataset(name: str, root: str | None, args: str, code: str) -> Dataset:
    return open_dataset(name, root, json.loads(args))


@lru_cache(maxsize=2)
def _text_digest(name: str, pretrained: str | None, precision: str) -> str:
    return text_digest(_backbone(name, pretrained, precision).clip)


@lru_cache(maxsize=_MOST_RUNS)
def _teacher(
    name: str, pretrained: str | None, precision: str, classes: tuple[str, ...], templates: tuple[str, ...]
) -> Tensor:
    spec = (name, pretrained, precision)
    backbone = _backbone(*spec)
    features = cached_text(backbone.clip, _text_digest(*spec), backbone.tokenize, classes, templates)
    if not all_finite(features):
        raise UserError(f"the text features of {name} in {precision} are not finite: take another precision")
    return features


_FEATURES = Kept[dict[int, Tensor]](most=256 * 1024**2, most_each=128 * 1024**2)
"""What is known of plans' images; 65,000 of ViT-B/16 in float32 are the most of one."""


def _seen(config: Config, clip: Clip, plan: Plan, dataset: Dataset) -> Seen:
    num_bytes = plan.num_rows * clip.embed_dim * 4
    if not _FEATURES.takes(num_bytes):
        return Seen()
    key = (_spec(config), clip.embeds_features, plan.digest, repr(dataset.source))
    known = _FEATURES.find(key)
    return Seen(_FEATURES.put(key, {}, num_bytes) if known is None else known)


def forget() -> None:
    """Keep nothing of backbones, data sets and their features in this process."""
    for cache in (_backbone, _for_text_prompts, _dataset, _text_digest, _teacher):
        cache.cache_clear()
    _FEATURES.clear()


def _spec(config: Config) -> tuple[str, str | None, str]:
    return config.backbone.name, config.backbone.pretrained, config.backbone.precision


def build_run(config: Config, objective: str, *, val_per_class: int = 20, fold: int = 0) -> Run:
    """Load (once a process) the data set and the backbone, and compose the method.

    Raises:
        UserError: whatever is wrong with the configuration, the data or the weights.
    """
    method = build(config)
    code = identities([config.data.reference] if config.data.reference else [])
    dataset = _dataset(config.data.name, config.data.root, json.dumps(config.data.args), str(code))
    spec = _spec(config)
    backbone = _backbone(*spec)
    if config.own or backbone.clip.closed:
        probe(config, backbone.clip)
    if not enter_images(method.prompts, backbone.clip):
        backbone = _for_text_prompts(*spec)
    clip = backbone.clip
    if config.train.cuda_graph and backbone.clip.device.type != "cuda":
        raise UserError("train.cuda_graph needs a GPU, and none can be seen here")
    split = problem(
        objective,
        dataset,
        shots=config.data.shots,
        seed=config.train.seed,
        val_per_class=val_per_class,
        fold=fold,
    )

    model_of = partial(_model, config, method, backbone, dataset)
    plans = {name: eval_plan(items, size=clip.image_size) for name, items in split.evaluations.items()}
    evaluations = {
        name: Evaluation(each, model_of(classnames(each.items)), _seen(config, clip, each, dataset))
        for name, each in plans.items()
    }
    templates = method.regularizer.templates or (dataset.wording(method.regularizer.wording),)
    frozen = _teacher(*spec, split.classnames, templates) if method.regularizer.uses_text else None
    plan = _train_plan(config, split, backbone)
    return Run(
        config,
        objective,
        dataset,
        backbone,
        method,
        model_of(split.classnames, frozen),
        plan,
        evaluations,
        split.every_epoch,
        _seen(config, clip, plan, dataset),
        _foreign(config, method, backbone, dataset, split, evaluations) if split.predicts_new else None,
    )


def _model(
    config: Config,
    method: Method,
    backbone: Backbone,
    dataset: Dataset,
    names: Sequence[str],
    frozen: Tensor | None = None,
) -> Model:
    """The method's prompts with these class names, worded as the data set's."""
    texts = prompt_texts(names, method.prompts, init=config.prompts.init, template=dataset.template)
    return build_model(backbone.clip, method.prompts, backbone.tokenize(texts), frozen)


def _foreign(
    config: Config,
    method: Method,
    backbone: Backbone,
    dataset: Dataset,
    split: Problem,
    evaluations: Mapping[str, Evaluation],
) -> Foreign:
    spec = _spec(config)
    names = foreign_to(dataset, backbone.vocabulary)
    return Foreign(
        _model(config, method, backbone, dataset, names),
        _teacher(*spec, names, (TEMPLATE,)),
        _teacher(*spec, split.classnames, (TEMPLATE,)),
        evaluations["base"].seen,
    )


def _train_plan(config: Config, split: Problem, backbone: Backbone) -> Plan:
    augment = config.augment
    transform = TransformSpec(
        size=backbone.clip.image_size,
        crop_scale=(augment.crop_scale_min, augment.crop_scale_max),
        flip=augment.flip,
        jitter=augment.jitter,
        train=True,
    )
    train = config.train
    return Plan(split.train, transform, batch_size=train.batch_size, epochs=train.epochs, seed=train.seed)


def initial_state(run: Run) -> State:
    """Leaves drawn from the run's seed."""
    generator = torch.Generator().manual_seed(run.config.train.seed)
    init_tokens = run.backbone.words(run.config.prompts.init)
    prompts = run.method.prompts.init(run.backbone.clip, init_tokens, generator)
    tokens = run.method.prompts.tokens(prompts)
    return State.start(prompts, run.method.modulator.init(tokens, generator))
