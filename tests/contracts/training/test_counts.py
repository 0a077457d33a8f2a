"""Exact numbers of kernels and bytes of a training step, and estimates of its memory.

If a change makes a step cheaper, the recorded numbers must be lowered with it.
"""

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
    """Return the configuration of a method. Weights do not matter, because nothing is computed."""
    weights = None if backbone == "mini" else "random"
    return configure(method, {"backbone.name": backbone, "backbone.pretrained": weights})


LEARNING = [name for name in METHODS if not build(configure(name, {})).is_untrained]


@pytest.mark.parametrize(
    ("backbone", "num_classes", "num_kernels", "num_bytes"),
    [("mini", 12, 1874, 437_468_300), ("ViT-B-16-quickgelu", 16, 5196, 27_422_407_836)],
)
def test_a_step_has_the_recorded_numbers_of_kernels_and_bytes(
    backbone: str, num_classes: int, num_kernels: int, num_bytes: int
) -> None:
    counted = kernels_of(rehearse(config(backbone), num_classes=num_classes))
    assert counted.kernels.total() == num_kernels
    assert counted.bytes.total() == num_bytes


def test_views_are_not_kernels() -> None:
    with FakeTensorMode(), Kernels() as counted:
        matrix = torch.empty(4, 8)
        matrix.T @ matrix
    assert dict(counted.kernels) == {"empty": 1, "mm": 1}
    assert counted.views >= 1


def test_the_bytes_of_a_kernel_are_those_of_all_its_operands_and_its_result() -> None:
    with FakeTensorMode(), Kernels() as counted:
        matrix = torch.empty(4, 8)
        matrix.T @ matrix
    bytes_per_number = 4
    assert counted.bytes["mm"] == bytes_per_number * (4 * 8 + 4 * 8 + 8 * 8)


def test_the_peak_is_the_memory_of_all_tensors_that_exist_at_one_time() -> None:
    bytes_per_number = 4
    with FakeTensorMode(), _Live() as live:
        kept = torch.empty(1000)
        for _ in range(3):
            torch.empty(5000).add_(1)  # exists until the next iteration
        view = kept[:10]
        assert live.peak == bytes_per_number * 6000

        del kept
        torch.empty(5500)
        assert live.peak == bytes_per_number * 6500, "a view keeps its whole storage"

        del view
        torch.empty(6400)
    assert live.peak == bytes_per_number * 6500


VIT_B_16 = "ViT-B-16-quickgelu"


def footprint_of(num_classes: int) -> Footprint:
    """Return the footprint of ViT-B/16 and a training image of each class."""
    images = tuple(Item(f"{label}.jpg", label, f"class {label}") for label in range(num_classes))
    return Footprint.of(clip_without_weights(VIT_B_16), [FewShotSplit(images, {})])


def require_estimate(asked: Config, num_classes: int, *, highest: float) -> None:
    """Check that the estimated memory of a step is near its counted peak.

    Args:
        asked: Configuration with ViT-B/16.
        num_classes: Number of classes.
        highest: Largest ratio of the estimate to the peak. The smallest one is 0.95.
    """
    estimated = footprint_of(num_classes).memory_bytes(asked) - PROCESS_BYTES
    counted = memory_of(asked, num_classes=num_classes).peak
    assert 0.95 * counted < estimated < highest * counted


@pytest.mark.parametrize(
    ("method", "num_classes"),
    [("prometar", 12), ("promptsrc", 12), ("coop", 100), ("kgcoop", 12), ("maple", 12)],
)
def test_the_estimated_memory_is_what_a_step_takes(method: str, num_classes: int) -> None:
    require_estimate(config(VIT_B_16, method), num_classes, highest=1.2)


@pytest.mark.parametrize("method", ["prometar", "promptsrc", "coop", "kgcoop", "maple"])
def test_on_a_gpu_the_estimated_memory_of_the_host_is_that_of_the_process_and_the_weights(
    method: str,
) -> None:
    weights = sum(tensor.nbytes for tensor in tensors_of(clip_without_weights(VIT_B_16)))
    estimated = footprint_of(12).memory_bytes(config(VIT_B_16, method), on_gpu=True)
    assert estimated == PROCESS_BYTES + weights


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
    asked = config(VIT_B_16, method).override({"train.batch_size": 4, "modulator.kind": "add"})
    if order != "none":
        asked = asked.override({"inner.kind": "sgd", "inner.order": order})
    require_estimate(asked, num_classes, highest=highest)


def test_the_estimated_memory_contains_the_state_of_the_optimizer() -> None:
    """Adam has a number more than SGD for each number that is learned."""
    footprint = footprint_of(1)
    asked = config(VIT_B_16, "mmrl")
    adam = footprint.memory_bytes(asked.override({"optim.kind": "adam"}))
    sgd = footprint.memory_bytes(asked.override({"optim.kind": "sgd"}))
    tokens = 5 * 512
    projections_of_7_layers = 7 * (512 + 768) * 513
    projection_of_features = 768 * 512
    num_learned = tokens + projections_of_7_layers + projection_of_features
    assert adam - sgd == pytest.approx(4 * num_learned, abs=10)


@pytest.mark.parametrize("method", ["coop", "prometar-coop"])
def test_known_images_are_not_encoded_again_if_no_prompt_enters_their_tower(method: str) -> None:
    first = rehearse(config(method=method), num_classes=3)
    with_cache = replace(first, cache={})
    with with_cache.mode:
        with_cache()  # fills the cache

    kernels = kernels_of(first)
    kernels_with_cache = kernels_of(with_cache)

    assert kernels.kernels["convolution"] == 1
    assert kernels_with_cache.kernels["convolution"] == 0
    assert kernels_with_cache.bytes.total() < kernels.bytes.total()


def operations(method: str) -> int:
    """Return the floating-point operations of a step with ViT-B/16 and 24 classes."""
    rehearsal = rehearse(config(VIT_B_16, method), num_classes=24)
    with rehearsal.mode, FlopCounterMode(display=False) as counter:
        rehearsal()
    return counter.get_total_flops()


def operations_saved(method: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many operations a step saves, because it computes frozen blocks only once."""
    reused = operations(method)
    monkeypatch.setattr(Method, "first_block", lambda method, tower, num_blocks: 0)
    return operations(method) - reused


def test_the_frozen_and_the_prompted_image_tower_share_the_blocks_before_the_first_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = clip_without_weights(VIT_B_16)
    matrices = [weight for weight in clip.vision.blocks[0] if weight is not None and weight.ndim == 2]
    num_weights = sum(matrix.numel() for matrix in matrices)
    num_tokens = 4 * 197  # of four images
    num_shared_blocks = 5
    operations_of_blocks = 2 * num_weights * num_tokens * num_shared_blocks
    assert operations_saved("mmrl", monkeypatch) >= operations_of_blocks


def test_the_frozen_blocks_of_texts_are_computed_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert operations_saved("mma", monkeypatch) > 0


@pytest.mark.parametrize("method", LEARNING)
def test_a_step_of_every_method_can_be_counted(method: str) -> None:
    rehearsal = rehearse(config("mini", method), num_classes=5)
    assert kernels_of(rehearsal).kernels.total() > 100
