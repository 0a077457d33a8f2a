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
    """Return the learning rates of an epoch, counted from 0.

    In the warm-up, the lr factors of the sections (`optim.SECTION_lr_factor`) are not applied.
    """
    optim = config.optim
    schedule = {"epochs": config.train.epochs, "warmup_epochs": optim.warmup_epochs}
    lr = warmup_cosine(epoch, lr=optim.lr, warmup_lr=optim.warmup_lr, **schedule)
    if optim.gate_schedule == "configured":
        gate_lr = warmup_cosine(epoch, lr=optim.gate_lr, warmup_lr=optim.gate_warmup_lr, **schedule)
    else:
        # The published code never steps the scheduler of the gate, so the lr stays that of the warm-up.
        gate_lr = optim.gate_warmup_lr
    factors = {} if epoch < optim.warmup_epochs else optim.lr_factors
    return Rates(lr, gate_lr, factors)


def train_epoch(
    run: Run, state: State, batches: Iterator[Batch], before_step: StepCallback | None = None
) -> tuple[State, dict[str, float]]:
    """Train from `state.step` to the end of its epoch. Return the state and the mean losses of these steps.

    Args:
        run: Fixed inputs of the run.
        state: State before the first of these steps, which may be within an epoch.
        batches: The batches of the run's image order, from `state.step` on.
        before_step: Called before each step. Default: nothing is called.

    Raises:
        WorkError: the cross-entropy on a whole batch (`direct_ce`) or a learned tensor is not finite.
            `batches` may also raise errors, such as a WorkError for a corrupt image.
    """
    steps_per_epoch = run.order.steps_per_epoch
    start = state.step
    epoch = start // steps_per_epoch
    end = (epoch + 1) * steps_per_epoch
    rates = rates_of(run.config, epoch)
    losses_of_steps: dict[str, list[Tensor]] = {}
    while state.step < end:
        batch = next(batches)
        if before_step is not None:
            before_step(run, state, batch)
        state, losses = train_step(run, state, batch, rates)
        for name, loss in losses.items():
            losses_of_steps.setdefault(name, []).append(loss)

    stacked_losses = {name: torch.stack(values) for name, values in losses_of_steps.items()}
    finite_leaves = torch.stack([leaf.isfinite().all() for leaf in state.leaves.values()])
    # This is the only synchronization with the device in an epoch.
    stacked_losses, finite_leaves = to_cpu((stacked_losses, finite_leaves))
    direct_ce = stacked_losses["direct_ce"]
    fix = "Lower optim.lr or set backbone.precision=fp32."
    if not direct_ce.isfinite().all():
        first = int((~direct_ce.isfinite()).nonzero()[0, 0])
        raise WorkError(f"The loss is {float(direct_ce[first])} at step {start + first + 1}. {fix}")
    if not finite_leaves.all():
        raise WorkError(f"The learned tensors are not finite after step {state.step}. {fix}")

    average = run.method.averager(state.average, state.leaves, epoch, run.config.train.epochs)
    # A custom averager may return the prompts themselves, but safetensors rejects tensors that share memory.
    if "averager" in run.config.custom_components:
        average = {name: leaf.clone() for name, leaf in average.items()}
    mean_losses = {name: float(values.mean()) for name, values in stacked_losses.items()}
    return replace(state, average=average), mean_losses


def train_step(run: Run, state: State, batch: Batch, rates: Rates) -> tuple[State, dict[str, Tensor]]:
    """Train one step. Return the next state and the losses by name.

    If the method has an inner loop, the step also samples a meta task, which splits the batch into support
    and query.
    """
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
    """Return the normalized first and second view of a batch (B, 3, H, W). Without a second view, it is None.

    Args:
        run: Run whose backbone normalizes the images.
        images_BHWV: uint8 images. The last axis has the three channels of the first view, then the three
            channels of the second view, if there is one.
    """
    first_view = run.backbone.normalize(images_BHWV[..., :3])
    if images_BHWV.shape[-1] == 3:
        return first_view, None
    return first_view, run.backbone.normalize(images_BHWV[..., 3:])


def model_of_step(run: Run, step: int) -> PromptedClip:
    """Return the run's model for a step, in which the frozen text features may depend on the step.

    If the regularizer draws one of N texts for each step (`regularizer.draw`), the returned model has the
    features of the drawn text.
    """
    texts_NCE = run.model.frozen_text_CE
    if texts_NCE is None or not run.method.regularizer.draw:  # without a draw, the features are (C, E)
        return run.model
    index = drawn_text(run.config.train.seed, step, len(texts_NCE))
    return replace(run.model, frozen_text_CE=texts_NCE[index])


def drawn_text(seed: int, step: int, num_texts: int) -> int:
    """Return the index of the text that a step draws (`regularizer.draw`).

    It depends only on `seed` and `step`, so a resumed run draws the same texts.
    """
    # The constant distinguishes this generator from those of image orders and meta tasks.
    rng = np.random.Generator(np.random.PCG64([seed, step, 0xD4A3]))
    return int(rng.integers(num_texts))
