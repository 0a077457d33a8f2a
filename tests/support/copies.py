"""Small generated copies of every benchmark's layout, with real images."""

import hashlib
import io
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prometar.data.datasets.benchmarks import BENCHMARKS, Benchmark
from prometar.data.datasets.catalog import open_dataset
from prometar.errors import UserError
from tests.support.fileserver import Served

CLASSES = 5
COUNTS = {"train": 4, "val": 3, "test": 2}
"""Number of images per class, by split."""
NAMES = ("tench", "great white shark", "F/A-18", "flat-coated retriever", "crème brûlée")


def open_error(name: str, root: Path | None) -> str:
    """Open a dataset, which must fail. Return the error message, which must be one line."""
    with pytest.raises(UserError) as caught:
        open_dataset(name, root)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@lru_cache
def image(seed: int, kind: str = "JPEG") -> bytes:
    """Return an encoded image of a few random pixels. Its size depends on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12 + seed % 5, 14, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_image(path: Path, seed: int = 0) -> None:
    """Write an image, whose format follows from the path's suffix. There are 32 different images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(seed % 32, "PNG" if path.suffix == ".png" else "JPEG"))


def write_copy(name: str, root: Path) -> Path:
    """Write a copy of a benchmark. Return its folder. It has 4 train, 3 val and 2 test images per class."""
    row = BENCHMARKS[name]
    folder = root / row.folder
    if row.split_file:
        _write_split_file(row, folder)
    elif row.split_folders:
        _write_class_folders(row, folder)
    else:
        _write_variants(row, folder)
    return folder


def with_split(served: Served, row: Benchmark, folder: Path) -> Benchmark:
    """Serve the split file of a copy. Return the benchmark's row with the copy's digest and sizes."""
    content = (folder / row.split_file).read_bytes()
    served.files[f"/splits/{row.split_file}"] = content
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    sizes = {split: CLASSES * count for split, count in COUNTS.items()}
    return row.model_copy(update={"split_digest": digest, "num_classes": CLASSES, "sizes": sizes})


def _write_split_file(row: Benchmark, folder: Path) -> None:
    """Write a split file as CoOp publishes them, and its images."""
    content: dict[str, list[list[object]]] = {}
    for split, count in COUNTS.items():
        content[split] = []
        for k in range(count):
            for label in reversed(range(CLASSES)):  # labels need not be sorted in split files
                path = f"{split}s/{label}_{k}.jpg"
                write_image(folder / row.image_folder / path, seed=len(content[split]))
                content[split].append([path, label, NAMES[label]])
    (folder / row.split_file).write_text(json.dumps(content), "utf-8")


def _write_variants(row: Benchmark, folder: Path) -> None:
    """Write the lists of images and classes of FGVC Aircraft, and its images."""
    number = 0
    for split, count in COUNTS.items():
        lines = []
        for name in NAMES * count:
            number += 1
            lines.append(f"{number:07d} {name}\n")
            write_image(folder / row.image_folder / f"{number:07d}.jpg", number)
        (folder / f"images_variant_{split}.txt").write_text("".join(lines), "utf-8")
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in NAMES), "utf-8")


def wnid(label: int) -> str:
    """Return a WordNet id, as ImageNet's class folders are named. Ids are in the order of labels."""
    return f"n{label * 11 + 1440764:08d}"


def _write_class_folders(row: Benchmark, folder: Path) -> None:
    """Write the class folders of ImageNet or of one of its variants, and classnames.txt."""
    # A variant may have only some of ImageNet's classes, here every second one. Its classnames.txt lists all.
    step = 2 if row.imagenet_variant and not row.numbered else 1
    for split, split_folder in row.split_folders.items():
        for label in range(CLASSES):
            for k in range(COUNTS[split]):
                class_folder = str(label) if row.numbered else wnid(step * label)
                parent = folder / row.image_folder / split_folder / class_folder
                write_image(parent / f"{split}_{k}.JPEG", label + k)
    (folder / row.image_folder / "README.txt").write_text("no image")
    lines = []
    for k in range(step * CLASSES):
        suffix = " two" if k >= CLASSES else ""
        lines.append(f"{wnid(k)} {NAMES[k % CLASSES]}{suffix}\n")
    (folder / "classnames.txt").write_text("".join(lines), "utf-8")


def write_tree(root: Path, paths: list[str]) -> Path:
    """Write an image to each of the `paths` below `root`. Return `root`."""
    for k, path in enumerate(paths):
        write_image(root / path, k)
    return root
