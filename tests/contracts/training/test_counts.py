"""Kernels and bytes of an iteration are held to exact counts: where they fall, these fall with them."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.counting import Kernels, _Live, kernels_of, memory_of, rehearse
from prometar.clip.model import tensors_of
from prometar.clip.openclip import clip_without_weights
from prometar.config.recipes import METHODS
from prometar.config.settings import Config, configure
from prometar.data.datasets.dataset import Item
from prometar.data.splits.objective import FewShotSplit
from prometar.methods.composition import Method, build
from prometar.training.memory import PROCESS_BYTES, Footprint
from tests.support.small import NAME


def config(backbone: str = NAME, method: str = "prometar") -> Config:
    weights = None if backbone == "mini" else "random"
    return configure(method, {"backbone.name": backbone, "backbone.pretrained": weights})


LEARNING = [name for name in METHODS if not build(configure(name, {})).is_untrained]

MOST: dict[tuple[str, int], tuple[int, int]] = {
    ("mini", 12): (1874, 437_468_300),
    ("ViT-B-16-quickgelu", 16): (5196, 27_422_407_836),
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


@pytest.mark.parametrize(
    ("method", "num_classes"),
    [("prometar", 12), ("promptsrc", 12), ("coop", 100), ("kgcoop", 12), ("maple", 12)],
)
def test_the_estimated_memory_is_what_a_step_takes(method: str, num_classes: int) -> None:
    clip = clip_without_weights("ViT-B-16-quickgelu")
    classes = FewShotSplit(tuple(Item(f"{k}.jpg", k, f"class {k}") for k in range(num_classes)), {})
    asked = config("ViT-B-16-quickgelu", method)
    estimated = Footprint.of(clip, [classes]).memory_bytes(asked) - PROCESS_BYTES
    counted = memory_of(asked, num_classes=num_classes).peak
    assert 0.95 * counted < estimated < 1.2 * counted
    weights = sum(tensor.nbytes for tensor in tensors_of(clip))
    assert Footprint.of(clip, [classes]).memory_bytes(asked, on_gpu=True) == PROCESS_BYTES + weights


@pytest.mark.parametrize(
    ("method", "num_classes", "order", "highest"),
    [
        ("tcp", 100, "none", 1.2),
        ("tcp", 100, "second", 1.2),
        ("mma", 12, "none", 1.2),
        ("mma", 12, "second", 1.3),
        ("mmrl", 12, "none", 1.2),
        ("mmrl", 12, "second", 1.2),
        ("dept-coop", 100, "none", 1.2),
        ("dept-kgcoop", 100, "none", 1.2),
        ("dept-maple", 12, "none", 1.2),
        ("coprompt", 12, "none", 1.2),
    ],
)
def test_the_estimated_memory_is_enough_for_towers_that_autograd_differentiates(
    method: str, num_classes: int, order: str, highest: float
) -> None:
    clip = clip_without_weights("ViT-B-16-quickgelu")
    classes = FewShotSplit(tuple(Item(f"{k}.jpg", k, f"class {k}") for k in range(num_classes)), {})
    asked = config("ViT-B-16-quickgelu", method).override({"train.batch_size": 4, "modulator.kind": "add"})
    if order != "none":
        asked = asked.override({"inner.kind": "sgd", "inner.order": order})
    estimated = Footprint.of(clip, [classes]).memory_bytes(asked) - PROCESS_BYTES
    counted = memory_of(asked, num_classes=num_classes).peak
    assert 0.95 * counted < estimated < highest * counted


def test_the_estimated_memory_contains_the_state_of_the_optimizer() -> None:
    clip = clip_without_weights("ViT-B-16-quickgelu")
    footprint = Footprint.of(clip, [FewShotSplit((Item("0.jpg", 0, "class 0"),), {})])
    asked = config("ViT-B-16-quickgelu", "mmrl")
    adam = footprint.memory_bytes(asked.override({"optim.kind": "adam"}))
    sgd = footprint.memory_bytes(asked.override({"optim.kind": "sgd"}))
    num_leaves = 5 * 512 + 7 * (512 + 768) * 513 + 768 * 512
    assert adam - sgd == pytest.approx(4 * num_leaves, abs=10)


@pytest.mark.parametrize("method", ["coop", "prometar-coop"])
def test_known_images_cost_nothing_where_no_prompt_enters_their_tower(method: str) -> None:
    first = rehearse(config(method=method), num_classes=3)
    later = replace(first, cache={})
    with later.mode:
        later()
    every = kernels_of(first)
    known = kernels_of(later)
    assert every.kernels["convolution"] == 1
    assert known.kernels["convolution"] == 0
    assert known.bytes.total() < every.bytes.total()


def operations(method: str) -> int:
    """Return the operations of a step with ViT-B/16 and 24 classes."""
    rehearsal = rehearse(config("ViT-B-16-quickgelu", method), num_classes=24)
    with rehearsal.mode, FlopCounterMode(display=False) as counter:
        rehearsal()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("method", "shared_passes"),
    [
        ("mmrl", 1),  # of the frozen and of the prompted CLIP
        ("mma", 0),
    ],
)
def test_blocks_before_the_first_change_are_computed_once_per_image(
    method: str, shared_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reused = operations(method)
    monkeypatch.setattr(Method, "first_block", lambda method, tower, num_blocks: 0)
    saved = operations(method) - reused
    clip = clip_without_weights("ViT-B-16-quickgelu")
    weights = sum(
        weight.numel() for weight in clip.vision.blocks[0] if weight is not None and weight.ndim == 2
    )
    num_tokens = 4 * 197
    blocks = {"mmrl": 5, "mma": 4}[method]
    of_blocks = 2 * weights * num_tokens * blocks
    assert saved >= shared_passes * of_blocks
    assert saved > 0, "texts never need the frozen blocks again"


@pytest.mark.parametrize("method", LEARNING)
def test_a_step_of_every_method_can_be_counted(method: str) -> None:
    rehearsal = rehearse(config("mini", method), num_classes=5)
    assert kernels_of(rehearsal).kernels.total() > 100
