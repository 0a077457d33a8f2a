"""Prompt files: learned tensors as safetensors, with a JSON card that describes them.

The file's metadata contains the card. A .json file beside it contains a copy for human readers. An address
`hf://owner/name[@revision]` refers to the prompt file in a repository of the Hugging Face Hub.
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
from prometar.device import to_cpu
from prometar.errors import UserError, WorkError, convert_download_errors, first_line
from prometar.io.files import resolve_path, write_atomically
from prometar.io.strict_model import StrictModel, problems_of
from prometar.methods.prompts import Leaves

FORMAT = "prometar-prompts-2"
"""Identifies prompt files, and the version of their format."""
HUB_PREFIX = "hf://"
"""Start of the address of a prompt file on the Hugging Face Hub."""
HUB_FILE = "prompts.safetensors"
"""Name of a prompt file on the Hugging Face Hub."""


class Card(StrictModel):
    """Description of trained prompts, without paths of the training machine.

    Args:
        config: Settings of the training run.
        objective: Name of the objective, which defines the training images, evaluation sets and score.
        classnames: Training classes in label order.
        template: Template of the class texts.
        templates: The dataset's other templates by name.
        digest: sha256 of the backbone's weights as loaded, before `Tower.folded` changes them.
        weights_file: True if the backbone's weights were loaded from a local file.
        accuracies: Test accuracy in percent by evaluation set.
        images: Number of test images by evaluation set.
        environment: Machine and software versions of the training run.
        code: sha256 of the source file of each custom component. Empty if the run used none.
    """

    config: Config
    objective: str
    classnames: tuple[str, ...] = Field(min_length=1)
    template: str
    templates: dict[str, str] = Field(default={})
    digest: str
    weights_file: bool
    accuracies: dict[str, float]
    images: dict[str, int]
    environment: dict[str, str]
    code: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _check_texts(self) -> "Card":
        for name in self.classnames:
            reason = invalid_name_reason(name)  # a clause such as "is empty"
            if reason:
                raise ValueError(f"a class name {reason}")
        for template in (self.template, *self.templates.values()):
            if not is_template(template):
                raise ValueError("the template must contain {} exactly once")
        return self


def write_prompts(path: Path, leaves: Mapping[str, Tensor], card: Card) -> Path:
    """Write learned tensors and their card to a prompt file. Return the path of the card's .json copy.

    Args:
        path: Path of the prompt file.
        leaves: Learned tensors by name.
        card: Description of the tensors.

    Raises:
        InfrastructureError: the folder is not writable.
    """
    tensors = {name: leaf.contiguous() for name, leaf in to_cpu(dict(leaves)).items()}
    write_atomically(path, save(tensors, {"format": FORMAT, "card": card.model_dump_json()}))
    card_path = path.with_suffix(".json")
    write_atomically(card_path, (card.model_dump_json(indent=1) + "\n").encode())
    return card_path


def require_new_prompt_file(path: Path) -> None:
    """Check the path of a prompt file that is to be written.

    Raises:
        UserError: the path does not end in .safetensors, or the file or its card already exists.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"--to must end in .safetensors, got {path}.")
    for target in (path, path.with_suffix(".json")):
        resolve_path(target.parent)  # raises a UserError for URLs and other unusable paths
        if os.path.lexists(target):
            raise UserError(f"--to {path}: {target} exists. Choose another name.")


def read_prompts(path: Path) -> tuple[Leaves, Card]:
    """Return the tensors and the card of a prompt file, without executing any code.

    Raises:
        UserError: the file is missing or corrupt, or was not written by this version of `prometar export`.
    """
    leaves, metadata = read_tensors(path, "Write one with `prometar export RUN --to FILE`.")
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this version of `prometar export`. Export the run again.")
    try:
        return leaves, Card.model_validate_json(metadata.get("card", ""))
    except ValidationError as error:
        raise UserError(f"{path} has a corrupt card ({problems_of(error)}). Export the run again.") from None


def download_prompts(address: str) -> Path:
    """Download the prompt file of a Hub repository, and return its path in the local cache.

    Raises:
        WorkError: the file cannot be downloaded from the Hub.
    """
    from huggingface_hub import hf_hub_download  # slow to import

    repository, _, revision = address.removeprefix(HUB_PREFIX).partition("@")
    with convert_download_errors(address, "Check the name and the network, and run `hf auth login`."):
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision or None))


def push(path: Path, repository: str, *, public: bool = False) -> str:
    """Upload a prompt file and its card in one commit. Return the URL of the repository.

    A new repository is private unless `public` is True. An existing repository keeps its visibility.

    Raises:
        UserError: the file is missing, or is not a prompt file.
        WorkError: the upload fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _, card = read_prompts(path)
    contents = {HUB_FILE: path.read_bytes(), "card.json": card.model_dump_json(indent=1).encode()}
    try:
        url = HfApi().create_repo(repository, private=not public, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        HfApi().create_commit(repository, operations, commit_message="Prompts and card")
    except Exception as error:  # the client raises errors of several libraries
        raise WorkError(
            f"Cannot upload to {repository} ({first_line(error)}). Check the name and run `hf auth login`."
        ) from None
    return str(url)
