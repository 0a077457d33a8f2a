"""Prompt files on the Hugging Face hub: `hf://owner/name` or `hf://owner/name@revision`.

A repository holds prompts.safetensors and a README.md made of its card; nothing else is read or written.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from prometar.errors import UserError, WorkError
from prometar.io.hub import SCHEME, TIMEOUT_SECONDS, asking, client, require_repo

FILE = "prompts.safetensors"
_MOST_BYTES = 2**30  # prompts of the largest models have some hundred megabytes
_REVISION = re.compile(r"\w[\w./-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class PromptRepo:
    """A repository, and a branch, tag or commit of it (None: the newest)."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, text: str) -> "PromptRepo":
        """
        Raises:
            UserError: not owner/name or owner/name@revision, with or without hf:// before it.

        Example:
            >>> PromptRepo.parse("hf://me/prompts@v1")
            PromptRepo(repo='me/prompts', revision='v1')
        """
        repo, at, revision = text.removeprefix(SCHEME).partition("@")
        require_repo(repo, text)
        if at and not (_REVISION.fullmatch(revision) and ".." not in revision):
            raise UserError(f"'{text}' is no name on the hub: a revision is a branch, a tag or a commit")
        return cls(repo, revision or None)


def fetch(name: PromptRepo) -> Path:
    """The prompt file of a repository, from the local cache where it is the newest; unread.

    Raises:
        UserError: no such repository, revision or file, or none that the token may read.
        WorkError: no network, or a file larger than 1 GiB.
    """
    with asking(f"{name}", FILE):
        size = client().hf_hub_download(name.repo, FILE, revision=name.revision, dry_run=True).file_size
        if size is None or size > _MOST_BYTES:
            raise WorkError(
                f"{name}: {FILE} has {size or 'an unknown number of'} bytes, no prompts have so many"
            )
        return Path(client().hf_hub_download(name.repo, FILE, revision=name.revision))


def push(name: PromptRepo, prompts: bytes, readme: str, *, public: bool = False) -> str:
    """Write a prompt file and its README as one commit; the repository is made if it is missing.

    Args:
        public: Whether everybody may read it (default: it is private).
    Returns: the repository's address.
    Raises:
        UserError: no token, or one that may not write there; a repository that holds something else, or is
            public where it should be private, or the other way round: its visibility is never changed.
        WorkError: no network.
    """
    from huggingface_hub import CommitOperationAdd, get_token

    with asking(f"{name}"):
        if get_token() is None:
            raise UserError(
                f"there is no token to write {name} with: run `hf auth login`, or set HF_TOKEN to one"
            )
        api = client()
        address = api.create_repo(name.repo, private=not public, exist_ok=True)
        found = api.model_info(name.repo, timeout=TIMEOUT_SECONDS)
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
