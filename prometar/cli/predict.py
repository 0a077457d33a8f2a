"""Command `prometar predict`: classify image files with a prompt file."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prometar.cli.console import TrustOption
from prometar.data.datasets.dataset import FolderSource, Item
from prometar.data.datasets.imagetree import SUFFIXES, list_visible
from prometar.errors import UserError, WorkError, one_line
from prometar.io.files import read_text, resolve_path, write_atomically

if TYPE_CHECKING:
    from prometar.inference.classifier import Predictions

STDOUT = Path("-")


def predict(
    prompts: Annotated[
        str, typer.Argument(help="FILE.safetensors from `prometar export`, or hf://owner/name.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of images.")],
    classnames: Annotated[
        list[str] | None,
        typer.Option(
            help="Classes to choose from, or a text FILE with one per line. Default: those of the training."
        ),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help="Write all probabilities to this CSV file. -: standard output."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write all probabilities to this JSON file. -: standard output."),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Weights of the backbone, if training read them from a local file.")
    ] = None,
    trust_code: TrustOption = False,
) -> None:
    """Classify images. Print the most likely class of each image and its probability in percent."""
    names = _read_classnames(classnames)
    paths = _find_images(images)
    from prometar.data.preparation.check import read_and_verify
    from prometar.inference.classifier import load

    classifier = load(prompts, pretrained=pretrained, trust_code=trust_code)
    items = [Item(str(path.absolute()), 0, "") for path in paths]
    messages = [message for _, message in read_and_verify(items, FolderSource("/"))]
    readable = [path for path, message in zip(paths, messages, strict=True) if not message]
    if readable:
        found = classifier.predict(readable, classnames=names)
        for file, text in ((csv_file, _as_csv(readable, found)), (json_file, _as_json(readable, found))):
            if file == STDOUT:
                print(text, end="")
            elif file is not None:
                write_atomically(resolve_path(file), text.encode())
        if STDOUT not in (csv_file, json_file):
            _print_table(readable, found)
    errors = [message for message in messages if message]
    for message in errors:
        print(one_line(message), file=sys.stderr)
    if errors:
        raise WorkError(f"{len(errors)} of {len(paths)} images cannot be read. They are listed above.")


def _read_classnames(given: Sequence[str] | None) -> Sequence[str] | None:
    """Return the class names. A single value that is the path of a file stands for its lines."""
    if given is None or len(given) != 1 or not Path(given[0]).is_file():
        return given
    return [line.strip() for line in read_text(Path(given[0])).splitlines() if line.strip()]


def _find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the files of `paths`, and the images in its folders and their subfolders, sorted by name.

    Raises:
        UserError: a path does not exist, or a folder contains no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            in_folder = _images_below(path)
            if not in_folder:
                raise UserError(f"{path} contains no images ({', '.join(SUFFIXES)}).")
            found += in_folder
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist. Pass image files, or folders of images.")
    return found


def _images_below(folder: Path) -> list[Path]:
    folders, files = list_visible(folder)
    found = [folder / file for file in files if file.lower().endswith(SUFFIXES)]
    for each in folders:
        found += _images_below(folder / each)
    return found


def _print_table(paths: Sequence[Path], found: "Predictions") -> None:
    rows = [(one_line(str(path)), one_line(name)) for path, name in zip(paths, found.names, strict=True)]
    path_width = max(len(path) for path, _ in rows)
    name_width = max(len(name) for _, name in rows)
    for (path, name), probabilities in zip(rows, found.probabilities, strict=True):
        print(f"{path:{path_width}}  {name:{name_width}}  {100 * probabilities.max():5.1f} %")


def _as_csv(paths: Sequence[Path], found: "Predictions") -> str:
    """Return a table with the columns image, class, probability, and a column for each class."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "class", "probability", *found.classnames])
    for path, name, probabilities in zip(paths, found.names, found.probabilities, strict=True):
        writer.writerow(
            [path, name, f"{probabilities.max():.6f}", *(f"{each:.6f}" for each in probabilities)]
        )
    return stream.getvalue()


def _as_json(paths: Sequence[Path], found: "Predictions") -> str:
    """Return a list with an object for each image: image, class, probability, probabilities by class."""
    rows = [
        {
            "image": str(path),
            "class": name,
            "probability": round(float(probabilities.max()), 6),
            "probabilities": {
                each: round(float(value), 6)
                for each, value in zip(found.classnames, probabilities, strict=True)
            },
        }
        for path, name, probabilities in zip(paths, found.names, found.probabilities, strict=True)
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
