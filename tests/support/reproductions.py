"""Results without runs: a grid, and figures for each of its runs."""

from collections.abc import Callable
from typing import Any

from prometar.config.settings import configure
from prometar.reproduce.grid import Grid, GridResult, GridRun, TargetTest
from prometar.reproduce.protocols import protocol_of
from prometar.reproduce.published import settings_of
from prometar.training.run_result import RunResult

PUBLISHED = {"backbone.name": "ViT-B-16-quickgelu", "backbone.pretrained": "openai"}
UNTRAINED = frozenset({"zero-shot", "zero-shot-ensemble"})


def ask(
    protocol: str, methods: tuple[str, ...] = ("zero-shot", "coop"), *, seeds: tuple[int, ...] = (1, 2, 3),
    datasets: tuple[str, ...] = (), shots: tuple[int, ...] = (), settings: dict[str, Any] | None = None,
    compared_to: str | None = None,
) -> Grid:  # fmt: skip
    """A grid with the published setting, and with `settings` on top."""
    chosen = protocol_of(protocol)
    values = {**PUBLISHED, **(settings or {})}
    configs = {method: configure(method, {**settings_of(protocol, method), **values}) for method in methods}
    return Grid(
        chosen, datasets or chosen.datasets, configs, seeds, shots or chosen.shots, chosen.source, compared_to
    )  # fmt: skip


def result_of(accuracies: dict[str, float], data: str = "") -> RunResult:
    """A run's result with these accuracies."""
    return RunResult(
        result={"epoch": 1}, accuracies=accuracies, images={}, history=(), objective="final", classnames=(),
        template="", run="", data=data, weights="", environment={},
    )  # fmt: skip


def fill(grid: Grid, value: Callable[[GridRun, str], float]) -> list[GridResult]:
    """A result of each run; `value(run, column or target)` in percent."""
    sets = ("base", "new") if grid.protocol.objective == "final" else ("all",)
    return [
        GridResult(
            run,
            result_of({name: value(run, name) for name in sets}),
            {target: TargetTest(accuracy=value(run, target), data="") for target in run.targets},
        )
        for run in grid.runs(UNTRAINED)
    ]
