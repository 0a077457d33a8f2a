"""Run or resume the grid of `prometar reproduce` and write its tables."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from prometar.clip.model import Clip
from prometar.clip.openclip import load_backbone
from prometar.clip.weights import weights_digest
from prometar.comparison.finished_runs import FinishedRun
from prometar.comparison.render import as_csv as pairs_as_csv
from prometar.comparison.render import print_comparison
from prometar.config.settings import Config, texts_path
from prometar.data.datasets.catalog import open_dataset, reject_output_in_dataset
from prometar.data.datasets.class_texts import read_texts
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.objective import FewShotSplit, split_dataset
from prometar.errors import FIX_AND_RESUME, PrometarError, UserError, WorkError, one_line
from prometar.io.custom import is_custom, source_digest
from prometar.io.files import lock_folder, resolve_path, write_atomically
from prometar.methods.component_check import check_components
from prometar.methods.composition import MethodConfig, build
from prometar.run_folder import has_all_predictions
from prometar.training.backbone import DTYPES
from prometar.training.memory import Footprint
from tune.config import ResourcesConfig
from tune.execution.executor import run_jobs
from tune.execution.job import Job
from tune.execution.live import LiveView, stdout_console
from tune.execution.progress import StageProgress
from tune.execution.ray_cluster import start_ray
from tune.execution.resources import plan_runs, uses_gpus
from tune.reproduce.grid import Grid, read_run
from tune.reproduce.published import incomparable_reason
from tune.reproduce.render import as_csv, as_markdown, print_table
from tune.reproduce.results import build_table, collect, compare_methods


def run_grid(
    grid: Grid,
    out: Path,
    resources: ResourcesConfig,
    address: str | None = None,
    *,
    predictions: bool = False,
) -> None:
    """Run or resume a grid. Print and write the table of accuracies and the paired comparisons.

    Args:
        predictions: True to write predictions.parquet in the folder of each run.

    Raises:
        UserError: an argument is invalid, or runs in the folder have other settings or data.
        WorkError: some runs failed or could not start. The tables are written without these runs.
    """
    console = stdout_console()
    protocol = grid.protocol.name
    out = resolve_path(out)
    for name in grid.all_datasets:
        reject_output_in_dataset(out, name, grid.config.data.root)
    datasets, largest_splits, unavailable = _open_datasets(grid)
    clip = load_backbone(grid.config.backbone.name, grid.config.backbone.pretrained).clip
    for config in _distinct_methods(grid):
        check_components(config, clip)
    untrained = {method for (method, _, _), config in grid.configs.items() if build(config).is_untrained}
    jobs = [replace(job, predictions=predictions) for job in grid.jobs(out / "runs", untrained, unavailable)]
    digests = input_digests(grid, datasets, clip)
    with lock_folder(out, f"the output folder {out}"):
        runs = [(job, read_run(job, digests)) for job in jobs]
        remaining = [job for job, run in runs if not _is_complete(job, run)]
        done = len(jobs) - len(remaining)
        if remaining:
            nodes = start_ray(address=address)
            on_gpu = uses_gpus(nodes, resources)
            footprint = Footprint.of(clip, largest_splits)
            memory = max(footprint.memory_bytes(config, on_gpu=on_gpu) for config in grid.configs.values())
            plan, plan_text = plan_runs(nodes, resources, len(remaining), memory, option_noun="run")
        console.print(f"{protocol} in {out}: {done} of {len(jobs)} runs done")
        for name, reason in unavailable.items():
            console.print(f"Skipping {name}: {reason}")
        failures: Mapping[str, str] = {}
        if remaining:
            console.print(plan_text)
            progress = StageProgress(protocol, len(jobs), done, has_best=False)
            with LiveView(console, progress) as view:
                failures = run_jobs(
                    iter(remaining), plan, [progress, view], console=console, independent_inputs=True
                )
        results = collect(grid, filter(None, (read_run(job, digests) for job in jobs)))
        problems = [f"{name} was skipped: {reason}" for name, reason in unavailable.items()]
        problems += [f"{name} failed: {one_line(reason)}" for name, reason in failures.items()]
        reasons = {name: incomparable_reason(dataset) for name, dataset in datasets.items()}
        incomparable = {name: reason for name, reason in reasons.items() if reason}
        rows, notes = build_table(grid, results, incomparable=incomparable)
        notes += problems
        differences, comparison_notes = compare_methods(grid, results)
        print_table(grid, rows, notes, console)
        if differences:
            print_comparison(differences, comparison_notes, console)
        tables = {"table.csv": as_csv(grid, rows), "table.md": as_markdown(grid, rows, notes)}
        for name, content in {**tables, "pairs.csv": pairs_as_csv(differences)}.items():
            write_atomically(out / protocol / name, content.encode())
    console.print(f"Wrote table.csv, table.md and pairs.csv to {out / protocol}")
    if problems:
        raise WorkError(f"Some runs are missing (see above). {FIX_AND_RESUME}")


def _is_complete(job: Job, run: FinishedRun | None) -> bool:
    """Return True if a run is finished and tested on all targets, with predictions if requested."""
    if run is None or set(job.targets) - run.result.tests.keys():
        return False
    return not job.predictions or has_all_predictions(run.folder, run.result.run_digest, job.targets)


def _distinct_methods(grid: Grid) -> list[Config]:
    """Return one configuration for each composition of components in the grid."""
    sections = set(MethodConfig.model_fields)
    found: dict[str, Config] = {}
    for config in grid.configs.values():
        found.setdefault(config.model_dump_json(include=sections), config)
    return list(found.values())


def input_digests(grid: Grid, datasets: Mapping[str, Dataset], clip: Clip) -> dict[str, str]:
    """Return the digests of everything but settings that determines the results of a grid's runs, by name.

    Args:
        datasets: The grid's datasets by name.
        clip: The frozen CLIP of its backbone.

    Raises:
        UserError: the class texts are missing or invalid.
    """
    digests = {name: dataset.digest for name, dataset in datasets.items()}
    digests["weights"] = weights_digest(clip.to(device="cpu", dtype=DTYPES[grid.config.backbone.precision]))
    names = {*datasets}.union(*(config.custom_components.values() for config in grid.configs.values()))
    digests |= {f"code of {name}": source_digest(name) for name in names if is_custom(name)}
    for path in map(texts_path, grid.configs.values()):
        if path is not None:
            digests[f"texts of {path}"] = read_texts(Path(path))[1]
    return digests


def _open_datasets(grid: Grid) -> tuple[dict[str, Dataset], list[FewShotSplit], dict[str, str]]:
    """Return datasets, the largest few-shot split of each training dataset, and why others are unavailable.

    Raises:
        UserError: there is no dataset to train on.
    """
    datasets: dict[str, Dataset] = {}
    largest_splits: list[FewShotSplit] = []
    unavailable: dict[str, str] = {}
    for name in grid.all_datasets:
        try:
            dataset = open_dataset(name, grid.config.data.root)
            if name in grid.training_datasets:
                shots = max(grid.shots)
                seed = grid.seeds[0]
                largest_splits.append(split_dataset(grid.protocol.objective, dataset, shots=shots, seed=seed))
            elif not dataset.test:
                raise UserError("The dataset has no test images.")
            datasets[name] = dataset
        except PrometarError as error:
            unavailable[name] = one_line(str(error))
    if unavailable.keys() >= set(grid.training_datasets):
        name, reason = next(iter(unavailable.items()))
        raise UserError(f"There is no dataset to train on. {name}: {reason}")
    return datasets, largest_splits, unavailable
