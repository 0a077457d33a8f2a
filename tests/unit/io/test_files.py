"""Regular files are read and written atomically. Pipes, devices and bad paths are refused in one line."""

import os
from collections.abc import Callable
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
    """Pipe that no process writes to. Opening it in the usual way would wait forever."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_byte_order_mark_does_not_belong_to_a_text(tmp_path: Path) -> None:
    """Windows editors write the mark. It would otherwise be a part of the first class name in a list."""
    (tmp_path / "classes.txt").write_text("oak\nyew\n", "utf-8-sig")
    assert read_text(tmp_path / "classes.txt").splitlines() == ["oak", "yew"]


def read_image(file: Path) -> object:
    return FolderSource(str(file.parent)).read_many([file.name])


def read_weights(file: Path) -> object:
    return load_backbone("mini", str(file))


every_special_file = pytest.mark.parametrize(
    "path", [pytest.param(None, id="pipe"), "/dev/zero", "/dev/null"]
)


@pytest.mark.timeout(120)
@every_special_file
def test_pipes_and_devices_are_not_regular_files(path: str | None, pipe: Path) -> None:
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes(Path(path) if path else pipe)


@pytest.mark.timeout(120)
@every_special_file
@pytest.mark.parametrize(
    "read", [file_size, read_yaml, read_prompts, load_checkpoint, read_image, read_weights]
)
def test_pipes_and_devices_are_refused_wherever_files_are_read(
    path: str | None, pipe: Path, read: Callable[[Path], object]
) -> None:
    file = Path(path) if path else pipe
    with pytest.raises(UserError, match="not a regular file") as caught:
        read(file)
    assert str(file) in str(caught.value)


@pytest.mark.timeout(120)
def test_a_pipe_in_place_of_a_split_file_is_refused(own_dtd: Path) -> None:
    (own_dtd / "dtd" / DTD_SPLIT).unlink()
    os.mkfifo(own_dtd / "dtd" / DTD_SPLIT)
    with pytest.raises(UserError, match=r"cannot read .*json: not a regular file"):
        open_dataset("dtd", own_dtd)


@pytest.mark.timeout(120)
def test_a_pipe_in_place_of_a_manifest_is_refused(own_dtd: Path) -> None:
    os.mkfifo(own_dtd / "dtd" / "manifest.json")
    with pytest.raises(InfrastructureError, match=r"manifest.json: .* not a regular file"):
        open_dataset("dtd", own_dtd)


@pytest.mark.parametrize("path", ["circle", "circle/x", "circle/x/../y"])
def test_a_cycle_of_links_is_refused(tmp_path: Path, path: str) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    file = tmp_path / path
    with pytest.raises(UserError, match=rf"cannot resolve {file}: Too many levels of symbolic links\.$"):
        resolve_path(file)


def test_a_link_to_a_missing_folder_is_resolved(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("not/there")
    assert resolve_path(link / "x") == tmp_path / "not/there/x"


def test_a_name_that_is_too_long_for_the_file_system_is_resolved(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 300)
    assert resolve_path(file) == file


def test_a_relative_path_needs_a_current_folder_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert resolve_path("x") == folder / "x"

    folder.rmdir()
    with pytest.raises(UserError, match=r"cannot resolve x: No such file or directory\.$"):
        resolve_path("x")
    assert resolve_path(tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize("path", [Path("s3://bucket/x"), "s3:/bucket/x", "file:///x", Path("gs://b")])
def test_a_url_is_not_a_local_path(path: Path | str) -> None:
    with pytest.raises(UserError, match=r"^'\w+:/\.\.\.' is not a local path\. "):
        resolve_path(path)


def test_processes_with_the_same_id_do_not_write_to_the_same_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes in two containers may have the same ID, and write to the same file in a shared folder."""
    file = tmp_path / "file"
    other_content = b"content of the other process, which is longer"
    other_process = as_elsewhere("prometar.io.files")
    original_fsync = os.fsync
    monkeypatch.setattr(os, "getpid", lambda: 7)

    def let_the_other_process_write(descriptor: int) -> None:
        original_fsync(descriptor)
        monkeypatch.setattr(os, "fsync", original_fsync)
        other_process.write_atomically(file, other_content)
        assert file.read_bytes() == other_content

    monkeypatch.setattr(os, "fsync", let_the_other_process_write)
    write_atomically(file, b"own content")

    assert file.read_bytes() == b"own content"
    assert os.listdir(tmp_path) == ["file"]
