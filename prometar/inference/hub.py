"""Prompt files on the Hugging Face hub: `hf://owner/name` or `hf://owner/name@revision`.

A repository holds prompts.safetensors and a README.md made of its card; nothing else is read or written.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometar.errors import UserError, WorkError, first_line

SCHEME = "hf://"
FILE = "prompts.safetensors"
_MOST_BYTES = 2**30  # prompts of the largest models have some hundred megabytes
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A repository, and a branch, tag or commit of it (None: the newest)."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, text: str) -> HubName:
        """
        Raises:
            UserError: not owner/name or owner/name@revision, with or without hf:// before it.

        Example:
            >>> HubName.parse("hf://me/prompts@v1")
            HubName(repo='me/prompts', revision='v1')
        """
        repo, at, revision = text.removeprefix(SCHEME).partition("@")
        parts = repo.split("/")
        usable = len(parts) == 2 and all(_NAME.fullmatch(part) and ".." not in part for part in parts)
        if not usable or (at and not (_REVISION.fullmatch(revision) and ".." not in revision)):
            raise UserError(
                f"'{text}' is no name on the hub: write owner/name, or {SCHEME}owner/name@revision"
            )
        return cls(repo, revision or None)


def fetch(name: HubName) -> Path:
    """The prompt file of a repository, from the local cache where it is the newest; unread.

    Raises:
        UserError: no such repository, revision or file, or none that the token may read.
        WorkError: no network, or a file larger than 1 GiB.
    """
    from huggingface_hub import hf_hub_download

    with _one_line(name):
        size = hf_hub_download(name.repo, FILE, revision=name.revision, dry_run=True).file_size
        if size is None or size > _MOST_BYTES:
            raise WorkError(
                f"{name}: {FILE} has {size or 'an unknown number of'} bytes, no prompts have so many"
            )
        return Path(hf_hub_download(name.repo, FILE, revision=name.revision))


def push(name: HubName, prompts: bytes, readme: str, *, public: bool = False) -> str:
    """Write a prompt file and its README as one commit; the repository is made if it is missing.

    Args:
        public: Whether everybody may read it (default: it is private).
    Returns: the repository's address.
    Raises:
        UserError: no token, or one that may not write there; a repository that holds something else, or is
            public where it should be private, or the other way round: its visibility is never changed.
        WorkError: no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    with _one_line(name):
        if get_token() is None:
            raise UserError(
                f"there is no token to write {name} with: run `hf auth login`, or set HF_TOKEN to one"
            )
        api = HfApi(library_name="prometar")
        address = api.create_repo(name.repo, private=not public, exist_ok=True)
        found = api.model_info(name.repo)
        if bool(found.private) == public:
            kind, option = ("private", "leave --public out") if public else ("public", "pass --public")
            raise UserError(f"{name} is there already and is {kind}: {option}, or take another name")
        there = {file.rfilename for file in found.siblings or ()} - {".gitattributes"}
        if there and FILE not in there:
            raise UserError(
                f"{name} is there already and holds no prompts, but {min(there)}: take another name"
            )
        files = {FILE: prompts, "README.md": readme.encode("utf-8", "backslashreplace")}
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        api.create_commit(name.repo, added, commit_message="Prompts and their card")
    return str(address)


@contextmanager
def _one_line(name: HubName) -> Iterator[None]:
    """What the hub's client raises, as one line that says what to do."""
    from huggingface_hub import errors

    logging.disable(logging.WARNING)  # each of its attempts is a warning
    try:
        yield
    except UserError:
        raise
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: there is no such revision") from None
    except errors.RemoteEntryNotFoundError:
        raise UserError(f"{name} holds no {FILE}: `prometar push` writes one") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name} is not there, or is private: compare the name, or run `hf auth login` (or set HF_TOKEN)"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"the hub refuses this token for {name} ({status}): log in with one that may"
            ) from None
        raise WorkError(f"the hub failed over {name} ({status}): {first_line(error)}") from None
    except errors.LocalEntryNotFoundError:
        raise WorkError(
            f"cannot reach the hub for {name}, and the local cache does not hold it: try again with a "
            "network, or load the file from a path"
        ) from None
    except Exception as error:  # the client raises errors of many libraries
        raise WorkError(
            f"cannot reach the hub for {name} ({type(error).__name__}: {first_line(error)}): try again "
            "with a network"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
