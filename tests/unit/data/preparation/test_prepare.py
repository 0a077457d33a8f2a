"""Prepared copies equal their folders; broken images are all named and leave no copy."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation.check import check
from prometar.data.preparation.prepare import prepare
from prometar.data.splits.fewshot import draw
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import stream_local
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import InfrastructureError, UserError, WorkError


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("uri", [False, True], ids=["folder", "uri"])
def test_a_copy_gives_equal_plans_and_pixels(small_dtd: Path, tmp_path: Path, uri: bool) -> None:
    before = tree(small_dtd)
    to = tmp_path.as_uri() if uri else tmp_path
    manifest, kept = prepare("dtd", small_dtd, to, shard_rows=40)
    assert (len(manifest.shards), kept, sum(manifest.counts.values())) == (3, 0, 96)
    assert tree(small_dtd) == before
    table = pq.read_table(next((tmp_path / "dtd").glob("00000*")))
    assert table.column_names == ["path", "label", "classname", "split", "image"]
    orders = []
    for root in (small_dtd, to):
        dataset = open_dataset("dtd", root)
        train = draw(dataset.train, shots=3, rng=random.Random(1))
        order = ImageOrder(train, TransformSpec(32, True), batch_size=5, epochs=2)
        source = pickle.loads(pickle.dumps(dataset.source))
        orders.append((dataset.splits, order.digest, [b.images for b in stream_local(order, source)]))
    assert orders[0][:2] == orders[1][:2]
    assert np.array_equal(np.stack(orders[0][2]), np.stack(orders[1][2]))


def test_an_interrupted_run_resumes(small_dtd: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("dtd", small_dtd, tmp_path, shard_rows=40, progress=stop)
    with pytest.raises(UserError):
        open_dataset("dtd", tmp_path)  # no manifest: not a copy yet
    assert prepare("dtd", small_dtd, tmp_path, shard_rows=40)[1] == 2
    assert prepare("dtd", small_dtd, tmp_path, shard_rows=40)[1] == 3
    assert len(open_dataset("dtd", tmp_path).train) == 48


def test_all_broken_images_are_named_and_there_is_no_copy(own_dtd: Path, tmp_path: Path) -> None:
    images = sorted((own_dtd / "dtd/images").rglob("*.jpg"))
    for image in (images[1], images[9], images[20]):
        image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(WorkError, match=r"3 of 32 images") as caught:
        prepare("dtd", own_dtd, tmp_path / "copy", shard_rows=10)
    assert all(image.name in str(caught.value) for image in (images[1], images[9], images[20]))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("manifest.json"))


def test_never_writes_into_the_users_data(own_dtd: Path) -> None:
    before = tree(own_dtd)
    for to in (own_dtd, own_dtd / "dtd/images", own_dtd.as_uri()):
        with pytest.raises(UserError, match="own folder"):
            prepare("dtd", own_dtd, to)
    assert tree(own_dtd) == before


@pytest.mark.parametrize("change", ["bytes", "name", "split"])
def test_a_copy_that_differs_in_one_image_stays(own_dtd: Path, tmp_path: Path, change: str) -> None:
    """Its counts and class names are the same."""
    prepare("dtd", own_dtd, tmp_path, shard_rows=10)
    before = tree(tmp_path / "dtd")
    file = own_dtd / "dtd/split_zhou_DescribableTextures.json"
    split = json.loads(file.read_text())
    one = split["train"][0]
    other = split["test"][0]
    image = own_dtd / "dtd/images" / other[0]
    if change == "bytes":
        image.write_bytes((image.parents[1] / one[0]).read_bytes())
    elif change == "name":
        image.rename(image.with_name("renamed.jpg"))
        other[0] = f"{image.parent.name}/renamed.jpg"
    else:
        split["train"][0] = other
        split["test"][0] = one
    file.write_text(json.dumps(split))
    with pytest.raises(UserError, match="contains a different copy of 'dtd'"):
        prepare("dtd", own_dtd, tmp_path)
    assert tree(tmp_path / "dtd") == before


def lose_a_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, lambda shard: shard.write_bytes(b"PAR1"), lose_a_bit])
def test_a_damaged_shard_is_named_and_written_again(
    own_dtd: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """Photographs are stored as they are: one with a changed byte is decoded all the same."""
    prepare("dtd", own_dtd, tmp_path, shard_rows=10)
    before = tree(tmp_path)
    dataset = open_dataset("dtd", tmp_path)
    shard = min(tmp_path.rglob("*.parquet"))
    damage(shard)
    with pytest.raises(InfrastructureError, match=r"Cannot read shard .*delete this copy and rerun"):
        dataset.source.read_many([item.path for item in dataset.items])
    if damage is lose_a_bit:
        _, broken, _ = check("dtd", tmp_path)
        assert broken
        assert all(f"Cannot read shard {shard}" in message for message in broken)
    assert prepare("dtd", own_dtd, tmp_path, shard_rows=10)[1] == 3
    assert tree(tmp_path) == before
    assert check("dtd", tmp_path)[1] == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 99}, "format must be 1"),
        ({"name": "other"}, "copy of 'other'"),
        ({"shards": [{"file": "../x.parquet", "sha256": ""}]}, r"shards.0.file: String should match pattern"),
        ({"shards": 3}, "shards must be a valid"),
        ({"counts": {}}, "Delete this copy and rerun"),
        ("{", r"Cannot read .*manifest.json \(Invalid JSON"),
    ],
    ids=str,
)
def test_a_wrong_manifest_says_what_is_wrong(
    small_dtd: Path, tmp_path: Path, change: dict[str, object] | str, text: str
) -> None:
    prepare("dtd", small_dtd, tmp_path)
    file = tmp_path / "dtd/manifest.json"
    content = change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change)
    file.write_text(content)
    with pytest.raises(UserError, match=text) as caught:
        open_dataset("dtd", tmp_path)
    assert "\n" not in str(caught.value)


def test_credentials_in_a_uri_are_not_shown() -> None:
    with pytest.raises(UserError) as caught:
        open_dataset("dtd", "nowhere://key:se/cret@bucket")
    assert "cret" not in str(caught.value)
