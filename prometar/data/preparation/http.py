"""Get a file over HTTP: what an earlier, interrupted try got is kept and gone on with."""

import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import cast
from urllib.error import HTTPError

from prometar.data.preparation.digests import digest_of
from prometar.errors import UserError, WorkError, first_line

TRIES = 4
TIMEOUT_SECONDS = 60
PAUSE_SECONDS = 1.0  # before the second try; twice as long before each other
CHUNK = 2**20
_LATER = (408, 429)  # request timeout, too many requests

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all (0 if that is not known): bytes, or shards."""


def unwatched(done: int, total: int) -> None:
    """Progress that nobody wants to hear of."""


def fetch(
    url: str,
    file: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    progress: Progress = unwatched,
) -> None:
    """Download `url` to `file`, through `<file>.part`; does nothing if `file` is there.

    An interrupted transfer is continued by a Range request, on the condition that the server's file is still
    the same (If-Range); a server that knows no ranges sends it anew.

    Args:
        url: http or https.
        file: Where to; its folder must exist.
        md5, sha256: Hex digests that the file must have, where they are known.
        progress: See `Progress`.

    Raises:
        UserError: another kind of URL, or none.
        WorkError: the server refuses or keeps breaking off, no space, or the digest differs; what came is
            kept unless it is wrong.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"cannot download {url}: expected http:// or https://")
    if file.exists():
        return
    part = file.with_name(f"{file.name}.part")
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            _go_on(url, part, progress)
            break
        except HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in _LATER:
                raise WorkError(
                    f"cannot download {url}: the server says {error.code} {error.reason}"
                ) from None
            reason = f"{error.code} {error.reason}"
        except (ValueError, InvalidURL) as error:
            raise UserError(
                f"cannot download {url}: it is no URL ({first_line(error)}); write other characters as %XX"
            ) from None
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            reason = " ".join(str(cause).split()) or type(error).__name__
    else:
        kept = part.stat().st_size if part.exists() else 0
        raise WorkError(
            f"cannot download {url}: {reason}; {kept} bytes are kept, and the same command goes on from there"
        )
    _require_digest(url, part, "md5", md5)
    _require_digest(url, part, "sha256", sha256)
    os.replace(part, file)
    _tag(part).unlink(missing_ok=True)


def _go_on(url: str, part: Path, progress: Progress) -> None:
    """One request, for the bytes after those in `part`; returns when it is complete."""
    size = part.stat().st_size if part.exists() else 0
    tag = _tag(part).read_text("utf-8") if _tag(part).exists() else ""
    headers = {"User-Agent": "prometar", "Accept-Encoding": "identity"}
    if size and tag:  # without a tag nothing tells whether the rest belongs to the beginning
        headers |= {"Range": f"bytes={size}-", "If-Range": tag}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            _receive(cast(HTTPResponse, response), part, size, progress)
    except HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        # nothing lies beyond the bytes that are there: they are the whole file, or not of this file
        if error.headers.get("Content-Range", "") != f"bytes */{size}":
            part.unlink(missing_ok=True)
            raise ConnectionError("the server's file is another one now") from None


def _receive(response: HTTPResponse, part: Path, size: int, progress: Progress) -> None:
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != size:
            part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another range than was asked for")
        total = int(match[2])
    else:
        size, total = 0, response.length or 0
        etag = response.headers.get("ETag", "")
        strong = etag if etag.startswith('"') else ""
        _tag(part).write_text(strong or response.headers.get("Last-Modified", ""), "utf-8")
    require_space(part.parent, total - size)
    with part.open("ab" if size else "wb") as stream:
        while chunk := response.read(CHUNK):
            stream.write(chunk)
            size += len(chunk)
            progress(size, total)
    if size < total:
        raise ConnectionError(f"the connection broke off at {size} of {total} bytes")


def _tag(part: Path) -> Path:
    """Where the server's mark of the file's version is kept between tries."""
    return part.with_name(f"{part.name}.tag")


def require_space(folder: Path, needed: int) -> None:
    """Raises a WorkError where fewer than `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WorkError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are to come: make room"
        )


def _require_digest(url: str, part: Path, kind: str, expected: str | None) -> None:
    if expected is None:
        return
    found = digest_of(part, kind)
    if found != expected:
        part.unlink()
        _tag(part).unlink(missing_ok=True)
        raise WorkError(
            f"{url} has the checksum {found}, expected {expected}: it was deleted; "
            "the same command gets it again"
        )
