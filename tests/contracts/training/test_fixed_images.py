"""Methods that do not change the image tower encode each image once. Runs share the image features."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prometar.clip.features import FeatureCache
from prometar.clip.model import Clip
from prometar.clip.vision import EmbeddedImages, ImageFeatures, ImageTokens, embed_images
from prometar.data.datasets.dataset import Source
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import Batch, StreamFn, stream_local
from prometar.step import meta_batch
from prometar.step.meta_batch import embed_batch
from prometar.training.cache import RunCache
from prometar.training.epoch import StepCallback, train_epoch
from prometar.training.run import Run, initial_state
from prometar.training.session import Session
from tests.support.small import small_run, train, without_time

INNER_STEP = {"inner.kind": "sgd", "inner.lr": 0.1}
"""Settings of an inner step, which makes a method train on meta tasks."""
FEATURE_MIXUP = {**INNER_STEP, "task.augmentation": "feature_mixup"}
CUTMIX = {**INNER_STEP, "task.augmentation": "cutmix"}
ADAPTERS = {"adapters.kind": "parallel", "adapters.layers": "2"}
"""Settings of adapters in both towers."""

TEXT_ONLY_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "coop": ("coop", {}),
    "cocoop": ("cocoop", {}),
    "kgcoop": ("kgcoop", {}),
    "prograd": ("prograd", {}),
    "coop with mixed features": ("coop", FEATURE_MIXUP),
    "coop with mixed pixels": ("coop", CUTMIX),
    "cocoop with mixed features": ("cocoop", FEATURE_MIXUP),
}
"""Methods that do not change the image tower, and their settings."""


def text_only_run(case: str, *, shared: RunCache | None = None, **settings: Any) -> Run:
    """Return a small run of two epochs in double precision.

    Args:
        case: Key of `TEXT_ONLY_CASES`.
        shared: Cache that several runs share. Default: the run has its own cache.
        settings: Further settings, as for `small_run`.
    """
    method, method_settings = TEXT_ONLY_CASES[case]
    small = {"backbone.precision": "fp64", "train.epochs": 2, "data.shots": 3}
    all_settings = {**small, **method_settings, **settings}
    return small_run(method, shared=shared, **all_settings)


def batches(run: Run) -> Iterator[Batch]:
    """Return the training batches of a run."""
    return stream_local(run.order, run.dataset.source)


def embed_tokens(
    clip: Clip, images_B3HW: Tensor, cache: FeatureCache | None, number: int, *, changes_vision: bool
) -> EmbeddedImages:
    """Replace `cached_embedding`: return image tokens, even if the method does not change the image tower."""
    return embed_images(clip, images_B3HW)


@pytest.mark.parametrize("case", TEXT_ONLY_CASES)
def test_training_on_features_equals_training_on_tokens(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = text_only_run(case)
    without_cache = replace(run, cache=None)

    with monkeypatch.context() as patched:
        patched.setattr(meta_batch, "cached_embedding", embed_tokens)
        start = initial_state(without_cache)
        expected_state, expected_losses = train_epoch(without_cache, start, batches(without_cache))
    state, losses = train_epoch(run, initial_state(run), batches(run))

    assert losses == pytest.approx(expected_losses, abs=1e-9)
    tensors = state.tensors()
    for name, expected_tensor in expected_state.tensors().items():
        torch.testing.assert_close(tensors[name], expected_tensor, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("method", "embedding"),
    [
        pytest.param("vpt", ImageTokens, id="image tower changed"),
        pytest.param("coop", ImageFeatures, id="image tower unchanged"),
    ],
)
def test_images_are_embedded_as_features_if_the_method_does_not_change_their_tower(
    method: str, embedding: type[EmbeddedImages]
) -> None:
    run = small_run(method)
    clip = run.backbone.clip
    images = torch.zeros(2, 3, clip.image_size, clip.image_size, dtype=clip.dtype)
    labels = torch.tensor([0, 1])

    batch, _ = embed_batch(clip, run.method, images, labels, selection=None)

    assert type(batch.images) is embedding


def recording_stream(read_orders: list[ImageOrder]) -> StreamFn:
    """Return a local stream that appends each image order that it reads to `read_orders`."""

    def stream(order: ImageOrder, source: Source, start: int) -> Iterator[Batch]:
        read_orders.append(order)
        return stream_local(order, source, start)

    return stream


@pytest.mark.parametrize("case", ["coop", "cocoop"])
def test_a_second_run_with_the_same_cache_reads_no_images(case: str, tmp_path: Path) -> None:
    shared = RunCache()
    first = text_only_run(case, shared=shared)
    second = text_only_run(case, shared=shared, **{"optim.lr": 0.01})
    read_orders: list[ImageOrder] = []
    stream = recording_stream(read_orders)

    # The first run reads the images for training and for each evaluation.
    train(Session(first, tmp_path / "first", stream))
    evaluation_orders = {evaluation.order for evaluation in first.evaluations.values()}
    assert set(read_orders) == {first.order} | evaluation_orders

    # The second run reads nothing.
    read_orders.clear()
    with_cache = Session(second, tmp_path / "second", stream)
    train(with_cache)
    assert read_orders == []

    # The second run equals a run with the same settings that reads all images.
    alone = Session(text_only_run(case, **{"optim.lr": 0.01}), tmp_path / "alone", stream)
    train(alone)
    assert without_time(with_cache.history) == without_time(alone.history)
    tensors = with_cache.state.tensors()
    for name, expected_tensor in alone.state.tensors().items():
        assert torch.equal(tensors[name], expected_tensor), name


def test_runs_on_different_forms_of_the_weights_share_no_image_features(tmp_path: Path) -> None:
    """A method with adapters uses CLIP's original weights. Other methods use folded weights (`Tower.folded`).

    Both forms compute the same function, but their features differ by rounding errors.
    """
    shared = RunCache()
    settings = {"backbone.precision": "bf16", "train.epochs": 1}
    with_adapters = small_run("ivlp-regularized", shared=shared, **settings, **ADAPTERS)
    train(Session(with_adapters, tmp_path / "adapters"))

    after_adapters = Session(small_run("ivlp-regularized", shared=shared, **settings), tmp_path / "after")
    train(after_adapters)

    alone = Session(small_run("ivlp-regularized", **settings), tmp_path / "alone")
    train(alone)
    assert without_time(after_adapters.history) == without_time(alone.history)


def ignore_batch(*_: Any) -> None:
    """Do nothing. As a callback before each step, this function receives the batch."""


@pytest.mark.parametrize(
    ("case", "before_step"),
    [
        pytest.param("coop", ignore_batch, id="callback"),
        pytest.param("coop with mixed pixels", None, id="mixed pixels"),
    ],
)
def test_cached_images_are_read_again_if_a_callback_or_mixed_pixels_need_them(
    case: str, before_step: StepCallback | None, tmp_path: Path
) -> None:
    run = text_only_run(case)
    train(Session(run, tmp_path / "first"))

    read_orders: list[ImageOrder] = []
    train(Session(run, tmp_path / "second", recording_stream(read_orders), before_step))

    assert run.order in read_orders
