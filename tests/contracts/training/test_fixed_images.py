"""Where no prompt enters the image tower, each image is encoded once, and runs share its feature."""

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
from prometar.data.streaming.stream import Batch, stream_local
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
ADAPTED = {"adapters.kind": "parallel", "adapters.layers": "2"}


def run_of(name: str, *, shared: RunCache | None = None, **more: Any) -> Run:
    """Return a small run. `name` is a key of `TEXT_ONLY_METHODS`, whose first word is the method."""
    method, *_ = name.split()
    small = {"backbone.precision": "fp64", "train.epochs": 2, "data.shots": 3}
    return small_run(method, shared=shared, **{**small, **TEXT_ONLY_METHODS[name], **more})


def batches(run: Run, order: ImageOrder | None = None) -> Iterator[Batch]:
    return stream_local(order or run.order, run.dataset.source)


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
        expected, expected_losses = train_epoch(
            without_cache, initial_state(without_cache), batches(without_cache)
        )
    state, losses = train_epoch(run, initial_state(run), batches(run))
    assert losses == pytest.approx(expected_losses, abs=1e-9)
    for leaf, tensor in expected.tensors().items():
        torch.testing.assert_close(state.tensors()[leaf], tensor, rtol=0, atol=1e-9, msg=leaf)


def test_the_type_of_embedded_images_depends_on_the_method_and_not_on_the_weights() -> None:
    changing = small_run("vpt")
    constant = run_of("coop")
    types = []
    for run in (changing, constant):
        pixels = torch.zeros(2, 3, run.backbone.clip.image_size, run.backbone.clip.image_size)
        pixels = pixels.to(run.backbone.clip.dtype)
        batch, _ = embed_batch(run.backbone.clip, run.method, pixels, torch.tensor([0, 1]), None)
        types.append(type(batch.images))
    assert types == [ImageTokens, ImageFeatures]


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_known_images_are_not_read_again(name: str, tmp_path: Path) -> None:
    shared = RunCache()
    first = run_of(name, shared=shared)
    second = run_of(name, shared=shared, **{"optim.lr": 0.01})
    read: list[tuple[ImageOrder, int]] = []

    def stream(order: ImageOrder, source: Source, start: int) -> Iterator[Batch]:
        read.append((order, start))
        return stream_local(order, source, start)

    train(Session(first, tmp_path / "first", stream))
    assert {order for order, _ in read} == {first.order, *(e.order for e in first.evaluations.values())}
    read.clear()
    known = Session(second, tmp_path / "second", stream)
    train(known)
    assert read == []
    forgetful = run_of(name, **{"optim.lr": 0.01})
    alone = Session(forgetful, tmp_path / "alone", stream)
    train(alone)
    assert without_time(known.history) == without_time(alone.history)
    for leaf, tensor in alone.state.tensors().items():
        assert torch.equal(known.state.tensors()[leaf], tensor), leaf


def test_runs_of_folded_and_of_original_weights_share_no_image_features(tmp_path: Path) -> None:
    """Adapters need the original weights, whose features are rounded differently."""
    shared = RunCache()
    half = {"backbone.precision": "bf16", "train.epochs": 1}
    train(Session(small_run("ivlp-regularized", shared=shared, **half, **ADAPTED), tmp_path / "adapted"))
    known = Session(small_run("ivlp-regularized", shared=shared, **half), tmp_path / "known")
    train(known)
    alone = Session(small_run("ivlp-regularized", **half), tmp_path / "alone")
    train(alone)
    assert without_time(known.history) == without_time(alone.history)


def watch(*_: Any) -> None:
    """Callback before each step, which gets the batch."""


@pytest.mark.parametrize(
    ("name", "before_step"),
    [("coop", watch), ("coop with tasks of mixed pixels", None)],
    ids=["watch", "augmentation of pixels"],
)
def test_a_watch_and_an_augmentation_of_pixels_get_images(
    name: str, before_step: StepCallback | None, tmp_path: Path
) -> None:
    run = run_of(name)
    read: list[ImageOrder] = []
    train(Session(run, tmp_path / "first"))

    def stream(order: ImageOrder, source: Source, start: int) -> Iterator[Batch]:
        read.append(order)
        return stream_local(order, source, start)

    train(Session(run, tmp_path / "second", stream, before_step))
    assert run.order in read
