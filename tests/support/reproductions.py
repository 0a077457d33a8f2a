"""Records without runs: a grid's request, and figures for each of its runs."""

from collections.abc import Callable
from typing import Any

from prometar.config.settings import configure
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.reproduce.grid import Asked, Entry, Record, entries
from prometar.reproduce.protocols import protocol_of
from prometar.reproduce.published import settings_of

PUBLISHED = {"backbone.name": "ViT-B-16-quickgelu", "backbone.pretrained": "openai"}
IDLE = frozenset({"zero-shot", "zero-shot-ensemble"})


def ask(
    protocol: str, methods: tuple[str, ...] = ("zero-shot", "coop"), *, seeds: tuple[int, ...] = (1, 2, 3),
    datasets: tuple[str, ...] = (), shots: tuple[int, ...] = (), settings: dict[str, Any] | None = None,
) -> Asked:  # fmt: skip
    """A request by the published setting, with `settings` on top."""
    chosen = protocol_of(protocol)
    values = {**PUBLISHED, **(settings or {})}
    configs = {method: configure(method, {**settings_of(protocol, method), **values}) for method in methods}
    return Asked(
        chosen, datasets or chosen.datasets, configs, seeds, shots or chosen.shots, chosen.source
    )  # fmt: skip


def fill(asked: Asked, value: Callable[[Entry, str], float], *, classes: int | None = None) -> list[Record]:
    """A record of each run; `value(entry, column or target)` in percent; `classes` None: the benchmark's."""
    sets = ("base", "new") if asked.protocol.objective == "final" else ("all",)
    return [
        Record(
            {name: value(entry, name) for name in sets},
            {target: value(entry, target) for target in entry.targets},
            {name: classes or BENCHMARKS[name].classes for name in (entry.config.data.name, *entry.targets)},
            seconds=1.0,
            entry=entry,
        )
        for entry in entries(asked, IDLE)
    ]
