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
COUNTS = {"train": 4, "val": 3, "test": 2}  # images a class
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
    """An encoded image of a few pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12 + seed % 5, 14, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_image(path: Path, seed: int = 0) -> None:
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
    split: dict[str, list[list[object]]] = {}
    for part, count in COUNTS.items():
        # labels first appear in descending order, as nothing says that they are sorted
        rows = [(label, k) for k in range(count) for label in reversed(range(CLASSES))]
        split[part] = [[f"{part}s/{label}_{k}.jpg", label, NAMES[label]] for label, k in rows]
        for k, (path, _, _) in enumerate(split[part]):
            write_image(folder / row.image_folder / str(path), k)
    (folder / row.split_file).write_text(json.dumps(split), "utf-8")


def _write_variants(row: Benchmark, folder: Path) -> None:
    number = 0
    for part, count in COUNTS.items():
        lines = []
        for name in NAMES * count:
            number += 1
            lines.append(f"{number:07d} {name}\n")
            write_image(folder / row.image_folder / f"{number:07d}.jpg", number)
        (folder / f"images_variant_{part}.txt").write_text("".join(lines), "utf-8")
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in NAMES), "utf-8")


def wnid(label: int) -> str:
    return f"n{label * 11 + 1440764:08d}"


def _write_class_folders(row: Benchmark, folder: Path) -> None:
    # a variant may have a part of ImageNet's classes: its classnames.txt lists all of them
    step = 2 if row.imagenet_variant and not row.numbered else 1
    for split, below in row.split_folders.items():
        for label in range(CLASSES):
            for k in range(COUNTS[split]):
                class_folder = str(label) if row.numbered else wnid(step * label)
                place = folder / row.image_folder / below / class_folder
                write_image(place / f"{split}_{k}.JPEG", label + k)
    (folder / row.image_folder / "README.txt").write_text("no image")
    lines = []
    for k in range(step * CLASSES):
        suffix = " two" if k >= CLASSES else ""
        lines.append(f"{wnid(k)} {NAMES[k % CLASSES]}{suffix}\n")
    (folder / "classnames.txt").write_text("".join(lines), "utf-8")


def write_tree(root: Path, paths: list[str]) -> Path:
    """Images at `paths` below `root`; returns `root`."""
    for k, path in enumerate(paths):
        write_image(root / path, k)
    return root
