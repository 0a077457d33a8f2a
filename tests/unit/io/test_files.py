"""Plain files are read, pipes and devices refused at once, and what cannot be looked at is one line."""

import os
from pathlib import Path

import pytest

from prometar.clip.openclip import load_backbone
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import FolderSource
from prometar.errors import InfrastructureError, UserError
from prometar.inference.prompt_file import read_prompts
from prometar.io.files import file_size, read_bytes, read_text, resolve_path, write_atomically
from prometar.io.yamltext import read_yaml
from prometar.training.checkpoint import load_checkpoint
from tests.conftest import DTD_SPLIT
from tests.support.processes import as_elsewhere


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipe that nobody writes into: to open it in the usual way waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    """Windows editors write it. Otherwise, it would be part of the first class name of a list."""
    (tmp_path / "classes.txt").write_text("oak\nyew\n", "utf-8-sig")
    assert read_text(tmp_path / "classes.txt").splitlines() == ["oak", "yew"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", [None, "/dev/zero", "/dev/null"])
def test_pipes_and_devices_are_refused_wherever_files_are_read(path: str | None, pipe: Path) -> None:
    file = Path(path) if path else pipe
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes(file)
    for read in (
        file_size,
        read_yaml,
        read_prompts,
        load_checkpoint,
        lambda file: FolderSource(str(file.parent)).read_many([file.name]),
        lambda file: load_backbone("mini", str(file)),
    ):
        with pytest.raises(UserError, match="not a regular file") as caught:
            read(file)
        assert str(file) in str(caught.value)


@pytest.mark.timeout(120)
def test_a_pipe_as_a_split_file(own_dtd: Path) -> None:
    (own_dtd / "dtd" / DTD_SPLIT).unlink()
    os.mkfifo(own_dtd / "dtd" / DTD_SPLIT)
    with pytest.raises(UserError, match=r"cannot read .*json: not a regular file"):
        open_dataset("dtd", own_dtd)
    os.mkfifo(own_dtd / "dtd" / "manifest.json")
    with pytest.raises(InfrastructureError, match=r"manifest.json: .* not a regular file"):
        open_dataset("dtd", own_dtd)


def test_where_links_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    circle = tmp_path / "circle"
    link = tmp_path / "link"
    gone = tmp_path / "gone"
    circle.symlink_to(circle)
    link.symlink_to("not/there")
    for path in (circle, circle / "x", circle / "x" / ".." / "y"):
        with pytest.raises(UserError, match=rf"cannot resolve {path}: Too many levels of symbolic links\.$"):
            resolve_path(path)
    assert resolve_path(link / "x") == tmp_path / "not" / "there" / "x"
    long = tmp_path / ("x" * 300)
    assert resolve_path(long) == long
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert resolve_path("x") == gone / "x"
    gone.rmdir()
    with pytest.raises(UserError, match=r"cannot resolve x: No such file or directory\.$"):
        resolve_path("x")
    assert resolve_path(tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize("path", [Path("s3://bucket/x"), "s3:/bucket/x", "file:///x", Path("gs://b")])
def test_a_url_is_no_folder(path: Path | str) -> None:
    with pytest.raises(UserError, match=r"^'\w+:/\.\.\.' is not a local path\. "):
        resolve_path(path)


def test_writers_with_one_process_number_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers number their processes each by itself, and may write one file of a shared folder."""
    file = tmp_path / "file"
    synced = os.fsync
    other = as_elsewhere("prometar.io.files")
    monkeypatch.setattr(os, "getpid", lambda: 7)

    def amid(handle: int) -> None:
        synced(handle)
        monkeypatch.setattr(os, "fsync", synced)
        other.write_atomically(file, b"the other's, which is longer")
        assert file.read_bytes() == b"the other's, which is longer"

    monkeypatch.setattr(os, "fsync", amid)
    write_atomically(file, b"ours")
    assert file.read_bytes() == b"ours"
    assert os.listdir(tmp_path) == ["file"]
