"""A trial's folder at a URL: folders, a real S3 server on this machine, interruptions, hostile names."""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import fs
from tune.jobs.files import require_own, take
from tune.jobs.remote import Mirror

from prometar.errors import UserError, WorkError
from prometar.io import stores
from prometar.io.stores import Store, is_inside, join
from tests.support.texts import ANY

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT, RESULT = "checkpoint.safetensors", "result.json"
numbers = itertools.count()


def put(endpoint: str, path: str, content: bytes = b"") -> None:
    request = urllib.request.Request(f"http://{endpoint}/{path}", data=content, method="PUT")
    assert urllib.request.urlopen(request).status == 200


@pytest.fixture(params=["file", "folder", "s3", "renaming"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for one run's files, on every kind of store."""
    if request.param == "file":
        return f"file://{tmp_path}/store/run"
    if request.param == "folder":
        return str(tmp_path / "store/run")
    if request.param == "renaming":  # a file system where half a file can be seen, such as HDFS
        system = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
        monkeypatch.setattr(stores, "filesystem", lambda url: (system, url))
        return "store/run"
    return bucket(request.getfixturevalue("endpoint"))


def bucket(endpoint: str) -> str:
    """A place in a new bucket."""
    name = f"mirror-{next(numbers)}"
    put(endpoint, name)
    return f"s3://key:secret@{name}/studies/run?scheme=http&endpoint_override={endpoint}&region=us-east-1"


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def pulled(url: str, folder: Path) -> dict[str, bytes]:
    Mirror(url, folder).pull()
    return content(folder)


def test_a_run_moves_to_another_machine(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    ours = Mirror(url, here)
    ours.pull()
    assert content(here) == {}
    files = {CHECKPOINT: b"1", "config.yaml": b"a: 1", "below/two words.txt": b"", "100%+?#.txt": b"x"}
    write(here, files)
    write(here, {".checkpoint.safetensors.77": b"half"})
    ours.push()
    write(there, {"stale.txt": b"old", "config.yaml/below": b"", ".half": b"", "empty/folder/x": b""})
    (there / "link").symlink_to(tmp_path, target_is_directory=True)
    theirs = Mirror(url, there)
    theirs.pull()
    assert content(there) == files
    assert sorted(p.name for p in there.iterdir()) == ["100%+?#.txt", "below", CHECKPOINT, "config.yaml"]
    write(there, {CHECKPOINT: b"2"})
    (there / "config.yaml").unlink()
    theirs.push()
    assert pulled(url, here) == {k: v for k, v in files.items() if k != "config.yaml"} | {CHECKPOINT: b"2"}


def test_a_store_reads_what_it_writes(url: str) -> None:
    store = Store(url)
    assert store.names() == []
    assert store.read("trials/0003/record.json") is None
    store.delete("trials/0003/record.json")
    for text in (b"one", b"two", b""):
        store.write("trials/0003/record.json", text)
        assert store.read("trials/0003/record.json") == text
    assert store.exists("trials/0003/record.json")
    assert not store.exists("trials/0003")
    assert store.names() == ["trials/0003/record.json"]
    store.write("packed.gz", b"no gzip")
    assert store.read("packed.gz") == b"no gzip", "a name's ending says nothing of how it is read"
    store.delete("trials/0003/record.json")
    assert store.names() == ["packed.gz"]


def test_only_what_changed_is_uploaded_and_the_checkpoint_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = Store.write

    def watch(self: Store, name: str, content: bytes) -> None:
        written.append(name)
        real(self, name, content)

    monkeypatch.setattr(Store, "write", watch)
    ours = Mirror(f"file://{tmp_path}/store", tmp_path / "here")
    ours.pull()
    write(tmp_path / "here", {RESULT: b"", "zebra.json": b"", CHECKPOINT: b"1", "alignment.jsonl": b""})
    ours.push()
    assert written == ["alignment.jsonl", "zebra.json", CHECKPOINT, RESULT]
    ours.push()
    write(tmp_path / "here", {CHECKPOINT: b"2"})  # of the same size, in the same moment
    ours.push()
    assert written[4:] == [CHECKPOINT]
    theirs = Mirror(f"file://{tmp_path}/store", tmp_path / "there")
    theirs.pull()
    theirs.push()
    assert len(written) == 5, "what was fetched is known to lie there"


NAMES = st.sampled_from([CHECKPOINT, RESULT, "a", "b.json", "sub/a", "sub/deep/ü %41?#&.txt", ".hidden"])
ACTIONS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.binary(max_size=8)),
    st.tuples(st.just("delete"), NAMES, st.just(b"")),
    st.tuples(st.just("push"), st.just(""), st.just(b"")),
    st.tuples(st.just("move"), st.just(""), st.just(b"")),  # another worker takes the run on
)


def check_equal_after(url: str, root: Path, actions: list[tuple[str, str, bytes]]) -> None:
    places = (root / str(k) for k in itertools.count())
    here = next(places)
    ours = Mirror(url, here)
    ours.pull()
    for action, name, data in actions:
        if action == "write":
            write(here, {name: data})
        elif action == "delete":
            (here / name).unlink(missing_ok=True)
        elif action == "push":
            ours.push()
        else:
            ours.push()
            here = next(places)
            ours = Mirror(url, here)
            ours.pull()
    ours.push()
    expected = {name: data for name, data in content(here).items() if not name.startswith(".")}
    assert pulled(url, next(places)) == expected
    assert pulled(url, here) == expected


@given(st.lists(ACTIONS, max_size=12))
@settings(max_examples=60, deadline=None)
def test_pull_after_push_gives_equal_folders(actions: list[tuple[str, str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        check_equal_after(f"file://{root}/store", Path(root), actions)


@given(st.lists(ACTIONS, max_size=8))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pull_after_push_gives_equal_folders_in_a_bucket(
    endpoint: str, actions: list[tuple[str, str, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as root:
        check_equal_after(bucket(endpoint), Path(root), actions)


def test_a_push_cut_off_anywhere_leaves_an_old_or_a_new_checkpoint_beside_files_as_new(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("alignment.jsonl", "config.yaml", CHECKPOINT, RESULT)
    here = tmp_path / "here"
    for cut in range(len(names) + 1):
        ours = Mirror(url, here)
        ours.pull()
        old, new = b"%d old" % cut, b"%d new" % cut
        write(here, dict.fromkeys(names, old))
        ours.push()
        write(here, dict.fromkeys(names, new))
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", cut_after(cut, Store.write))
            if cut < len(names):
                with pytest.raises(KeyboardInterrupt):
                    ours.push()
        if cut == len(names):
            ours.push()
        found = pulled(url, tmp_path / f"there-{cut}")
        assert [found[name] for name in names] == [new] * cut + [old] * (len(names) - cut)
        ours.push()  # goes on
        assert pulled(url, tmp_path / f"there-{cut}") == dict.fromkeys(names, new)


def cut_after(count: int, real: Callable[..., None]) -> Callable[..., None]:
    written = itertools.count()

    def write(*args: object) -> None:
        if next(written) == count:
            raise KeyboardInterrupt
        real(*args)

    return write


KILLED = """
import sys
from itertools import count
from pathlib import Path
from tune.jobs.remote import Mirror
mirror = Mirror(sys.argv[1], Path(sys.argv[2]))
mirror.pull()
for epoch in count(1):
    for name in ("alignment.jsonl", "checkpoint.safetensors"):  # larger than one part of an upload
        (Path(sys.argv[2]) / name).write_bytes(b"%08d" % epoch * 1_500_000)
    mirror.push()
    print(epoch, flush=True)
"""


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_a_worker_killed_while_it_uploads(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    if kind == "s3":
        url = bucket(request.getfixturevalue("endpoint"))
    for delay in (0.02, 0.08):
        command = [sys.executable, "-c", KILLED, url, str(tmp_path / "here")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "1\n"
            time.sleep(delay)
            worker.send_signal(signal.SIGKILL)
        found = pulled(url, tmp_path / "there")
        epochs = {name: {data[k : k + 8] for k in range(0, len(data), 8)} for name, data in found.items()}
        assert all(len(values) == 1 for values in epochs.values()), "a file is whole"
        (checkpoint,), (alignment,) = epochs[CHECKPOINT], epochs["alignment.jsonl"]
        assert int(alignment) in (int(checkpoint), int(checkpoint) + 1)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../x", "/etc/passwd", "a//b", "a/", "a\\..\\b", "a\0b", "./x"]
)
def test_names_that_lead_out_of_a_folder(name: str) -> None:
    assert not is_inside(name)


@given(st.text(ANY, max_size=12))
def test_no_name_leads_out(name: str) -> None:
    if is_inside(name):
        assert os.path.normpath(os.path.join("/folder", name)) == f"/folder/{name}"


@pytest.mark.parametrize("key", ["../../stolen", "sub/../../../stolen", "%2e%2e/stolen", "a%5C..%5Cb"])
def test_hostile_keys_are_refused(endpoint: str, tmp_path: Path, key: str) -> None:
    url = bucket(endpoint)
    name = url.split("@")[1].split("/")[0]
    Store(url).write("config.yaml", b"good")
    put(endpoint, f"{name}/studies/run/{key}", b"bad")
    here = tmp_path / "one/two/here"
    write(here, {"kept.txt": b""})
    with pytest.raises(WorkError, match=r"holds a file named '.*', which no run has written") as caught:
        Mirror(url, here).pull()
    assert "secret" not in str(caught.value)
    assert content(tmp_path) == {"one/two/here/kept.txt": b""}


def test_a_hostile_listing_of_any_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile(fs.SubTreeFileSystem):
        def get_file_info(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
            return [fs.FileInfo(f"{selector.base_dir}/../stolen", fs.FileType.File)]

    system = Hostile(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(stores, "filesystem", lambda url: (system, url))
    with pytest.raises(WorkError, match=r"'\.\./stolen'"):
        Mirror("store/run", tmp_path / "here").pull()


def test_a_file_where_a_folder_should_be(endpoint: str, tmp_path: Path) -> None:
    url = bucket(endpoint)
    Store(url).write("a", b"")
    Store(url).write("a/b", b"")
    with pytest.raises(WorkError, match="cannot write"):
        Mirror(url, tmp_path / "here").pull()


def test_a_store_that_is_down_is_one_line(endpoint: str, tmp_path: Path) -> None:
    down = Store(bucket(endpoint).replace(endpoint, "127.0.0.1:9"))
    with pytest.raises(
        WorkError, match=r"^cannot read s3://key:\*\*\*@mirror-\d+/studies/run/x\?.*: "
    ) as caught:
        down.read("x")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_store_that_refuses_is_one_line(endpoint: str, tmp_path: Path) -> None:
    gone = bucket(endpoint).replace("@mirror-", "@nothing-")
    write(tmp_path, {CHECKPOINT: b"1"})
    pushing = Mirror(gone, tmp_path)
    with pytest.raises(
        WorkError, match=r"^cannot write s3://key:\*\*\*@nothing-.*checkpoint\.safetensors"
    ) as caught:
        pushing.push()
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot open 'nowhere://x'"):
        Store("nowhere://x")
    with pytest.raises(WorkError, match="cannot write"):
        Store("file:///proc/none").write("x", b"")


def test_a_local_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"")
    with pytest.raises(WorkError, match=r"cannot use .*here: "):
        Mirror(join(tmp_path, "store"), tmp_path / "here").pull()


def test_the_files_at_a_url_are_one_studys(url: str) -> None:
    require_own(url, "a")
    take(url, "a")
    take(url, "a")  # when it goes on
    with pytest.raises(UserError, match=r"holds the files of another study: go on with that one's --out"):
        require_own(url, "b")


def test_files_of_no_study_are_nobodys(url: str) -> None:
    Store(url).write("trials/0000/result.json", b"{}")
    with pytest.raises(UserError, match="holds the files of another study"):
        require_own(url, "a")
