"""The stream on Ray Data equals the reference, whatever its blocks and workers, and does not hang."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import OutOfDiskError

from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation.prepare import prepare
from prometar.data.streaming import raystream
from prometar.data.streaming.plan import Plan, eval_plan
from prometar.data.streaming.stream import Batch, StreamOptions, stream, stream_local
from prometar.data.streaming.transforms import BrokenImage, TransformSpec
from prometar.errors import StorageError, UserError

pytestmark = pytest.mark.usefixtures("ray_local")


def training_plan(root: Path, epochs: int = 3) -> Plan:
    items = open_dataset("dtd", root).train
    return Plan(items, TransformSpec(32, train=True, jitter=0.2), batch_size=5, epochs=epochs, seed=2)


def check_equal(got: list[Batch], want: list[Batch]) -> None:
    assert [b.step for b in got] == [b.step for b in want]
    for one, other in zip(got, want, strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)
        assert one.images.flags.writeable


@pytest.mark.parametrize("max_tasks", [1, 2])
@pytest.mark.parametrize("block_rows", [16, 64, 128])
def test_pixels_do_not_depend_on_blocks_and_workers(small_dtd: Path, block_rows: int, max_tasks: int) -> None:
    plan, source = training_plan(small_dtd), open_dataset("dtd", small_dtd).source
    options = StreamOptions(block_rows=block_rows, max_tasks=max_tasks)
    check_equal(list(stream(plan, source, options=options)), list(stream_local(plan, source)))


def test_a_stream_starts_nothing_but_its_tasks(small_dtd: Path) -> None:
    """Ray Data's two actors stay for as long as Ray does, a hundred MB each, and its first stream waits."""
    plan, source = training_plan(small_dtd), open_dataset("dtd", small_dtd).source
    list(stream(plan, source))
    named = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    assert not [name for name in named if "datasets" in name or "Autoscaling" in name]


def test_long_plans_take_several_executions(small_dtd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raystream, "MAX_BLOCKS", 2)
    plan, source = training_plan(small_dtd), open_dataset("dtd", small_dtd).source
    got = stream(plan, source, start_step=3, options=StreamOptions(block_rows=16))
    check_equal(list(got), list(stream_local(plan, source))[3:])


@pytest.mark.parametrize("start_step", [1, 9, 26, 27])
def test_resumes_at_any_step(small_dtd: Path, start_step: int) -> None:
    plan, source = training_plan(small_dtd), open_dataset("dtd", small_dtd).source
    want = list(stream_local(plan, source))[start_step:]
    check_equal(list(stream(plan, source, start_step=start_step, options=StreamOptions(block_rows=16))), want)


def test_sets_too_large_for_the_store_are_read_by_the_tasks(small_dtd: Path) -> None:
    plan, source = training_plan(small_dtd, epochs=1), open_dataset("dtd", small_dtd).source
    options = StreamOptions(resident_bytes=1000)
    check_equal(list(stream(plan, source, options=options)), list(stream_local(plan, source)))


def test_textures_stream_for_evaluation() -> None:
    dataset = open_dataset("textures")
    plan = eval_plan(dataset.val[::16], size=64, batch_size=16)
    check_equal(list(stream(plan, dataset.source)), list(stream_local(plan, dataset.source)))


@pytest.mark.parametrize("resident_bytes", [2**20, 1])
def test_a_broken_image_stops_the_stream_and_is_named(
    own_dtd: Path, capfd: pytest.CaptureFixture[str], resident_bytes: int
) -> None:
    dataset = open_dataset("dtd", own_dtd)
    path = dataset.test[3].path
    (own_dtd / "dtd/images" / path).write_bytes(b"\xff\xd8 not a photograph")
    plan = eval_plan(dataset.test, size=16, batch_size=2)
    options = StreamOptions(block_rows=2, resident_bytes=resident_bytes)
    batches = stream(plan, dataset.source, options=options)
    assert next(batches).step == 0
    with pytest.raises(BrokenImage, match=path) as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("resident_bytes", [2**20, 1])
def test_a_missing_image_is_named(own_dtd: Path, resident_bytes: int) -> None:
    dataset = open_dataset("dtd", own_dtd)
    path = dataset.test[3].path
    (own_dtd / "dtd/images" / path).unlink()
    plan = eval_plan(dataset.test[3:], size=16, batch_size=2)
    with pytest.raises(UserError, match=path):
        list(stream(plan, dataset.source, options=StreamOptions(resident_bytes=resident_bytes)))


