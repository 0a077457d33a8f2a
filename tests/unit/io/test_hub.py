"""Each thing that the hub's client raises is one line, of the right kind, and nothing else is said."""

import logging
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import close_session, errors

from prometar.errors import UserError, WorkError
from prometar.io import hub
from prometar.io.hub import asking, fetching
from prometar.logs import unlogged


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)  # of any HTTP library
    return kind("what it says\nand more", response=response)


RAISED: tuple[tuple[Exception, type[UserError], str], ...] = (
    (answer(errors.GatedRepoError, 403), UserError, "the prompts a/b is given only to those who accept its"),
    (answer(errors.RepositoryNotFoundError, 401), UserError, "the prompts a/b is not there, or is private"),
    (answer(errors.RevisionNotFoundError, 404), UserError, "the prompts a/b: there is no such revision"),
    (answer(errors.RemoteEntryNotFoundError, 404), UserError, "the prompts a/b holds no x.bin: compare"),
    (answer(errors.HfHubHTTPError, 401), UserError, "the hub refuses this token for the prompts a/b (401)"),
    (answer(errors.HfHubHTTPError, 403), UserError, "the hub refuses this token for the prompts a/b (403)"),
    (answer(errors.HfHubHTTPError, 500), WorkError, "the hub failed over the prompts a/b (500): what it"),
    (answer(errors.HfHubHTTPError, 503), WorkError, "what it says; the same command tries again"),
    (answer(errors.HfHubHTTPError, 429), WorkError, "(429): what it says; the same command tries again"),
    (errors.LocalEntryNotFoundError("no"), WorkError, "cannot reach the hub for the prompts a/b"),
    (errors.OfflineModeIsEnabled("off"), WorkError, "with the hub (OfflineModeIsEnabled: off)"),
    (OSError(28, "No space left on device"), WorkError, "(OSError: [Errno 28] No space left on device)"),
    (UserError("mine"), UserError, "mine"),
)  # fmt: skip


@pytest.mark.parametrize(("raised", "kind", "says"), RAISED, ids=lambda each: type(each).__name__)
def test_what_the_client_raises_is_one_line(raised: Exception, kind: type[UserError], says: str) -> None:
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(UserError) as found, asking("the prompts a/b", "x.bin"):
        raise raised
    assert type(found.value) is kind
    assert says in str(found.value)
    assert "\n" not in str(found.value)
    assert logging.getLogger("huggingface_hub").level == level


def test_what_the_hub_refuses_for_good_is_not_to_be_tried_again() -> None:
    with pytest.raises(WorkError, match=r"the prompts a/b \(413\): what it says$"), asking("the prompts a/b"):
        raise answer(errors.HfHubHTTPError, 413)


def test_the_client_is_silent_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    with asking("the prompts a/b"):
        logging.getLogger("huggingface_hub.utils._http").warning("trying again")
        logging.getLogger("another").warning("heard")
    assert caplog.messages == ["heard"]


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.5)
    close_session()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(WorkError, match="Timeout"), asking("the prompts a/b"):
            hub.client().create_repo("a/b", token="hf_nobody")
    close_session()


def test_what_is_waited_for_is_told_where_it_takes_longer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fetching("the weights", "wait"):
        """It is there at once."""
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(hub, "_SILENCE_SECONDS", 0.01)
    said, end = "", time.monotonic() + 60
    with fetching("the weights", "wait"):
        while not said and time.monotonic() < end:
            said = capsys.readouterr().err
    assert said == "waiting for the weights\n"


def test_errors_that_are_each_other_s_cause_end_in_one_line() -> None:
    first, again = OSError("no route to the hub"), ValueError("tried again")
    first.__cause__, again.__cause__ = again, first
    said = r"^cannot fetch it \(no route to the hub\): wait$"
    with pytest.raises(WorkError, match=said), fetching("it", "wait"):
        raise again


def test_an_error_that_another_hides_is_not_the_reason() -> None:
    def look() -> None:
        try:
            raise FileNotFoundError("not in the cache")
        except FileNotFoundError:
            raise RuntimeError("no such tag") from None

    with pytest.raises(WorkError, match=r"^cannot fetch it \(no such tag\): wait$"), fetching("it", "wait"):
        look()


def test_the_network_s_reason_is_told_also_where_its_client_hides_the_system_s_own_error() -> None:
    """As the hub's client does: only its second error says what is amiss, and that is no OSError."""

    def connect() -> None:
        try:
            raise OSError("name not known")
        except OSError as error:
            raise ValueError(f"ConnectError: {error}") from None

    def fetch() -> None:
        try:
            connect()
        except ValueError as error:
            raise FileNotFoundError("please check your connection") from error

    said = r"^cannot fetch it \(ConnectError: name not known\): wait$"
    with pytest.raises(WorkError, match=said), fetching("it", "wait"):
        fetch()


def test_what_was_not_to_be_logged_before_is_not_logged_after() -> None:
    logging.disable(logging.CRITICAL)
    try:
        with unlogged():
            assert logging.root.manager.disable == logging.CRITICAL
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)
