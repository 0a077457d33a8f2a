"""An object store: prepare to it, go on after an interruption, read, stream and train from it."""

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
    """A root in a new bucket; the URI has all it takes to open it, as Ray's workers lack our environment."""
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    name = f"bucket-{next(numbers)}"
    create(endpoint, name)
    return f"s3://key:secret@{name}/data?scheme=http&endpoint_override={endpoint}&region=us-east-1"


numbers = itertools.count()


def create(endpoint: str, bucket: str) -> None:
    request = urllib.request.Request(f"http://{endpoint}/{bucket}", method="PUT")
    assert urllib.request.urlopen(request).status == 200


def files(uri: str) -> list[str]:
    system, folder = filesystem_and_path(uri)
    found = system.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.File)


def test_a_copy_in_a_bucket_equals_the_folder(small_dtd: Path, bucket: str) -> None:
    manifest, kept = prepare("dtd", small_dtd, bucket, shard_rows=40)
    assert (len(manifest.shards), kept, sum(manifest.counts.values())) == (3, 0, 96)
    assert files(bucket)[-1] == "manifest.json"
    assert len(files(bucket)) == 4
    ours = open_dataset("dtd", bucket)
    theirs = open_dataset("dtd", small_dtd)
    assert ours.splits == theirs.splits
    paths = [item.path for item in theirs.train[::5]]
    assert ours.source.read_many(paths) == theirs.source.read_many(paths)
    assert check("dtd", bucket)[1] == []
    listed = list_datasets(bucket)
    assert listed["dtd"] == ours
    assert listed["sun397"] is None


def test_the_environment_names_the_endpoint(
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
    create(endpoint, "plain")
    prepare("dtd", small_dtd, "s3://plain/data")
    assert len(open_dataset("dtd", "s3://plain/data").train) == 48


def test_an_interrupted_run_goes_on(small_dtd: Path, bucket: str) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("dtd", small_dtd, bucket, shard_rows=40, progress=stop)
    assert len(files(bucket)) == 2
    with pytest.raises(UserError, match="has no prepared copy"):
        open_dataset("dtd", bucket)
    assert prepare("dtd", small_dtd, bucket, shard_rows=40)[1] == 2
    assert prepare("dtd", small_dtd, bucket, shard_rows=40)[1] == 3
    assert len(open_dataset("dtd", bucket).train) == 48


def test_streams_from_a_bucket_give_equal_pixels(
    small_dtd: Path, bucket: str, ray_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raystream, "MAX_STORED_IMAGES", 1)  # read by the tasks, as large datasets are
    prepare("dtd", small_dtd, bucket, shard_rows=40)
    batches = []
    for root, read in ((small_dtd, stream_local), (bucket, stream)):
        dataset = open_dataset("dtd", root)
        order = ImageOrder(dataset.train, TransformSpec(24, True), batch_size=5)
        batches.append(np.concatenate([batch.images for batch in read(order, dataset.source)]))
    assert np.array_equal(*batches)


def test_a_run_on_a_bucket_has_the_accuracies_of_one_on_files(
    small_dtd: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", "dtd", "--data-root", str(small_dtd), "--to", bucket]) == 0
    assert "96 images" in capsys.readouterr().out
    results = []
    for root in (bucket, str(small_dtd)):
        args = ["train", "--data-root", root, "--out", str(tmp_path / f"run{len(results)}")]
        settings = ["data.name=dtd", "backbone.name=mini", "method=ivlp", "train.epochs=1", "data.shots=2"]
        assert main([*args, *(word for setting in settings for word in ("--set", setting))]) == 0
        results.append(capsys.readouterr().out.split("Prompts and records")[0].split("ivlp on")[1])
    assert results[0] == results[1], "the same images, the same accuracies"


def test_a_store_that_is_not_there_is_one_line(
    small_dtd: Path, endpoint: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = join(bucket.replace("@bucket-", "@nothing-"), "")
    with pytest.raises(UserError, match="has no prepared copy"):
        open_dataset("dtd", nowhere)
    with pytest.raises(WorkError, match=r"Cannot write to s3://.*Rerun this command to resume") as caught:
        prepare("dtd", small_dtd, nowhere)
    assert "\n" not in str(caught.value)
    gone = bucket.replace(endpoint, "127.0.0.1:9")
    assert main(["data", "list", "--data-root", gone]) == 1
    error = capsys.readouterr().err
    assert "cannot read s3://key:***@" in error
    assert "secret" not in error
    assert error.count("\n") == 1
