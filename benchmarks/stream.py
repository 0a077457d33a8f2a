"""Images per second of the training stream: torch's DataLoader compared with Ray Data in an actor.

    python benchmarks/stream.py [--data-root DIR] [--workers 1 2] [--size 224] [--epochs 12] [--repeats 5]
        [--quick] [--json FILE]

DIR contains dtd/. Without DIR, JPEGs of similar size are generated. Both sides decode, crop, resize and flip
the same images in the same order, in batches of four. They use the same code and the same number of worker
processes. The Ray side runs in an actor with the resources of a trial. A third side, `in-process`, uses no
workers. A pass reads the images of all epochs. The rate is that of a second pass in a warm process, including
the start of the pass. The pixels of all sides are checked for equality.
"""

import argparse
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import Figures, arguments, describe, in_turn, median_of, print_figures, table, write_json
from numpy.typing import NDArray
from PIL import Image

from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import FolderSource, Item, Source
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.raystream import stream
from prometar.data.streaming.stream import stream_local
from prometar.data.streaming.transforms import TransformSpec, make_image
from tune.execution.ray_cluster import start_ray

Images = NDArray[np.uint8]

Pass = Callable[[], Iterator[Images]]
"""Function that starts a pass and returns its batches."""

DIGESTED = 40
"""Number of batches whose pixels are compared."""


