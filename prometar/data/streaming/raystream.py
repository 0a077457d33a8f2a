"""The plan on Ray Data: one execution over row ranges of all epochs, in order, without hanging.

Ray Data starts helper tasks of one CPU for many of its readers; when trials hold every CPU those wait for
ever, silently. So the ranges come from `from_items` (which needs no task), the pixels from one `map_batches`
whose tasks are as small as `StreamOptions` says and, in a trial, lie in the trial's own placement group.
"""

import gc
import logging
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.data.block import BlockAccessor
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import OutOfDiskError, RayError, UserCodeException
from ray.util import get_current_placement_group
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prometar.data.datasets.dataset import Source
from prometar.data.streaming.plan import Order, Plan
from prometar.data.streaming.ray_private import bundles_of
from prometar.data.streaming.shared_images import Resident, files_of, resident
from prometar.data.streaming.stream import Batch, StreamOptions, steps
from prometar.data.streaming.transforms import BrokenImage, TransformSpec, make_images
from prometar.errors import StorageError, UserError, WorkError, last_line

FIRST_ROWS = 16  # of the first block; the next ones grow to `block_rows`, so that a stream starts at once
# Ranges of one execution; each is put (1 ms) before the first batch, so longer plans take several.
MAX_BLOCKS = 256
_KNOWN = (UserError, WorkError, StorageError, BrokenImage)
ERRORS: dict[str, type[UserError]] = {each.__name__: each for each in _KNOWN}

Columns = dict[str, NDArray[Any]]
Images = NDArray[np.uint8]
Range = tuple[int, int]


def run(plan: Plan, source: Source, start_step: int, options: StreamOptions) -> Iterator[Batch]:
    """See `prometar.data.streaming.stream.stream`."""
    if start_step == plan.num_steps:
        return
    if not ray.is_initialized():
        raise RuntimeError("stream needs a running Ray: call ray.init first, or use stream_local")
    first, _ = plan.step_rows(start_step)
    blocks = _blocks(plan, source, first, options)
    try:
        yield from _rebatch(plan, start_step, blocks)
    finally:
        blocks.close()


def _blocks(
    plan: Plan, source: Source, first_row: int, options: StreamOptions
) -> Generator[Images, None, None]:
    """uint8 (R, H, W, 3) blocks of consecutive rows from `first_row` on, from `max_tasks` lanes in turn.

    An execution hears of its tasks' ends when all that run have ended, or after 100 ms. So each lane is an
    execution of one task at a time.
    """
    kept = resident(plan.items, source, options.resident_bytes)
    inputs = {"order": plan.order, "spec": plan.transform, "kept": kept, "source": source}
    ranges = _ranges(first_row, plan.num_rows, options.block_rows)
    num = options.max_tasks
    lanes = [_lane(plan, ranges[k::num], inputs, options) for k in range(num)]
    try:
        for k in range(len(ranges)):
            yield next(lanes[k % num])
    finally:
        for lane in lanes:
            lane.close()


def _ranges(start: int, stop: int, most: int) -> list[Range]:
    """start .. stop in ranges of FIRST_ROWS, then twice as many each, `most` at most.

    Example:
        >>> _ranges(0, 200, 64)
        [(0, 16), (16, 48), (48, 112), (112, 176), (176, 200)]
    """
    ranges, rows = [], min(FIRST_ROWS, most)
    while start < stop:
        ranges.append((start, min(start + rows, stop)))
        start, rows = start + rows, min(2 * rows, most)
    return ranges


def _lane(
    plan: Plan, ranges: list[Range], inputs: dict[str, Any], options: StreamOptions
) -> Generator[Images, None, None]:
    for k in range(0, len(ranges), MAX_BLOCKS):
        part = ranges[k : k + MAX_BLOCKS]
        yield from _checked(_execution(plan, part, inputs, options), part)


def _execution(
    plan: Plan, ranges: list[Range], inputs: dict[str, Any], options: StreamOptions
) -> Generator[Columns, None, None]:
    """Ray Data making ranges of rows: a task a range, a block a task.

    A task that made several blocks would keep its CPU while they wait for the consumer; when that consumer
    waits for a second stream in the same placement group (evaluation between epochs), both wait for ever.
    """
    items = [{"start": start, "stop": stop} for start, stop in ranges]
    with _context(plan, options):
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            cast(Any, make_block),
            fn_kwargs=inputs,
            batch_size=1,
            batch_format="numpy",
            num_cpus=options.num_cpus,
            compute=TaskPoolStrategy(size=1),
            **_placement(options),
        )
        # not iter_batches: it leaves a thread behind each time (ray 2.60), thousands in a study
        bundles = bundles_of(dataset)
    return _columns(bundles)


