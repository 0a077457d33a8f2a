"""An epoch of a run: steps on streamed batches, with one synchronization at the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prometar.config.settings import Config
from prometar.data.streaming.stream import Batch
from prometar.device import fetch, send
from prometar.errors import WorkError
from prometar.step.iteration import Rates, step
from prometar.step.meta_batch import Batch as Embedded
from prometar.step.meta_batch import Task, embed_batch, take_query, take_support
from prometar.step.sgd import warmup_cosine
from prometar.step.state import State
from prometar.step.task_selection import one_class_out, select, task_rng
from prometar.training.run import Run

Watch = Callable[[Run, State, Batch], None]
"""Receives a run's state and the next batch before each step."""


class Diverged(WorkError):
    """The loss is NaN or infinite. The message names the step."""


def rates(config: Config, epoch: int) -> Rates:
    """Return both optimizers' hyperparameters in a 0-based epoch."""
    o = config.optim
    schedule = {"epochs": config.train.epochs, "warmup_epochs": o.warmup_epochs}
    gate_lr = o.gate_warmup_lr  # as released: the gate's schedule is never stepped
    if o.gate_schedule == "configured":
        gate_lr = warmup_cosine(epoch, lr=o.gate_lr, warmup_lr=o.gate_warmup_lr, **schedule)
    prompt_lr = warmup_cosine(epoch, lr=o.lr, warmup_lr=o.warmup_lr, **schedule)
    return Rates(prompt_lr, gate_lr, o.momentum, o.weight_decay)


def train_epoch(
    run: Run, state: State, batches: Iterator[Batch], watch: Watch | None = None
) -> tuple[State, dict[str, float]]:
    """Return the state after the rest of the epoch, and the mean of each scalar over its steps.

    Raises:
        Diverged: a loss is not finite.
    """
    per_epoch, first = run.plan.steps_per_epoch, state.step
    now, scalars = rates(run.config, first // per_epoch), list[dict[str, Tensor]]()
    while not scalars or state.step % per_epoch:
        batch = next(batches)
        if watch is not None:
            watch(run, state, batch)
        state, each = train_step(run, state, batch, now)
        scalars.append(each)
    return _close_epoch(run, state, *_read(scalars, state), first)


def _read(scalars: Sequence[Mapping[str, Tensor]], state: State) -> tuple[dict[str, Tensor], bool]:
    """Return an epoch's scalars by step on the host, and whether the prompts are finite.

    This is the only synchronization with the device during an epoch.
    """
    names = dict.fromkeys(name for each in scalars for name in each)
    whole = {name: torch.stack([each[name] for each in scalars if name in each]) for name in names}
    finite = [leaf.isfinite().all() for leaf in state.prompts.values()]
    read, flags = fetch((whole, finite))
    return read, all(map(bool, flags))


def _close_epoch(
    run: Run, state: State, log: Mapping[str, Tensor], finite: bool, first: int
) -> tuple[State, dict[str, float]]:
    """Return the state with the epoch's prompts averaged in, and each scalar's mean since step `first`."""
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


def train_step(run: Run, state: State, batch: Batch, now: Rates) -> tuple[State, dict[str, Tensor]]:
    """Train one step on a streamed batch; the meta task is drawn from (seed, step)."""
    return step(run.model, run.method, state, prepare(run, batch, state.step), now)


def prepare(run: Run, streamed: Batch, step: int) -> Embedded:
    """Return the embedded images of a streamed batch, and the meta task on them."""
    assert streamed.step == step, f"the stream is at step {streamed.step}, the state at {step}"
    clip, method = run.backbone.clip, run.method
    labels, selection = torch.from_numpy(streamed.labels), None
    if method.inner is not None:
        draw = one_class_out(labels, method.augmentation, task_rng(run.config.train.seed, step))
        if draw is not None:
            selection = select(draw, method.augmentation, dtype=clip.working_dtype)
    images, labels, selection = send((torch.from_numpy(streamed.images), labels, selection), clip.device)
    images = run.backbone.normalise(images)
    whole = embed_batch(clip, images, labels, seen=run.seen, step=step, teach=method.uses_images)
    if selection is None:
        return Embedded(whole, None)
    query = take_query(clip, method, images, whole, selection)
    return Embedded(whole, Task(take_support(whole, selection), query))
