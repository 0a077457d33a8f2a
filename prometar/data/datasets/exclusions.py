"""Excluded images, such as corrupt ones, which no run reads.

Excluded images stay in the lists from which few-shot images are drawn, so that the draws of all other images
do not change.
"""

from collections.abc import Collection

from prometar.errors import UserError
from prometar.io.stores import join, masked, read_file

EXCLUDED_FILE = "excluded.txt"


def read_exclusions(location: str) -> dict[str, int]:
    """Return the excluded paths with their line numbers in excluded.txt.

    The paths are relative to the image folder, one per line. Without the file, no image is excluded.

    Args:
        location: Folder or URI of the dataset, which contains excluded.txt.

    Raises:
        UserError: the file is not UTF-8, or URIs of this kind are not supported.
        InfrastructureError: the file cannot be read.
    """
    content = read_file(location, EXCLUDED_FILE)
    if content is None:
        return {}
    try:
        lines = content.decode("utf-8-sig").splitlines()  # Windows editors write a byte order mark
    except UnicodeDecodeError:
        raise UserError(f"{masked(join(location, EXCLUDED_FILE))} is not UTF-8 text.") from None
    number_by_path: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        path = line.strip()
        if path:
            number_by_path[path] = number
    return number_by_path


def require_known(exclusions: dict[str, int], paths: Collection[str], location: str) -> None:
    """Require that all excluded paths are images of the dataset.

    Args:
        exclusions, location: Result and argument of `read_exclusions`.
        paths: Paths of the dataset's images.

    Raises:
        UserError: a path of `exclusions` is not among `paths`.
    """
    for path, number in exclusions.items():
        if path not in paths:
            raise UserError(
                f"{masked(join(location, EXCLUDED_FILE))}, line {number}: {path!a:.200} is not an image of "
                "the dataset. List paths as in `prometar data check`. If you deleted this image, create an "
                "empty file with its name, so that the split into train, val and test does not change."
            )
