"""A stand-in of the Hugging Face hub on this machine alone: the list of a data set's files, and the files."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.localserver import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("zebra_skin", "air mail", "moss", "bark")


@dataclass
class FakeHub:
    """What the stand-in has, and what it was asked for.

    Attributes:
        files: Content by path, of each data set.
        gated: Data sets whose terms nobody has accepted.
        lie: Whether digests are those of other bytes.
        requests: (method, path) of each request.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    lie: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


def png(label: int, seed: int) -> bytes:
    """A picture of 24 x 20 pixels whose colour tells its label."""
    pixels = np.random.default_rng(seed).integers(0, 60, (20, 24, 3), dtype=np.uint8)
    pixels[..., label % 3] += np.uint8(120 + 20 * label)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(
    labels: Sequence[object],
    *,
    seed: int = 0,
    images: pa.Array | None = None,
    image: str = "image",
    label: str = "label",
    names: Sequence[str] | None = NAMES,
) -> bytes:
    """A Parquet file of pictures as the library `datasets` writes it; `names`: those of its class labels."""
    if images is None:
        rows = [
            {"bytes": png(one if isinstance(one, int) else 0, seed + k), "path": None}
            for k, one in enumerate(labels)
        ]
        images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names or ())}}
    kept = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    found = pa.table({image: images, label: pa.array(labels)}).replace_schema_metadata(kept)
    sink = pa.BufferOutputStream()
    pq.write_table(found, sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, hub)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as hub.url:
        yield hub


def _answer(handler: BaseHTTPRequestHandler, hub: FakeHub) -> None:
    path = unquote(urlsplit(handler.path).path)
    hub.requests.append((handler.command, path))
    if path.startswith("/api/datasets/"):
        repo, _, revision = path.removeprefix("/api/datasets/").partition("/revision/")
        files, content = hub.files.get(repo), None
    else:
        repo, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        files = hub.files.get(repo)
        content = (files or {}).get(file)
    error = "RepoNotFound" if files is None else "GatedRepo" if repo in hub.gated else ""
    if not error and revision not in (COMMIT, "main"):
        error = "RevisionNotFound"
    if error:
        _send(handler, 403 if error == "GatedRepo" else 404, b"", {"X-Error-Code": error})
    elif path.startswith("/api/"):
        _send(handler, 200, json.dumps(_listing(repo, files or {}, hub.lie)).encode(), {})
    elif content is None:
        _send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
    else:
        _send(handler, 200, content, {"ETag": f'"{_sha256(content)}"', "X-Repo-Commit": COMMIT})


def _listing(repo: str, files: dict[str, bytes], lie: bool) -> dict[str, object]:
    siblings = [
        {
            "rfilename": path,
            "size": len(content),
            "lfs": {"sha256": _sha256(content + b"x" * lie), "size": len(content), "pointerSize": 130},
        }
        for path, content in files.items()
    ]
    return {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _send(handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(content))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)
