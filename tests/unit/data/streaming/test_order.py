"""The order is a pure value: its rows, batches and digest."""

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
    items = tuple(Item(f"a/{k}.jpg", k % 3, f"c{k % 3}") for k in range(num_items))
    return ImageOrder(items, settings.pop("transform", SPEC), **settings)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 4), st.booleans(), st.booleans())
def test_steps_cover_the_rows_and_never_cross_an_epoch(
    num_items: int, batch: int, epochs: int, shuffle: bool, drop_last: bool
) -> None:
    order = make_order(num_items, batch_size=batch, epochs=epochs, shuffle=shuffle, drop_last=drop_last)
    ranges = [order.row_range(step) for step in range(order.num_steps)]
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(order.num_rows))
    for start, stop in ranges:
        assert start // order.rows_per_epoch == (stop - 1) // order.rows_per_epoch
    full = drop_last and num_items >= batch
    assert order.rows_per_epoch == (num_items - num_items % batch if full else num_items)
    for epoch in range(epochs):
        first = epoch * order.rows_per_epoch
        image, _ = order.rows(first, first + order.rows_per_epoch)
        assert len(set(image)) == len(image)


@given(st.integers(0, 30), st.integers(0, 30))
def test_rows_do_not_depend_on_how_they_are_asked_for(a: int, b: int) -> None:
    order = make_order(10, batch_size=3, epochs=4, seed=7)
    start = min(a, b)
    stop = max(a, b)
    stop = min(stop, order.num_rows)
    whole = order.rows(0, order.num_rows)
    for part, all_rows in zip(order.rows(min(start, stop), stop), whole, strict=True):
        assert np.array_equal(part, all_rows[min(start, stop) : stop])


def test_augmentation_seed_belongs_to_seed_epoch_and_image_alone() -> None:
    def seeds(order: ImageOrder) -> dict[tuple[int, int], int]:
        images, seeds = order.rows(0, order.num_rows)
        epochs = [row // order.rows_per_epoch for row in range(order.num_rows)]
        return {(e, int(k)): int(s) for e, k, s in zip(epochs, images, seeds, strict=True)}

    first = seeds(make_order(batch_size=2, epochs=3, seed=1))
    assert seeds(make_order(batch_size=5, epochs=3, seed=1)) == first
    assert seeds(make_order(batch_size=5, epochs=3, seed=1, shuffle=False)) == first
    assert len(set(first.values())) == len(first)
    assert not set(first.values()) & set(seeds(make_order(batch_size=2, epochs=3, seed=2)).values())


def test_order_and_seeds_stay_what_they_were() -> None:
    images, seeds = make_order(8, batch_size=4, epochs=2, seed=3).rows(6, 10)
    assert list(images) == [2, 7, 4, 0]
    assert list(seeds) == [2753633827379909739, 6223453705935329322, 473654246650584341, 6819001362670516200]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 5},
        {"epochs": 9},
        {"seed": 1},
        {"shuffle": False},
        {"drop_last": False},
        {"transform": dataclasses.replace(SPEC, flip=0.4)},
        {"transform": dataclasses.replace(SPEC, jitter=0.4)},
        {"transform": dataclasses.replace(SPEC, crop_scale=(0.1, 1.0))},
        {"items": make_order().items[::-1]},
        {"items": tuple(dataclasses.replace(i, label=i.label + 1) for i in make_order().items)},
    ],
    ids=str,
)
def test_digest_changes_with_everything_that_decides_pixels(change: dict[str, Any]) -> None:
    order = make_order()
    assert order.digest == make_order().digest
    assert dataclasses.replace(order, **change).digest != order.digest


def test_eval_order_keeps_every_image_in_order() -> None:
    order = eval_order(make_order(10).items, size=32, batch_size=4)
    assert [order.row_range(step) for step in range(order.num_steps)] == [(0, 4), (4, 8), (8, 10)]
    assert list(order.rows(0, 10)[0]) == list(range(10))


def test_exif_rotation_is_part_of_the_digest_but_plans_without_it_keep_theirs() -> None:
    order = make_order(10)
    rotated = dataclasses.replace(SPEC, exif_rotation=True)
    assert dataclasses.replace(order, transform=rotated).digest != order.digest
    assert order.digest == "a553e4766e3d0e5ec185faadd53f19ab1fcf47704d6b8f5a4dc6cfbd8174b478"
