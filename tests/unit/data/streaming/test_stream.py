"""The local stream, which is the reference for all other streams of an order."""

import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prometar.data.datasets.catalog import open_dataset
from prometar.data.splits.fewshot import draw
from prometar.data.streaming.order import ImageOrder, eval_order
from prometar.data.streaming.stream import Batch, stream_local
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import WorkError


@lru_cache
def reference(root: Path, batch_size: int, drop_last: bool = True) -> tuple[ImageOrder, list[Batch]]:
    """Return an order of three epochs with augmentation, and all of its batches."""
    dataset = open_dataset("dtd", root)
    train = draw(dataset.train, shots=2, rng=random.Random(1))
    spec = TransformSpec(32, train=True, jitter=0.3)
    order = ImageOrder(train, spec, batch_size=batch_size, epochs=3, seed=4, drop_last=drop_last)
    return order, list(stream_local(order, dataset.source))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 15), st.booleans(), st.data())
def test_any_start_step_gives_the_rest_of_the_same_batches(
    small_dtd: Path, batch_size: int, drop_last: bool, data: st.DataObject
) -> None:
    order, batches = reference(small_dtd, batch_size, drop_last)
    assert len(batches) == order.num_steps
    start = data.draw(st.integers(0, order.num_steps))

    rest = list(stream_local(order, open_dataset("dtd", small_dtd).source, start_step=start))

    for batch, expected in zip(rest, batches[start:], strict=True):
        assert batch.step == expected.step
        assert np.array_equal(batch.images, expected.images)
        assert np.array_equal(batch.labels, expected.labels)


def test_pixels_of_a_row_do_not_depend_on_the_batch_size(small_dtd: Path) -> None:
    _, small_batches = reference(small_dtd, batch_size=2)
    _, large_batches = reference(small_dtd, batch_size=6)
    rows_of_small = np.concatenate([batch.images for batch in small_batches])
    rows_of_large = np.concatenate([batch.images for batch in large_batches])
    assert np.array_equal(rows_of_small, rows_of_large)


def test_images_of_a_batch_are_writable_uint8(small_dtd: Path) -> None:
    _, batches = reference(small_dtd, batch_size=4)
    for batch in batches:
        assert batch.images.dtype == np.uint8
        assert batch.images.flags.writeable
        assert batch.images.shape == (4, 32, 32, 3)


def test_labels_of_a_batch_are_int64_labels_of_its_items(small_dtd: Path) -> None:
    order, batches = reference(small_dtd, batch_size=4)
    for batch in batches:
        start, stop = order.row_range(batch.step)
        indices, _ = order.rows(start, stop)
        assert batch.labels.tolist() == [order.items[index].label for index in indices]
        assert batch.labels.dtype == np.int64


def test_a_broken_image_stops_the_stream_and_is_named(own_dtd: Path) -> None:
    dataset = open_dataset("dtd", own_dtd)
    path = dataset.test[3].path  # in the second batch
    (own_dtd / "dtd/images" / path).write_bytes(b"\xff\xd8 not a photograph")

    batches = stream_local(eval_order(dataset.test, size=16, batch_size=2), dataset.source)

    assert next(batches).step == 0
    with pytest.raises(WorkError, match=path):
        next(batches)
