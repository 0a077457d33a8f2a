"""Downloads from a local server: files are verified, and unpacked only into their own folder."""

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from prometar.cli.app import main
from prometar.data.datasets.benchmarks import BENCHMARKS, Archive
from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation import download as download_module
from prometar.data.preparation.download import download_file, unpack
from prometar.errors import WorkError
from prometar.io.files import lock_folder
from tests.support.copies import with_split, write_copy
from tests.support.fileserver import Served, serve

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)  # more than three chunks
DIGEST = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
WRONG_DIGEST = f"md5:{'0' * 32}"
SPLIT = BENCHMARKS["dtd"].split_file
EUROSAT_SPLIT = BENCHMARKS["eurosat"].split_file
DOWNLOADED = sorted(name for name in BENCHMARKS if name != "imagenet")
WITH_ARCHIVES = sorted(name for name in DOWNLOADED if BENCHMARKS[name].archives)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Server that offers `CONTENT` as file.bin."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve({"/file.bin": CONTENT}) as served:
        yield served


class Progress:
    """Callback that records (finished bytes, total bytes)."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


def test_a_file_is_downloaded_with_its_progress(server: Served, tmp_path: Path) -> None:
    progress = Progress()
    file = tmp_path / "file"

    download_file(f"{server.url}/file.bin", file, digest=DIGEST, progress=progress)

    assert file.read_bytes() == CONTENT
    assert progress.calls[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize(("status", "reason"), [(404, "404: Not Found"), (503, "503")])
def test_a_failed_transfer_is_reported_in_one_line(
    server: Served, tmp_path: Path, status: int, reason: str
) -> None:
    server.status = [status]
    with pytest.raises(WorkError, match=f"Cannot download {server.url}/file.bin: .*{reason}") as caught:
        download_file(f"{server.url}/file.bin", tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranges", "break_at"),
    [
        pytest.param(True, [2_000_000, 1_000_000, len(CONTENT)], id="continued"),
        pytest.param(False, [1_000_000, len(CONTENT)], id="started over"),
    ],
)
def test_an_interrupted_transfer_is_completed_with_or_without_ranges(
    server: Served, tmp_path: Path, ranges: bool, break_at: list[int]
) -> None:
    server.ranges = ranges
    server.break_at = break_at
    progress = Progress()
    file = tmp_path / "file"

    download_file(f"{server.url}/file.bin", file, digest=DIGEST, progress=progress)

    assert file.read_bytes() == CONTENT
    assert {total for _, total in progress.calls} == {len(CONTENT)}


def test_a_transfer_without_progress_is_given_up(server: Served, tmp_path: Path) -> None:
    server.break_at = [1000, 0]
    with pytest.raises(WorkError, match=f"closed after 1000 of {len(CONTENT)} bytes"):
        download_file(f"{server.url}/file.bin", tmp_path / "file")
    assert len(server.requests) == 2


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified", ""])
def test_a_later_call_continues_an_interrupted_transfer(
    server: Served, tmp_path: Path, validator: str
) -> None:
    server.validator = validator
    server.break_at = [2_000_000, 0]
    file = tmp_path / "file"
    with pytest.raises(WorkError, match="closed after 2000000 of"):
        download_file(f"{server.url}/file.bin", file)

    download_file(f"{server.url}/file.bin", file, digest=DIGEST)

    assert file.read_bytes() == CONTENT
    assert server.starts == [0, 2_000_000, 2_000_000]


@pytest.mark.parametrize("change", ["ETag", "Last-Modified", "size", "shorter", "other address", "no record"])
def test_a_transfer_starts_again_if_the_file_has_changed(server: Served, tmp_path: Path, change: str) -> None:
    """If the server sends neither ETag nor Last-Modified, only another size shows that a file has changed."""
    server.validator = change if change in {"ETag", "Last-Modified"} else ""
    server.break_at = [2_000_000, 0]
    path = "/file.bin"
    file = tmp_path / "file"
    with pytest.raises(WorkError, match="closed after 2000000 of"):
        download_file(f"{server.url}{path}", file)

    new_content = CONTENT[::-1]
    if change == "size":
        new_content += b"more"
    if change == "shorter":
        new_content = new_content[:1_500_000]
    if change == "other address":
        path = "/other.bin"
    if change == "no record":
        (tmp_path / "file.transfer.json").write_text("[")
    server.files[path] = new_content
    server.modified = "Thu, 02 Jan 2025 00:00:00 GMT"
    download_file(f"{server.url}{path}", file)

    assert file.read_bytes() == new_content
    assert server.starts[-1] == 0


def test_a_file_with_another_digest_is_rejected_and_deleted(server: Served, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=f"has the digest {DIGEST}, expected {WRONG_DIGEST}"):
        download_file(f"{server.url}/file.bin", tmp_path / "file", digest=WRONG_DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_file_is_not_transferred_again(server: Served, tmp_path: Path) -> None:
    """A command that is interrupted while it unpacks an archive does not repeat the transfer."""
    file = tmp_path / "file"
    for _ in range(2):
        download_file(f"{server.url}/file.bin", file, digest=DIGEST)
    assert server.starts == [0]
    assert file.read_bytes() == CONTENT


def tar_of(folder: Path, top: str) -> bytes:
    """Return a compressed tar file of a folder, which is called `top` in it. Split files are left out."""

    def without_split_files(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "split_zhou" in member.name else member

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(folder, top, filter=without_split_files)
    return stream.getvalue()


def zip_of(folder: Path, top: str, more: Mapping[str, bytes] = {}) -> bytes:
    """Return a zip file of a folder, which is called `top` in it, and of `more` files below this folder."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, content in more.items():
            packed.writestr(os.path.normpath(f"{top}/{name}"), content)
        for path in sorted(folder.rglob("*")):
            packed.write(path, f"{top}/{path.relative_to(folder)}")
    return stream.getvalue()


