"""Training of one epoch on streamed batches, with one device synchronization at the end."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from prometar.config.settings import Config
from prometar.data.streaming.stream import Batch
from prometar.device import send, to_cpu
from prometar.errors import WorkError
from prometar.step.iteration import step
from prometar.step.meta_batch import embed_batch, leave_one_class_out, meta_task_rng
from prometar.step.prompted_clip import PromptedClip
from prometar.step.state import State
from prometar.step.updates import Rates, warmup_cosine
from prometar.training.run import Run

StepCallback = Callable[[Run, State, Batch], None]
"""Function that is called before each step, with the run, the state and the next batch."""


def rates_of(config: Config, epoch: int) -> Rates:
    """Return the learning rates of an epoch, counted from 0. In the warm-up, all leaves have the same."""
    optim = config.optim
    schedule = {"epochs": config.train.epochs, "warmup_epochs": optim.warmup_epochs}
    gate_lr = optim.gate_warmup_lr  # constant, because the published code never steps the gate's scheduler
    if optim.gate_schedule == "configured":
        gate_lr = warmup_cosine(epoch, lr=optim.gate_lr, warmup_lr=optim.gate_warmup_lr, **schedule)
    lr = warmup_cosine(epoch, lr=optim.lr, warmup_lr=optim.warmup_lr, **schedule)
    factors = {} if epoch < optim.warmup_epochs else optim.lr_factors
    return Rates(lr, gate_lr, factors)


def train_epoch(
    run: Run, state: State, batches: Iterator[Batch], before_step: StepCallback | None = None
) -> tuple[State, dict[str, float]]:
    """Train from `state.step` to the end of its epoch. Return the state and the mean losses of these steps.

    Raises:
        WorkError: the cross-entropy on the whole batch (`direct_ce`) or a prompt is not finite.
    """
    per_epoch = run.order.steps_per_epoch
    start = state.step
    epoch = start // per_epoch
    step_losses: list[dict[str, Tensor]] = []
    rates = rates_of(run.config, epoch)
    while not step_losses or state.step % per_epoch:
        batch = next(batches)
        if before_step is not None:
            before_step(run, state, batch)
        state, losses = train_step(run, state, batch, rates)
        step_losses.append(losses)
    names = dict.fromkeys(name for losses in step_losses for name in losses)
    stacked = {name: torch.stack([each[name] for each in step_losses if name in each]) for name in names}
    # This is the only synchronization with the device in an epoch.
    by_name, finite = to_cpu((stacked, [leaf.isfinite().all() for leaf in state.leaves.values()]))
    loss = by_name["direct_ce"]
    fix = "Lower optim.lr or set backbone.precision=fp32."
    if len(bad := (~loss.isfinite()).nonzero()):
        raise WorkError(f"The loss is {float(loss[bad[0, 0]])} at step {start + int(bad[0, 0]) + 1}. {fix}")
    if not all(map(bool, finite)):
        raise WorkError(f"The prompts are not finite after step {state.step}. {fix}")
    average = run.method.averager(state.average, state.leaves, epoch, run.config.train.epochs)
    # A custom averager may return the prompts themselves, but safetensors rejects tensors that share memory.
    if "averager" in run.config.custom_components:
        average = {name: leaf.clone() for name, leaf in average.items()}
    return replace(state, average=average), {name: float(values.mean()) for name, values in by_name.items()}


def train_step(run: Run, state: State, batch: Batch, rates: Rates) -> tuple[State, dict[str, Tensor]]:
    """Train one step. If the method has an inner loop, also select support and query of a meta task."""
    assert batch.step == state.step, f"the stream is at step {batch.step}, the state at {state.step}"
    clip = run.backbone.clip
    method = run.method
    selection = None
    labels = torch.from_numpy(batch.labels)
    if method.inner is not None:
        rng = meta_task_rng(run.config.train.seed, batch.step)
        selection = leave_one_class_out(labels, method.augmentation, rng, dtype=clip.working_dtype)
    images, labels, selection = send((torch.from_numpy(batch.images), labels, selection), clip.device)
    first_view, second_view = normalized_views(run, images)
    with run.backbone.matmul_precision():
        whole, meta_task = embed_batch(
            clip,
            method,
            first_view,
            labels,
            selection,
            second_view_B3HW=second_view,
            cache=run.cache,
            step=batch.step,
        )
        return step(model_of_step(run, batch.step), method, state, whole, meta_task, rates)


def normalized_views(run: Run, images_BHWV: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the normalized first and second view (B, 3, H, W) of a batch. None if there is one view."""
    first_view = run.backbone.normalize(images_BHWV[..., :3])
    if images_BHWV.shape[-1] == 3:
        return first_view, None
    return first_view, run.backbone.normalize(images_BHWV[..., 3:])


def model_of_step(run: Run, step: int) -> PromptedClip:
    """Return the run's model, with the frozen features of the text that a step draws, if it draws one."""
    frozen_text = run.model.frozen_text_CE
    if frozen_text is None or not run.method.regularizer.draw:
        return run.model
    drawn = drawn_text(run.config.train.seed, step, len(frozen_text))
    return replace(run.model, frozen_text_CE=frozen_text[drawn])


def drawn_text(seed: int, step: int, num_texts: int) -> int:
    """Return the number of the text with which a step compares (`regularizer.draw`), so runs can resume."""
    # The constant distinguishes this generator from those of image orders and meta tasks.
    rng = np.random.Generator(np.random.PCG64([seed, step, 0xD4A3]))
    return int(rng.integers(num_texts))
