"""Prompt files on the Hugging Face Hub: `hf://owner/name` or `hf://owner/name@revision`."""

from pathlib import Path

from prometar.errors import WorkError, first_line
from prometar.inference.prompt_file import read_prompts
from prometar.io.hub import fetching

SCHEME = "hf://"
FILE = "prompts.safetensors"
_ADVICE = "check the name, the network and `hf auth login`"


def download(name: str) -> Path:
    """Return the path of a repository's prompt file in the local cache.

    Raises:
        WorkError: the Hub does not provide it.
    """
    from huggingface_hub import hf_hub_download  # slow to import

    repository, _, revision = name.removeprefix(SCHEME).partition("@")
    with fetching(name, _ADVICE):
        return Path(hf_hub_download(repository, FILE, revision=revision or None))


def push(path: Path, repository: str, *, public: bool = False) -> str:
    """Upload a prompt file and its card as one commit. Returns the address of the repository.

    A new repository is private unless `public`. An existing one keeps its visibility.

    Raises:
        UserError: the file is not a prompt file. WorkError: the Hub refuses the upload.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _, card = read_prompts(path)
    files = {FILE: path.read_bytes(), "card.json": card.model_dump_json(indent=1).encode()}
    try:
        address = HfApi().create_repo(repository, private=not public, exist_ok=True)
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        HfApi().create_commit(repository, added, commit_message="Prompts and card")
    except Exception as error:  # the client raises errors of several libraries
        raise WorkError(f"cannot upload to {repository} ({first_line(error)}): {_ADVICE}") from None
    return str(address)
