"""Downloads from a local server: verified, unpacked without trust, placed once."""

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

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)
DIGEST = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SPLIT = BENCHMARKS["dtd"].split_file
EUROSAT_SPLIT = BENCHMARKS["eurosat"].split_file
DOWNLOADED = sorted(name for name in BENCHMARKS if name != "imagenet")
WITH_ARCHIVES = sorted(name for name in DOWNLOADED if BENCHMARKS[name].archives)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve({"/file.bin": CONTENT}) as served:
        yield served


def test_a_file_is_downloaded_and_its_digest_checked(server: Served, tmp_path: Path) -> None:
    seen = []
    file = tmp_path / "file"
    download_file(f"{server.url}/file.bin", file, digest=DIGEST, progress=lambda *n: seen.append(n))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    with pytest.raises(WorkError, match=f"has the digest {DIGEST}, expected md5:0+"):
        download_file(f"{server.url}/file.bin", tmp_path / "file", digest=f"md5:{'0' * 32}")


@pytest.mark.parametrize(("status", "said"), [(404, "404: Not Found"), (503, "503")])
def test_a_failed_transfer_is_one_line(server: Served, tmp_path: Path, status: int, said: str) -> None:
    server.status = [status]
    with pytest.raises(WorkError, match=f"Cannot download {server.url}/file.bin: .*{said}") as caught:
        download_file(f"{server.url}/file.bin", tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ranges", [True, False], ids=["continued", "started over"])
def test_an_interrupted_transfer_goes_on(server: Served, tmp_path: Path, ranges: bool) -> None:
    server.break_at = [2_000_000, 1_000_000, len(CONTENT)]
    server.ranges = ranges
    if not ranges:
        server.break_at = [1_000_000, len(CONTENT)]
    seen: list[tuple[int, int]] = []
    file = tmp_path / "file"
    download_file(f"{server.url}/file.bin", file, digest=DIGEST, progress=lambda *n: seen.append(n))
    assert file.read_bytes() == CONTENT
    assert {total for _, total in seen} == {len(CONTENT)}


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
    """Only the size tells it if the server sends no validator."""
    server.validator = change if change in {"ETag", "Last-Modified"} else ""
    server.break_at = [2_000_000, 0]
    path = "/file.bin"
    file = tmp_path / "file"
    with pytest.raises(WorkError, match="closed after 2000000 of"):
        download_file(f"{server.url}{path}", file)
    content = CONTENT[::-1]
    if change == "size":
        content += b"more"
    if change == "shorter":
        content = content[:1_500_000]
    if change == "other address":
        path = "/other.bin"
    if change == "no record":
        (tmp_path / "file.transfer.json").write_text("[")
    server.files[path] = content
    server.modified = "Thu, 02 Jan 2025 00:00:00 GMT"
    download_file(f"{server.url}{path}", file)
    assert file.read_bytes() == content
    assert server.starts[-1] == 0


def test_a_file_with_another_digest_is_not_continued(server: Served, tmp_path: Path) -> None:
    file = tmp_path / "file"
    with pytest.raises(WorkError, match=r"expected md5:0+"):
        download_file(f"{server.url}/file.bin", file, digest=f"md5:{'0' * 32}")
    assert list(tmp_path.iterdir()) == []


def test_a_complete_file_is_not_transferred_again(server: Served, tmp_path: Path) -> None:
    """A command that is interrupted while it unpacks an archive does not repeat the transfer."""
    file = tmp_path / "file"
    for _ in range(2):
        download_file(f"{server.url}/file.bin", file, digest=DIGEST)
    assert server.starts == [0]
    assert file.read_bytes() == CONTENT


def tar_of(folder: Path, top: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(folder, top, filter=lambda member: None if "split_zhou" in member.name else member)
    return stream.getvalue()


def zip_of(folder: Path, top: str, more: Mapping[str, bytes] = {}) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, content in more.items():
            packed.writestr(os.path.normpath(f"{top}/{name}"), content)
        for path in sorted(folder.rglob("*")):
            packed.write(path, f"{top}/{path.relative_to(folder)}")
    return stream.getvalue()


Offer = Callable[[str], Path]


@pytest.fixture
def offer(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Makes a small benchmark in origin/. The server offers its archives, its split file and its copy."""
    monkeypatch.setattr(download_module, "SPLIT_FILES_URL", f"{server.url}/splits")
    monkeypatch.setattr(download_module, "COPIES_URL", f"{server.url}/copies")

    def of(name: str) -> Path:
        row = BENCHMARKS[name]
        folder = write_copy(name, tmp_path / "origin")
        if name == "stanford_cars":
            (folder / "trains").rename(folder / "cars_train")
            (folder / "vals").rename(folder / "cars_train/vals")
            (folder / "tests").rename(folder / "cars_test")
            split_file = folder / row.split_file
            text = split_file.read_text("utf-8").replace('"trains/', '"cars_train/')
            text = text.replace('"vals/', '"cars_train/vals/').replace('"tests/', '"cars_test/')
            split_file.write_text(text, "utf-8")
        archives = [_archive(server, name, archive, folder) for archive in row.archives]
        row = with_split(server, row, folder) if row.split_file else row
        copy = row.copy_file
        assert copy is not None
        content = zip_of(folder, row.folder, {"split_fewshot/x.pkl": b"pickle", "../__MACOSX/a/b": b"x"})
        server.files[f"/copies/{copy.file}"] = content
        digest = copy.digest and f"sha256:{hashlib.sha256(content).hexdigest()}"
        update = {"archives": tuple(archives), "copy_file": copy.model_copy(update={"digest": digest})}
        monkeypatch.setitem(BENCHMARKS, name, row.model_copy(update=update))
        return folder

    return of


def _archive(server: Served, name: str, archive: Archive, folder: Path) -> Archive:
    """Offer an archive of a benchmark's folder at each of its addresses, and return its entry."""
    path = f"/{name}/{archive.urls[0].rsplit('/', 1)[-1]}"
    flat = archive.parent == "."
    packed = folder
    top = archive.parent
    if flat:
        packed = folder / archive.target
        top = archive.main_folder
    if archive.inner:
        with TemporaryDirectory() as outer:
            inner = Path(outer, archive.inner.rpartition("/")[2])
            inner.write_bytes(tar_of(packed, top))
            content = zip_of(Path(outer), archive.inner.rpartition("/")[0])
    else:
        content = (zip_of if path.endswith(".zip") else tar_of)(packed, top)
    server.files[path] = content
    algorithm = archive.digest.partition(":")[0]
    digest = archive.digest and f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    urls = tuple(f"{server.url}/{number}{path}" for number in range(1, len(archive.urls)))
    for url in urls:
        server.files[url.removeprefix(server.url)] = content
    return archive.model_copy(update={"urls": (server.url + path, *urls), "digest": digest})


def download(name: str, root: Path) -> int:
    return main(["data", "download", name, "--to", str(root)])


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines of error messages. Other lines on stderr tell that another source is tried."""
    return [line for line in capsys.readouterr().err.splitlines() if not line.endswith("another source.")]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_benchmark_is_placed_as_the_catalog_expects(
    server: Served, offer: Offer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(name)
    row = BENCHMARKS[name]
    root = tmp_path / "root"
    assert download(name, root) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    files = [*row.copy_file.folders, *([row.split_file] if row.split_file else [])]
    assert all(f"Downloaded {root / row.folder / file}\n" in captured.out for file in files)
    assert "Complete. To check every image" in captured.out
    assert main(["data", "check", name, "--data-root", str(root)]) == 0
    assert "not CoOp's" not in capsys.readouterr().out
    assert open_dataset(name, root).splits == open_dataset(name, tmp_path / "origin").splits
    assert os.listdir(root) == [row.folder]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_complete_benchmark_is_not_downloaded_again(
    server: Served, offer: Offer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(name)
    root = tmp_path / "root"
    assert download(name, root) == 0
    capsys.readouterr()
    asked = len(server.requests)
    assert download(name, root) == 0
    text = capsys.readouterr().out
    assert "Downloaded " not in text
    assert "Complete. To check every image" in text
    assert len(server.requests) == asked


@pytest.mark.parametrize("name", WITH_ARCHIVES)
def test_if_one_source_is_dead_another_one_is_used(
    server: Served, offer: Offer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The archive, or for ImageNet's variants the copy. The split file comes from the copy, too."""
    offer(name)
    row = BENCHMARKS[name]
    preferred = "/copies/"
    expected = "/imagenet"
    if not row.imagenet_variant:
        preferred = f"/{name}/"
        expected = "/copies/"
    for path in [*server.files]:
        if path.startswith((preferred, "/1/", "/splits/")):
            del server.files[path]
    if row.imagenet_variant:  # no archive contains the class list, but another dataset has the same one
        (tmp_path / "root/imagenet").mkdir(parents=True)
        class_list = tmp_path / "origin" / row.folder / "classnames.txt"
        (tmp_path / "root/imagenet/classnames.txt").write_bytes(class_list.read_bytes())
    assert download(name, tmp_path / "root") == 0
    captured = capsys.readouterr()
    assert f"Cannot download {server.url}{preferred}" in captured.err
    assert "HTTP Error 404: Not Found. Trying another source.\n" in captured.err
    assert "Complete. To check every image" in captured.out
    assert open_dataset(name, tmp_path / "root").splits == open_dataset(name, tmp_path / "origin").splits
    assert server.requests[-1].startswith(expected)
    assert not list(tmp_path.rglob("*.pkl*"))


def test_eurosat_has_a_second_address(
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
    row = BENCHMARKS["ucf101"]
    (folder / row.split_file).write_text('{"train": [["a.jpg", 0, "a"]], "val": [], "test": []}')
    content = zip_of(folder, "ucf101")
    server.files["/copies/ucf101.zip"] = content
    message = "/copies/ucf101.zip has the digest sha256:"
    if damage == "split file":
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        copy = row.copy_file.model_copy(update={"digest": digest})  # type: ignore[union-attr]
        BENCHMARKS["ucf101"] = row.model_copy(update={"copy_file": copy})
        message = f"{row.split_file} at {server.url}/copies/ucf101.zip has the digest sha256:"
    assert download("ucf101", tmp_path / "root") == 1
    assert message in capsys.readouterr().err
    assert list((tmp_path / "root").iterdir()) == []


def test_a_full_disk_is_no_fault_of_a_source(
    server: Served,
    offer: Offer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the copy would be downloaded, in vain. Nothing is downloaded that does not fit."""
    offer("dtd")
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=1000))
    assert download("dtd", tmp_path / "root") == 1
    assert "but only 0.0 GB are free. Free disk space, or use another --to." in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    assert download("dtd", tmp_path / "root") == 1
    assert f"Cannot write to {tmp_path}/root: No space left on device." in capsys.readouterr().err
    assert {path.split("/")[1] for path in server.requests} == {"dtd"}


def test_a_repeated_command_continues_an_interrupted_download(
    server: Served, offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("dtd")
    copy = server.files.pop("/copies/dtd.zip")
    root = tmp_path / "root"
    server.break_at = [1000, 0]
    assert download("dtd", root) == 1
    assert "the connection was closed after 1000 of" in capsys.readouterr().err
    assert os.listdir(root) == [".download-dtd"]
    server.files["/copies/dtd.zip"] = copy
    assert download("dtd", root) == 0
    assert "Complete. To check every image" in capsys.readouterr().out
    assert server.starts == [0, 1000, 1000, 0]  # the last one is the split file
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
    assert server.starts == [0, 0]  # the archive and the split file
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


def test_a_split_file_is_kept(offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offer("dtd")
    own = tmp_path / "origin/dtd" / SPLIT
    own.write_bytes(own.read_bytes() + b" ")
    assert download("dtd", tmp_path / "origin") == 0
    assert main(["data", "check", "dtd", "--data-root", str(tmp_path / "origin")]) == 0
    assert f"{SPLIT} differs from CoOp's" in capsys.readouterr().out
    own.write_text("{}")
    assert download("dtd", tmp_path / "origin") == 0
    assert own.read_text() == "{}"
    assert (
        f"The dataset is not usable yet: Invalid split file {own}: train: a value is required"
        in capsys.readouterr().out
    )


WRONG_SPLITS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "fewer images": ("differs from the published split: train 19 of 20", lambda tree: tree["train"].pop()),
    "one class less": (
        "differs from the published split: classes 4 of 5",
        lambda tree: [row.__setitem__(1, min(row[1], 3)) for part in tree.values() for row in part],
    ),
    "no split file": ("train: a value is required", lambda tree: tree.clear()),
}


@pytest.mark.parametrize("case", WRONG_SPLITS)
def test_another_split_is_refused_and_not_kept(
    server: Served, offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    offer("dtd")
    message, change = WRONG_SPLITS[case]
    tree = json.loads(server.files[f"/splits/{SPLIT}"])
    change(tree)
    server.files[f"/splits/{SPLIT}"] = json.dumps(tree).encode()
    del server.files["/copies/dtd.zip"]
    assert download("dtd", tmp_path) == 1
    assert "has the digest sha256:" in capsys.readouterr().err
    BENCHMARKS["dtd"] = BENCHMARKS["dtd"].model_copy(update={"split_digest": ""})
    assert download("dtd", tmp_path) == 1
    [error] = errors(capsys)
    assert message in error
    assert not (tmp_path / "dtd" / SPLIT).exists()
    assert not list(tmp_path.glob(".download-*"))


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
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
def test_nothing_of_a_zip_leaves_its_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("fine.jpg", b"x")
        packed.writestr(name, b"x")
    unpack(file, tmp_path / "in/out")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [
        Path("x.zip"),
        Path("in/out/fine.jpg"),
    ]


@pytest.mark.parametrize("kind", ["cut tar", "cut zip", "flipped zip", "no archive", "empty"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(CONTENT[:50_000])
    whole = zip_of(tmp_path / "in", "in") if "zip" in kind else tar_of(tmp_path / "in", "in")
    damaged = {
        "cut tar": whole[:20_000],
        "cut zip": whole[:20_000],
        "flipped zip": whole[:5_000] + bytes([whole[5_000] ^ 1]) + whole[5_001:],
        "no archive": CONTENT[:5_000],
        "empty": b"",
    }[kind]
    (tmp_path / "x").write_bytes(damaged)
    with pytest.raises(WorkError, match=r"^Cannot unpack x: .+\.") as caught:
        unpack(tmp_path / "x", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_archive_of_something_else_is_told(
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


WRONG = [
    (["nope", "--to", "x"], "'nope' is not a benchmark. Use one of imagenet, "),
    (["imagenet", "--to", "x"], "ImageNet has no public archive. Get ILSVRC 2012"),
    (["dtd", "--to", "s3://bucket/x"], "'s3:/...' is not a local path. "),
]


@pytest.mark.parametrize(("args", "message"), WRONG, ids=[" ".join(args) for args, _ in WRONG])
def test_wrong_usage_is_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[4])
    assert main(["data", "download", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
