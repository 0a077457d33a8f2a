"""Downloads from a server on this machine: continued, checked, unpacked without trust, placed, idempotent."""

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prometar.cli.app import main
from prometar.data.datasets.benchmarks import BENCHMARKS, Archive
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.layouts import SplitFile
from prometar.data.preparation import archives, http, splitfiles
from prometar.data.preparation.archives import unpack
from prometar.data.preparation.download import WORK, download
from prometar.data.preparation.http import fetch
from prometar.errors import UserError, WorkError
from tests.support.copies import with_split, write_copy
from tests.support.fileserver import Served, serve
from tests.support.nfs import like_nfs

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)
MD5 = hashlib.md5(CONTENT).hexdigest()
WITH_ARCHIVES = sorted(name for name, row in BENCHMARKS.items() if row.archives)


@pytest.fixture(autouse=True)
def direct_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(http, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def server() -> Iterator[Served]:
    with serve({"/file.bin": CONTENT}) as served:
        yield served


def test_fetch_gets_a_file_once(server: Served, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        fetch(f"{server.url}/file.bin", tmp_path / "file", md5=MD5, progress=lambda *n: seen.append(n))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [("/file.bin", "")]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_transfer_is_continued(server: Served, tmp_path: Path) -> None:
    server.break_at = [1000, 2**20, 5]
    fetch(f"{server.url}/file.bin", tmp_path / "file", md5=MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    starts = [0, 1000, 1000 + 2**20, 1005 + 2**20]
    assert [asked for _, asked in server.requests] == ["", *(f"bytes={start}-" for start in starts[1:])]


def test_the_next_run_goes_on_where_the_last_gave_up(server: Served, tmp_path: Path) -> None:
    server.break_at = [1000] * http.TRIES
    with pytest.raises(
        WorkError, match="4000 bytes are kept, and the same command goes on from there"
    ) as caught:
        fetch(f"{server.url}/file.bin", tmp_path / "file", md5=MD5)
    assert f"broke off at 4000 of {len(CONTENT)} bytes" in str(caught.value)
    fetch(f"{server.url}/file.bin", tmp_path / "file", md5=MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests[-1] == ("/file.bin", "bytes=4000-")


def test_a_killed_run_goes_on(server: Served, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 2**20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/file.bin", tmp_path / "file", progress=stop)
    fetch(f"{server.url}/file.bin", tmp_path / "file", md5=MD5)
    assert server.requests[-1][1].startswith("bytes=1")


@pytest.mark.parametrize("change", ["ranges", "tag"])
def test_what_cannot_be_continued_starts_anew(server: Served, tmp_path: Path, change: str) -> None:
    server.break_at = [1000]

    def alter(done: int, total: int) -> None:
        if change == "tag" and done == 1000:
            server.tag, server.files["/file.bin"] = '"two"', CONTENT[::-1]

    server.ranges = change == "tag"
    fetch(f"{server.url}/file.bin", tmp_path / "file", progress=alter)
    assert (tmp_path / "file").read_bytes() == (CONTENT[::-1] if change == "tag" else CONTENT)


@pytest.mark.parametrize("extra", [b"", b"x"], ids=["whole", "too long"])
def test_a_part_that_has_every_byte_is_finished(server: Served, tmp_path: Path, extra: bytes) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + extra)
    (tmp_path / "file.part.tag").write_text(server.tag)
    fetch(f"{server.url}/file.bin", tmp_path / "file", md5=MD5)
    assert len(server.requests) == (2 if extra else 1)


def test_a_wrong_checksum_is_refused_and_deleted(server: Served, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=f"checksum {MD5}, expected 0+: it was deleted"):
        fetch(f"{server.url}/file.bin", tmp_path / "file", md5="0" * 32)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("status", "text"), [([404], "404 Not Found"), ([403], "403 Forbidden")])
def test_a_refusal_is_final(server: Served, tmp_path: Path, status: list[int], text: str) -> None:
    server.status = status
    with pytest.raises(WorkError, match=text):
        fetch(f"{server.url}/file.bin", tmp_path / "file")
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server: Served, tmp_path: Path) -> None:
    server.status = [503, 429, 500]
    fetch(f"{server.url}/file.bin", tmp_path / "file", md5=MD5)
    server.status = [503] * http.TRIES
    with pytest.raises(WorkError, match="503"):
        fetch(f"{server.url}/file.bin", tmp_path / "other")


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    with serve({}) as served:
        url = served.url
    with pytest.raises(WorkError, match=r"cannot download .*refused.*; 0 bytes are kept"):
        fetch(f"{url}/file.bin", tmp_path / "file")
    with pytest.raises(UserError, match="expected http:// or https://"):
        fetch("file:///etc/passwd", tmp_path / "file")


@pytest.mark.parametrize("url", ["http://[bad", "http://127.0.0.1:9/\u00fc", "http://127.0.0.1:x/"])
def test_what_is_no_url_is_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"cannot download http://.*: it is no URL \("):
        fetch(url, tmp_path / "file")


def test_a_length_that_is_no_number_is_not_known(server: Served, tmp_path: Path) -> None:
    server.length = "abc"
    fetch(f"{server.url}/file.bin", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_full_disk_is_told_before(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.shutil, "disk_usage", lambda folder: _Usage)
    with pytest.raises(WorkError, match=r"has 0.0 GB free, 0.0 GB are to come: make room"):
        fetch(f"{server.url}/file.bin", tmp_path / "file")


class _Usage:
    free = 10


def tar_of(folder: Path, top: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(folder, top)
    return stream.getvalue()


def zip_of(folder: Path, top: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, f"{top}/{path.relative_to(folder)}")
    return stream.getvalue()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server with the archives and split files of every benchmark that has any, made from small copies."""
    with serve({}) as served:
        monkeypatch.setattr(splitfiles, "PUBLIC_SPLITS", f"{served.url}/splits")
        for name in WITH_ARCHIVES:
            row, folder = BENCHMARKS[name], write_copy(name, tmp_path / "origin")
            (folder / "annotations").mkdir(exist_ok=True)
            (folder / "annotations/list.txt").write_text("x")
            ours = []
            for archive in row.archives:
                path = f"/{name}/{archive.url.rsplit('/', 1)[-1]}"
                pack = zip_of if path.endswith(".zip") else tar_of
                flat = archive.inside == "."
                packed = pack(
                    folder / archive.key if flat else folder, archive.key if flat else archive.inside
                )
                served.files[path] = packed
                md5 = archive.md5 and hashlib.md5(packed).hexdigest()
                ours.append(replace(archive, url=served.url + path, md5=md5))
            if isinstance(row.layout, SplitFile):
                row = with_split(served, row, folder)
            monkeypatch.setitem(BENCHMARKS, name, replace(row, archives=tuple(ours)))
        yield served


@pytest.mark.parametrize("name", WITH_ARCHIVES)
def test_a_benchmark_is_placed_as_the_catalog_expects(
    mirror: Served, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row, root = BENCHMARKS[name], tmp_path / "root"
    folder = root / row.folder
    assert main(["data", "download", name, "--to", str(root)]) == 0
    text = capsys.readouterr().out
    assert all(f"placed: {folder / archive.key}\n" in text for archive in row.archives)
    assert "complete; look at every image" in text
    assert main(["data", "check", name, "--data-root", str(root)]) == 0
    dataset = open_dataset(name, root)
    assert dataset.splits == open_dataset(name, tmp_path / "origin").splits
    assert not (root / WORK).exists()
    asked = len(mirror.requests)
    result = download(name, root)
    assert (result.placed, result.missing) == ((), ())
    splits = [row.layout.file] if isinstance(row.layout, SplitFile) else []
    assert result.kept == (*(archive.key for archive in row.archives), *splits)
    assert len(mirror.requests) == asked


def test_a_split_file_that_is_there_is_kept(mirror: Served, tmp_path: Path) -> None:
    own = tmp_path / "root/dtd/split_zhou_DescribableTextures.json"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    result = download("dtd", tmp_path / "root")
    assert own.read_text() == "{}"
    assert result.missing == ()


def test_a_run_stopped_while_unpacking_goes_on(
    mirror: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(archive: Path, target: Path) -> None:
        target.mkdir()
        (target / "dtd").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prometar.data.preparation.download.unpack", stop)
        with pytest.raises(KeyboardInterrupt):
            download("dtd", tmp_path / "root")
    assert not (tmp_path / "root/dtd").exists()
    assert sorted(os.listdir(tmp_path / "root" / WORK / "dtd")) == ["dtd-r1.0.1.tar.gz", "images"]
    assert download("dtd", tmp_path / "root").placed[0] == "images"
    assert os.listdir(tmp_path / "root") == ["dtd"]
    fetched = [path for path, _ in mirror.requests]
    assert fetched.count("/dtd/dtd-r1.0.1.tar.gz") == 1, "the archive was not fetched again"


def test_on_nfs_no_empty_folder_is_left(
    mirror: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like_nfs(monkeypatch)
    assert download("dtd", tmp_path / "root").placed
    assert os.listdir(tmp_path / "root") == ["dtd"]


def test_a_second_process_is_refused_and_leaves_the_first_alone(
    mirror: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"

    def meanwhile(archive: Path, target: Path) -> None:
        unpack(archive, target)
        with pytest.raises(WorkError, match="the download of dtd is in use by another process"):
            download("dtd", root)
        assert download("eurosat", root).placed, "another benchmark may come at the same time"

    with monkeypatch.context() as patch:
        patch.setattr("prometar.data.preparation.download.unpack", meanwhile)
        row = BENCHMARKS["eurosat"]
        patch.setitem(BENCHMARKS, "eurosat", replace(row, archives=()))
        assert download("dtd", root).placed[0] == "images"
    assert sorted(os.listdir(root)) == ["dtd", "eurosat"]


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


HOSTILE = {
    "a path above": [member("../evil", b"x")],
    "a path above, inside": [member("dtd/../../evil", b"x")],
    "an absolute path": [member("/tmp/evil", b"x")],
    "a windows path": [member("..\\evil", b"x")],
    "a drive": [member("C:evil", b"x")],
    "a link out": [member("dtd/link", type=tarfile.SYMTYPE, linkname="/etc")],
    "a link, then through it": [
        member("dtd", type=tarfile.SYMTYPE, linkname=".."),
        member("dtd/evil", b"x"),
    ],
    "a link inside": [member("dtd/link", type=tarfile.SYMTYPE, linkname="images")],
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
    archive = Archive(f"{server.url}/dtd.tar.gz", "images", inside="dtd")
    monkeypatch.setitem(BENCHMARKS, "dtd", replace(BENCHMARKS["dtd"], archives=(archive,)))
    (tmp_path / "root").mkdir()
    assert main(["data", "download", "dtd", "--to", str(tmp_path / "root")]) == 1
    error = capsys.readouterr().err
    assert "is not unpacked: its member" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "root/dtd").exists()
    assert not list(tmp_path.rglob("evil"))
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert os.listdir(tmp_path) == ["root"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "link", "nameless"])
def test_a_hostile_zip_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "x.zip"
    info = zipfile.ZipInfo(name)
    if name == "link":
        info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("fine.jpg", b"x")
        packed.writestr(info, b"/etc/passwd")
    file.write_bytes(file.read_bytes().replace(b"nameless", bytes(8)))
    with pytest.raises(WorkError, match="is not unpacked: its member"):
        unpack(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["fine.jpg", "out", "x.zip"]


def test_a_time_beyond_all_clocks_and_the_rights_of_others_are_not_taken(tmp_path: Path) -> None:
    info, content = member("a.jpg", b"x")
    info.mtime, info.mode, info.uid = 2**70, 0o6000, 7
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
    unpack(tmp_path / "x.tar", tmp_path / "out")
    found, own = (tmp_path / "out/a.jpg").stat(), (tmp_path / "x.tar").stat()
    assert (tmp_path / "out/a.jpg").read_bytes() == b"x"
    assert (found.st_mode, found.st_uid) == (own.st_mode, own.st_uid)


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
LONG_HEADERS = {
    "a name": (tarfile.GNU_FORMAT, member("a" * 9000)),
    "a comment": (tarfile.PAX_FORMAT, member("a.jpg", pax_headers={"comment": "a" * 9000})),
    "a sparse file's map": (
        tarfile.PAX_FORMAT,
        member("a.jpg", b"4000\n" + b"0\n" * 8000, pax_headers=SPARSE),
    ),
}


@pytest.mark.parametrize(("form", "entry"), LONG_HEADERS.values(), ids=LONG_HEADERS.keys())
def test_a_header_never_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: int, entry: tuple[tarfile.TarInfo, bytes]
) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz", format=form) as tar:
        tar.addfile(entry[0], io.BytesIO(entry[1]))
    with monkeypatch.context() as patch:
        patch.setattr(archives, "MAX_HEADER_BYTES", 2**13)
        with pytest.raises(WorkError, match="it has a header of too many bytes"):
            unpack(tmp_path / "x.tgz", tmp_path / "out")


def test_a_long_name_makes_no_long_message(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a" * 9000))
    with pytest.raises(WorkError, match="cannot unpack") as caught:
        unpack(tmp_path / "x.tar", tmp_path / "out")
    assert len(str(caught.value)) < 160 + len(str(tmp_path)) + 40


@pytest.mark.parametrize("kind", ["tar", "zip", "many files"])
def test_a_bomb_is_refused_before_it_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(archives, "MAX_SLACK_BYTES", 2**16)
    monkeypatch.setattr(archives, "MAX_FILES", 20)
    files = {f"{k}.jpg": b"" if kind == "many files" else bytes(2**16) for k in range(50)}
    file = tmp_path / "bomb"
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(file, "w:gz") as tar:
            for name, content in files.items():
                info, _ = member(name, content)
                tar.addfile(info, io.BytesIO(content))
    with pytest.raises(WorkError, match="makes it larger than an archive of images can be"):
        unpack(file, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 50 * 2**16


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
    with pytest.raises(WorkError, match=r"archive .* is damaged") as caught:
        unpack(tmp_path / "x", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_archive_of_something_else_is_told(mirror: Served, tmp_path: Path) -> None:
    mirror.files["/eurosat/EuroSAT.zip"] = zip_of(tmp_path / "origin/dtd", "dtd")
    row = BENCHMARKS["eurosat"]
    BENCHMARKS["eurosat"] = replace(row, archives=(replace(row.archives[0], md5=None),))
    with pytest.raises(WorkError, match=r"EuroSAT.zip holds no folder ./2750: it has changed"):
        download("eurosat", tmp_path / "root")


WRONG = [
    (["nope", "--to", "x"], "'nope' is no benchmark: known are imagenet, "),
    (["textures", "--to", "x"], "'textures' comes with prometar: there is nothing to download"),
    (["imagenet", "--to", "x"], "ImageNet has no public archive: get ILSVRC 2012"),
    (["dtd", "--to", "s3://bucket/data"], "is no folder: download to one, then `prometar data prepare dtd"),
    (["dtd", "--to", "pyproject.toml"], "--to pyproject.toml is a file"),
    (["dtd", "--split", "mine"], "--split 'mine': choose coop or official"),
    (["eurosat", "--split", "official"], "EuroSAT comes without lists that make a split"),
    (["fgvc_aircraft", "--mirror", "https://x"], "none is to be got for FGVCAircraft"),
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