def generate_images(folder: Path, count: int) -> None:
    """Write JPEGs of 224 x 224 pixels and about 17 kB, like photographs of DTD resized to 224 pixels."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        resized = Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC)
        smooth = np.asarray(resized, np.int16)
        noisy = smooth + rng.normal(0, 12, smooth.shape)
        pixels = noisy.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=82)


def order_of(root: str, generated: bool, size: int, epochs: int) -> tuple[ImageOrder, Source]:
    """Return the order of the images of a training run, and their source.

    Args:
        root: Folder of generated images, or folder that contains dtd/.
        generated: True if the images were generated.
        size: Size of an image in pixels.
        epochs: Number of times that each image is read.
    """
    if generated:
        names = sorted(path.name for path in Path(root).glob("*.jpg"))
        labels = [number % 10 for number in range(len(names))]  # ten classes
        items = tuple(Item(name, label, str(label)) for name, label in zip(names, labels, strict=True))
        source: Source = FolderSource(root)
    else:
        dataset = open_dataset("dtd", root)
        items = dataset.train
        source = dataset.source
    transform = TransformSpec(size, train=True, crop_scale=(0.08, 1.0))
    return ImageOrder(items, transform, epochs=epochs, seed=1), source


class OrderRows(torch.utils.data.Dataset[Images]):
    """Rows of an order for a DataLoader. Encoded images are in memory, as in the Ray stream."""

    def __init__(self, order: ImageOrder, source: Source) -> None:
        self._order = order
        self._files = source.read_many([item.path for item in order.items])

    def __getitem__(self, row: int) -> Images:
        [image], [seed] = self._order.rows(row, row + 1)
        return make_image(self._order.transform, self._files[image], int(seed))


def loader_pass(order: ImageOrder, source: Source, workers: int) -> Pass:
    """Return the passes of a DataLoader."""
    # The arrays are only read, so they need not be writable.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    steps = [list(range(*order.row_range(step))) for step in range(order.num_steps)]
    loader = torch.utils.data.DataLoader(
        OrderRows(order, source), batch_sampler=steps, num_workers=workers, persistent_workers=True
    )
    return lambda: (batch.numpy() for batch in loader)


def stream_pass(order: ImageOrder, source: Source, workers: int) -> Pass:
    """Return the passes of Ray Data."""
    return lambda: (batch.images for batch in stream(order, source, cpus=workers))


def local_pass(order: ImageOrder, source: Source, workers: int) -> Pass:
    """Return the passes of the stream without workers."""
    return lambda: (batch.images for batch in stream_local(order, source))


PASSES = {"loader": loader_pass, "ray": stream_pass, "in-process": local_pass}


def consume(kind: str, workers: int, root: str, generated: bool, size: int, epochs: int) -> Figures:
    """Run two passes and time the second one.

    Returns:
        `first` (seconds to the first batch), `rate` (images per second), `images` (their number) and `digest`
        (of the pixels of the first batches).
    """
    order, source = order_of(root, generated, size, epochs)
    start_pass = PASSES[kind](order, source, workers)
    digest = hashlib.sha256()
    for step, images in enumerate(start_pass()):
        if step < DIGESTED:
            digest.update(images.tobytes())

    began = time.perf_counter()
    count = 0
    first = 0.0
    for images in start_pass():
        if count == 0:
            first = time.perf_counter() - began
        count += len(torch.as_tensor(images))
    seconds = time.perf_counter() - began
    return {"first": first, "rate": count / seconds, "images": count, "digest": digest.hexdigest()}


def consume_in_actor(workers: int, **work: Any) -> Figures:
    """Run `consume` in an actor with the resource bundles of a trial: one for the actor, one for its stream.

    Ray is imported here, so that the other sides run in processes without Ray.
    """
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Consumer:
        @ray.method
        def consume(self, work: Figures) -> Figures:
            return consume(**work)

    start_ray(num_cpus=1 + workers)
    group = placement_group([{"CPU": 1}, {"CPU": workers}])
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    consumer = ray.remote(Consumer).options(num_cpus=1, scheduling_strategy=strategy).remote()
    figures: Figures = ray.get(consumer.consume.remote({"workers": workers, **work}))
    ray.shutdown()
    return figures


def measure(kind: str, **work: Any) -> Figures:
    """Return the figures of a side (see `consume`)."""
    torch.set_num_threads(1)
    if kind == "ray":
        return consume_in_actor(kind=kind, **work)
    return consume(kind, **work)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data-root", type=Path, help="folder that contains dtd/")
        parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker processes")
        parser.add_argument("--size", type=int, default=224, help="image size in pixels")
        parser.add_argument("--epochs", type=int, default=12, help="passes over the images")

    args = arguments(__doc__, add)
    if args.side:
        return print_figures(measure(**args.side))
    count = 600
    if args.quick:
        args.repeats = 1
        args.epochs = 2
        args.workers = [1]
        args.size = 64
        count = 60
    with TemporaryDirectory() as folder:
        generated = args.data_root is None
        root = str(args.data_root or folder)
        if generated:
            print(f"{count} generated JPEGs")
            generate_images(Path(folder), count)
        work = {"root": root, "generated": generated, "size": args.size, "epochs": args.epochs}
        kinds = [("in-process", 0)]
        for workers in args.workers:
            kinds += [("loader", workers), ("ray", workers)]
        sides = [{"kind": kind, "workers": workers, **work} for kind, workers in kinds]
        rounds = in_turn(sides, args)
    show(kinds, rounds, args)
    write_json(args, rounds)
    return None


def show(kinds: list[tuple[str, int]], rounds: list[list[Figures]], args: argparse.Namespace) -> None:
    """Print the table. `kinds` are the kind and the number of workers of each side of `rounds`."""
    digests = {figures["digest"] for side in rounds for figures in side}
    rates = {kind: median_of(side, "rate") for kind, side in zip(kinds, rounds, strict=True)}
    firsts = {kind: median_of(side, "first") for kind, side in zip(kinds, rounds, strict=True)}
    print(describe(1, "uint8"))
    num_images = rounds[0][0]["images"]
    print(
        f"{num_images} images of {args.size} pixels, medians of {args.repeats} rounds; "
        f"in-process {rates['in-process', 0]:.0f} images/s"
    )
    rows = []
    for workers in args.workers:
        loader = ("loader", workers)
        ray = ("ray", workers)
        ratio = rates[ray] / rates[loader]
        rows.append((workers, rates[loader], rates[ray], ratio, firsts[loader], firsts[ray]))
    head = (
        "workers",
        "DataLoader images/s",
        "Ray Data images/s",
        "ratio",
        "DataLoader first batch s",
        "Ray Data first batch s",
    )
    print(table(head, rows))
    print("pixels of all sides are " + ("equal" if len(digests) == 1 else "NOT EQUAL"))


if __name__ == "__main__":
    main()
