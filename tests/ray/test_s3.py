"""Datasets in an object store: copies are prepared, resumed after an interruption, read, and trained on."""

import itertools
import os
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from prometar.cli.app import main
from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation.check import check, list_datasets
from prometar.data.preparation.prepare import prepare
from prometar.data.streaming import raystream
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.raystream import stream
from prometar.data.streaming.stream import stream_local
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import UserError, WorkError
from prometar.io.stores import filesystem_and_path, join


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a data root in a new bucket.

    It contains keys, endpoint and region, because Ray's workers do not have the environment of a test.
    """
    for key in list(os.environ):
        if key.startswith("AWS_"):
            monkeypatch.delenv(key)
    name = f"bucket-{next(bucket_numbers)}"
    create_bucket(endpoint, name)
    return f"s3://key:secret@{name}/data?scheme=http&endpoint_override={endpoint}&region=us-east-1"


bucket_numbers = itertools.count()


def create_bucket(endpoint: str, bucket: str) -> None:
    """Create a bucket in the S3 server at host:port."""
    request = urllib.request.Request(f"http://{endpoint}/{bucket}", method="PUT")
    assert urllib.request.urlopen(request).status == 200


def files(uri: str) -> list[str]:
    """Return the sorted names of all files below a URI."""
    system, folder = filesystem_and_path(uri)
    found = system.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.File)


def test_a_copy_in_a_bucket_consists_of_shards_and_a_manifest(small_dtd: Path, bucket: str) -> None:
    manifest, num_kept = prepare("dtd", small_dtd, bucket, shard_rows=40)

    assert sum(manifest.counts.values()) == 96
    assert len(manifest.shards) == 3, "96 images, at most 40 in each"
    assert num_kept == 0, "nothing was there before"
    *shards, manifest_file = files(bucket)
    assert manifest_file == "manifest.json"
    assert len(shards) == 3


def test_a_copy_in_a_bucket_equals_the_folder(small_dtd: Path, bucket: str) -> None:
    prepare("dtd", small_dtd, bucket, shard_rows=40)

    copy = open_dataset("dtd", bucket)
    original = open_dataset("dtd", small_dtd)
    assert copy.splits == original.splits
    paths = [item.path for item in original.train[::5]]
    assert copy.source.read_many(paths) == original.source.read_many(paths)
    _, image_errors, _ = check("dtd", bucket)
    assert image_errors == []


def test_a_copy_in_a_bucket_is_listed(small_dtd: Path, bucket: str) -> None:
    prepare("dtd", small_dtd, bucket)
    listed = list_datasets(bucket)
    assert listed["dtd"] == open_dataset("dtd", bucket)
    assert listed["sun397"] is None, "it is not there"


def test_keys_and_endpoint_are_read_from_the_environment(
    small_dtd: Path, endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "AWS_ENDPOINT_URL": f"http://{endpoint}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    create_bucket(endpoint, "plain")

    prepare("dtd", small_dtd, "s3://plain/data")
    assert len(open_dataset("dtd", "s3://plain/data").train) == 48


def test_an_interrupted_preparation_keeps_its_shards(small_dtd: Path, bucket: str) -> None:
    def stop_after_two(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("dtd", small_dtd, bucket, shard_rows=40, progress=stop_after_two)
    assert len(files(bucket)) == 2
    with pytest.raises(UserError, match="has no prepared copy"):
        open_dataset("dtd", bucket)

    _, num_kept = prepare("dtd", small_dtd, bucket, shard_rows=40)
    assert num_kept == 2
    _, num_kept_when_finished = prepare("dtd", small_dtd, bucket, shard_rows=40)
    assert num_kept_when_finished == 3
    assert len(open_dataset("dtd", bucket).train) == 48


def test_streams_from_a_bucket_give_equal_pixels(
    small_dtd: Path, bucket: str, ray_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raystream, "MAX_STORED_IMAGES", 1)  # read by the tasks, as large datasets are
    prepare("dtd", small_dtd, bucket, shard_rows=40)
    images: list[np.ndarray] = []
    for root, read in ((small_dtd, stream_local), (bucket, stream)):
        dataset = open_dataset("dtd", root)
        order = ImageOrder(dataset.train, TransformSpec(24, True), batch_size=5)
        images.append(np.concatenate([batch.images for batch in read(order, dataset.source)]))

    from_folder, from_bucket = images
    assert np.array_equal(from_folder, from_bucket)


def train_on(root: str, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Train on dtd in a data root. Return the printed accuracies."""
    args = ["train", "--data-root", root, "--out", str(out)]
    for setting in ("data.name=dtd", "backbone.name=mini", "method=ivlp", "train.epochs=1", "data.shots=2"):
        args += ["--set", setting]
    assert main(args) == 0
    result, _, _ = capsys.readouterr().out.partition("Prompts and records")
    _, _, accuracies = result.partition("ivlp on")
    assert accuracies
    return accuracies


def test_a_run_on_a_bucket_has_the_accuracies_of_a_run_on_files(
    small_dtd: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", "dtd", "--data-root", str(small_dtd), "--to", bucket]) == 0
    assert "96 images" in capsys.readouterr().out

    from_bucket = train_on(bucket, tmp_path / "from-bucket", capsys)

    assert from_bucket == train_on(str(small_dtd), tmp_path / "from-files", capsys)


def test_a_bucket_that_does_not_exist_is_named_in_one_line(small_dtd: Path, bucket: str) -> None:
    nowhere = join(bucket.replace("@bucket-", "@nothing-"), "")
    with pytest.raises(UserError, match="has no prepared copy"):
        open_dataset("dtd", nowhere)
    with pytest.raises(WorkError, match=r"Cannot write to s3://.*Rerun this command to resume") as caught:
        prepare("dtd", small_dtd, nowhere)
    assert "\n" not in str(caught.value)


def test_a_server_that_does_not_answer_is_named_in_one_line_without_the_secret(
    endpoint: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    no_server = bucket.replace(endpoint, "127.0.0.1:9")
    assert main(["data", "list", "--data-root", no_server]) == 1
    error = capsys.readouterr().err
    assert "cannot read s3://key:***@" in error
    assert "secret" not in error
    assert error.count("\n") == 1