def test_a_disk_that_ray_finds_full_is_no_trial_s_failure() -> None:
    def full() -> Generator[Any, None, None]:
        raise OutOfDiskError("Local disk is full\nTip: use df")
        yield

    with pytest.raises(StorageError, match=r"^the data stream failed at row 4: .* is full.*: make room$"):
        list(raystream._checked(full(), [(4, 8)]))


def test_a_shard_that_tasks_cannot_read_is_no_trial_s_failure(small_dtd: Path, tmp_path: Path) -> None:
    prepare("dtd", small_dtd, tmp_path)
    dataset = open_dataset("dtd", tmp_path)
    plan = Plan(dataset.train, TransformSpec(16, train=True), batch_size=4, epochs=100, seed=2)
    batches = stream(plan, dataset.source, options=StreamOptions(resident_bytes=1))
    next(batches)
    for shard in (tmp_path / "dtd").glob("*.parquet"):
        shard.unlink()
    with pytest.raises(StorageError, match="cannot read shard"):
        list(batches)


def test_is_silent(small_dtd: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan, source = training_plan(small_dtd), open_dataset("dtd", small_dtd).source
    assert len(list(stream(plan, source))) == plan.num_steps
    assert capfd.readouterr() == ("", "")


def store_bytes() -> float:
    """What the object store holds (Ray reports it with a delay of up to half a second)."""
    time.sleep(1)
    name = "object_store_memory"
    return ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0)


def test_can_be_left_early_and_leaves_nothing_behind(small_dtd: Path) -> None:
    plan, source = training_plan(small_dtd, epochs=100), open_dataset("dtd", small_dtd).source
    list(stream(plan, source, start_step=plan.num_steps - 1))  # the encoded images stay in the store
    before, threads, firsts = store_bytes(), threading.active_count(), []
    for _ in range(3):
        batches = stream(plan, source)
        firsts.append(next(batches))
        batches.close()  # type: ignore[attr-defined]
    assert all(np.array_equal(b.images, firsts[0].images) for b in firsts)
    end = time.monotonic() + 60
    while threading.active_count() > threads:
        assert time.monotonic() < end, "a thread of the stream goes on"
        time.sleep(0.1)
    while store_bytes() >= before + 1e5:
        assert time.monotonic() < end, "the store still holds what was streamed"


def test_a_slow_consumer_is_not_flooded(small_dtd: Path) -> None:
    plan, source = training_plan(small_dtd, epochs=100), open_dataset("dtd", small_dtd).source
    before = store_bytes()
    batches = stream(plan, source, options=StreamOptions(memory_bytes=10**6))
    next(batches)
    time.sleep(1)
    assert store_bytes() - before < 3e6  # of 14 MB
    batches.close()  # type: ignore[attr-defined]


class OneGroup:
    """Stands for a trial's placement group."""

    def __init__(self, *cpus: float) -> None:
        self.bundle_specs = [{"CPU": cpu} for cpu in cpus]


@pytest.mark.parametrize(("group", "text"), [(OneGroup(2), "have none"), (OneGroup(1, 0.25), "have 0.25")])
def test_a_group_without_room_for_the_stream_is_refused(
    small_dtd: Path, monkeypatch: pytest.MonkeyPatch, group: OneGroup, text: str
) -> None:
    monkeypatch.setattr(raystream, "get_current_placement_group", lambda: group)
    plan, source = training_plan(small_dtd), open_dataset("dtd", small_dtd).source
    with pytest.raises(UserError, match=rf"needs 0.5 CPU .* {text}: give it a bundle"):
        next(stream(plan, source, options=StreamOptions(in_placement_group=True)))


def test_trials_that_hold_every_cpu_do_not_hang(small_dtd: Path, tmp_path: Path, ray_local: str) -> None:
    script = Path(__file__).parents[1] / "support/trials_hold_all_cpus.py"
    command = [sys.executable, str(script), str(small_dtd), str(tmp_path), ray_local]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("the trials hang")
    assert process.returncode == 0, errors[-2000:]
    result = json.loads(output.splitlines()[-1])
    for kind, trials in (("halves", 3), ("wholes", 1)):
        assert result[kind]["errors"] == []
        assert result[kind]["equal"] == [True] * trials
        assert result[kind]["evaluated"] == [48] * trials
