"""An image order is determined by its settings: its rows, its batches and its digest."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.data.datasets.dataset import Item
from prometar.data.streaming.order import ImageOrder, eval_order
from prometar.data.streaming.transforms import TransformSpec

SPEC = TransformSpec(size=32, train=True)


def make_order(num_items: int = 10, **settings: Any) -> ImageOrder:
    """Return an order of `num_items` images of three classes. Default transform: `SPEC`."""
    items = tuple(Item(f"a/{k}.jpg", k % 3, f"c{k % 3}") for k in range(num_items))
    return ImageOrder(items, **{"transform": SPEC, **settings})


orders = st.builds(
    make_order,
    st.integers(1, 30),
    batch_size=st.integers(1, 12),
    epochs=st.integers(0, 4),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)


@given(orders)
def test_steps_cover_all_rows_in_order(order: ImageOrder) -> None:
    rows: list[int] = []
    for step in range(order.num_steps):
        start, stop = order.row_range(step)
        rows += range(start, stop)
    assert rows == list(range(order.num_rows))


@given(orders)
def test_no_step_has_rows_of_two_epochs(order: ImageOrder) -> None:
    for step in range(order.num_steps):
        start, stop = order.row_range(step)
        assert start // order.rows_per_epoch == (stop - 1) // order.rows_per_epoch


@given(orders)
def test_only_an_incomplete_last_batch_is_dropped(order: ImageOrder) -> None:
    num_items = len(order.items)
    if order.drop_last and num_items >= order.batch_size:
        assert order.rows_per_epoch == num_items - num_items % order.batch_size
    else:
        assert order.rows_per_epoch == num_items


@given(orders)
def test_no_image_is_repeated_in_an_epoch(order: ImageOrder) -> None:
    for epoch in range(order.epochs):
        first = epoch * order.rows_per_epoch
        images, _ = order.rows(first, first + order.rows_per_epoch)
        assert len(set(images)) == len(images)


@given(st.data())
def test_rows_do_not_depend_on_the_range_that_is_read(data: st.DataObject) -> None:
    order = make_order(10, batch_size=3, epochs=4, seed=7)
    stop = data.draw(st.integers(0, order.num_rows))
    start = data.draw(st.integers(0, stop))

    images, seeds = order.rows(start, stop)

    all_images, all_seeds = order.rows(0, order.num_rows)
    assert np.array_equal(images, all_images[start:stop])
    assert np.array_equal(seeds, all_seeds[start:stop])


def augmentation_seeds(**settings: Any) -> dict[tuple[int, int], int]:
    """Return the augmentation seeds of an order of three epochs, by epoch and image."""
    order = make_order(epochs=3, **settings)
    images, seeds = order.rows(0, order.num_rows)
    seed_by_image: dict[tuple[int, int], int] = {}
    for row in range(order.num_rows):
        epoch = row // order.rows_per_epoch
        seed_by_image[epoch, int(images[row])] = int(seeds[row])
    return seed_by_image


def test_augmentation_seeds_depend_only_on_seed_epoch_and_image() -> None:
    expected = augmentation_seeds(batch_size=2, seed=1)
    assert augmentation_seeds(batch_size=5, seed=1) == expected
    assert augmentation_seeds(batch_size=5, seed=1, shuffle=False) == expected


def test_all_augmentation_seeds_differ() -> None:
    seeds = set(augmentation_seeds(batch_size=2, seed=1).values())
    seeds_of_other_order = set(augmentation_seeds(batch_size=2, seed=2).values())
    assert len(seeds) == 3 * 10  # epochs * images
    assert not seeds & seeds_of_other_order


def test_orders_and_augmentation_seeds_equal_those_of_earlier_versions() -> None:
    images, seeds = make_order(8, batch_size=4, epochs=2, seed=3).rows(6, 10)
    assert list(images) == [2, 7, 4, 0]
    assert list(seeds) == [2753633827379909739, 6223453705935329322, 473654246650584341, 6819001362670516200]


def test_equal_orders_have_equal_digests() -> None:
    assert make_order().digest == make_order().digest


ITEMS = make_order().items


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 5),
        ("epochs", 9),
        ("seed", 1),
        ("shuffle", False),
        ("drop_last", False),
        pytest.param("transform", dataclasses.replace(SPEC, flip=0.4), id="flip"),
        pytest.param("transform", dataclasses.replace(SPEC, jitter=0.4), id="jitter"),
        pytest.param("transform", dataclasses.replace(SPEC, crop_scale=(0.1, 1.0)), id="crop scale"),
        pytest.param("transform", dataclasses.replace(SPEC, exif_rotation=True), id="EXIF rotation"),
        pytest.param("items", tuple(reversed(ITEMS)), id="order of the items"),
        pytest.param("items", (dataclasses.replace(ITEMS[0], label=7), *ITEMS[1:]), id="label"),
    ],
)
def test_the_digest_changes_with_everything_that_determines_batches(field: str, value: object) -> None:
    order = make_order()
    changed = dataclasses.replace(order, **{field: value})
    assert changed.digest != order.digest


def test_the_digest_of_an_order_without_exif_rotation_equals_that_of_earlier_versions() -> None:
    assert make_order(10).digest == "a553e4766e3d0e5ec185faadd53f19ab1fcf47704d6b8f5a4dc6cfbd8174b478"


def test_the_order_of_an_evaluation_contains_each_image_once_and_in_order() -> None:
    order = eval_order(make_order(10).items, size=32, batch_size=4)
    images, _ = order.rows(0, 10)
    assert list(images) == list(range(10))
    assert [order.row_range(step) for step in range(order.num_steps)] == [(0, 4), (4, 8), (8, 10)]
