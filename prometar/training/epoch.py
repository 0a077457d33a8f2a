"""An epoch of a run, or of several together: steps on streamed batches, read once at the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prometar.config.settings import Config
from prometar.data.streaming.stream import Batch
from prometar.device import fetch, send
from prometar.errors import WorkError
from prometar.methods.meta_tasks import Augmentation, one_class_out, task_rng
from prometar.step.cuda_graph import Graph
from prometar.step.iteration import Rates, step
from prometar.step.meta_batch import Batch as Embedded
from prometar.step.meta_batch import Task, embed_batch, take_query, take_support
from prometar.step.recorded import step_recorded
from prometar.step.sgd import warmup_cosine
from prometar.step.state import State
from prometar.step.task_selection import Selection, select
from prometar.step.vmapped import numbers_of, stack, step_all, unstack
from prometar.training.run import Run

Watch = Callable[[Run, State, Batch], None]
"""Sees a run's state and the batch that it is about to be trained on, and changes neither."""


class Diverged(WorkError):
    """The loss is not a finite number any more; the message names the step."""


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
    now, scalars = rates(run.config, first // per_epoch), list[dict[str, Tensor]]()
    while not scalars or state.step % per_epoch:
        batch = next(batches)
        if watch is not None:
            watch(run, state, batch)
        state, each = train_step(run, state, batch, now, graph)
        scalars.append(each)
    losses, (finite,) = _read(scalars, [state])
    return close_epoch(run, state, losses, first, finite=finite)


def train_together(
    runs: Sequence[Run],
    states: Sequence[State],
    batches: Iterator[Batch],
    graph: Graph,
) -> tuple[list[State], dict[str, Tensor], list[bool]]:
    """The states after the rest of the epoch, each scalar by step and run, and which prompts are finite.

    The runs share backbone, images and their order, and a method's structure.
    """
    first, per_epoch = runs[0], runs[0].plan.steps_per_epoch
    now = [rates(run.config, states[0].step // per_epoch) for run in runs]
    methods = [run.method for run in runs]
    numbers = numbers_of(first.model, methods, now)
    together, scalars = stack(states), list[dict[str, Tensor]]()
    while not scalars or together.step % per_epoch:
        prepared = prepare(runs, next(batches), together.step, by_labels=True)
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
    # Looked at once an epoch: asking after every step would make a GPU wait for the answer.
    losses = log["direct_ce"]
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise Diverged(f"the loss is {float(losses[bad[0, 0]])} at step {first + int(bad[0, 0]) + 1}")
    if not finite:
        raise Diverged(f"a prompt is not finite after step {state.step}")
    epoch = (state.step - 1) // run.plan.steps_per_epoch
    average = run.method.averager(state.average, state.prompts, epoch, run.config.train.epochs)
    # A user's own may return the prompts' tensors, and no checkpoint takes those twice.
    if "averager" in run.config.own:
        average = {name: leaf.clone() for name, leaf in average.items()}
    means = {name: float(values.mean()) for name, values in log.items()}
    return replace(state, average=average), means


def train_step(
    run: Run, state: State, batch: Batch, now: Rates, graph: Graph | None = None
) -> tuple[State, dict[str, Tensor]]:
    """One step on a streamed batch; the meta task is drawn from (seed, step)."""
    (prepared,) = prepare([run], batch, state.step, by_labels=graph is not None)
    if graph is None:
        return step(run.model, run.method, state, prepared, now)
    return step_recorded(graph, run.model, run.method, state, prepared, now)


def prepare(runs: Sequence[Run], streamed: Batch, step: int, *, by_labels: bool) -> list[Embedded]:
    """Each run's batch: the images, embedded once for all, and its own task on them.

    The runs share backbone, images and their order; the tasks are drawn from (seed, step), of which each has
    the same support. `by_labels`: as of `select`.
    """
    assert streamed.step == step, f"the stream is at step {streamed.step}, the state at {step}"
    first, clip = runs[0], runs[0].backbone.clip
    labels = torch.from_numpy(streamed.labels)
    selections: dict[Augmentation, Selection] = {}
    for augmentation in dict.fromkeys(
        run.method.augmentation for run in runs if run.method.inner is not None
    ):
        draw = one_class_out(labels, augmentation, task_rng(first.config.train.seed, step))
        if draw is not None:
            chosen = select(draw, augmentation, dtype=clip.working_dtype, by_labels=by_labels)
            selections[augmentation] = chosen
    images, labels, selections = send((torch.from_numpy(streamed.images), labels, selections), clip.device)
    images = first.backbone.normalise(images)
    teach = first.method.uses_images
    whole = embed_batch(clip, images, labels, seen=first.seen, step=step, teach=teach)
    tasks: dict[Augmentation, Task] = {}
    for augmentation, chosen in selections.items():
        support = next((task.support for task in tasks.values()), None)  # one object: it is not stacked
        support = support or take_support(whole, chosen)
        method = replace(first.method, augmentation=augmentation)
        tasks[augmentation] = Task(support, take_query(clip, method, images, whole, chosen))
    return [Embedded(whole, tasks.get(run.method.augmentation)) for run in runs]
