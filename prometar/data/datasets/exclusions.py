"""Excluded images, such as corrupt ones, which no run reads.

Excluded images stay in the lists from which few-shot images are drawn, so that the draws of all other images
do not change.
"""

from collections.abc import Collection

from prometar.errors import UserError
from prometar.io.stores import join, masked, read_file

EXCLUDED_FILE = "excluded.txt"


def read_exclusions(location: str) -> dict[str, int]:
    """Return the line number of each path that excluded.txt in a dataset's folder or URI lists.

    The paths are relative to the image folder, one per line. Without the file, no image is excluded.

    Raises:
        UserError: the file is not UTF-8.
        InfrastructureError: the file cannot be read.
    """
    content = read_file(location, EXCLUDED_FILE)
    if content is None:
        return {}
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{masked(join(location, EXCLUDED_FILE))} is not UTF-8 text.") from None
    return {line.strip(): number for number, line in enumerate(lines, 1) if line.strip()}


def require_known(exclusions: dict[str, int], paths: Collection[str], location: str) -> None:
    """Raise a UserError if a path of `exclusions` is not among the `paths` of a dataset."""
    for path, number in exclusions.items():
        if path not in paths:
            raise UserError(
                f"{masked(join(location, EXCLUDED_FILE))}, line {number}: {path!a:.200} is not an image of "
                "the dataset. List paths as in `prometar data check`. If you deleted the file, create an "
                "empty one with this name, so that the split into train, val and test does not change."
            )
