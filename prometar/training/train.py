"""A run: build it from a configuration, train it epoch by epoch, go on from its checkpoint."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

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
from prometar.data.splits.objective import Problem, figure_of, own_objective, problem
from prometar.data.streaming.plan import Plan, eval_plan
from prometar.data.streaming.stream import Batch, without_pixels
from prometar.data.streaming.transforms import TransformSpec
from prometar.device import default_device, fetch, send
from prometar.errors import UserError, WorkError
from prometar.methods.composition import Method, build
from prometar.methods.meta_tasks import Augmentation, one_class_out, task_rng
from prometar.methods.probing import probe
from prometar.metrics import harmonic_mean
from prometar.parts.identity import identities
from prometar.step.cuda_graph import Graph
from prometar.step.iteration import Rates, step
from prometar.step.meta_batch import Batch as Embedded
from prometar.step.meta_batch import embed_batch, select_task, take
from prometar.step.prompted_clip import Model, build_model, enter_images, prompt_texts
from prometar.step.sgd import warmup_cosine
from prometar.step.state import State
from prometar.step.task_selection import Selection
from prometar.step.vmapped import numbers_of, stack, step_all, unstack
from prometar.training.checkpoint import damaged, load_checkpoint, require_state, save_checkpoint
from prometar.training.drift import TEMPLATE, Foreign, foreign_to
from prometar.training.scoring import accuracy

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Stream = Callable[[Plan, int], Iterator[Batch]]
"""Runs a plan from a step on: `data.stream.stream` on Ray Data, or `stream_local` in this process."""


class Watch(Protocol):
    """Sees a run's state and the batch that it is about to be trained on, and changes neither."""

    def __call__(self, run: Run, state: State, batch: Batch, /) -> None: ...


class Diverged(WorkError):
    """The loss is not a finite number any more; the message names the step."""


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


@lru_cache(maxsize=4 * _MOST_RUNS)  # what a run is trained on, and what it is scored on
def _features(spec: tuple[str, str | None, str], embedded: bool, plan: str, source: str) -> dict[int, Tensor]:
    return {}


_MOST_FROZEN_BYTES = 128 * 1024**2  # of features: 65,000 images of ViT-B/16 in float32


def _seen(config: Config, clip: Clip, plan: Plan, dataset: Dataset) -> Seen:
    if plan.num_rows * clip.embed_dim * 4 > _MOST_FROZEN_BYTES:
        return Seen()
    return Seen(_features(_spec(config), clip.embeds_features, plan.digest, repr(dataset.source)))


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


def rates(config: Config, epoch: int) -> Rates:
    """Both optimizers' hyperparameters in a 0-based epoch."""
    o = config.optim
    schedule = {"epochs": config.train.epochs, "warmup_epochs": o.warmup_epochs}
    gate_lr = o.gate_warmup_lr  # as released: the gate's schedule is never stepped
    if o.gate_schedule == "configured":
        gate_lr = warmup_cosine(epoch, lr=o.gate_lr, warmup_lr=o.gate_warmup_lr, **schedule)
    prompt_lr = warmup_cosine(epoch, lr=o.lr, warmup_lr=o.warmup_lr, **schedule)
    return Rates(prompt_lr, gate_lr, o.momentum, o.weight_decay)


