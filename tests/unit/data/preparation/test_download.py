"""Downloads from a local server: verified, unpacked without trust, placed once."""

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
from prometar.data.preparation import download as download_module
from prometar.data.preparation.archives import unpack
from prometar.data.preparation.download import download
from prometar.data.preparation.http import fetch
from prometar.errors import UserError, WorkError
from tests.support.copies import with_split, write_copy
from tests.support.fileserver import Served, serve

CONTENT = np.random.default_rng(0).bytes(3 * 2**20 + 17)
MD5 = hashlib.md5(CONTENT).hexdigest()
WITH_ARCHIVES = sorted(name for name, row in BENCHMARKS.items() if row.archives)


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Served]:
    with serve({"/file.bin": CONTENT}) as served:
        yield served


def test_fetch(server: Served, tmp_path: Path) -> None:
    seen = []
    fetch(f"{server.url}/file.bin", tmp_path / "file", md5=MD5, progress=lambda *n: seen.append(n))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("status", "said"), [(404, "404: Not Found"), (0, "broke off at 1000 of"), (503, "503")]
)
def test_a_failed_transfer_is_one_line(server: Served, tmp_path: Path, status: int, said: str) -> None:
    server.status, server.break_at = [status] if status else [], [1000]
    with pytest.raises(WorkError, match=f"cannot download .*{said}.*Rerun this command") as caught:
        fetch(f"{server.url}/file.bin", tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "file").exists()


def test_a_wrong_checksum_is_refused_and_deleted(server: Served, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=f"md5 {MD5}, expected 0+. The file was deleted"):
        fetch(f"{server.url}/file.bin", tmp_path / "file", md5="0" * 32)
    assert os.listdir(tmp_path) == []


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    with serve({}) as served:
        url = served.url
    with pytest.raises(WorkError, match=r"cannot download .*refused.*Rerun this command"):
        fetch(f"{url}/file.bin", tmp_path / "file")
    with pytest.raises(UserError, match="expected http:// or https://"):
        fetch("file:///etc/passwd", tmp_path / "file")


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
        monkeypatch.setattr(download_module, "PUBLIC_SPLITS", f"{served.url}/splits")
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
    assert os.listdir(root) == [row.folder]
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
    archive = Archive(f"{server.url}/dtd.tar.gz", "images", inside="dtd")
    monkeypatch.setitem(BENCHMARKS, "dtd", replace(BENCHMARKS["dtd"], archives=(archive,)))
    (tmp_path / "root").mkdir()
    assert main(["data", "download", "dtd", "--to", str(tmp_path / "root")]) == 1
    error = capsys.readouterr().err
    assert "cannot unpack" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "root/dtd").exists()
    assert not list(tmp_path.rglob("evil"))
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert os.listdir(tmp_path) == ["root"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_a_hostile_zip_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("fine.jpg", b"x")
        packed.writestr(name, b"x")
    with pytest.raises(WorkError, match="leaves the target folder"):
        unpack(file, tmp_path / "out")
    assert os.listdir(tmp_path) == ["x.zip"]


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
    with pytest.raises(WorkError, match=r"cannot unpack .*Delete it, then rerun") as caught:
        unpack(tmp_path / "x", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_archive_of_something_else_is_told(mirror: Served, tmp_path: Path) -> None:
    mirror.files["/eurosat/EuroSAT.zip"] = zip_of(tmp_path / "origin/dtd", "dtd")
    row = BENCHMARKS["eurosat"]
    BENCHMARKS["eurosat"] = replace(row, archives=(replace(row.archives[0], md5=None),))
    with pytest.raises(WorkError, match=r"EuroSAT.zip has no folder ./2750: it has changed"):
        download("eurosat", tmp_path / "root")


WRONG = [
    (["nope", "--to", "x"], "'nope' is not a benchmark: known are imagenet, "),
    (["textures", "--to", "x"], "'textures' comes with prometar: there is nothing to download"),
    (["imagenet", "--to", "x"], "ImageNet has no public archive: get ILSVRC 2012"),
    (
        ["dtd", "--to", "s3://bucket/data"],
        "is not a folder: download to one, then `prometar data prepare dtd",
    ),
    (["dtd", "--to", "pyproject.toml"], "--to pyproject.toml is a file"),
    (["dtd", "--split", "mine"], "--split 'mine': choose coop or official"),
    (["eurosat", "--split", "official"], "EuroSAT comes without lists that make a split"),
    (["fgvc_aircraft", "--mirror", "https://x"], "FGVCAircraft has none"),
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
