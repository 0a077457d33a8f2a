"""Checks of a grid before any run starts."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prometar.clip.model import Clip
from prometar.clip.openclip import load_backbone
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.objective import Problem, problem
from prometar.errors import UserError, one_line
from prometar.methods.smoke_test import smoke_test
from prometar.reproduce.grid import Grid
from prometar.training.memory import Footprint


@dataclass(frozen=True)
class Checked:
    """Result of the checks.

    Args:
        untrained: Methods that train nothing.
        datasets: Datasets that can be used, by name.
        missing: Why the others cannot be used, by name.
        footprint: Sizes that determine the memory of a run.
    """

    untrained: frozenset[str]
    datasets: Mapping[str, Dataset]
    missing: Mapping[str, str]
    footprint: Footprint


def check(grid: Grid) -> Checked:
    """Open every dataset and compose every method.

    Raises:
        UserError: no dataset to train on, settings that a method rejects, or unknown weights.
    """
    datasets, missing, problems = dict[str, Dataset](), dict[str, str](), list[Problem]()
    for name in dict.fromkeys(grid.all_datasets):
        try:
            dataset = open_dataset(name, grid.config.data.root)
            if name in grid.trained_on:
                shots, seed = max(grid.shots), grid.seeds[0]
                problems.append(problem(grid.protocol.objective, dataset, shots=shots, seed=seed))
            elif not dataset.test:
                raise UserError(f"{name} has no test images")
            datasets[name] = dataset
        except UserError as error:
            missing[name] = one_line(str(error))
    if missing.keys() >= set(grid.trained_on):
        raise UserError(f"No dataset can be trained on. {next(iter(missing.values()))}")
    backbone = grid.config.backbone
    clip = load_backbone(backbone.name, backbone.pretrained).clip
    untrained = frozenset(method for method in grid.configs if not _trains(grid, method, clip))
    return Checked(untrained, datasets, missing, Footprint.of(clip, problems))


def _trains(grid: Grid, method: str, clip: Clip) -> bool:
    prompts = smoke_test(grid.configs[method], clip).prompts
    return bool(prompts.initialize(clip, torch.zeros(0, dtype=torch.long), torch.Generator()))
