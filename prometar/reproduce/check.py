"""What can be wrong with a grid, found before any run starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from prometar.clip.model import Clip
from prometar.clip.openclip import load_backbone
from prometar.clip.weights import weights_digest
from prometar.config.settings import Config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset, Item
from prometar.data.splits.fewshot import by_label
from prometar.data.splits.objective import Problem, problem
from prometar.errors import UserError, one_line
from prometar.methods.smoke_test import smoke_test
from prometar.reproduce.grid import WEIGHTS, Asked
from prometar.reproduce.protocols import shots_column
from prometar.reproduce.published import unlike_published
from prometar.training.memory import Footprint
from prometar.training.run import DTYPES


@dataclass(frozen=True)
class Found:
    """What is there to work with.

    Args:
        idle: Methods that have nothing to learn.
        missing: Data sets that cannot be used, and why.
        held: What each worker's process holds.
        notes: What the data sets are too small for.
        contents: Digests of the data sets' splits by name, and of the weights (`Outcome.contents`).
        uncited: Data sets whose figures do not compare with published ones, and why.
    """

    idle: frozenset[str]
    missing: Mapping[str, str]
    footprint: Footprint
    notes: tuple[str, ...]
    contents: Mapping[str, str]
    uncited: Mapping[str, str]


def look(asked: Asked) -> Found:
    """Open every data set once, and compose every method.

    Raises:
        UserError: no data set to train on; settings that a method refuses; unknown or missing weights.
        WorkError: the weights cannot be fetched.
    """
    missing, contents, uncited = dict[str, str](), dict[str, str](), dict[str, str]()
    splits, notes = list[Problem](), list[str]()
    for dataset in dict.fromkeys((*asked.trained_on, *asked.datasets)):
        try:
            opened = _open(asked, dataset)
            splits += _trained(asked, opened, notes)
        except UserError as error:
            missing[dataset] = one_line(str(error))
            continue
        contents[dataset] = opened.digest
        if why := unlike_published(opened):
            uncited[dataset] = why
    if missing.keys() >= set(asked.trained_on):
        first, *others = missing.values()
        more = f" ({len(others)} more data sets cannot be used either)" if others else ""
        raise UserError(f"no data set can be trained on: {first}{more}")
    backbone = next(iter(asked.configs.values())).backbone
    clip = load_backbone(backbone.name, backbone.pretrained).clip
    narrow = clip.to(dtype=DTYPES[backbone.precision])
    contents[WEIGHTS] = weights_digest(narrow)
    idle = frozenset(method for method, config in asked.configs.items() if not _learns(config, clip))
    footprint = Footprint.of(clip, splits)
    return Found(idle, missing, footprint, tuple(notes), contents, uncited)


def _learns(config: Config, clip: Clip) -> bool:
    leaves = smoke_test(config, clip).prompts.init(clip, torch.zeros(0, dtype=torch.long), torch.Generator())
    return bool(leaves)


def _open(asked: Asked, name: str) -> Dataset:
    root = next(iter(asked.configs.values())).data.root
    return open_dataset(name, root)


def _trained(asked: Asked, dataset: Dataset, notes: list[str]) -> list[Problem]:
    """What is trained and scored on a data set; nothing where it is only tested on."""
    if dataset.name in asked.trained_on:
        notes += too_few(dataset.name, dataset.train, asked.shots)
        return [problem(asked.protocol.objective, dataset, shots=max(asked.shots), seed=asked.seeds[0])]
    if not dataset.test:
        raise UserError(f"{dataset.name} has no test images")
    return []


def too_few(name: str, train: Sequence[Item], shots: Sequence[int]) -> list[str]:
    """What is to be said where no class of a data set has so many training images.

    Raises:
        UserError: several numbers of shots would draw the same images.
    """
    most = max(map(len, by_label(train).values()), default=0)
    more = [k for k in sorted(shots) if k > most]
    if not more:
        return []
    said = f"{name} has at most {most} training images a class"
    alike = [k for k in sorted(shots) if k >= most]
    if len(alike) > 1:
        raise UserError(f"{said}: --shots {alike[0]} and {alike[1]} would be the same images, leave one out")
    return [f"{said}: {shots_column(more[0])} are all of them"]
