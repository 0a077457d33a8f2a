"""Image data sets of a stand-in of the hub: named, fetched, checked, written once, and what can be wrong."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prometar.cli.app import main
from prometar.data.datasets.catalog import open_dataset, place_of
from prometar.data.preparation import hubset
from prometar.data.preparation.hub import HubRepo
from prometar.errors import UserError
from tests.support.hub_datasets import COMMIT, NAMES, FakeHub, png, serve_hub, table
from tests.support.nfs import like_nfs

NAME = "hf://someone/leaves"
TRAIN, TEST = [3, 1, 0, 2] * 5, [0, 1, 2, 3] * 2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        served.files["someone/leaves"] = {
            "README.md": b"# leaves",
            "leaves.py": b"raise SystemExit('code of a data set never runs')",
            "data/train-00000-of-00002.parquet": table(TRAIN[:12]),
            "data/train-00001-of-00002.parquet": table(TRAIN[12:], seed=12),
            "data/test-00000-of-00001.parquet": table(TEST, seed=50),
        }
        yield served


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_a_data_set_is_written_once_and_opens_like_any(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    assert main(["data", "download", NAME, "--to", str(root)]) == 0
    assert main(["data", "check", NAME, "--data-root", str(root)]) == 0
    text = capsys.readouterr().out
    assert "4 classes, train 20, val 0, test 8 images, all whole" in text
    assert COMMIT in text
    dataset = open_dataset(NAME, root)
    assert [item.label for item in dataset.train] == TRAIN
    assert dataset.classnames == NAMES
    paths = [item.path for item in (*dataset.train, *dataset.test)]
    expected = [png(label, k) for k, label in enumerate(TRAIN)]
    expected += [png(label, 50 + k) for k, label in enumerate(TEST)]
    assert dataset.source.read_many(paths) == expected
    assert not [path for _, path in hub.requests if path.endswith((".md", ".py"))]
    assert os.listdir(root) == ["hf.someone.leaves"], "downloads are gone"
    asked = len(hub.requests)
    assert main(["data", "download", NAME, "--to", str(root)]) == 0
    assert len(hub.requests) == asked


def test_two_commits_are_two_data_sets(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are compared by the digest, which reads no image."""
    hubset.obtain(NAME, tmp_path / "one")
    hub.files["someone/leaves"]["data/test-00000-of-00001.parquet"] = table(TEST, seed=99)
    monkeypatch.setattr("tests.support.hub_datasets.COMMIT", COMMIT[::-1])
    hubset.obtain(NAME, tmp_path / "other")
    one, other = (open_dataset(NAME, tmp_path / root) for root in ("one", "other"))
    assert one.counts == other.counts
    assert one.digest != other.digest


def test_it_goes_on_after_an_interruption(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hubset, "write_copy", stop)
        with pytest.raises(KeyboardInterrupt):
            hubset.obtain(NAME, tmp_path)
    assert not Path(place_of(NAME, tmp_path)).exists()
    asked = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(asked) == 3
    hubset.obtain(NAME, tmp_path)
    again = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert again == asked, "no file was fetched twice"
    assert len(open_dataset(NAME, tmp_path).train) == len(TRAIN)


