"""Stream of an image order's batches from Ray Data, which processes all epochs in one execution.

A trial's placement group has two bundles. The training process fills the first, so the tasks of Ray Data run
in the second and can start even if trials occupy every CPU. The dataset is created by `from_items`, because
other sources need read tasks, which Ray Data places outside the group, where they may never get a CPU.
"""

import gc
import logging
import math
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.data.block import BlockAccessor
from ray.exceptions import OutOfDiskError, OutOfMemoryError, RayError, RayTaskError
from ray.util import get_current_placement_group
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prometar.data.datasets.dataset import Source
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import Batch, iter_steps
from prometar.data.streaming.transforms import TransformSpec, make_images
from prometar.errors import InfrastructureError, PrometarError, WorkError, last_line

MAX_STORED_IMAGES = 10_000  # per order, in Ray's object store (about 1 GB of JPEG files)
PAUSE_SECONDS = 0.02  # per iteration of Ray Data's scheduling loop


def stream(
    order: ImageOrder,
    source: Source,
    start_step: int = 0,
    *,
    cpus: float = 0.5,
    block_rows: int = 64,
    memory_bytes: int = 2**27,
) -> Iterator[Batch]:
    """Yield the same batches as `stream_local`, made by Ray tasks. No option changes the batches.

    Ray must be running. To stop the tasks early, close the iterator or delete the last reference to it.

    Args:
        cpus: Logical CPUs for all tasks together. Up to max(1, floor(cpus)) tasks run in parallel.
        block_rows: Approximate number of images per block (the output of a task). Blocks never split a batch.
        memory_bytes: Maximum total size of finished blocks that wait to be consumed.

    Raises:
        WorkError: an image is corrupt (the message contains its path), or a task failed for another reason.
        UserError: an image is missing.
        InfrastructureError: the object store and its disk are full.
    """
    if start_step == order.num_steps:
        return
    with _data_context(memory_bytes):
        blocks = _iter_blocks(_build_dataset(order, source, start_step, cpus, block_rows))
    images = np.empty(0, np.uint8)
    try:
        for step, _, _, labels in iter_steps(order, start_step):
            if not len(images):
                images = _next_block(blocks, step)
            size = len(labels)
            yield Batch(step, images[:size].copy(), labels)  # a block is a read-only view of shared memory
            images = images[size:]
    except GeneratorExit:
        blocks.close()
        gc.collect()  # reference cycles of Ray Data hold finished blocks
        raise


class SchedulingPause:
    """Ray Data callback that slows down the scheduling loop, a thread of the training process.

    Without this pause, the loop of Ray 2.60 polls continuously while finished blocks wait to be consumed, and
    holds the interpreter lock (GIL) for up to half of the time.
    """

    def on_execution_step(self, executor: object) -> None:
        """Sleep after each iteration of the loop."""
        time.sleep(PAUSE_SECONDS)

    def _do_nothing(self, executor: object, *error: object) -> None: ...

    before_execution_starts = after_execution_succeeds = after_execution_fails = _do_nothing


def _iter_blocks(dataset: ray.data.Dataset) -> Generator[NDArray[np.uint8]]:
    """Yield the images of each block. Ray's own `iter_batches` (2.60) hangs if it is closed early."""
    for block_group in dataset.iter_internal_ref_bundles():
        for ref in block_group.block_refs:
            columns = BlockAccessor.for_block(ray.get(ref)).to_batch_format("numpy")
            yield cast(dict[str, NDArray[np.uint8]], columns)["image"]


def _next_block(blocks: Iterator[NDArray[np.uint8]], step: int) -> NDArray[np.uint8]:
    try:
        return next(blocks)
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, PrometarError):
            raise type(error.cause)(str(error.cause).splitlines()[0]) from None  # Ray Data appends lines
        if isinstance(error, OutOfDiskError):
            raise InfrastructureError("Ray's object store and its disk are full. Free disk space.") from None
        if isinstance(error, OutOfMemoryError):
            raise MemoryError(last_line(str(error))) from None
        raise WorkError(f"The data stream failed at step {step}: {last_line(str(error))}") from error


def _build_dataset(
    order: ImageOrder, source: Source, start_step: int, cpus: float, block_rows: int
) -> ray.data.Dataset:
    """Build a Ray dataset whose blocks contain the images of consecutive steps. Each task makes one block.

    If a task made several blocks, it would keep its CPU until they are consumed. Between two epochs, nothing
    consumes the training stream, so the evaluation would wait forever for this CPU.
    """
    steps_per_block = max(1, block_rows // order.batch_size)
    max_tasks = max(1, math.floor(cpus))
    block_inputs = []
    for first_step in range(start_step, order.num_steps, steps_per_block):
        last_step = min(first_step + steps_per_block, order.num_steps) - 1
        indices, seeds = order.rows(order.row_range(first_step)[0], order.row_range(last_step)[1])
        paths = [order.items[k].path for k in indices]
        block_inputs.append({"index": indices.tolist(), "seed": seeds.tolist(), "path": paths})
    group = get_current_placement_group()
    strategy: Any = "DEFAULT"
    if group:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    dataset = ray.data.from_items(block_inputs, override_num_blocks=len(block_inputs))
    with warnings.catch_warnings():
        # `scheduling_strategy` is deprecated. But with a strategy in DataContext, Ray Data 2.60 takes
        # the bundles' object-store memory (0 bytes) as a limit, and starts tasks only if the consumer waits.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            cast(Any, make_block),
            fn_kwargs={
                "spec": order.transform,
                "source": source,
                "encoded_ref": _store_images(order, source),
            },
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=cpus / max_tasks,
            compute=TaskPoolStrategy(size=min(max_tasks, len(block_inputs))),
            scheduling_strategy=strategy,
        )


def make_block(
    table: pa.Table, *, spec: TransformSpec, source: Source, encoded_ref: ray.ObjectRef | None
) -> dict[str, NDArray[np.uint8]]:
    """Make the images of a block in a Ray task. `table` has one row of three lists: index, seed, path."""
    [inputs] = table.to_pylist()
    if encoded_ref is None:
        encoded = source.read_many(inputs["path"])
    else:
        encoded = ray.get(encoded_ref).take(pa.array(inputs["index"])).to_pylist()
    return {"image": make_images(spec, encoded, inputs["seed"], inputs["path"])}


def _store_images(order: ImageOrder, source: Source) -> ray.ObjectRef | None:
    """Store all encoded images in Ray, or return None if there are too many or each is read only once."""
    if order.epochs < 2 or len(order.items) > MAX_STORED_IMAGES:
        return None
    return ray.put(pa.array(source.read_many([item.path for item in order.items]), pa.large_binary()))


@contextmanager
def _data_context(memory_bytes: int) -> Iterator[None]:
    """Set Ray Data's options for one stream. A dataset keeps the options with which it was created."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised in the consumer instead
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.raise_original_map_exception = True
    context.target_max_block_size = None  # never split a block
    context.custom_execution_callback_classes = cast(Any, [SchedulingPause])
    options = context.execution_options
    options.preserve_order = True
    options.verbose_progress = False
    options.resource_limits = ExecutionResources.for_limits(object_store_memory=memory_bytes)
    with DataContext.current(context):
        yield
