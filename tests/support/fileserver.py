"""A file server on 127.0.0.1 that can cut transfers and answer with errors."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """Files to serve, and how.

    Attributes:
        files: Content by path.
        break_at: Number of bytes after which each of the next transfers is cut. Later ones are complete.
        status: HTTP status of each of the next responses. Later ones have the usual status.
        ranges: True to send the part of a file that a request asks for. Otherwise, whole files are sent.
        validator: Header by which a client can see that a file has changed: "ETag", "Last-Modified" or "".
        modified: Value of Last-Modified.
        requests: Path of each request.
        starts: First byte that is sent in each successful response.
        url: Address of the server.
    """

    files: dict[str, bytes]
    break_at: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    ranges: bool = True
    validator: str = "ETag"
    modified: str = "Wed, 01 Jan 2025 00:00:00 GMT"
    requests: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Served]:
    """Serve files by path. The yielded object controls and records the transfers."""
    served = Served(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            content = served.files.get(self.path)
            status = 404 if content is None else 200
            if served.status:
                status = served.status.pop(0)
            if status != 200 or content is None:
                self.send_error(status)
                return

            validator = self._validator(content)
            start = self._first_byte(validator)
            size = len(content)
            if start >= size > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return

            served.starts.append(start)
            content = content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            if validator is not None:
                self.send_header(served.validator, validator)
            self.end_headers()

            if served.break_at:
                content = content[: served.break_at.pop(0)]
                self.close_connection = True
            self.wfile.write(content)

        def _validator(self, content: bytes) -> str | None:
            """Return the value of the header `Served.validator`, or None without this header."""
            if served.validator == "ETag":
                return f'"{hashlib.md5(content).hexdigest()}"'
            if served.validator == "Last-Modified":
                return served.modified
            return None

        def _first_byte(self, validator: str | None) -> int:
            """Return the first byte to send. It is 0 if the client's part belongs to a changed file."""
            is_unchanged = self.headers.get("If-Range", validator) == validator
            if not served.ranges or not is_unchanged:
                return 0
            requested = self.headers.get("Range", "bytes=0-")
            return int(requested.removeprefix("bytes=").removesuffix("-"))

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing, unlike the base class."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
