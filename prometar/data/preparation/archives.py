"""Archives that nobody vouches for."""

import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from prometar.errors import WorkError, first_line


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz into the folder `target`.

    Raises:
        WorkError: A member leaves `target`, or is a link or a device, or the archive is corrupt.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    _require_inside(name)
                packed.extractall(target)
        else:
            with tarfile.open(archive) as tar:
                tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later
                for member in tar:
                    _require_inside(member.name)
                    if not (member.isfile() or member.isdir()):
                        raise ValueError(f"its member '{member.name[:80]}' is neither a file nor a folder")
                    tar.extract(member, target, set_attrs=False)
    except Exception as error:  # readers of archives raise errors of many kinds on hostile bytes
        raise WorkError(
            f"cannot unpack {archive}: {first_line(error)}. Delete it, then rerun this command."
        ) from None


def _require_inside(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"its member '{name[:80]}' leaves the target folder")
