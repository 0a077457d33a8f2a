"""Runs as their folders tell them: what was trained, on what, and its figures."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometar.config.settings import Config, load_config
from prometar.errors import UserError
from prometar.io.files import resolved, size_of
from prometar.metrics import ACCURACY, HARMONIC, harmonic_mean
from prometar.training.run_result import FILE, RunResult, read_result


@dataclass(frozen=True)
class TrainedRun:
    """A finished run."""

    folder: Path
    config: Config
    result: RunResult

    @property
    def trains(self) -> bool:
        """False where it had nothing to learn: its figures are those of every seed."""
        return "direct_ce" in self.result.result

    @property
    def figures(self) -> dict[str, float]:
        """Percent by column: base, new and H, or accuracy."""
        accuracies = self.result.accuracies
        figures = {ACCURACY if name == "all" else name: value for name, value in accuracies.items()}
        if {"base", "new"} <= figures.keys():
            figures[HARMONIC] = harmonic_mean({name: figures[name] for name in ("base", "new")})
        return figures


def read_runs(paths: Sequence[Path]) -> tuple[list[TrainedRun], list[Path]]:
    """The finished runs in folders or below them, each once, and the folders of those that are not finished.

    Raises:
        UserError: no folder, a study, a folder that cannot be read, or a damaged record.
    """
    folders = dict.fromkeys(resolved(folder) for path in paths for folder in _run_folders(path))
    found = {folder: _read(folder) for folder in folders}
    return [run for run in found.values() if run], [folder for folder, run in found.items() if not run]


def _run_folders(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        raise UserError(f"{path} is no folder: pass folders of runs, or folders that hold some")
    if size_of(path / "study.yaml") is not None:
        raise UserError(f"{path} is a study, not a run: pass folders of runs")
    for folder, names, files in os.walk(path, onerror=_refuse):
        names.sort()
        if "study.yaml" in files or {"config.yaml", FILE} & set(files):
            names.clear()  # a study's trials are no runs of their own, and a run holds no others
        if "study.yaml" not in files and {"config.yaml", FILE} & set(files):
            yield Path(folder)


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}")


def _read(folder: Path) -> TrainedRun | None:
    config = load_config(folder / "config.yaml")
    return None if size_of(folder / FILE) is None else TrainedRun(folder, config, read_result(folder))