def train_epoch(
    run: Run,
    state: State,
    batches: Iterator[Batch],
    watch: Watch | None = None,
    graph: Graph | None = None,
) -> tuple[State, dict[str, float]]:
    """The state after the rest of the current epoch, and the mean of each scalar over its steps.

    `graph`: where the step is recorded, if it is.

    Raises:
        Diverged: a loss that is not finite; names the first such step.
    """
    per_epoch, first = run.plan.steps_per_epoch, state.step
    if graph is not None:
        ended, log, (finite,) = train_together([run], [state], batches, graph, watch)
        return close_epoch(
            run, ended[0], {n: values[:, 0] for n, values in log.items()}, first, finite=finite
        )
    now, scalars = rates(run.config, first // per_epoch), list[dict[str, Tensor]]()
    while not scalars or state.step % per_epoch:
        batch = next(batches)
        if watch is not None:
            watch(run, state, batch)
        state, each = train_step(run, state, batch, now)
        scalars.append(each)
    losses, (finite,) = _read(scalars, [state])
    return close_epoch(run, state, losses, first, finite=finite)


def train_together(
    runs: Sequence[Run],
    states: Sequence[State],
    batches: Iterator[Batch],
    graph: Graph,
    watch: Watch | None = None,
) -> tuple[list[State], dict[str, Tensor], list[bool]]:
    """The states after the rest of the epoch, each scalar by step and run, and which prompts are finite.

    The runs share backbone, images and their order, and a method's structure. `watch`: of the first.
    """
    first, per_epoch = runs[0], runs[0].plan.steps_per_epoch
    now = [rates(run.config, states[0].step // per_epoch) for run in runs]
    methods = [run.method for run in runs]
    numbers = numbers_of(first.model, methods, now)
    together, scalars = stack(states), list[dict[str, Tensor]]()
    while not scalars or together.step % per_epoch:
        batch = next(batches)
        if watch is not None:
            watch(first, unstack(together)[0], batch)
        prepared = prepare(runs, batch, together.step, static=True)
        together, each = step_all(first.model, methods, together, prepared, now, graph=graph, numbers=numbers)
        scalars.append(each)
    ended = unstack(together)
    return ended, *_read(scalars, ended)


def _read(
    scalars: Sequence[Mapping[str, Tensor]], states: Sequence[State]
) -> tuple[dict[str, Tensor], list[bool]]:
    """An epoch's scalars on the host, by step, and whether each state's prompts are finite.

    The one wait for the device in an epoch's training.
    """
    names = dict.fromkeys(name for each in scalars for name in each)
    whole = {name: torch.stack([each[name] for each in scalars if name in each]) for name in names}
    finite = [[leaf.isfinite().all() for leaf in state.prompts.values()] for state in states]
    read, flags = fetch((whole, finite))
    return read, [all(map(bool, each)) for each in flags]


def close_epoch(
    run: Run, state: State, log: Mapping[str, Tensor], first: int, *, finite: bool
) -> tuple[State, dict[str, float]]:
    """The state with the epoch's prompts averaged in, and each scalar's mean over the steps since `first`.

    `log`: each scalar by step. `finite`: whether its prompts are.

    Raises:
        Diverged: as `train_epoch`.
    """
    _require_finite(log, state, first, finite=finite)
    epochs = run.config.train.epochs
    average = run.method.averager(
        state.average, state.prompts, (state.step - 1) // run.plan.steps_per_epoch, epochs
    )
    means = {name: float(values.nanmean()) for name, values in log.items() if not values.isnan().all()}
    return replace(state, average=average), means


def train_step(run: Run, state: State, batch: Batch, now: Rates) -> tuple[State, dict[str, Tensor]]:
    """One step on a streamed batch; the meta task is drawn from (seed, step)."""
    (prepared,) = prepare([run], batch, state.step, static=False)
    return step(run.model, run.method, state, prepared, now)


def prepare(runs: Sequence[Run], streamed: Batch, step: int, *, static: bool) -> list[Embedded]:
    """Each run's batch: the images, embedded once for all, and its own task on them.

    The runs share backbone, images and their order; the tasks are drawn from (seed, step).
    """
    assert streamed.step == step, f"the stream is at step {streamed.step}, the state at {step}"
    first, clip = runs[0], runs[0].backbone.clip
    labels = torch.from_numpy(streamed.labels)
    selections: dict[Augmentation, Selection | None] = {}
    for run in runs:
        augmentation = run.method.augmentation
        if augmentation not in selections:
            rng = task_rng(run.config.train.seed, step)
            draw = None if run.method.inner is None else one_class_out(labels, augmentation, rng)
            selections[augmentation] = select_task(clip, run.method, len(labels), draw, static=static)
    images, labels, chosen = send(
        (torch.from_numpy(streamed.images), labels, list(selections.values())), clip.device
    )
    images = first.backbone.normalise(images)
    teach = first.method.uses_images
    whole = embed_batch(clip, images, labels, seen=first.seen, step=step, teach=teach)
    # One object for all that draw alike: nothing of it is stacked.
    tasks = {
        augmentation: selection
        and take(clip, replace(first.method, augmentation=augmentation), images, whole, selection)
        for augmentation, selection in zip(selections, chosen, strict=True)
    }
    return [Embedded(whole, tasks[run.method.augmentation]) for run in runs]


def _require_finite(log: Mapping[str, Tensor], state: State, first: int, *, finite: bool) -> None:
    # Looked at once an epoch: asking after every step would make a GPU wait for the answer.
    losses = log["direct_ce"]
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise Diverged(f"the loss is {float(losses[bad[0, 0]])} at step {first + int(bad[0, 0]) + 1}")
    if not finite:
        raise Diverged(f"a prompt is not finite after step {state.step}")


_KEPT: dict[tuple[str, str], Sequence[Batch]] = {}
_MOST_KEPT_BYTES = 2 * 1024**3  # of all evaluation sets together, and a quarter of it of each


class Session:
    """One run being trained, epoch by epoch, with its checkpoint in `folder`.

    It goes on from the checkpoint it finds there, exactly as if it had never stopped. `history` holds one
    record an epoch: epoch (1-based), seconds (so far), the mean of each loss, and after a scored epoch the
    accuracies in percent and `objective`.

    Raises:
        WorkError: the checkpoint is damaged, or belongs to another run.
    """

    def __init__(self, run: Run, folder: Path, stream: Stream, watch: Watch | None = None) -> None:
        self.run = run
        self._watch = watch
        self._graph = Graph() if run.config.train.cuda_graph else None
        self.state = initial_state(run)
        self.history: list[dict[str, Any]] = []
        self._path = folder / "checkpoint.safetensors"
        self._stream = stream
        self._batches: Iterator[Batch] | None = None
        found = load_checkpoint(self._path)
        if found is not None:
            if found.run != run.digest:
                raise WorkError(f"{self._path} belongs to another configuration: use another folder")
            require_state(self._path, found.state, self.state)
            if len(found.history) > run.config.train.epochs:
                raise damaged(self._path, f"it has done {len(found.history)} epochs")
            self.state, self.history = found.state.to(run.backbone.clip.device), list(found.history)

    @property
    def finished(self) -> bool:
        return len(self.history) == self.run.config.train.epochs

    def epoch(self) -> dict[str, Any]:
        """Train one epoch, score it where the objective says so, write the checkpoint, return the record.

        Raises:
            Diverged, WorkError (a broken image, a full disk).
        """
        started = time.perf_counter()
        state, losses = self.state, dict[str, float]()
        if state.prompts:
            state, losses = train_epoch(self.run, state, self.batches(), self._watch, self._graph)
        return self.conclude(state, losses, started)

    def batches(self) -> Iterator[Batch]:
        """The stream, from the state's step on."""
        if self._batches is None:
            run, start = self.run, self.state.step
            looked_at = self._watch is not None or run.method.augmentation.of_images
            known = not looked_at and run.seen.suffices(run.backbone.clip, range(start, run.plan.num_steps))
            self._batches = (without_pixels if known else self._stream)(run.plan, start)
        return self._batches

    def conclude(self, state: State, losses: Mapping[str, float], started: float) -> dict[str, Any]:
        """End an epoch that was trained since `started` (`time.perf_counter`); otherwise as `epoch`."""
        self.state = state
        record: dict[str, Any] = {"epoch": len(self.history) + 1, **losses}
        if self.run.every_epoch or record["epoch"] == self.run.config.train.epochs:
            record |= self.score()
        before = self.history[-1]["seconds"] if self.history else 0.0
        record["seconds"] = round(before + time.perf_counter() - started, 3)
        self.history.append(record)
        save_checkpoint(self._path, self.state, self.history, run=self.run.digest)
        return record

    def score(self) -> dict[str, float]:
        """Accuracies in percent by set, and `objective`, one number of them: mostly their harmonic mean."""
        foreign, leaves, sets = self.run.foreign, self.state.tested, self.run.evaluations
        if foreign is not None:
            base = sets["base"]
            figures = foreign.score(self.run.backbone, base.model, leaves, self._images(base))
            scored = {"base": figures["base"], "new": figures["new"]}
            return {**figures, "objective": harmonic_mean(scored)}
        accuracies = {
            name: accuracy(self.run.backbone, e.model, leaves, self._images(e), e.seen)
            for name, e in sets.items()
        }
        return {**accuracies, "objective": figure_of(self.run.objective, accuracies)}

    def close(self) -> None:
        """End the stream."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
        self._batches = None

    def _images(self, scored: Evaluation) -> Iterator[Batch]:
        """A set's batches; images of small sets are kept in the process, since centre crops never change."""
        plan, seen, clip = scored.plan, scored.seen, self.run.backbone.clip
        if seen.suffices(clip, range(plan.num_steps)):
            yield from without_pixels(plan)
            return
        key = (plan.digest, repr(self.run.dataset.source))
        if key in _KEPT:
            yield from _KEPT[key]
            return
        num_bytes = _image_bytes(len(plan.items), plan.transform.size)
        keep = _is_kept(num_bytes) and not seen.suffices(clip)
        batches: list[Batch] = []
        for batch in self._stream(plan, 0):
            if keep:
                batches.append(batch)
            yield batch
        if keep:
            while _held_bytes() + num_bytes > _MOST_KEPT_BYTES:
                _KEPT.pop(next(iter(_KEPT)))
            _KEPT[key] = batches


def _image_bytes(count: int, size: int) -> int:
    return count * 3 * size**2


def kept_bytes(splits: Iterable[Problem], size: int) -> int:
    """Bytes of the images that a process keeps when runs are scored on all of these; `size`: of one."""
    sets = {items for split in splits for items in split.evaluations.values()}
    each = (_image_bytes(len(items), size) for items in sets)
    return min(_MOST_KEPT_BYTES, sum(filter(_is_kept, each)))


def _is_kept(num_bytes: int) -> bool:
    return 4 * num_bytes <= _MOST_KEPT_BYTES


def _held_bytes() -> int:
    return sum(batch.images.nbytes for batches in _KEPT.values() for batch in batches)
