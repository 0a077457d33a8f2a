"""Kernels and bytes of an iteration are held to exact counts: where they fall, these fall with them."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from prometar.clip.frozen_features import Seen
from prometar.config.settings import Config, configure
from prometar.training import process_memory
from prometar.training.process_memory import Memory, _Live, memory_of
from prometar.training.rehearsal import Rehearsal, rehearse
from tests.support.kernels import Kernels, kernels_of
from tests.support.small import NAME


def config(backbone: str = NAME, method: str = "prometar") -> Config:
    weights = None if backbone == "mini" else "random"
    return configure(method, {"backbone.name": backbone, "backbone.pretrained": weights})


MOST: dict[tuple[str, int], tuple[int, int]] = {
    ("mini", 12): (2214, 447_147_332),
    ("ViT-B-16-quickgelu", 16): (5784, 28_045_273_316),
}
"""Backbone and classes: kernels and bytes."""


@pytest.mark.parametrize("case", MOST, ids=str)
def test_an_iteration_does_no_more_than_it_did(case: tuple[str, int]) -> None:
    backbone, num_classes = case
    counted = kernels_of(rehearse(config(backbone), num_classes=num_classes))
    assert (counted.kernels.total(), counted.bytes.total()) == MOST[case]


def test_kernels_are_operations_that_are_no_views_with_all_their_operands() -> None:
    with FakeTensorMode(), Kernels() as counted:
        x = torch.empty(4, 8)
        (x.T.view(2, 16) if x.T.is_contiguous() else x.T) @ x
    assert dict(counted.kernels) == {"empty": 1, "mm": 1}
    assert counted.bytes["mm"] == 4 * (2 * 32 + 64)
    assert counted.views >= 1


def test_the_peak_is_what_lives_at_one_time() -> None:
    with FakeTensorMode(), _Live() as live:
        kept = torch.empty(1000)
        for _ in range(3):
            torch.empty(5000).add_(1)
        view = kept[:10]
        assert live.peak == 4 * 6000
        del kept
        torch.empty(5500)
        assert live.peak == 4 * 6500, "a view keeps its whole storage"
        del view
        torch.empty(6400)
    assert live.peak == 4 * 6500


def test_memory_grows_with_classes_and_the_meta_phase_and_falls_with_precision() -> None:
    def of(num_classes: int = 12, method: str = "coop", **settings: object) -> Memory:
        return memory_of(config(method=method), num_classes=num_classes, **settings)  # type: ignore[arg-type]

    one = of()
    assert 0 < one.before < one.peak
    assert of(48).peak > one.peak
    assert of(dtype=torch.bfloat16).peak < one.peak
    meta = partial(of, method="prometar-coop")
    assert meta().peak > max(meta(dtype=torch.bfloat16).peak, one.peak)


@pytest.mark.parametrize("order", ["first", "second"])
def test_no_batch_takes_more_memory_than_is_counted(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config("mini").override({"inner.order": order})
    counted = memory_of(asked, num_classes=12)
    for num_query in (2, 3):

        def with_query(*args: Any, n: int = num_query, **settings: Any) -> Rehearsal:
            return rehearse(*args, **{**settings, "num_query": n})

        monkeypatch.setattr(process_memory, "rehearse", with_query)
        assert memory_of(asked, num_classes=12).peak <= counted.peak


@pytest.mark.parametrize("method", ["zero-shot", "vpt", "cocoop", "maple"])
def test_the_memory_of_other_methods_is_counted(method: str) -> None:
    counted = memory_of(config(method=method), num_classes=3)
    assert 0 < counted.before < counted.peak


@pytest.mark.parametrize("method", ["coop", "prometar-coop"])
def test_known_images_cost_nothing_where_no_prompt_enters_their_tower(method: str) -> None:
    first = rehearse(config(method=method), num_classes=3)
    later = replace(first, seen=Seen({}))
    with later.mode:
        later()
    every, known = kernels_of(first), kernels_of(later)
    assert every.kernels["convolution"] == 1
    assert known.kernels["convolution"] == 0
    assert known.bytes.total() < every.bytes.total()
