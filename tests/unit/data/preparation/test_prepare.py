"""Prepared copies equal their folders. If images are broken, all of them are named, and no copy is left."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.preparation.check import check
from prometar.data.preparation.prepare import prepare
from prometar.data.splits.fewshot import draw
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import stream_local
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import InfrastructureError, UserError, WorkError

NUM_IMAGES = 96  # of `small_dtd`


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the content of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_order(dataset: Dataset) -> ImageOrder:
    """Return an order of few-shot images of a dataset."""
    train = draw(dataset.train, shots=3, rng=random.Random(1))
    return ImageOrder(train, TransformSpec(32, train=True), batch_size=5, epochs=2)


@pytest.mark.parametrize("is_uri", [False, True], ids=["folder", "uri"])
def test_a_copy_has_the_same_splits_image_order_and_pixels(
    small_dtd: Path, tmp_path: Path, is_uri: bool
) -> None:
    to = tmp_path.as_uri() if is_uri else tmp_path
    prepare("dtd", small_dtd, to, shard_rows=40)

    original = open_dataset("dtd", small_dtd)
    copy = open_dataset("dtd", to)
    assert copy.splits == original.splits
    assert train_order(copy).digest == train_order(original).digest

    received_source = pickle.loads(pickle.dumps(copy.source))  # as by a worker
    batches = stream_local(train_order(copy), received_source)
    expected_batches = stream_local(train_order(original), original.source)
    for batch, expected in zip(batches, expected_batches, strict=True):
        assert np.array_equal(batch.images, expected.images)


def test_a_copy_consists_of_shards_with_documented_columns(small_dtd: Path, tmp_path: Path) -> None:
    manifest, num_existing = prepare("dtd", small_dtd, tmp_path, shard_rows=40)
    assert len(manifest.shards) == 3
    assert num_existing == 0
    assert sum(manifest.counts.values()) == NUM_IMAGES
    first_shard = tmp_path / "dtd" / manifest.shards[0]["file"]
    columns = ["path", "label", "classname", "split", "image"]
    assert pq.read_table(first_shard).column_names == columns


def test_the_original_is_not_changed(small_dtd: Path, tmp_path: Path) -> None:
    before = contents(small_dtd)
    prepare("dtd", small_dtd, tmp_path)
    assert contents(small_dtd) == before


def test_an_interrupted_command_is_resumed(small_dtd: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("dtd", small_dtd, tmp_path, shard_rows=40, progress=stop)
    with pytest.raises(UserError):
        open_dataset("dtd", tmp_path)  # without a manifest, the copy is not complete

    _, num_existing = prepare("dtd", small_dtd, tmp_path, shard_rows=40)
    assert num_existing == 2
    _, num_existing = prepare("dtd", small_dtd, tmp_path, shard_rows=40)
    assert num_existing == 3
    assert len(open_dataset("dtd", tmp_path).items) == NUM_IMAGES


def test_all_broken_images_are_named_and_there_is_no_copy(own_dtd: Path, tmp_path: Path) -> None:
    images = sorted((own_dtd / "dtd/images").rglob("*.jpg"))
    broken_images = (images[1], images[9], images[20])  # in different shards
    for image in broken_images:
        image.write_bytes(image.read_bytes()[:200])

    with pytest.raises(WorkError, match=r"3 of 32 images") as caught:
        prepare("dtd", own_dtd, tmp_path / "copy", shard_rows=10)

    message = str(caught.value)
    assert all(image.name in message for image in broken_images)
    assert "\n" not in message
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_copy_in_the_dataset_folder_is_refused(own_dtd: Path) -> None:
    before = contents(own_dtd)
    for to in (own_dtd, own_dtd / "dtd/images", own_dtd.as_uri()):
        with pytest.raises(UserError, match="own folder"):
            prepare("dtd", own_dtd, to)
    assert contents(own_dtd) == before


@pytest.mark.parametrize("change", ["bytes", "name", "split"])
def test_a_copy_that_differs_in_one_image_is_not_overwritten(
    own_dtd: Path, tmp_path: Path, change: str
) -> None:
    """The counts and class names of the copy are the same."""
    prepare("dtd", own_dtd, tmp_path, shard_rows=10)
    before = contents(tmp_path / "dtd")
    split_file = own_dtd / "dtd/split_zhou_DescribableTextures.json"
    split = json.loads(split_file.read_text())
    train_entry = split["train"][0]
    test_entry = split["test"][0]
    image_folder = own_dtd / "dtd/images"
    test_image = image_folder / test_entry[0]
    if change == "bytes":
        test_image.write_bytes((image_folder / train_entry[0]).read_bytes())
    elif change == "name":
        test_image.rename(test_image.with_name("renamed.jpg"))
        test_entry[0] = f"{test_image.parent.name}/renamed.jpg"
    else:
        split["train"][0] = test_entry
        split["test"][0] = train_entry
    split_file.write_text(json.dumps(split))

    with pytest.raises(UserError, match="contains a different copy of 'dtd'"):
        prepare("dtd", own_dtd, tmp_path)

    assert contents(tmp_path / "dtd") == before


def cut(shard: Path) -> None:
    shard.write_bytes(b"PAR1")


def flip_a_bit_of_an_image(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip_a_bit_of_an_image])
def test_a_damaged_shard_is_named_and_written_again(
    own_dtd: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    prepare("dtd", own_dtd, tmp_path, shard_rows=10)
    before = contents(tmp_path)
    dataset = open_dataset("dtd", tmp_path)
    damage(min(tmp_path.rglob("*.parquet")))
    with pytest.raises(InfrastructureError, match=r"Cannot read shard .*delete this copy and rerun"):
        dataset.source.read_many([item.path for item in dataset.items])

    _, num_existing = prepare("dtd", own_dtd, tmp_path, shard_rows=10)

    assert num_existing == 3
    assert contents(tmp_path) == before
    _, image_errors, _ = check("dtd", tmp_path)
    assert image_errors == []


def test_check_finds_a_changed_bit_in_an_image(own_dtd: Path, tmp_path: Path) -> None:
    """Images are not compressed again, so an image with a changed bit can usually be decoded."""
    prepare("dtd", own_dtd, tmp_path, shard_rows=10)
    shard = min(tmp_path.rglob("*.parquet"))
    flip_a_bit_of_an_image(shard)
    _, image_errors, _ = check("dtd", tmp_path)
    assert image_errors
    assert all(f"Cannot read shard {shard}" in error for error in image_errors)


OUTSIDE_THE_COPY = {"file": "../x.parquet", "sha256": ""}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        pytest.param("format", 99, "format must be 1", id="unknown format"),
        pytest.param("name", "other", "copy of 'other'", id="another dataset"),
        pytest.param(
            "shards",
            [OUTSIDE_THE_COPY],
            r"shards.0.file: String should match pattern",
            id="shard in another folder",
        ),
        pytest.param("shards", 3, "shards must be a valid", id="no list of shards"),
        pytest.param("counts", {}, "Delete this copy and rerun", id="other counts"),
    ],
)
def test_a_wrong_field_of_a_manifest_is_reported_in_one_line(
    small_dtd: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    prepare("dtd", small_dtd, tmp_path)
    file = tmp_path / "dtd/manifest.json"
    fields = json.loads(file.read_text())
    fields[key] = value
    file.write_text(json.dumps(fields))

    with pytest.raises(UserError, match=message) as caught:
        open_dataset("dtd", tmp_path)

    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_not_json_is_reported_in_one_line(small_dtd: Path, tmp_path: Path) -> None:
    prepare("dtd", small_dtd, tmp_path)
    (tmp_path / "dtd/manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"Cannot read .*manifest.json \(Invalid JSON") as caught:
        open_dataset("dtd", tmp_path)
    assert "\n" not in str(caught.value)


def test_credentials_in_a_uri_are_not_shown() -> None:
    with pytest.raises(UserError) as caught:
        open_dataset("dtd", "nowhere://key:se/cret@bucket")
    assert "cret" not in str(caught.value)
