"""Results without runs: a grid, and accuracies for each of its runs."""

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

PUBLISHED = {"backbone.name": "ViT-B-16-quickgelu", "backbone.pretrained": "openai"}
UNTRAINED = frozenset({"zero-shot", "zero-shot-ensemble"})
RUNS = Path("runs")


@cache
def configured(protocol: Protocol, method: str, *settings: tuple[str, Any]) -> Config:
    return configure(method, dict(settings), protocol=protocol)


def ask(
    protocol: Protocol,
    methods: tuple[str, ...] = ("zero-shot", "coop"),
    *,
    seeds: tuple[int, ...] = (1, 2, 3),
    datasets: tuple[str, ...] = (),
    shots: tuple[int, ...] = (),
    settings: dict[str, Any] | None = None,
) -> Grid:
    """A grid with the published setting, and with `settings` on top."""
    chosen = PROTOCOLS[protocol]
    training_datasets = (chosen.source,) if chosen.source else datasets or chosen.datasets
    configs = {
        (method, dataset, count): configured(
            protocol,
            method,
            *{**PUBLISHED, "data.name": dataset, "data.shots": count, **(settings or {})}.items(),
        )
        for method in methods
        for dataset in training_datasets
        for count in shots or chosen.shots
    }
    return Grid(
        chosen,
        datasets=datasets or chosen.datasets,
        source=chosen.source,
        shots=shots or chosen.shots,
        configs=configs,
        seeds=seeds,
    )


def finished(job: Job, value: Callable[[Config, str], float]) -> FinishedRun:
    """A finished run of a job; `value(configuration, set of classes or target)` in percent."""
    config = job.config
    sets = ("base", "new") if job.objective == "final" else ("all",)
    result = RunResult(
        last_epoch={"epoch": 1} if config.method in UNTRAINED else {"epoch": 1, "direct_ce": 0.5},
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
    """All runs of a grid."""
    return [finished(job, value) for job in grid.jobs(RUNS, UNTRAINED)]
