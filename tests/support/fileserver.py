"""A file server on this machine alone that breaks off, changes its file, or knows no ranges, as asked."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.support.localserver import serving


@dataclass
class Served:
    """What is served, how, and what was asked for.

    Attributes:
        files: Content by path.
        break_at: Bytes after which each of the coming transfers is cut; empty: none is.
        status: Statuses to answer the coming requests with.
        ranges: Whether Range is understood.
        tag: ETag; a request with another If-Range gets the whole file.
        length: What is said for the Content-Length; "": the truth.
        requests: (path, Range header) of each request.
    """

    files: dict[str, bytes]
    break_at: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    ranges: bool = True
    tag: str = '"one"'
    length: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Served]:
    served = Served(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, served)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as served.url:
        yield served


def _answer(handler: BaseHTTPRequestHandler, served: Served) -> None:
    asked = handler.headers.get("Range", "")
    served.requests.append((handler.path, asked))
    content = served.files.get(handler.path)
    status = served.status.pop(0) if served.status else 200 if content is not None else 404
    if status != 200 or content is None:
        handler.send_error(status)
        return
    start = 0
    match = re.fullmatch(r"bytes=(\d+)-", asked)
    if match and served.ranges and handler.headers.get("If-Range") == served.tag:
        start = int(match[1])
        if start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        handler.send_response(200)
    handler.send_header("ETag", served.tag)
    handler.send_header("Content-Length", served.length or str(len(content) - start))
    handler.end_headers()
    body = content[start:]
    if served.break_at:
        body = body[: served.break_at.pop(0)]
        handler.close_connection = True
    handler.wfile.write(body)
