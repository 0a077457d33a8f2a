"""Encoded images in the object store: read once for all, and never lost."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import OwnerDiedError

from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Item
from prometar.data.streaming.plan import eval_plan
from prometar.data.streaming.shared_images import KEEPER, Resident, files_of, resident, shared_images
from prometar.data.streaming.stream import StreamOptions, stream, stream_local
from prometar.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_local")


@dataclass(frozen=True)
class Counted:
    """A folder's files; each read adds a line to `reads.log`."""

    folder: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        with Path(self.folder, "reads.log").open("a") as log:
            log.writelines(f"{path}\n" for path in paths)
        try:
            return [Path(self.folder, path).read_bytes() for path in paths]
        except FileNotFoundError as error:
            raise UserError(f"no such image: {error.filename}") from None

    @property
    def reads(self) -> list[str]:
        return Path(self.folder, "reads.log").read_text().split()


class Worker:
    """A process that asks for images, as a trial does."""

    def ask(self, items: list[Item], source: Counted, most: int = 2**20) -> Any:
        return resident(items, source, most).images


@pytest.fixture
def source(tmp_path: Path) -> Counted:
    for name in "abcd":
        (tmp_path / name).write_bytes(name.encode() * 100)
    return Counted(str(tmp_path))


ITEMS = [Item(name, 0, "any") for name in "abcd"]


def workers(count: int = 2) -> list[Any]:
    return [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(count)]


def test_all_workers_share_what_was_read_once(source: Counted) -> None:
    with shared_images():
        crew = workers()
        first, second = (ray.get(worker.ask.remote(ITEMS, source)) for worker in crew)
        assert first == second
        assert sorted(source.reads) == sorted("abcd" * 2), "once to see how large they are, once to keep them"
        ray.kill(crew[0])  # what it asked for stays
        time.sleep(0.5)
        assert ray.get(ray.get(workers(1)[0].ask.remote(ITEMS, source))).to_pylist()[0] == b"a" * 100
    assert len(source.reads) == 8


def test_without_a_keeper_each_reads_its_own(source: Counted) -> None:
    first, second = ray.get([worker.ask.remote(ITEMS, source) for worker in workers()])
    assert first != second
    assert len(source.reads) == 16


def test_too_many_bytes_are_not_kept(source: Counted) -> None:
    with shared_images():
        assert ray.get([worker.ask.remote(ITEMS, source, 399) for worker in workers()]) == [None, None]
        assert len(source.reads) == 4, "one look for all"


def test_a_missing_image_is_told_to_all_and_may_be_mended(source: Counted) -> None:
    (Path(source.folder) / "d").rename(Path(source.folder) / "e")
    with shared_images():
        for worker in workers():
            with pytest.raises(UserError, match=r"no such image: .*/d"):
                ray.get(worker.ask.remote(ITEMS, source))
        (Path(source.folder) / "e").rename(Path(source.folder) / "d")
        assert ray.get(workers(1)[0].ask.remote(ITEMS, source)) is not None


@dataclass(frozen=True)
class Told:
    """It shows less of itself than its images depend on."""

    size: int
    colour: int = field(repr=False)

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [bytes([self.colour]) for _ in paths]


def test_sources_that_look_alike_have_their_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    made: list[Any] = [Told(8, 1), Told(8, 2)]
    for name in ("alike_circles", "alike_squares"):  # a copy of a loader with another picture in it
        (tmp_path / f"{name}.py").write_text(
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Told:\n    size: int\n"
            f"    def read_many(self, paths):\n        return [{name!r}.encode() for _ in paths]\n"
        )
        made.append(import_module(name).Told(8))
    assert repr(made[2]) == repr(made[3])
    kept = [resident(ITEMS, source, 2**20) for source in made]
    rows = np.array([2, 0])
    read = [files_of(each, rows, source)[1] for each, source in zip(kept, made, strict=True)]
    assert read == [[b"\1"] * 2, [b"\2"] * 2, [b"alike_circles"] * 2, [b"alike_squares"] * 2]
    assert resident(ITEMS, Told(8, 1), 2**20) == kept[0], "an equal one shares them"


def until_lost(kept: Resident) -> None:
    """Wait until Ray has noticed that the owner is dead."""
    end = time.monotonic() + 60
    while True:
        try:
            ray.get(kept.images)
        except OwnerDiedError:
            return
        assert time.monotonic() < end, "the store still has them"
        time.sleep(0.1)


def test_a_stream_goes_on_when_the_keeper_dies(small_dtd: Path) -> None:
    dataset = open_dataset("dtd", small_dtd)
    items = [*dataset.train, *dataset.val, *dataset.test]  # together more than Ray keeps without a store
    plan = eval_plan(items, size=16, batch_size=2)
    options = StreamOptions(block_rows=2)
    want = [batch.images.tolist() for batch in stream_local(plan, dataset.source)]
    with shared_images():
        batches = stream(plan, dataset.source, options=options)
        got = [next(batches).images.tolist()]
        kept = resident(plan.items, dataset.source, options.resident_bytes)
        pid = ray.get(ray.get_actor(KEEPER).__ray_call__.remote(lambda keeper: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        until_lost(kept)
        assert files_of(kept, np.array([3, 1]), dataset.source) == (
            [plan.items[k].path for k in (3, 1)],
            dataset.source.read_many([plan.items[k].path for k in (3, 1)]),
        )
        got += [batch.images.tolist() for batch in batches]
        assert got == want
        assert resident(plan.items, dataset.source, options.resident_bytes).images != kept.images
        assert [batch.images.tolist() for batch in stream(plan, dataset.source, options=options)] == want
