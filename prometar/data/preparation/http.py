"""Files over HTTP."""

import hashlib
import os
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from prometar.errors import UserError, WorkError, first_line

TIMEOUT_SECONDS = 60
CHUNK = 2**20

Progress = Callable[[int, int], None]
"""Called with the finished and the total number of bytes or shards. The total is 0 if it is unknown."""


def unwatched(done: int, total: int) -> None:
    """Progress that nobody follows."""


def digest_of(file: Path, kind: str = "sha256") -> str:
    """Return the hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


def fetch(
    url: str,
    file: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    progress: Progress = unwatched,
) -> None:
    """Download `url` to `file`, which appears whole or not at all.

    Args:
        url: http or https.
        file: Target in an existing folder.
        md5, sha256: Expected hex digests, if they are known.
        progress: See `Progress`.

    Raises:
        UserError: Not a URL of http or https.
        WorkError: The transfer failed or the digest differs.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"cannot download {url}: expected http:// or https://")
    part = file.with_name(f"{file.name}.part")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "prometar"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as stream:
            total = response.length or 0
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                progress(stream.tell(), total)
            if stream.tell() < total:
                raise ConnectionError(f"the connection broke off at {stream.tell()} of {total} bytes")
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise WorkError(
            f"cannot download {url}: {first_line(error)}. Rerun this command to try again."
        ) from None
    for kind, expected in (("md5", md5), ("sha256", sha256)):
        if expected is not None and (found := digest_of(part, kind)) != expected:
            part.unlink()
            raise WorkError(f"{url} has the {kind} {found}, expected {expected}. The file was deleted.")
    os.replace(part, file)
