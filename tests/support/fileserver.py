"""A file server on 127.0.0.1 that breaks off or fails as requested."""

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
        break_at: Bytes after which each of the coming transfers is cut; empty: none is.
        status: Statuses to answer the coming requests with.
        ranges: True to continue files where a request asks for it. Otherwise, whole files are sent.
        requests: Path of each request.
    """

    files: dict[str, bytes]
    break_at: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    ranges: bool = True
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Served]:
    served = Served(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            content = served.files.get(self.path)
            status = served.status.pop(0) if served.status else 200 if content is not None else 404
            if status != 200 or content is None:
                self.send_error(status)
                return
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            continues = served.ranges and start > 0
            content = content[start:] if continues else content
            self.send_response(206 if continues else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if served.break_at:
                content = content[: served.break_at.pop(0)]
                self.close_connection = True
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

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
