"""Prompt files: the learned tensors as safetensors, with a JSON card that describes them.

The card is stored in the file's metadata and, for readers, beside the file. `hf://owner/name` and
`hf://owner/name@revision` are files on the Hugging Face Hub.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, model_validator
from safetensors.torch import save
from torch import Tensor

from prometar.clip.weights import read_tensors
from prometar.clip.wording import is_template
from prometar.config.settings import Config
from prometar.data.datasets.dataset import invalid_name_reason
from prometar.device import fetch
from prometar.errors import UserError, WorkError, first_line
from prometar.io.files import resolve_path, write_atomically
from prometar.io.hub import download_errors
from prometar.io.plain_data import PlainData, problems_of
from prometar.methods.prompts import Leaves

FORMAT = "prometar-prompts-2"
HUB, HUB_FILE = "hf://", "prompts.safetensors"
_HUB_ADVICE = "check the name, the network and `hf auth login`"


class Card(PlainData):
    """Description of trained prompts, without any path of the machine that trained them.

    Args:
        config: Settings of the run. objective: Images it was trained on and scores it was measured by.
        classnames: Classes of the training, by label. template: Text around a class name.
        digest: Digest of the backbone's stored weights.
        weights_file: Whether the weights came from a local file.
        accuracies: Percent by set of classes. images: Number of test images of each set.
        environment: Versions and machine. code: Digests of custom components.
    """

    config: Config
    objective: str
    classnames: tuple[str, ...] = Field(min_length=1)
    template: str
    digest: str
    weights_file: bool
    accuracies: dict[str, float]
    images: dict[str, int]
    environment: dict[str, str]
    code: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _is_readable(self) -> "Card":
        if reasons := list(filter(None, map(invalid_name_reason, self.classnames))):
            raise ValueError(f"a class name {reasons[0]}")
        if not is_template(self.template):
            raise ValueError("a template contains {} once")
        return self


def write_prompts(path: Path, leaves: Mapping[str, Tensor], card: Card) -> Path:
    """Write FILE.safetensors and FILE.json. Returns the path of the latter.

    Raises:
        WorkError: the folder is not writable.
    """
    tensors = {name: leaf.contiguous() for name, leaf in fetch(dict(leaves)).items()}
    write_atomically(path, save(tensors, {"format": FORMAT, "card": card.model_dump_json()}))
    readable = path.with_suffix(".json")
    write_atomically(readable, (card.model_dump_json(indent=1) + "\n").encode())
    return readable


def require_prompts_target(path: Path) -> None:
    """Refuse a path that prompts must not be written to.

    Raises:
        UserError: another suffix than .safetensors, or a file that exists.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"--to {path}: expected a name that ends in .safetensors")
    for target in (path, path.with_suffix(".json")):
        resolve_path(target.parent)
        if os.path.lexists(target):
            raise UserError(f"--to {path}: {target} exists. Choose another name.")


def read_prompts(path: Path) -> tuple[Leaves, Card]:
    """Return the tensors and the card of a prompt file. Nothing in it is executed.

    Raises:
        UserError: the file is missing, corrupt, or was not written by `prometar export`.
    """
    leaves, metadata = read_tensors(path, "write one with `prometar export RUN --to FILE`")
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by `prometar export` of this version.")
    try:
        return leaves, Card.model_validate_json(metadata.get("card", ""))
    except ValidationError as error:
        raise UserError(f"{path}: corrupt card: {problems_of(error)}. Export the run again.") from None


def download(name: str) -> Path:
    """Return the path of a repository's prompt file in the local cache.

    Raises:
        WorkError: the Hub does not provide it.
    """
    from huggingface_hub import hf_hub_download  # slow to import

    repository, _, revision = name.removeprefix(HUB).partition("@")
    with download_errors(name, _HUB_ADVICE):
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision or None))


def push(path: Path, repository: str, *, public: bool = False) -> str:
    """Upload a prompt file and its card as one commit. Returns the address of the repository.

    A new repository is private unless `public`. An existing one keeps its visibility.

    Raises:
        UserError: the file is not a prompt file. WorkError: the Hub refuses the upload.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _, card = read_prompts(path)
    files = {HUB_FILE: path.read_bytes(), "card.json": card.model_dump_json(indent=1).encode()}
    try:
        address = HfApi().create_repo(repository, private=not public, exist_ok=True)
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        HfApi().create_commit(repository, added, commit_message="Prompts and card")
    except Exception as error:  # the client raises errors of several libraries
        raise WorkError(f"cannot upload to {repository} ({first_line(error)}): {_HUB_ADVICE}") from None
    return str(address)
