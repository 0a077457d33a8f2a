"""A local file server that breaks off or fails as requested."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.support.localserver import serving


@dataclass
class Served:
    """Files to serve, and how.

    Attributes:
        files: Content by path.
        break_at: Bytes after which each of the coming transfers is cut; empty: none is.
        status: Statuses to answer the coming requests with.
        requests: Path of each request.
    """

    files: dict[str, bytes]
    break_at: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
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
    served.requests.append(handler.path)
    content = served.files.get(handler.path)
    status = served.status.pop(0) if served.status else 200 if content is not None else 404
    if status != 200 or content is None:
        handler.send_error(status)
        return
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    body = content
    if served.break_at:
        body = body[: served.break_at.pop(0)]
        handler.close_connection = True
    handler.wfile.write(body)
