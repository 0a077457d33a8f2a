"""The Hugging Face hub: its names, its client, and what the client raises as one line."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING

from prometar.errors import UserError, WorkError, first_line
from prometar.logs import unlogged

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"
TIMEOUT_SECONDS = 60.0
_SILENCE_SECONDS = 5.0  # without a network the client tries for a minute
_PART = r"[A-Za-z0-9](?:[\w-]|\.(?!\.)){0,95}"
_REPO = re.compile(f"{_PART}/{_PART}", re.ASCII)


def require_repo(repo: str, text: str) -> None:
    """
    Args:
        text: What the user wrote, of which `repo` is a part.
    Raises:
        UserError: `repo` is not owner/name.
    """
    if not _REPO.fullmatch(repo):
        raise UserError(f"'{text}' is no name on the hub: expected {SCHEME}owner/name")


def client() -> "HfApi":
    """The hub's client, of HF_ENDPOINT; by itself it would wait for ever for an answer."""
    from huggingface_hub import HfApi, get_session  # slow to import, and few commands need it

    session = get_session()
    if session.timeout.read is None:
        session.timeout = TIMEOUT_SECONDS
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return HfApi(endpoint=endpoint or None, library_name="prometar")


@contextmanager
def asking(what: str, file: str = "such file") -> Iterator[None]:
    """What the hub's client raises, as one line that says what to do.

    Args:
        what: What is exchanged with the hub ("the data set a/b"), and `file`: which file of it.
    Raises:
        UserError: what is asked for is not there, or not for this token.
        WorkError: no network, no space, or the hub fails.
    """
    from huggingface_hub import errors

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # each of its attempts is a warning
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{what} is given only to those who accept its terms: do so on its page, then `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{what}: there is no such revision") from None
    except errors.RemoteEntryNotFoundError:
        raise UserError(f"{what} holds no {file}: compare the name and the revision") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what} is not there, or is private: compare the name, or run `hf auth login` (or set HF_TOKEN)"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"the hub refuses this token for {what} ({status}): log in with one that may"
            ) from None
        passes = status is None or status in (408, 429) or status >= 500  # it is busy, or ill
        again = "; the same command tries again" if passes else ""
        raise WorkError(f"the hub failed over {what} ({status}): {first_line(error)}{again}") from None
    except errors.LocalEntryNotFoundError:
        raise WorkError(
            f"cannot reach the hub for {what}, which is not here either: try again with a network"
        ) from None
    except Exception as error:  # the client raises errors of many libraries
        raise WorkError(
            f"cannot exchange {what} with the hub ({type(error).__name__}: {first_line(error)}): "
            "the same command tries again"
        ) from None
    finally:
        log.setLevel(level)


@contextmanager
def fetching(what: str, otherwise: str) -> Iterator[None]:
    """What open_clip gets from the hub, and why they could not, in one line.

    It is told on stderr where it takes more than a few seconds.

    Args:
        otherwise: What to do on a machine without a network.
    Raises:
        WorkError: it could not be fetched.
    """
    telling = Timer(_SILENCE_SECONDS, lambda: print(f"waiting for {what}", file=sys.stderr, flush=True))
    telling.daemon = True
    telling.start()
    try:
        with unlogged(logging.ERROR):  # each attempt is a warning, and what is raised is an error once more
            yield
    except Exception as error:  # the hub's client raises errors of many libraries
        raise WorkError(f"cannot fetch {what} ({first_line(_innermost(error))}): {otherwise}") from None
    finally:
        telling.cancel()


def _innermost(error: BaseException) -> BaseException:
    """The error that all others have been raised over, which alone says what is amiss; no hidden one."""
    seen, each = [error], _behind(error)
    while each and each not in seen:  # a client that raises an earlier attempt's error again makes a circle
        seen.append(each)
        each = _behind(each)
    return seen[-1]


def _behind(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)
