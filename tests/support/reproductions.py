"""Grids of runs, and finished runs with accuracies that tests choose."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from prometar.comparison.finished_runs import FinishedRun
from prometar.config.recipes import Protocol
from prometar.config.settings import Config, configure
from prometar.training.run_result import RunResult
from tune.execution.job import Job
from tune.reproduce.grid import PROTOCOLS, Grid

PUBLISHED_BACKBONE = {"backbone.name": "ViT-B-16-quickgelu", "backbone.pretrained": "openai"}
"""Settings of the backbone of all published accuracies."""
UNTRAINED = frozenset({"zero-shot", "zero-shot-ensemble"})
"""Methods that train nothing."""
RUNS = Path("runs")
"""Folder of the runs of grids. It need not exist."""


@cache
def configured(protocol: Protocol, method: str, *settings: tuple[str, Any]) -> Config:
    """Return the configuration of a method, given pairs of dotted key and value.

    It is cached, because tests that sample examples configure the same runs hundreds of times.
    """
    return configure(method, dict(settings), protocol=protocol)


def make_grid(
    protocol: Protocol,
    methods: tuple[str, ...] = ("zero-shot", "coop"),
    *,
    seeds: tuple[int, ...] = (1, 2, 3),
    datasets: tuple[str, ...] = (),
    shots: tuple[int, ...] = (),
    settings: dict[str, Any] | None = None,
) -> Grid:
    """Return a grid of runs with the published backbone.

    Args:
        protocol: Name of the protocol.
        methods: Names of the methods.
        seeds: Seeds of each method.
        datasets: Names of the datasets. Default: those of the protocol.
        shots: Numbers of training images per class. Default: those of the protocol.
        settings: Further settings of all runs by dotted key. They take precedence over the published ones.
    """
    chosen = PROTOCOLS[protocol]
    datasets = datasets or chosen.datasets
    shots = shots or chosen.shots
    training_datasets = (chosen.source,) if chosen.source else datasets
    configs: dict[tuple[str, str, int], Config] = {}
    for method in methods:
        for dataset in training_datasets:
            for num_shots in shots:
                all_settings = {
                    **PUBLISHED_BACKBONE,
                    "data.name": dataset,
                    "data.shots": num_shots,
                }
                all_settings.update(settings or {})
                configs[method, dataset, num_shots] = configured(protocol, method, *all_settings.items())
    return Grid(chosen, datasets=datasets, source=chosen.source, shots=shots, configs=configs, seeds=seeds)


def finished(job: Job, value: Callable[[Config, str], float]) -> FinishedRun:
    """Return a finished run of a job.

    Args:
        job: The job.
        value: Function of the configuration and the name of an evaluation set ("base", "new" or "all") or of
            another dataset on which the run is tested. It returns the accuracy in percent.
    """
    config = job.config
    sets = ("base", "new") if job.objective == "final" else ("all",)
    last_epoch: dict[str, float] = {"epoch": 1}
    if config.method not in UNTRAINED:
        last_epoch["direct_ce"] = 0.5
    result = RunResult(
        last_epoch=last_epoch,
        accuracies={name: value(config, name) for name in sets},
        images={},
        history=(),
        classnames=(),
        objective=job.objective,
        template="",
        run_digest="",
        data_digest=f"of {config.data.name}",
        weights_digest="",
        environment={},
        tests={name: (value(config, name), f"of {name}") for name in job.targets},
    )
    return FinishedRun(job.folder, config, result)


def fill(grid: Grid, value: Callable[[Config, str], float]) -> list[FinishedRun]:
    """Return all runs of a grid, with accuracies from `value` (see `finished`)."""
    return [finished(job, value) for job in grid.jobs(RUNS, UNTRAINED)]