Offer = Callable[[str], Path]
"""Function of a benchmark's name that offers the benchmark, and returns the folder of its files."""


@pytest.fixture
def offer(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Makes a small benchmark in origin/. The server offers its archives, its split file and its copy."""
    monkeypatch.setattr(download_module, "SPLIT_FILES_URL", f"{server.url}/splits")
    monkeypatch.setattr(download_module, "COPIES_URL", f"{server.url}/copies")

    def offer_benchmark(name: str) -> Path:
        benchmark = BENCHMARKS[name]
        folder = write_copy(name, tmp_path / "origin")
        if name == "stanford_cars":
            _arrange_cars(folder, folder / benchmark.split_file)
        archives = tuple(_offer_archive(server, name, archive, folder) for archive in benchmark.archives)
        if benchmark.split_file:
            benchmark = with_split(server, benchmark, folder)

        copy = benchmark.copy_file
        assert copy is not None
        unused_files = {"split_fewshot/x.pkl": b"pickle", "../__MACOSX/a/b": b"x"}
        content = zip_of(folder, benchmark.folder, unused_files)
        server.files[f"/copies/{copy.file}"] = content
        if copy.digest:
            copy = copy.model_copy(update={"digest": sha256_of(content)})

        update = {"archives": archives, "copy_file": copy}
        monkeypatch.setitem(BENCHMARKS, name, benchmark.model_copy(update=update))
        return folder

    return offer_benchmark


def _arrange_cars(folder: Path, split_file: Path) -> None:
    """Move the images of stanford_cars to the folders that its copy has."""
    (folder / "trains").rename(folder / "cars_train")
    (folder / "vals").rename(folder / "cars_train/vals")
    (folder / "tests").rename(folder / "cars_test")
    text = split_file.read_text("utf-8")
    text = text.replace('"trains/', '"cars_train/')
    text = text.replace('"vals/', '"cars_train/vals/')
    text = text.replace('"tests/', '"cars_test/')
    split_file.write_text(text, "utf-8")


def sha256_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _offer_archive(server: Served, name: str, archive: Archive, folder: Path) -> Archive:
    """Offer an archive of a benchmark's folder at each of its addresses, and return its entry."""
    path = f"/{name}/{archive.urls[0].rpartition('/')[2]}"
    packed_folder = folder
    top = archive.parent
    if archive.parent == ".":
        packed_folder = folder / archive.target
        top = archive.main_folder
    if archive.inner:
        inner_folder, _, inner_name = archive.inner.rpartition("/")
        with TemporaryDirectory() as outer:
            Path(outer, inner_name).write_bytes(tar_of(packed_folder, top))
            content = zip_of(Path(outer), inner_folder)
    elif path.endswith(".zip"):
        content = zip_of(packed_folder, top)
    else:
        content = tar_of(packed_folder, top)

    paths = [path, *(f"/{number}{path}" for number in range(1, len(archive.urls)))]
    for each in paths:
        server.files[each] = content
    digest = ""
    if archive.digest:
        algorithm = archive.digest.partition(":")[0]
        digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    urls = tuple(f"{server.url}{each}" for each in paths)
    return archive.model_copy(update={"urls": urls, "digest": digest})


def download(name: str, root: Path) -> int:
    """Run `prometar data download`. Return its exit status."""
    return main(["data", "download", name, "--to", str(root)])


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the error messages on stderr. Its other lines say that another source is tried."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if not line.endswith("another source.")]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_the_files_of_a_downloaded_benchmark_are_listed(
    server: Served, offer: Offer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(name)
    benchmark = BENCHMARKS[name]
    root = tmp_path / "root"

    assert download(name, root) == 0

    captured = capsys.readouterr()
    assert captured.err == ""
    assert benchmark.copy_file is not None
    expected = list(benchmark.copy_file.folders)
    if benchmark.split_file:
        expected.append(benchmark.split_file)
    for file in expected:
        assert f"Downloaded {root / benchmark.folder / file}\n" in captured.out
    assert "Complete. To check every image" in captured.out

    assert os.listdir(root) == [benchmark.folder]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_downloaded_benchmark_equals_the_original_and_passes_the_check(
    offer: Offer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(name)
    root = tmp_path / "root"

    download(name, root)

    assert open_dataset(name, root).splits == open_dataset(name, tmp_path / "origin").splits
    assert main(["data", "check", name, "--data-root", str(root)]) == 0
    assert "differs from CoOp's" not in capsys.readouterr().out


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_complete_benchmark_is_not_downloaded_again(
    server: Served, offer: Offer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(name)
    root = tmp_path / "root"
    assert download(name, root) == 0
    capsys.readouterr()
    num_requests = len(server.requests)

    assert download(name, root) == 0

    text = capsys.readouterr().out
    assert "Downloaded " not in text
    assert "Complete. To check every image" in text
    assert len(server.requests) == num_requests


@pytest.mark.parametrize("name", WITH_ARCHIVES)
def test_if_one_source_is_dead_another_one_is_used(
    server: Served, offer: Offer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The preferred source is the archive, and the other one is the copy. For ImageNet's variants, it is the
    other way round."""
    offer(name)
    benchmark = BENCHMARKS[name]
    root = tmp_path / "root"
    if benchmark.imagenet_variant:
        preferred = "/copies/"
        other = "/imagenet"
        # No archive contains the list of classes, but the folder of ImageNet has the same list.
        class_list = tmp_path / "origin" / benchmark.folder / "classnames.txt"
        (root / "imagenet").mkdir(parents=True)
        (root / "imagenet/classnames.txt").write_bytes(class_list.read_bytes())
    else:
        preferred = f"/{name}/"
        other = "/copies/"
    for path in list(server.files):
        if path.startswith((preferred, "/1/", "/splits/")):
            del server.files[path]

    assert download(name, root) == 0

    captured = capsys.readouterr()
    assert f"Cannot download {server.url}{preferred}" in captured.err
    assert "HTTP Error 404: Not Found. Trying another source.\n" in captured.err
    assert "Complete. To check every image" in captured.out
    assert server.requests[-1].startswith(other)
    assert open_dataset(name, root).splits == open_dataset(name, tmp_path / "origin").splits
    assert not list(tmp_path.rglob("*.pkl*")), "only lists and images of the copy are used"


def test_the_second_address_of_eurosat_is_used_if_the_first_fails(
    server: Served, offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("eurosat")
    server.status = [403]
    assert download("eurosat", tmp_path / "root") == 0
    assert "403: Forbidden. Trying another source." in capsys.readouterr().err
    assert server.requests == ["/eurosat/EuroSAT.zip", "/1/eurosat/EuroSAT.zip", f"/splits/{EUROSAT_SPLIT}"]


def test_if_all_sources_are_dead_one_line_names_them(
    server: Served, offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("sun397")
    server.files.clear()

    assert download("sun397", tmp_path / "root") == 1

    error = capsys.readouterr().err.splitlines()[-1]
    assert f"Cannot download {server.url}/sun397/SUN397.tar.gz: HTTP Error 404: Not Found. " in error
    assert f"Cannot download {server.url}/copies/sun397.zip: HTTP Error 404: Not Found. " in error
    assert f"Rerun this command later, or put the files into {tmp_path}/root/sun397 yourself" in error


@pytest.mark.parametrize("damage", ["digest", "split file"])
def test_a_copy_that_differs_from_the_published_one_is_refused(
    server: Served, offer: Offer, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = offer("ucf101")
    benchmark = BENCHMARKS["ucf101"]
    assert benchmark.copy_file is not None
    (folder / benchmark.split_file).write_text('{"train": [["a.jpg", 0, "a"]], "val": [], "test": []}')
    content = zip_of(folder, "ucf101")
    server.files["/copies/ucf101.zip"] = content
    message = "/copies/ucf101.zip has the digest sha256:"
    if damage == "split file":  # the digest of the copy is right
        copy = benchmark.copy_file.model_copy(update={"digest": sha256_of(content)})
        BENCHMARKS["ucf101"] = benchmark.model_copy(update={"copy_file": copy})
        message = f"{benchmark.split_file} at {server.url}/copies/ucf101.zip has the digest sha256:"

    assert download("ucf101", tmp_path / "root") == 1

    assert message in capsys.readouterr().err
    assert list((tmp_path / "root").iterdir()) == []


def test_nothing_is_downloaded_that_does_not_fit_on_the_disk(
    server: Served,
    offer: Offer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer("dtd")
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=1000))

    assert download("dtd", tmp_path / "root") == 1

    assert "but only 0.0 GB are free. Free disk space, or use another --to." in capsys.readouterr().err
    assert {path.split("/")[1] for path in server.requests} == {"dtd"}, "no other source is tried"


def test_if_the_disk_is_full_no_other_source_is_tried(
    server: Served,
    offer: Offer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer("dtd")

    def raise_disk_full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", raise_disk_full)

    assert download("dtd", tmp_path / "root") == 1

    assert f"Cannot write to {tmp_path}/root: No space left on device." in capsys.readouterr().err
    assert {path.split("/")[1] for path in server.requests} == {"dtd"}


def test_a_repeated_command_continues_an_interrupted_download(
    server: Served, offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("dtd")
    del server.files["/copies/dtd.zip"]  # only the archive is left
    root = tmp_path / "root"
    server.break_at = [1000, 0]
    assert download("dtd", root) == 1
    assert "the connection was closed after 1000 of" in capsys.readouterr().err
    assert os.listdir(root) == [".download-dtd"]

    assert download("dtd", root) == 0

    assert "Complete. To check every image" in capsys.readouterr().out
    assert server.starts == [0, 1000, 1000, 0]  # three transfers of the archive, and one of the split file
    assert os.listdir(root) == ["dtd"]


def test_an_archive_is_kept_if_unpacking_it_is_interrupted(
    server: Served,
    offer: Offer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer("dtd")
    root = tmp_path / "root"

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", interrupt)
        assert download("dtd", root) == 130
    assert os.listdir(root) == [".download-dtd"]

    assert download("dtd", root) == 0

    assert server.starts == [0, 0]  # one transfer of the archive, and one of the split file
    assert os.listdir(root) == ["dtd"]


def test_a_second_command_does_not_disturb_a_download(
    server: Served, offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("dtd")
    root = tmp_path / "root"

    with lock_folder(root / ".download-dtd", "a download"):
        assert download("dtd", root) == 1

    error = capsys.readouterr().err
    assert f"The folder {root}/.download-dtd is in use by another process. Stop it" in error
    assert server.requests == []


def test_a_split_file_of_the_user_is_kept_and_its_difference_reported(
    offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("dtd")
    own_file = tmp_path / "origin/dtd" / SPLIT
    own_content = own_file.read_bytes() + b" "
    own_file.write_bytes(own_content)

    assert download("dtd", tmp_path / "origin") == 0

    assert own_file.read_bytes() == own_content
    assert main(["data", "check", "dtd", "--data-root", str(tmp_path / "origin")]) == 0
    assert f"{SPLIT} differs from CoOp's" in capsys.readouterr().out


def test_an_invalid_split_file_of_the_user_is_kept_and_reported(
    offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("dtd")
    own_file = tmp_path / "origin/dtd" / SPLIT
    own_file.write_text("{}")

    assert download("dtd", tmp_path / "origin") == 0

    assert own_file.read_text() == "{}"
    assert (
        f"The dataset is not usable yet: Invalid split file {own_file}: train: a value is required"
        in capsys.readouterr().out
    )


SplitEntries = dict[str, list[Any]]
"""Content of a split file: for each split, [path, label, class name] of its images."""


def drop_an_image(entries: SplitEntries) -> None:
    entries["train"].pop()


def merge_the_last_two_classes(entries: SplitEntries) -> None:
    for rows in entries.values():
        for row in rows:
            row[1] = min(row[1], 3)


WRONG_SPLITS = [
    pytest.param(drop_an_image, "differs from the published split: train 19 of 20", id="fewer images"),
    pytest.param(
        merge_the_last_two_classes, "differs from the published split: classes 4 of 5", id="one class less"
    ),
    pytest.param(dict.clear, "train: a value is required", id="no split file"),
]


def offer_changed_split(server: Served, change: Callable[[SplitEntries], None]) -> None:
    """Change the split file of dtd on the server. Remove the copy, which contains the right one."""
    entries = json.loads(server.files[f"/splits/{SPLIT}"])
    change(entries)
    server.files[f"/splits/{SPLIT}"] = json.dumps(entries).encode()
    del server.files["/copies/dtd.zip"]


@pytest.mark.parametrize("change", [drop_an_image, merge_the_last_two_classes, dict.clear])
def test_a_split_file_with_another_digest_is_refused(
    server: Served,
    offer: Offer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[SplitEntries], None],
) -> None:
    offer("dtd")
    offer_changed_split(server, change)
    assert download("dtd", tmp_path) == 1
    assert "has the digest sha256:" in capsys.readouterr().err
    assert not (tmp_path / "dtd" / SPLIT).exists()


@pytest.mark.parametrize(("change", "message"), WRONG_SPLITS)
def test_without_a_known_digest_the_sizes_of_a_split_file_are_checked(
    server: Served,
    offer: Offer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[SplitEntries], None],
    message: str,
) -> None:
    offer("dtd")
    offer_changed_split(server, change)
    BENCHMARKS["dtd"] = BENCHMARKS["dtd"].model_copy(update={"split_digest": ""})

    assert download("dtd", tmp_path) == 1

    [error] = errors(capsys)
    assert message in error
    assert not (tmp_path / "dtd" / SPLIT).exists()
    assert not list(tmp_path.glob(".download-*"))


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """Return an entry of a tar file with its content. `fields`: attributes of the entry, such as its type."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


HOSTILE = {
    "a path above": [member("../evil", b"x")],
    "a path above, inside": [member("dtd/../../evil", b"x")],
    "a link out": [member("dtd/link", type=tarfile.SYMTYPE, linkname="/etc")],
    "a link, then through it": [
        member("dtd/out", type=tarfile.SYMTYPE, linkname="../.."),
        member("dtd/out/evil", b"x"),
    ],
    "a hard link": [member("dtd/link", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "a device": [member("dtd/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a pipe": [member("dtd/pipe", type=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused(
    server: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: list[tuple[tarfile.TarInfo, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for info, content in [member("dtd/images/a.jpg", b"x"), *members]:
            tar.addfile(info, io.BytesIO(content))
    server.files["/dtd.tar.gz"] = stream.getvalue()
    archive = Archive(urls=(f"{server.url}/dtd.tar.gz",), main_folder="images", parent="dtd")
    monkeypatch.setattr(download_module, "COPIES_URL", f"{server.url}/copies")
    monkeypatch.setitem(BENCHMARKS, "dtd", BENCHMARKS["dtd"].model_copy(update={"archives": (archive,)}))

    assert download("dtd", tmp_path / "root") == 1

    [error] = errors(capsys)
    assert "Cannot unpack" in error
    assert list(tmp_path.rglob("*")) == [tmp_path / "root"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_a_zip_file_writes_only_into_its_folder(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("fine.jpg", b"x")
        packed.writestr(name, b"x")

    unpack(archive, tmp_path / "in/out")

    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {archive, tmp_path / "in/out/fine.jpg"}


@pytest.mark.parametrize("kind", ["cut tar", "cut zip", "flipped zip", "no archive", "empty"])
def test_a_damaged_archive_is_reported_in_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(CONTENT[:50_000])
    whole_tar = tar_of(tmp_path / "in", "in")
    whole_zip = zip_of(tmp_path / "in", "in")
    flipped_zip = bytearray(whole_zip)
    flipped_zip[5_000] ^= 1
    damaged = {
        "cut tar": whole_tar[:20_000],
        "cut zip": whole_zip[:20_000],
        "flipped zip": bytes(flipped_zip),
        "no archive": CONTENT[:5_000],
        "empty": b"",
    }
    (tmp_path / "x").write_bytes(damaged[kind])

    with pytest.raises(WorkError, match=r"^Cannot unpack x: .+\.") as caught:
        unpack(tmp_path / "x", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_archive_without_the_expected_folder_is_reported(
    server: Served, offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("fgvc_aircraft")
    folder = write_copy("dtd", tmp_path)
    server.files["/fgvc_aircraft/fgvc-aircraft-2013b.tar.gz"] = tar_of(folder, "dtd")
    server.files["/copies/fgvc_aircraft.zip"] = zip_of(folder / "images", "fgvc_aircraft/photos")

    assert download("fgvc_aircraft", tmp_path / "root") == 1

    [error] = errors(capsys)
    assert (
        "fgvc-aircraft-2013b.tar.gz no longer contains the folder fgvc-aircraft-2013b/data/images." in error
    )
    assert "/copies/fgvc_aircraft.zip does not contain the folder images." in error


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        pytest.param("nope", "x", "'nope' is not a benchmark. Use one of imagenet, ", id="unknown name"),
        pytest.param("imagenet", "x", "ImageNet has no public archive. Get ILSVRC 2012", id="no archive"),
        pytest.param("dtd", "s3://bucket/x", "'s3:/...' is not a local path. ", id="URI"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(
    name: str,
    to: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "download", name, "--to", to]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
