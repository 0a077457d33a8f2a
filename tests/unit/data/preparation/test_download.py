"""Downloads from a local server: verified, unpacked without trust, placed once."""

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prometar.cli.app import main
from prometar.data.datasets.benchmarks import BENCHMARKS, Archive
from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation import download as download_module
from prometar.data.preparation.download import download_file, unpack
from prometar.errors import WorkError
from tests.support.copies import with_split, write_copy
from tests.support.fileserver import Served, serve

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)
DIGEST = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SPLIT = BENCHMARKS["dtd"].split_file
DOWNLOADED = sorted(name for name, row in BENCHMARKS.items() if row.archives)
BY_HAND = sorted(name for name, row in BENCHMARKS.items() if row.split_file and not row.archives)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve({"/file.bin": CONTENT}) as served:
        yield served


def test_fetch(server: Served, tmp_path: Path) -> None:
    seen = []
    file = tmp_path / "file"
    download_file(f"{server.url}/file.bin", file, digest=DIGEST, progress=lambda *n: seen.append(n))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    with pytest.raises(WorkError, match=f"has the digest {DIGEST}, expected md5:0+"):
        download_file(f"{server.url}/file.bin", tmp_path / "file", digest=f"md5:{'0' * 32}")


@pytest.mark.parametrize(
    ("status", "said"), [(404, "404: Not Found"), (0, "closed after 1000 of"), (503, "503")]
)
def test_a_failed_transfer_is_one_line(server: Served, tmp_path: Path, status: int, said: str) -> None:
    server.status, server.break_at = [status] if status else [], [1000]
    with pytest.raises(WorkError, match=f"Cannot download .*{said}.*Rerun this command") as caught:
        download_file(f"{server.url}/file.bin", tmp_path / "file")
    assert "\n" not in str(caught.value)


def tar_of(folder: Path, top: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(folder, top, filter=lambda member: None if "split_zhou" in member.name else member)
    return stream.getvalue()


def zip_of(folder: Path, top: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, f"{top}/{path.relative_to(folder)}")
    return stream.getvalue()


Offer = Callable[[str], None]


@pytest.fixture
def offer(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Makes a small copy of a benchmark in origin/. The server offers its archives and its split file."""
    monkeypatch.setattr(download_module, "SPLIT_FILES_URL", f"{server.url}/splits")

    def of(name: str) -> None:
        row, folder = BENCHMARKS[name], write_copy(name, tmp_path / "origin")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations/list.txt").write_text("x")
        archives = []
        for archive in row.archives:
            path = f"/{name}/{archive.url.rsplit('/', 1)[-1]}"
            pack, flat = zip_of if path.endswith(".zip") else tar_of, archive.parent == "."
            packed = folder / archive.main_folder if flat else folder
            server.files[path] = pack(packed, archive.main_folder if flat else archive.parent)
            digest = archive.digest and f"md5:{hashlib.md5(server.files[path]).hexdigest()}"
            archives.append(archive.model_copy(update={"url": server.url + path, "digest": digest}))
        row = with_split(server, row, folder) if row.split_file else row
        monkeypatch.setitem(BENCHMARKS, name, row.model_copy(update={"archives": tuple(archives)}))

    return of


def download(name: str, root: Path) -> int:
    return main(["data", "download", name, "--to", str(root)])


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_benchmark_is_placed_as_the_catalog_expects(
    server: Served, offer: Offer, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(name)
    row, root = BENCHMARKS[name], tmp_path / "root"
    files = [archive.main_folder for archive in row.archives] + [row.split_file] * bool(row.split_file)
    assert download(name, root) == 0
    text = capsys.readouterr().out
    assert all(f"Downloaded {root / row.folder / file}\n" in text for file in files)
    assert "Complete. To check every image" in text
    assert main(["data", "check", name, "--data-root", str(root)]) == 0
    assert "not CoOp's" not in capsys.readouterr().out
    assert open_dataset(name, root).splits == open_dataset(name, tmp_path / "origin").splits
    assert os.listdir(root) == [row.folder]
    asked = len(server.requests)
    assert download(name, root) == 0
    text = capsys.readouterr().out
    assert "Downloaded " not in text
    assert "Complete. To check every image" in text
    assert len(server.requests) == asked


@pytest.mark.parametrize("name", BY_HAND)
def test_a_split_comes_before_images_that_are_got_by_hand(
    offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    offer(name)
    row = BENCHMARKS[name]
    assert download(name, tmp_path / "new") == 0
    out = capsys.readouterr().out
    assert f"Downloaded {tmp_path}/new/{row.folder}/split_zhou_" in out
    assert "The dataset is not usable yet: " in out
    assert row.instructions in out
    assert download(name, tmp_path / "origin") == 0
    assert "Complete. To check every image" in capsys.readouterr().out


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
    assert download("dtd", tmp_path) == 1
    assert "has the digest sha256:" in capsys.readouterr().err
    BENCHMARKS["dtd"] = BENCHMARKS["dtd"].model_copy(update={"split_digest": ""})
    assert download("dtd", tmp_path) > 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
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
    archive = Archive(url=f"{server.url}/dtd.tar.gz", main_folder="images", parent="dtd")
    monkeypatch.setitem(BENCHMARKS, "dtd", BENCHMARKS["dtd"].model_copy(update={"archives": (archive,)}))
    assert download("dtd", tmp_path / "root") == 1
    error = capsys.readouterr().err
    assert "Cannot unpack" in error
    assert error.count("\n") == 1
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
    with pytest.raises(WorkError, match=r"Cannot unpack .*Rerun this command") as caught:
        unpack(tmp_path / "x", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_archive_of_something_else_is_told(
    server: Served, offer: Offer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("fgvc_aircraft")
    folder = write_copy("dtd", tmp_path)
    server.files["/fgvc_aircraft/fgvc-aircraft-2013b.tar.gz"] = tar_of(folder, "dtd")
    assert download("fgvc_aircraft", tmp_path / "root") == 1
    assert "no longer contains the folder fgvc-aircraft-2013b/data/images. Get" in capsys.readouterr().err


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