def test_options_choose_columns_splits_and_folders(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["someone/leaves"] = {
        "fine/train/0000.parquet": table(["oak", "ash"] * 4, image="img", label="kind", names=None),
        "fine/dev/0000.parquet": table(["ash", "oak"], image="img", label="kind", names=None),
        "fine/validation/0000.parquet": table(["elm"], image="img", label="kind", names=None),
        "coarse/train/0000.parquet": table(["tree"] * 2, names=None),
        "coarse/dev/0000.parquet": table(["tree"] * 2, names=None),
    }
    name = f"{NAME}?folder=fine&image=img&label=kind&test=dev"
    hubset.obtain(name, tmp_path)
    dataset = open_dataset(name, tmp_path)
    assert dataset.classnames == ("ash", "elm", "oak")
    assert [item.classname for item in dataset.val] == ["elm"]
    assert [item.classname for item in dataset.test] == ["ash", "oak"]
    with pytest.raises(UserError, match=r"has files in coarse, fine: choose one with \?folder=NAME"):
        hubset.obtain(f"{NAME}?test=dev&label=kind", tmp_path)


def test_plain_numbers_take_their_names_from_a_file(hub: FakeHub, tmp_path: Path) -> None:
    for path, content in (
        ("train.parquet", table(TRAIN, names=None)),
        ("test.parquet", table(TEST, names=None)),
    ):
        hub.files.setdefault("someone/numbers", {})[path] = content
    with pytest.raises(UserError, match=r"do not say what they mean: pass \?names=FILE"):
        hubset.obtain("hf://someone/numbers", tmp_path)
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\nfour\n")
    name = f"hf://someone/numbers?names={tmp_path}/names.txt"
    hubset.obtain(name, tmp_path)
    assert open_dataset(name, tmp_path).classnames == ("one", "two", "three", "four")
    (tmp_path / "names.txt").write_text("one\n\ntwo\nthree\nfour\n")
    with pytest.raises(UserError, match=r"names.txt: line 2 is blank"):
        hubset.obtain(name, tmp_path / "again")


def _replace_train(hub: FakeHub, content: bytes) -> None:
    hub.files["someone/leaves"] = {"train.parquet": content, "test.parquet": table(TEST)}


def _text_images(hub: FakeHub) -> None:
    _replace_train(hub, table(TRAIN, images=pa.array(["a"] * 20)))


def _no_images(hub: FakeHub) -> None:
    _replace_train(hub, table(TRAIN, images=pa.array([b"noise"] * 20)))


def _broken_image(hub: FakeHub) -> None:
    _replace_train(hub, table([0, 1], images=pa.array([png(0, 0), png(1, 1)[:60]])))


def _links(hub: FakeHub) -> None:
    rows = [{"bytes": None, "path": "a.png"}] * 20
    _replace_train(
        hub, table(TRAIN, images=pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    )


def _two_labels(hub: FakeHub) -> None:
    found = pa.table([[png(0, 0)], [0], [1]], names=["image", "label", "label"])
    sink = pa.BufferOutputStream()
    pq.write_table(found, sink)
    _replace_train(hub, sink.getvalue().to_pybytes())


def _lying(hub: FakeHub) -> None:
    hub.lie = True


ALIKE = table(["oak", "ash", "Oak "], names=None)
WRONG: dict[str, tuple[str, Callable[[FakeHub], object] | None, int, str]] = {
    "no such data set": (
        "hf://someone/nothing",
        None,
        2,
        "the data set someone/nothing (revision main) is not there, or is private",
    ),
    "gated": (NAME, lambda hub: hub.gated.add("someone/leaves"), 2, "accept its terms"),
    "no such revision": (
        f"{NAME}?revision=v9",
        None,
        2,
        "someone/leaves (revision v9): there is no such revision",
    ),
    "no such split": (
        f"{NAME}?test=dev",
        None,
        2,
        "of a split 'dev', only of test, train: choose one with ?test=",
    ),
    "one split twice": (f"{NAME}?test=train", None, 2, "must be three splits"),
    "no Parquet": (f"{NAME}?folder=other", None, 2, "has no Parquet files in other/"),
    "no such column": (f"{NAME}?image=img", None, 2, "no columns 'img' among image (struct<bytes"),
    "a column twice": (
        NAME,
        _two_labels,
        2,
        "has 2 columns 'label' among image (binary), label (int64), label",
    ),
    "labels that are none": (f"{NAME}?label=image", None, 2, "'image' of someone/leaves holds no labels"),
    "text for images": (NAME, _text_images, 2, "'image' of someone/leaves holds no images: it is string"),
    "bytes that are no images": (
        NAME,
        _no_images,
        1,
        "holds no images: broken image 0123456789ab/train/0000000",
    ),
    "a broken image": (NAME, _broken_image, 1, "1 of 10 images of hf://someone/leaves are broken"),
    "images elsewhere": (NAME, _links, 2, "image 0123456789ab/train/0000000 is not in the data set's files"),
    "no label": (
        NAME,
        lambda hub: _replace_train(hub, table([0, -1])),
        2,
        "image 1 of train has the label -1",
    ),
    "names in another order": (
        NAME,
        lambda hub: _replace_train(hub, table(TRAIN, names=NAMES[::-1])),
        2,
        "test.parquet call the labels by other names, or in another order",
    ),
    "fewer names": (NAME, lambda hub: _replace_train(hub, table([0, 1], names=NAMES[:2])), 2, "other names"),
    "text and numbers": (
        NAME,
        lambda hub: _replace_train(hub, table(["oak", "ash"], names=None)),
        2,
        "train.parquet and numbers in",
    ),
    "a part that is missing": (
        NAME,
        lambda hub: hub.files["someone/leaves"].pop("data/train-00000-of-00002.parquet"),
        2,
        "someone/leaves: of the files that are numbered as data/train-00001-of-00002.parquet is, there is 1, "
        "so one is missing",
    ),
    "two generations of a part": (
        NAME,
        lambda hub: hub.files["someone/leaves"].update({"data/train-00000-of-00002-9f.parquet": b""}),
        2,
        "of the files that are numbered as data/train-00000-of-00002-9f.parquet is, there are 3, so "
        "one is missing or there twice: choose another with ?revision=NAME",
    ),
    "two generations of a split": (
        NAME,
        lambda hub: hub.files["someone/leaves"].update({"data/train-00000-of-00001.parquet": b""}),
        2,
        "numbered as data/train-00000-of-00001.parquet is, there are 3, so one is missing or there twice",
    ),
    "one part twice in the place of another": (
        NAME,
        lambda hub: hub.files["someone/leaves"].update(
            {
                "data/train-00000-of-00002-9f.parquet": hub.files["someone/leaves"].pop(
                    "data/train-00001-of-00002.parquet"
                )
            }
        ),
        2,
        "numbered as data/train-00000-of-00002-9f.parquet is, there are 2, so one is missing or there twice",
    ),
    "labels that CLIP reads alike": (
        NAME,
        lambda hub: hub.files.update({"someone/leaves": {"train.parquet": ALIKE, "test.parquet": ALIKE}}),
        2,
        "the labels 'Oak ' and 'oak' of someone/leaves name the same class",
    ),
    "no images": (NAME, lambda hub: _replace_train(hub, table([])), 2, "holds no labels"),
    "no Parquet inside": (NAME, lambda hub: _replace_train(hub, b"PAR1 not"), 1, "cannot read train.parquet"),
    "another file": (NAME, _lying, 1, "is not what the hub says it is: it was deleted"),
    "a path outside": (
        NAME,
        lambda hub: hub.files["someone/leaves"].update({"../evil.parquet": b""}),
        1,
        "leaves its",
    ),
    "a wrong name": ("hf://a/b/c", None, 2, "expected hf://owner/name"),
    "another library's name": ("hf://datasets/a/b", None, 2, "expected hf://owner/name"),
    "a wrong option": (f"{NAME}?colour=red", None, 2, "unknown option 'colour': known are revision, folder"),
    "an empty option": (f"{NAME}?test=", None, 2, "the option 'test' needs one value"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, change, status, message = WRONG[case]
    if change is not None:
        change(hub)
    assert main(["data", "check", name, "--data-root", str(tmp_path)]) == status
    assert message in one_line(capsys)
    assert set(os.listdir(tmp_path)) <= {".download"}


def test_too_many_images_and_too_large_ones_are_refused(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubset, "MAX_FILES", 10)
    assert main(["data", "check", NAME, "--data-root", str(tmp_path)]) == 1
    assert "has 28 images: at most 10 are taken" in one_line(capsys)
    monkeypatch.setattr(hubset, "MAX_FILES", 28)
    monkeypatch.setattr("prometar.data.preparation.hubparquet.MAX_SLACK_BYTES", -(2**30))
    assert main(["data", "check", NAME, "--data-root", str(tmp_path)]) == 1
    assert "holds more than a file of images can" in one_line(capsys)


@pytest.mark.parametrize("large", ["image", "label"])
def test_one_large_value_for_many_rows_is_refused_without_filling_the_memory(
    hub: FakeHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    large: str,
) -> None:
    """A dictionary in a file of 50 kB: its pages say nothing of the 40 MB that its rows take."""
    value = np.random.default_rng(0).bytes(20_000).hex()
    image, label = (value.encode(), "oak") if large == "image" else (png(0, 0), value)
    images = pa.StructArray.from_arrays([pa.array([image] * 1000)], ["bytes"])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": images, "label": [label] * 1000}), sink)
    content = sink.getvalue().to_pybytes()
    assert len(content) < 2**16
    _replace_train(hub, content)
    monkeypatch.setattr("prometar.data.preparation.hubparquet.MAX_SLACK_BYTES", 2**20)
    usual, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        assert main(["data", "check", NAME, "--data-root", str(tmp_path)]) == 1
    finally:
        pa.set_memory_pool(usual)
    assert "train.parquet holds more than a file of images can: it is not read" in one_line(capsys)
    assert 0 < counted.max_memory() < 2**22
    assert os.listdir(tmp_path) == [".download"], "nothing was copied"


def test_the_space_of_what_is_there_is_not_asked_for_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {path: len(content) for path, content in hub.files["someone/leaves"].items() if "data/" in path}
    work = tmp_path / ".download" / "hf.someone.leaves"
    asked: list[int] = []
    monkeypatch.setattr(hubset, "require_space", lambda folder, needed: asked.append(needed))

    def stop(*args: object, **options: object) -> None:
        copy = Path(place_of(NAME, tmp_path))
        copy.mkdir()
        (copy / "00000-0123456789abcdef.parquet").write_bytes(b"x" * 100)
        kept = work / ".cache" / "huggingface" / "download" / "data"
        (kept / "abc.0123.incomplete").write_bytes(b"x" * 10)
        (kept / "abc.0123.4567cdef.incomplete").write_bytes(b"x" * 1000)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hubset, "write_copy", stop)
        with pytest.raises(KeyboardInterrupt):
            hubset.obtain(NAME, tmp_path)
    hubset.obtain(NAME, tmp_path)
    assert asked == [2 * sum(sizes.values()), sum(sizes.values()) - 100 - 10]


def test_a_second_process_is_refused_and_leaves_the_first_alone(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = hubset.write_copy

    def meanwhile(*args: Any, **options: Any) -> Any:
        assert main(["data", "check", NAME, "--data-root", str(tmp_path)]) == 1
        assert f"the download of someone/leaves is being run by process {os.getpid()}" in one_line(capsys)
        made = copy(*args, **options)
        assert hubset.obtain(NAME, tmp_path) is None, "the copy is whole, and its downloads are the first's"
        assert (tmp_path / ".download" / "hf.someone.leaves" / "data").is_dir()
        return made

    monkeypatch.setattr(hubset, "write_copy", meanwhile)
    assert hubset.obtain(NAME, tmp_path) is not None
    assert os.listdir(tmp_path) == ["hf.someone.leaves"]


def test_what_another_process_made_meanwhile_is_taken(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = hubset.look_up

    def late(repo: str, revision: str) -> HubRepo:
        monkeypatch.setattr(hubset, "look_up", look_up)
        assert hubset.obtain(NAME, tmp_path) is not None
        return look_up(repo, revision)

    monkeypatch.setattr(hubset, "look_up", late)
    assert hubset.obtain(NAME, tmp_path) is None
    assert os.listdir(tmp_path) == ["hf.someone.leaves"]


def test_downloads_that_a_killed_process_left_beside_its_copy_go(hub: FakeHub, tmp_path: Path) -> None:
    hubset.obtain(NAME, tmp_path)
    left = tmp_path / ".download" / "hf.someone.leaves" / "data"
    left.mkdir(parents=True)
    (left / "train.parquet").write_bytes(b"x")
    hubset.obtain(NAME, tmp_path)
    assert os.listdir(tmp_path) == ["hf.someone.leaves"]


def test_on_nfs_it_ends_well_and_its_downloads_go(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like_nfs(monkeypatch)
    assert hubset.obtain(NAME, tmp_path) is not None
    assert os.listdir(tmp_path) == ["hf.someone.leaves"]
    test_downloads_that_a_killed_process_left_beside_its_copy_go(hub, tmp_path)


def test_a_hub_that_does_not_answer_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert main(["data", "download", NAME, "--to", str(tmp_path)]) == 1
    assert "cannot exchange the data set someone/leaves (revision main) with the hub (" in one_line(capsys)


def test_without_a_root_and_on_a_store_the_message_says_what_to_do(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="needs a place for its copy: pass --data-root DIR"):
        hubset.obtain(NAME, None)
    with pytest.raises(UserError, match="run `prometar data download 'hf://someone/leaves' --to DIR`"):
        open_dataset(NAME, Path(os.devnull).parent)
    assert main(["data", "download", NAME, "--mirror", "https://x"]) == 2
    assert "--split and --mirror are for benchmarks" in one_line(capsys)
