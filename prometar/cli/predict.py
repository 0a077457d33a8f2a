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

    # The imports load torch, which is slow, so the arguments are checked first.
    from prometar.data.preparation.check import read_and_verify
    from prometar.inference.classifier import load

    classifier = load(prompts, pretrained=pretrained, trust_code=trust_code)
    items = [Item(str(path.absolute()), 0, "") for path in paths]  # the label and class have no meaning here
    verified = read_and_verify(items, FolderSource("/"))
    readable: list[Path] = []
    errors: list[str] = []
    for path, (_, error) in zip(paths, verified, strict=True):
        if error:
            errors.append(error)
        else:
            readable.append(path)

    if readable:
        predictions = classifier.predict(readable, classnames=names)
        if csv_file is not None:
            _write(csv_file, _as_csv(readable, predictions))
        if json_file is not None:
            _write(json_file, _as_json(readable, predictions))
        if STDOUT not in (csv_file, json_file):
            _print_table(readable, predictions)

    for error in errors:
        print(one_line(error), file=sys.stderr)
    if errors:
        raise WorkError(f"{len(errors)} of {len(paths)} images cannot be read. They are listed above.")


def _read_classnames(given: Sequence[str] | None) -> Sequence[str] | None:
    """Return the class names. If the only value is the path of a file, return the lines of the file."""
    if given is None or len(given) != 1:
        return given
    path = Path(given[0])
    if not path.is_file():
        return given
    lines = [line.strip() for line in read_text(path).splitlines()]
    return [line for line in lines if line]


def _find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the image files that `paths` stand for: files, and the images in folders and their subfolders.

    The images of a folder are sorted by name. Subfolders come after the images of the folder itself.

    Raises:
        UserError: a path does not exist, or a folder contains no images.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            in_folder = _images_below(path)
            if not in_folder:
                raise UserError(f"{path} contains no images ({', '.join(SUFFIXES)}).")
            images += in_folder
        elif path.exists():
            images.append(path)
        else:
            raise UserError(f"{path} does not exist. Pass image files, or folders of images.")
    return images


def _images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, except hidden ones."""
    subfolders, files = list_visible(folder)
    images = [folder / file for file in files if file.lower().endswith(SUFFIXES)]
    for subfolder in subfolders:
        images += _images_below(folder / subfolder)
    return images


def _write(file: Path, text: str) -> None:
    """Write a text to a file, or print it if the file is "-"."""
    if file == STDOUT:
        print(text, end="")
    else:
        write_atomically(resolve_path(file), text.encode())


def _print_table(paths: Sequence[Path], predictions: "Predictions") -> None:
    """Print a line per image: its path, the most likely class, and the probability of this class."""
    shown_paths = [one_line(str(path)) for path in paths]
    shown_names = [one_line(name) for name in predictions.names]
    path_width = max(map(len, shown_paths))
    name_width = max(map(len, shown_names))
    for path, name, probabilities in zip(shown_paths, shown_names, predictions.probabilities, strict=True):
        print(f"{path:{path_width}}  {name:{name_width}}  {100 * probabilities.max():5.1f} %")


def _as_csv(paths: Sequence[Path], predictions: "Predictions") -> str:
    """Return a table with the columns image, class, probability, and a column for each class."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "class", "probability", *predictions.classnames])
    for path, name, probabilities in zip(paths, predictions.names, predictions.probabilities, strict=True):
        by_class = [f"{probability:.6f}" for probability in probabilities]
        writer.writerow([path, name, f"{probabilities.max():.6f}", *by_class])
    return stream.getvalue()


def _as_json(paths: Sequence[Path], predictions: "Predictions") -> str:
    """Return a list with an object for each image: image, class, probability, probabilities by class."""
    rows: list[dict[str, object]] = []
    for path, name, probabilities in zip(paths, predictions.names, predictions.probabilities, strict=True):
        by_class: dict[str, float] = {}
        for classname, probability in zip(predictions.classnames, probabilities, strict=True):
            by_class[classname] = round(float(probability), 6)
        rows.append(
            {
                "image": str(path),
                "class": name,
                "probability": round(float(probabilities.max()), 6),
                "probabilities": by_class,
            }
        )
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
