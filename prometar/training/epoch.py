"""An epoch of a run: steps on streamed batches, with one synchronization at the end."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from prometar.config.settings import Config
from prometar.data.streaming.stream import Batch
from prometar.device import fetch, send
from prometar.errors import WorkError
from prometar.step.iteration import Rates, step
from prometar.step.meta_batch import make_batch, one_class_out, task_rng
from prometar.step.sgd import warmup_cosine
from prometar.step.state import State
from prometar.training.run import Run

Watch = Callable[[Run, State, Batch], None]
"""Receives a run's state and the next batch before each step."""


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
        WorkError: a loss is not finite. The message names the step.
    """
    per_epoch, first = run.plan.steps_per_epoch, state.step
    epoch, scalars = first // per_epoch, list[dict[str, Tensor]]()
    now = rates(run.config, epoch)
    while not scalars or state.step % per_epoch:
        batch = next(batches)
        if watch is not None:
            watch(run, state, batch)
        state, each = train_step(run, state, batch, now)
        scalars.append(each)
    names = dict.fromkeys(name for each in scalars for name in each)
    stacked = {name: torch.stack([each[name] for each in scalars if name in each]) for name in names}
    # The only synchronization with the device during an epoch.
    log, finite = fetch((stacked, [leaf.isfinite().all() for leaf in state.prompts.values()]))
    losses = log["direct_ce"]
    if len(bad := (~losses.isfinite()).nonzero()):
        raise WorkError(f"the loss is {float(losses[bad[0, 0]])} at step {first + int(bad[0, 0]) + 1}")
    if not all(map(bool, finite)):
        raise WorkError(f"a prompt is not finite after step {state.step}")
    average = run.method.averager(state.average, state.prompts, epoch, run.config.train.epochs)
    # A custom one may return the prompts' tensors, and a checkpoint cannot contain those twice.
    if "averager" in run.config.own:
        average = {name: leaf.clone() for name, leaf in average.items()}
    return replace(state, average=average), {name: float(values.mean()) for name, values in log.items()}


def train_step(run: Run, state: State, batch: Batch, now: Rates) -> tuple[State, dict[str, Tensor]]:
    """Train one step on a streamed batch; the meta task is drawn from (seed, step)."""
    assert batch.step == state.step, f"the stream is at step {batch.step}, the state at {state.step}"
    clip, method, selection = run.backbone.clip, run.method, None
    labels = torch.from_numpy(batch.labels)
    if method.inner is not None:
        rng = task_rng(run.config.train.seed, batch.step)
        selection = one_class_out(labels, method.augmentation, rng, dtype=clip.working_dtype)
    images, labels, selection = send((torch.from_numpy(batch.images), labels, selection), clip.device)
    images = run.backbone.normalize(images)
    embedded = make_batch(clip, method, images, labels, selection, seen=run.seen, step=batch.step)
    return step(run.model, method, state, *embedded, now)