def _columns(bundles: Iterator[Any]) -> Generator[Columns, None, None]:
    """Each block as NumPy arrays: views of shared memory."""
    for bundle in bundles:
        for block in bundle.block_refs:
            yield cast(Columns, BlockAccessor.for_block(ray.get(block)).to_batch_format("numpy"))


def _checked(batches: Generator[Columns, None, None], ranges: list[Range]) -> Generator[Images, None, None]:
    """The images of `batches`, a block a range; raises what a task reported, or if a row is lost."""
    left = deque(ranges)
    try:
        for columns in batches:
            name, _, message = str(columns["error"][0]).partition(":")
            if name:
                raise ERRORS[name](message)
            start, stop = left.popleft() if left else (0, 0)
            if not np.array_equal(columns["row"], np.arange(start, stop)):
                raise WorkError(f"the data stream lost its order at row {start}: please report this")
            yield columns["image"]
    except (RayError, UserCodeException, ExecutionTimeoutError) as error:
        where, text = f"the data stream failed at row {left[0][0]}", str(error)
        if isinstance(error, OutOfDiskError) or OutOfDiskError.__name__ in text:
            raise StorageError(
                f"{where}: Ray's memory is full, and so is the disk it spills to: make room"
            ) from None
        raise WorkError(f"{where}: {last_line(text)}") from error
    finally:
        batches.close()  # stops the tasks if the consumer leaves early
        if left:
            gc.collect()  # Ray Data's executor holds finished blocks in reference cycles
    if left:
        raise WorkError(f"the data stream ended at row {left[0][0]}: please report this")


def _rebatch(plan: Plan, start_step: int, blocks: Iterator[Images]) -> Iterator[Batch]:
    """The plan's batches cut from blocks; copies, since blocks are read-only views of shared memory."""
    block, used = next(blocks), 0
    for step, _, labels in steps(plan, start_step):
        images = np.empty((len(labels), *block.shape[1:]), np.uint8)
        filled = 0
        while filled < len(images):
            if used == len(block):
                block, used = next(blocks), 0
            take = min(len(images) - filled, len(block) - used)
            images[filled : filled + take] = block[used : used + take]
            filled, used = filled + take, used + take
        yield Batch(step, images, labels)


def make_block(
    chunk: Columns, *, order: Order, spec: TransformSpec, kept: Resident, source: Source
) -> Columns:
    """In a Ray task: the pixels of one range of rows; a user's error travels as data, not as a traceback."""
    start, stop = int(chunk["start"][0]), int(chunk["stop"][0])
    try:
        rows = order.rows(start, stop)
        paths, files = files_of(kept, rows.image, source)
        images = make_images(spec, files, rows.seed, paths)
    except UserError as error:
        blank = np.zeros((1, spec.size, spec.size, 3), np.uint8)
        name = type(error).__name__ if type(error).__name__ in ERRORS else "WorkError"
        return {"row": np.array([start]), "image": blank, "error": np.array([f"{name}:{error}"])}
    return {"row": np.arange(start, stop), "image": images, "error": np.full(stop - start, "")}


def _placement(options: StreamOptions) -> dict[str, Any]:
    """Where the tasks run: in the trial's own placement group, whose CPUs no other trial can take."""
    group = get_current_placement_group() if options.in_placement_group else None
    if group is None:
        return {}
    # the trainer holds the first bundle; a task that fits no other one would wait for ever
    bundles = [bundle.get("CPU", 0.0) for bundle in group.bundle_specs[1:]]
    if max(bundles, default=0.0) < options.num_cpus - 1e-4:  # Ray counts in steps of 0.0001
        found = ", ".join(f"{cpus:g}" for cpus in bundles) or "none"
        raise UserError(
            f"a task of the data stream needs {options.num_cpus:g} CPU of the trial's placement group, "
            f"but the bundles beside the trainer's have {found}: give it a bundle"
        )
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    return {"scheduling_strategy": strategy}


@contextmanager
def _context(plan: Plan, options: StreamOptions) -> Iterator[None]:
    """Ray Data's settings for this stream alone; a data set keeps those it was made under."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    block_bytes = options.block_rows * plan.transform.size**2 * 3
    context.target_max_block_size = max(2 * block_bytes, 2**20)  # never split a range
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.memory_usage_poll_interval_s = None  # else a thread a task
    memory = max(options.memory_bytes // options.max_tasks, 4 * block_bytes)
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=memory)
    with DataContext.current(context), warnings.catch_warnings():
        # Ray 2.60 announces the end of `scheduling_strategy` for data sets and names no other way into a
        # placement group. When it goes, map_batches raises TypeError: loud, where a lost setting would hang.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield
