"""Names of image data sets on the Hugging Face hub: hf://owner/name?image=img&label=fine_label."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import PurePath
from urllib.parse import parse_qsl, urlencode

from prometar.errors import UserError
from prometar.io.hub import SCHEME, require_repo

_DIGITS = 8  # of a digest, in a folder's name


@dataclass(frozen=True)
class HubName:
    """What a name says; each field but `repo` is an option of its query.

    Args:
        repo: `owner/name` of the data set.
        revision: A branch, tag or commit (default main); `refs/convert/parquet` is the hub's own conversion.
        folder: The folder of the files, where there are several, such as one a configuration.
        image, label: The columns (default image and label).
        train, val, test: What the data set calls the splits (defaults train; validation or val, if one is
            there; test).
        names: A text file with a class name a line, for labels that are plain numbers.
    """

    repo: str
    revision: str = "main"
    folder: str = ""
    image: str = "image"
    label: str = "label"
    train: str = "train"
    val: str = ""
    test: str = "test"
    names: str = ""


def is_hub(name: str) -> bool:
    """Whether a name is of a data set on the hub."""
    return name.startswith(SCHEME)


def parse_hub(name: str) -> HubName:
    """
    Raises:
        UserError: not `hf://owner/name`, or options that are unknown, empty or given twice.

    Example:
        >>> parse_hub("hf://uoft-cs/cifar100?label=fine_label").label
        'fine_label'
    """
    repo, _, query = name.removeprefix(SCHEME).partition("?")
    require_repo(repo, name)
    known = [field.name for field in fields(HubName)][1:]
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UserError(f"'{name}' has an unknown option '{key}': known are {', '.join(known)}")
        if key in options or not value:
            raise UserError(f"'{name}': the option '{key}' needs one value")
        options[key] = value
    return HubName(repo, **options)


def without_folders(name: str) -> str:
    """A data set's name for others to read: of a file of class names, without the folder it lies in here.

    Example:
        >>> without_folders("hf://a/b?label=kind&names=/home/me/labels.txt")
        'hf://a/b?label=kind&names=labels.txt'
    """
    if not is_hub(name):
        return name
    repo, mark, query = name.partition("?")
    options = parse_qsl(query, keep_blank_values=True)
    shown = [(key, PurePath(value).name if key == "names" else value) for key, value in options]
    return repo + mark + urlencode(shown, safe="/")


def hub_folder(name: str) -> str:
    """The folder, below a data root, of a data set's copy.

    Example:
        >>> hub_folder("hf://uoft-cs/cifar100"), hub_folder("hf://uoft-cs/cifar100?label=fine_label")
        ('hf.uoft-cs.cifar100', 'hf.uoft-cs.cifar100.36a63b73')
    """
    path = "hf." + parse_hub(name).repo.replace("/", ".")
    options = name.partition("?")[2]
    return f"{path}.{hashlib.sha256(options.encode()).hexdigest()[:_DIGITS]}" if options else path
