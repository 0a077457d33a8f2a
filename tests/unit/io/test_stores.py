"""A store that refuses for a while is asked again; what refuses for good is said at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import pytest

from prometar.errors import StorageError
from prometar.io import stores
from prometar.io.stores import Store
from tests.support.localserver import serving

CONTENT = b"short"
REFUSAL = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Bucket:
    """An S3 bucket with one file, shorter than what a refusal says.

    Attributes:
        head, get: Statuses to answer the coming requests with.
        asked: The requests.
    """

    head: list[int] = field(default_factory=list)
    get: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(stores, "_PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Bucket()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(made.head)

        def do_GET(self) -> None:
            self._answer(made.get)

        def _answer(self, statuses: list[int]) -> None:
            made.asked.append(self.command)
            status = statuses.pop(0) if statuses else 200
            body = CONTENT if status == 200 else REFUSAL
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as url:
        host = url.removeprefix("http://").rstrip("/")
        made.url = f"s3://key:secret@bucket/run?scheme=http&endpoint_override={host}&region=us-east-1"
        yield made


@pytest.mark.parametrize("status", [500, 503])
def test_a_file_shorter_than_what_a_refusal_says_is_asked_for_again(bucket: Bucket, status: int) -> None:
    bucket.get = [status, status]
    assert Store(bucket.url).read("stopped") == CONTENT
    assert bucket.asked.count("GET") == 3


def test_not_for_ever(bucket: Bucket) -> None:
    bucket.get = [503] * 20
    with pytest.raises(StorageError, match=r"^cannot read s3://.*stopped.*: AWS Error") as caught:
        Store(bucket.url).read("stopped")
    assert "secret" not in str(caught.value)
    assert bucket.asked.count("GET") == 4


@pytest.mark.parametrize(("status", "found"), [(403, "cannot read"), (404, None)])
def test_what_is_refused_for_good_is_asked_for_once(bucket: Bucket, status: int, found: str | None) -> None:
    bucket.head = [status]
    if found is None:
        assert Store(bucket.url).read("stopped") is None
    else:
        with pytest.raises(StorageError, match=found):
            Store(bucket.url).read("stopped")
    assert bucket.asked == ["HEAD"]
