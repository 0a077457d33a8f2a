"""The stream of images on Ray Data: equal to the local stream, and neither hungry for memory nor hanging."""

import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation.prepare import prepare
from prometar.data.streaming import raystream
from prometar.data.streaming.order import ImageOrder, eval_order
from prometar.data.streaming.raystream import stream
from prometar.data.streaming.stream import Batch, stream_local
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import InfrastructureError, UserError, WorkError

pytestmark = pytest.mark.usefixtures("ray_local")


def training_order(root: Path, epochs: int = 3) -> ImageOrder:
    """Return the order of the 48 training images of `small_dtd`, in batches of 5."""
    items = open_dataset("dtd", root).train
    return ImageOrder(items, TransformSpec(32, True, jitter=0.2), 5, epochs, seed=2)


def check_equal(streamed: list[Batch], local: list[Batch]) -> None:
    """Check that batches have the same steps, images and labels, and that images can be changed in place."""
    assert [batch.step for batch in streamed] == [batch.step for batch in local]
    for batch, local_batch in zip(streamed, local, strict=True):
        assert np.array_equal(batch.images, local_batch.images)
        assert np.array_equal(batch.labels, local_batch.labels)
        assert batch.images.flags.writeable


@pytest.mark.parametrize(
    ("block_rows", "cpus", "start_step"),
    [(16, 0.5, 0), (64, 1.5, 0), (7, 2, 13)],
    ids=["small-blocks", "large-blocks", "resumed"],
)
def test_pixels_equal_those_of_the_local_stream(
    small_dtd: Path, block_rows: int, cpus: float, start_step: int, capfd: pytest.CaptureFixture[str]
) -> None:
    order = training_order(small_dtd)
    source = open_dataset("dtd", small_dtd).source

    streamed = stream(order, source, start_step=start_step, cpus=cpus, block_rows=block_rows)

    check_equal(list(streamed), list(stream_local(order, source, start_step=start_step)))
    assert list(stream(order, source, start_step=order.num_steps)) == [], (
        "nothing is left after the last step"
    )
    assert capfd.readouterr() == ("", ""), "Ray prints nothing"


def test_rendered_images_are_streamed_for_evaluation() -> None:
    dataset = open_dataset("textures")
    some_images = dataset.val[::16]
    order = eval_order(some_images, size=64, batch_size=16)
    check_equal(list(stream(order, dataset.source)), list(stream_local(order, dataset.source)))


@pytest.mark.parametrize(("damage", "error"), [("corrupt", WorkError), ("missing", UserError)])
def test_a_corrupt_or_missing_image_stops_the_stream_and_is_named(
    own_dtd: Path, capfd: pytest.CaptureFixture[str], damage: str, error: type[UserError]
) -> None:
    dataset = open_dataset("dtd", own_dtd)
    path = dataset.test[3].path
    image = own_dtd / "dtd/images" / path
    if damage == "missing":
        image.unlink()
    else:
        image.write_bytes(b"\xff\xd8 not a photograph")
    order = eval_order(dataset.test, size=16, batch_size=2)

    with pytest.raises(error, match=path) as caught:
        list(stream(order, dataset.source, block_rows=2))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_shard_that_disappears_is_an_error_of_the_machine(
    small_dtd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raystream, "MAX_STORED_IMAGES", 1)  # read by the tasks, as large datasets are
    prepare("dtd", small_dtd, tmp_path)
    dataset = open_dataset("dtd", tmp_path)
    order = ImageOrder(dataset.train, TransformSpec(16, True), 4, epochs=100, seed=2)
    batches = stream(order, dataset.source)
    next(batches)
    for shard in (tmp_path / "dtd").glob("*.parquet"):
        shard.unlink()

    with pytest.raises(InfrastructureError, match="Cannot read shard"):
        list(batches)


def store_bytes() -> float:
    """Return the size of all objects in Ray's object store in bytes."""
    time.sleep(1)  # Ray reports the size with a delay of up to half a second
    name = "object_store_memory"
    return ray.cluster_resources()[name] - ray.available_resources().get(name, 0.0)


def test_closing_a_stream_frees_the_object_store(small_dtd: Path) -> None:
    order = training_order(small_dtd, epochs=100)
    source = open_dataset("dtd", small_dtd).source
    before = store_bytes()
    for _ in range(3):
        batches = stream(order, source)
        next(batches)
        batches.close()  # type: ignore[attr-defined]

    end = time.monotonic() + 60
    while store_bytes() >= before + 1e5:  # a block takes 0.2 MB
        assert time.monotonic() < end, "the store still holds streamed blocks"


def test_a_stream_waits_for_a_slow_consumer_and_rarely_uses_its_processor(
    small_dtd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = raystream.SchedulingPause.on_execution_step
    times_of_steps: list[float] = []  # when Ray Data's scheduling loop ran, in seconds

    def record_time(callback: raystream.SchedulingPause, executor: object) -> None:
        times_of_steps.append(time.monotonic())
        pause(callback, executor)

    monkeypatch.setattr(raystream.SchedulingPause, "on_execution_step", record_time)
    order = training_order(small_dtd, epochs=100)
    source = open_dataset("dtd", small_dtd).source
    before = store_bytes()

    batches = stream(order, source, memory_bytes=10**6)
    next(batches)
    time.sleep(1)  # the consumer is slow

    assert store_bytes() - before < 3e6, "a few blocks, of 14 MB in all"
    duration = times_of_steps[-1] - times_of_steps[0]
    assert 1 < len(times_of_steps) <= 1 + duration / raystream.PAUSE_SECONDS
    batches.close()  # type: ignore[attr-defined]


class Trainer:
    """Actor that consumes a stream in the placement group of a trial."""

    def start(self, root: Path) -> None:
        """Take one batch of a new stream. The stream goes on in the background."""
        order = training_order(root, epochs=100)
        source = open_dataset("dtd", root).source
        self.batches = stream(order, source, cpus=1)
        next(self.batches)

    def close(self) -> None:
        self.batches.close()  # type: ignore[attr-defined]


def test_blocks_are_made_ahead_of_a_trial(small_dtd: Path) -> None:
    before = store_bytes()
    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    place = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    trainer = ray.remote(num_cpus=1)(Trainer).options(scheduling_strategy=place).remote()

    ray.get(trainer.start.remote(small_dtd))

    end = time.monotonic() + 60
    while store_bytes() < before + 3e6:  # many blocks, of 0.2 MB each
        assert time.monotonic() < end, "the stream waits for its consumer"
    ray.get(trainer.close.remote())
    remove_placement_group(group)
