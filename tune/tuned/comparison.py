"""Plan of a tuned comparison: one study per trained method and dataset, all with the same budget."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from prometar.cli.console import format_count, format_duration
from prometar.clip.openclip import load_backbone
from prometar.config.settings import Config, describe_differences
from prometar.data.datasets.catalog import file_name
from prometar.data.splits.objective import SEARCH_OBJECTIVES, objective_of
from prometar.embedded.datasets import RENDERED
from prometar.environment import num_cpus
from prometar.errors import UserError
from prometar.methods.component_check import check_components
from prometar.methods.composition import build
from prometar.training.memory import Footprint
from tune.config import FIRST_CONFIRMATION_SEED, ResourcesConfig, StudyConfig
from tune.execution.job import Job
from tune.execution.resources import JobResources, max_concurrent_trials, plan_runs, uses_gpus
from tune.records.folder import StudyFolder
from tune.records.schema import StudyRecord
from tune.reproduce.grid import Grid, read_run
from tune.reproduce.run_grid import input_digests
from tune.space.space import load_space
from tune.stages.plan import TOTAL, StudyPlan, plan_study, seconds_per_step

Cell = tuple[str, str]
"""Method and dataset."""
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(steps|seconds)")


@dataclass(frozen=True)
class Budget:
    """Training steps, or seconds of training, after which a study starts no more trials."""

    amount: float
    unit: Literal["steps", "seconds"]

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Budget":
        """Parse the value of `--budget`.

        Raises:
            UserError: it is not a positive number of steps or seconds.

        Example:
            >>> Budget.parse(["2000", "steps"])
            Budget(amount=2000.0, unit='steps')
        """
        text = " ".join(words)
        match = _BUDGET.fullmatch(text)
        if match is None or float(match[1]) <= 0 or (match[2] == "steps" and "." in match[1]):
            raise UserError(f"--budget must be a number of steps or seconds, such as 5000 steps, got {text}.")
        return cls(float(match[1]), "steps" if match[2] == "steps" else "seconds")

    @property
    def settings(self) -> dict[str, float]:
        """Setting of a study, by dotted key."""
        amount = int(self.amount) if self.unit == "steps" else self.amount
        return {f"resources.budget_{self.unit}": amount}

    def __str__(self) -> str:
        return format_count(self.amount, self.unit.removesuffix("s"))


@dataclass(frozen=True)
class TunedComparison:
    """Comparison of methods at published settings and after tuning with equal budgets.

    Args:
        grid: Methods, datasets and seeds. The seeds are those of the final test.
        out: Output folder.
        trials: Number of trials of each study.
        budget: Budget of each study besides the trials, or None.
        studies: Configuration of each study, by method and dataset. Methods without training have none.
    """

    grid: Grid
    out: Path
    trials: int
    budget: Budget | None
    studies: Mapping[Cell, StudyConfig]

    @property
    def folder(self) -> Path:
        """Folder of tables, page and timeline."""
        return self.out / "tuned"

    @property
    def trained(self) -> list[str]:
        """Methods that train, each with one study per dataset."""
        return list(dict.fromkeys(method for method, _ in self.studies))

    @property
    def untrained(self) -> list[str]:
        """Methods without training, which have nothing to tune."""
        trained = self.trained
        return [method for method in self.grid.methods if method not in trained]

    @property
    def untrained_grid(self) -> Grid:
        """Grid of the methods without training."""
        untrained = self.untrained
        configs = {
            (method, dataset, shots): config
            for (method, dataset, shots), config in self.grid.configs.items()
            if method in untrained
        }
        return replace(self.grid, configs=configs)

    @property
    def untrained_jobs(self) -> list[Job]:
        """Runs of the methods without training."""
        if not self.untrained:
            return []
        jobs = self.untrained_grid.jobs(self.out / "runs", self.untrained)
        return [replace(job, predictions=self._first_study.test.predictions) for job in jobs]

    @property
    def epoch_timeout(self) -> float | None:
        """Seconds per epoch before a job is restarted, or None. It is the same for all studies."""
        return self._first_study.resources.epoch_timeout

    @property
    def _first_study(self) -> StudyConfig:
        return next(iter(self.studies.values()))

    @property
    def max_concurrent_trials(self) -> int:
        """Maximum number of concurrent trials of a study."""
        return max_concurrent_trials(self.trials)

    @property
    def title(self) -> str:
        backbone = self.grid.config.backbone
        name = " ".join(filter(None, (backbone.name, backbone.pretrained)))
        methods = format_count(len(self.grid.methods), "method")
        datasets = format_count(len(self.grid.datasets), "dataset")
        trials = format_count(self.trials, "trial")
        budget = f" or {self.budget}" if self.budget else ""
        each = f"{trials}{budget} per method and dataset"
        return f"{methods} on {datasets}, {each}, {self.grid.shots[0]} shots, {name}"

    @cached_property
    def plans(self) -> dict[Cell, StudyPlan]:
        """Plan of each study.

        Raises:
            UserError: a dataset is missing or too small, or a setting is invalid.
        """
        return {cell: plan_study(config) for cell, config in self.studies.items()}

    def searched_settings(self) -> dict[str, tuple[list[str], list[str]]]:
        """Return two lists of searched settings for each method: those shared with others, and its own.

        A setting is shared if the space `default` contains it. A setting is listed if it is searched on any
        dataset.
        """
        shared_keys = load_space("default").ranges.keys()
        found: dict[str, tuple[list[str], list[str]]] = {}
        for (method, _), config in self.studies.items():
            shared, own = found.setdefault(method, ([], []))
            for key in config.search.space.ranges:
                keys = shared if key in shared_keys else own
                if key not in keys:
                    keys.append(key)
        return found

    def check(self) -> None:
        """Check everything that can be checked without training, before anything is written.

        Raises:
            UserError: data or weights are missing, a setting is invalid, a study in the output folder has
                other settings, or a run of a method without training used other images or weights.
        """
        for config in self.studies.values():
            path = StudyFolder.of(config).path
            record = StudyFolder(path).read(StudyRecord)
            if record is None:
                continue
            changed = describe_differences(record.config.identity(), config.identity())
            if changed:
                raise UserError(
                    f"{path} has other settings ({changed}). Pass the same settings or another --out."
                )
        plans = self.plans  # planning the studies checks their data and settings
        clip = load_backbone(self.grid.config.backbone.name, self.grid.config.backbone.pretrained).clip
        for config in self.grid.configs.values():
            check_components(config, clip)
        # Studies compare the digests of their inputs themselves. Runs without training belong to no study.
        if self.untrained:
            datasets = {each.name: each for plan in plans.values() for each in plan.datasets}
            digests = input_digests(self.untrained_grid, datasets, clip)
            for job in self.untrained_jobs:
                read_run(job, digests)

    def plan_pool(
        self, nodes: Sequence[Mapping[str, float]], resources: ResourcesConfig, memory: float
    ) -> tuple[JobResources, str]:
        """Plan the resources of each job in the pool of all studies. Return them, and a one-line summary.

        Args:
            nodes: Resources of each machine.
            memory: Estimated memory per job in bytes.
        """
        num_final_runs = 2 * len(self.grid.seeds)  # per seed: selected settings and default settings
        max_jobs_of_study = max(self.max_concurrent_trials, num_final_runs)
        num_untrained_runs = len(self.untrained) * len(self.grid.datasets)
        num_jobs = len(self.studies) * max_jobs_of_study + num_untrained_runs
        return plan_runs(nodes, resources, num_jobs, memory, option_noun="run")

    def memory_bytes(self, footprints: Mapping[Cell, Footprint], *, on_gpu: bool) -> float:
        """Return the estimated memory of the largest run."""
        return max(
            footprint.memory_bytes(self.studies[cell].baseline, on_gpu=on_gpu)
            for cell, footprint in footprints.items()
        )

    def describe_plan(self, resources: ResourcesConfig) -> str:
        """Describe runs, steps and duration on this machine. Time a few steps of each method.

        Raises:
            UserError: as in `check`, or a run does not fit on this machine.
        """
        self.check()
        total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        gpus = torch.cuda.device_count()
        nodes = [{"CPU": float(num_cpus()), "GPU": float(gpus), "memory": float(total_bytes)}]
        clip = load_backbone(self.grid.config.backbone.name, self.grid.config.backbone.pretrained).clip
        footprints: dict[Cell, Footprint] = {}
        for cell, plan in self.plans.items():
            splits = [split for pair in plan.splits.values() for split in pair]
            footprints[cell] = Footprint.of(clip, splits)
        memory = self.memory_bytes(footprints, on_gpu=uses_gpus(nodes, resources))
        pool, summary = self.plan_pool(nodes, resources, memory)
        torch.set_num_threads(pool.threads)
        lines = [self.title, f"Test seeds: {', '.join(map(str, self.grid.seeds))}"]
        total_runs = len(self.untrained) * len(self.grid.datasets)
        total_steps = 0
        total_seconds = 0.0
        for method in self.trained:
            cells = [cell for cell in self.studies if cell[0] == method]
            runs = 0
            steps = 0
            for cell in cells:
                cell_runs, cell_steps = self._max_runs_and_steps(cell)
                runs += cell_runs
                steps += cell_steps
            largest = max(cells, key=lambda cell: footprints[cell].num_classes)
            _, largest_dataset = largest
            seconds = seconds_per_step(self.studies[largest])
            total_runs += runs
            total_steps += steps
            total_seconds += steps * seconds
            studies = "1 study" if len(cells) == 1 else f"{len(cells)} studies"
            lines.append(
                f"{method}: {studies}, at most {format_count(runs, 'run')} and "
                f"{format_count(steps, 'step')}, {seconds:.2g} s per step on {largest_dataset}"
            )
        for method in self.untrained:
            untrained_runs = format_count(len(self.grid.datasets), "run")
            lines.append(f"{method}: {untrained_runs} without training, nothing to tune")
        lines.append(summary)
        hours = total_seconds / pool.num_concurrent / 3600
        lines.append(
            f"In total at most {format_count(total_runs, 'run')}, {format_count(total_steps, 'step')} and "
            f"{hours:.1f} hours ({format_duration(3600 * hours)}) on this machine"
        )
        lines += ["Searched settings:", *self.describe_searched_settings()]
        return "\n".join(lines)

    def describe_searched_settings(self) -> list[str]:
        """Return a line per method with its searched settings and their number."""
        lines = []
        for method, (shared, own) in self.searched_settings().items():
            kinds = []
            if shared:
                kinds.append(f"shared: {', '.join(shared)}")
            if own:
                kinds.append(f"its own: {', '.join(own)}")
            count = format_count(len(shared) + len(own), "setting")
            lines.append(f"{method}: {count} ({'; '.join(kinds)})")
        return lines

    def _max_runs_and_steps(self, cell: Cell) -> tuple[int, int]:
        """Return the maximum numbers of runs and steps of a study. A budget in steps limits the search."""
        stages = self.plans[cell].stages
        total = stages[TOTAL]
        search = stages["Search"]
        steps = total.steps
        if self.budget and self.budget.unit == "steps":
            # Trials that have started when the budget is used up are finished, with all of their seeds.
            overshoot = self.max_concurrent_trials * search.steps // self.trials
            steps -= max(0, search.steps - int(self.budget.amount) - overshoot)
        return total.runs, steps


def plan_comparison(
    grid: Grid,
    out: Path,
    *,
    methods: Mapping[str, str],
    trials: int,
    budget: Budget | None = None,
    settings: Mapping[str, Any] = {},
    study_settings: Mapping[str, Any] = {},
    epochs: int | None = None,
    predictions: bool = False,
) -> TunedComparison:
    """Return the comparison of the methods of a grid.

    Args:
        methods: Name or recipe file of each method, by the name in the grid.
        settings: Settings of all runs by dotted key. A method ignores those that it does not have.
        study_settings: Settings of all studies by dotted key, such as `confirm.seeds`.
        epochs: Epochs of every run, or None for the defaults of a study.
        predictions: True to write predictions.parquet in the folder of each run on test images.

    Raises:
        UserError: a setting is invalid, no method can be tuned, or the searches use a seed of the grid.
    """
    shots = grid.shots[0]
    configs = {(method, dataset): config for (method, dataset, _), config in grid.configs.items()}
    trained = [method for method in grid.methods if not build(configs[method, grid.datasets[0]]).is_untrained]
    if not trained:
        raise UserError(f"--tune: {', '.join(grid.methods)} cannot be tuned. Add a method that trains.")
    budget_settings = budget.settings if budget else {}
    studies: dict[Cell, StudyConfig] = {}
    for dataset in grid.datasets:
        for method in trained:
            config = configs[method, dataset]
            used = {key: value for key, value in settings.items() if _has_setting(config, key)}
            studies[method, dataset] = StudyConfig.of(
                dataset=[dataset],
                data_root=None if dataset in RENDERED else config.data.root,
                method=methods[method],
                backbone=config.backbone.name,
                pretrained=config.backbone.pretrained,
                trials=trials,
                epochs=epochs,
                final_epochs=epochs,
                final_seeds=grid.seeds,
                predictions=predictions or None,
                out=out / "studies",
                study=_study_name(dataset, method),
                settings={"data.shots": shots, **used, **study_settings, **budget_settings},
            )
    if len({config.name for config in studies.values()}) < len(studies):
        raise UserError("--methods: the names of recipe files must differ in letters or digits. Rename one.")
    first_study = next(iter(studies.values()))  # all have the same objective and seeds
    search = first_study.search
    if objective_of(search.objective, SEARCH_OBJECTIVES).search_reads_test_images:
        raise UserError(
            f"--tune selects on validation images only, but {search.objective} reads test images. "
            "Choose another search.objective."
        )
    num_confirmation_seeds = first_study.confirm.seeds
    confirmation_seeds = range(FIRST_CONFIRMATION_SEED, FIRST_CONFIRMATION_SEED + num_confirmation_seeds)
    used_seeds = {*search.seeds, *confirmation_seeds} & set(grid.seeds)
    if used_seeds:
        raise UserError(f"--seeds {min(used_seeds)} is used in the searches. Choose seeds for the test only.")
    return TunedComparison(grid, out, trials, budget, studies)


def _study_name(dataset: str, method: str) -> str:
    """Return the name of a study's folder. The file of a recipe may have any name."""
    return re.sub(r"[^\w.-]", "-", f"{file_name(dataset)}-{method}")


def _has_setting(config: Config, key: str) -> bool:
    """Return True if a method has a setting.

    Arguments of custom components count as present, because `config` lists only those that were given.
    """
    return key in config.flat() or ".args." in key
