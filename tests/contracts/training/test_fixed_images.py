"""If no prompt enters the image tower, each image is encoded once, and runs share its feature."""

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

META = {"inner.kind": "sgd", "inner.lr": 0.1}
TEXT_ONLY_METHODS: dict[str, dict[str, Any]] = {
    "coop": {},
    "cocoop": {},
    "kgcoop": {},
    "prograd": {},
    "coop with tasks": META | {"task.augmentation": "feature_mixup"},
    "coop with tasks of mixed pixels": META | {"task.augmentation": "cutmix"},
    "cocoop with tasks": META | {"task.augmentation": "feature_mixup"},
}
"""Methods that do not change the image tower, and their settings."""
ADAPTED = {"adapters.kind": "parallel", "adapters.layers": "2"}
"""Settings of adapters in both towers."""


def run_of(name: str, *, shared: RunCache | None = None, **more: Any) -> Run:
    """Return a small run. `name` is a key of `TEXT_ONLY_METHODS`, whose first word is the method."""
    method, *_ = name.split()
    small = {"backbone.precision": "fp64", "train.epochs": 2, "data.shots": 3}
    return small_run(method, shared=shared, **{**small, **TEXT_ONLY_METHODS[name], **more})


def batches(run: Run) -> Iterator[Batch]:
    """Return the training batches of a run."""
    return stream_local(run.order, run.dataset.source)


def embed_tokens(
    clip: Clip, images_B3HW: Tensor, cache: FeatureCache | None, number: int, *, changes_vision: bool
) -> EmbeddedImages:
    """Return tokens, as for a method that changes the image tower."""
    return embed_images(clip, images_B3HW)


@pytest.mark.parametrize("name", TEXT_ONLY_METHODS)
def test_features_train_like_tokens_that_are_encoded_in_each_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(name)
    without_cache = replace(run, cache=None)

    with monkeypatch.context() as patched:
        patched.setattr(meta_batch, "cached_embedding", embed_tokens)
        start = initial_state(without_cache)
        expected, expected_losses = train_epoch(without_cache, start, batches(without_cache))
    state, losses = train_epoch(run, initial_state(run), batches(run))

    assert losses == pytest.approx(expected_losses, abs=1e-9)
    for leaf, tensor in expected.tensors().items():
        torch.testing.assert_close(state.tensors()[leaf], tensor, rtol=0, atol=1e-9, msg=leaf)


@pytest.mark.parametrize(
    ("method", "embedding"), [("vpt", ImageTokens), ("coop", ImageFeatures)], ids=["changed", "unchanged"]
)
def test_images_are_embedded_as_features_if_the_method_does_not_change_their_tower(
    method: str, embedding: type[EmbeddedImages]
) -> None:
    run = small_run(method)
    clip = run.backbone.clip
    pixels = torch.zeros(2, 3, clip.image_size, clip.image_size, dtype=clip.dtype)
    batch, _ = embed_batch(clip, run.method, pixels, torch.tensor([0, 1]), None)
    assert type(batch.images) is embedding


def recording_stream(read: list[ImageOrder]) -> StreamFn:
    """Return a local stream that appends each image order that it reads to a list."""

    def stream(order: ImageOrder, source: Source, start: int) -> Iterator[Batch]:
        read.append(order)
        return stream_local(order, source, start)

    return stream


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_known_images_are_not_read_again(name: str, tmp_path: Path) -> None:
    shared = RunCache()
    first = run_of(name, shared=shared)
    second = run_of(name, shared=shared, **{"optim.lr": 0.01})
    read: list[ImageOrder] = []
    stream = recording_stream(read)

    # The first run reads the images for training and scoring.
    train(Session(first, tmp_path / "first", stream))
    assert set(read) == {first.order, *(evaluation.order for evaluation in first.evaluations.values())}

    # The second run reads nothing.
    read.clear()
    with_cache = Session(second, tmp_path / "second", stream)
    train(with_cache)
    assert read == []

    # It equals a run that reads all images itself.
    alone = Session(run_of(name, **{"optim.lr": 0.01}), tmp_path / "alone", stream)
    train(alone)
    assert without_time(with_cache.history) == without_time(alone.history)
    for leaf, tensor in alone.state.tensors().items():
        assert torch.equal(with_cache.state.tensors()[leaf], tensor), leaf


def test_runs_of_folded_and_of_original_weights_share_no_image_features(tmp_path: Path) -> None:
    """Adapters need the original weights, whose features are rounded differently."""
    shared = RunCache()
    settings = {"backbone.precision": "bf16", "train.epochs": 1}
    with_adapters = small_run("ivlp-regularized", shared=shared, **settings, **ADAPTED)
    train(Session(with_adapters, tmp_path / "adapters"))

    with_cache = Session(small_run("ivlp-regularized", shared=shared, **settings), tmp_path / "cache")
    train(with_cache)

    alone = Session(small_run("ivlp-regularized", **settings), tmp_path / "alone")
    train(alone)
    assert without_time(with_cache.history) == without_time(alone.history)


def ignore_batch(*_: Any) -> None:
    """Do nothing, as a callback before each step, which gets the batch."""


@pytest.mark.parametrize(
    ("name", "before_step"),
    [("coop", ignore_batch), ("coop with tasks of mixed pixels", None)],
    ids=["callback", "augmentation of pixels"],
)
def test_known_images_are_read_for_callbacks_and_augmentations_of_pixels(
    name: str, before_step: StepCallback | None, tmp_path: Path
) -> None:
    run = run_of(name)
    train(Session(run, tmp_path / "first"))
    read: list[ImageOrder] = []
    train(Session(run, tmp_path / "second", recording_stream(read), before_step))
    assert run.order in read
