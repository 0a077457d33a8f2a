"""Commands `defaults`, `report` and `reproduce`, which `prometar` finds through entry points."""

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from prometar.cli.console import RootOption
from prometar.config.recipes import Protocol, recipe
from prometar.config.settings import Config, absolute_paths, configure, parse_assignments
from prometar.embedded.datasets import resolve_backbone
from prometar.errors import UserError
from prometar.io.files import resolve_path
from tune.config import ResourcesConfig, StudyConfig
from tune.execution.ray_cluster import configure_ray

DEFAULT_METHODS = ["zero-shot", "coop", "ivlp", "promptsrc", "prometar"]
DEFAULT_SEEDS = [1, 2, 3]
DEFAULT_OUT = Path("out/reproduce")
_STUDY_SECTIONS = StudyConfig.model_fields.keys() - {"baseline"}
_OPTION_OF_SETTING = {
    "method": "--methods",
    "data.name": "--datasets",
    "data.root": "--data-root",
    "data.shots": "--shots",
    "train.seed": "--seeds",
    "train.epochs": "--epochs",
    "backbone.name": "--backbone",
    "backbone.pretrained": "--pretrained",
    "resources.cpus_per_trial": "--cpus-per-run",
    "resources.gpus_per_trial": "--gpus-per-run",
    "location.address": "--address",
}


def _option(text: str, default: object, **limits: Any) -> Any:
    return typer.Option(help=f"{text} Default: {default}.", show_default=False, **limits)


def report(study: Annotated[Path, typer.Argument(help="Folder of a study: OUT/STUDY.")]) -> None:
    """Rebuild the report of a study, and print its summary."""
    from tune.execution.live import stdout_console
    from tune.records.folder import read_records
    from tune.report.page import write_report
    from tune.report.terminal import print_summary

    records = read_records(study)
    write_report(records)
    print_summary(stdout_console(), records)


def defaults(
    studies: Annotated[
        list[Path], typer.Argument(metavar="STUDY...", help="Folders of studies of two or more datasets.")
    ],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Write the settings as a recipe for --method.")
    ] = None,
) -> None:
    """Choose the settings with the best mean over several studies."""
    from prometar.config.recipes import is_recipe_file
    from prometar.io.files import resolve_path, write_atomically
    from tune.defaults import average_best_of, describe_average_best, recipe_text
    from tune.records.folder import read_records

    if to is not None and not is_recipe_file(str(to)):
        raise UserError(f"--to must be a YAML file, such as average.yaml, got {to}.")
    records = [read_records(path) for path in dict.fromkeys(map(resolve_path, studies))]
    best = average_best_of(records)
    for line in describe_average_best(records, best):
        print(line)
    if to is not None:
        write_atomically(resolve_path(to), recipe_text(records, best).encode())
        print(f"Recipe written to {to}. Use it with --method {to}.")


def reproduce(
    protocol: Annotated[Protocol, _option("Benchmark protocol.", "base-to-new")] = "base-to-new",
    datasets: Annotated[list[str] | None, typer.Option(help="Datasets. Default: from --protocol.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Training dataset of cross-dataset and domain-generalisation. Default: imagenet."),
    ] = None,
    methods: Annotated[
        list[str], _option("Methods (published settings) or recipe files.", " ".join(DEFAULT_METHODS))
    ] = DEFAULT_METHODS,
    seeds: Annotated[
        list[int], _option("Seeds. Zero-shot methods run only once.", "1 2 3", min=0, max=2**32 - 1)
    ] = DEFAULT_SEEDS,
    shots: Annotated[
        list[int] | None, typer.Option(min=1, help="Training images per class. Default: from --protocol.")
    ] = None,
    out: Annotated[Path, _option("Folder of runs and tables.", DEFAULT_OUT)] = DEFAULT_OUT,
    data_root: RootOption = None,
    backbone: Annotated[
        str | None, typer.Option(help="mini or an open_clip model. Default: as in `prometar search`.")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip tag or .safetensors file. Default: openai (mini: none).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every run. Default: from the method.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for every run, such as optim.lr=0.01.")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of concurrent runs. Default: as many as fit.")
    ] = None,
    cpus_per_run: Annotated[
        float | None, typer.Option(min=0.1, max=9999, help="CPUs per run. Default: an equal share.")
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(min=0, max=9999, help="GPUs per run. Default: an equal share, between 1/4 and 1."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster. Default: start Ray on this machine.")
    ] = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Write predictions.parquet in the folder of each run.")
    ] = False,
    tune: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            metavar="TRIALS",
            help="Also tune each method on each dataset with this many trials, and compare the order of the "
            "methods before and after tuning.",
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER UNIT",
            help="With --tune: start no trial of a study after, e.g., 5000 steps or 600 seconds of training. "
            "Default: no limit.",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="With --tune: show runs, steps and estimated hours, but start nothing."),
    ] = False,
) -> None:
    """Run methods under a benchmark protocol, and compare them. Rerun the same command to resume."""
    configure_ray(local=address is None)  # sets variables that ray reads when it is imported
    from prometar.data.datasets.catalog import default_root, reject_unused_root, require_name
    from tune.reproduce.grid import PROTOCOLS, Grid
    from tune.reproduce.run_grid import run_grid

    chosen = PROTOCOLS[protocol]
    overrides = parse_assignments(settings or [])
    reserved = overrides.keys() & _OPTION_OF_SETTING.keys()
    if reserved:
        raise UserError(f"--set {min(reserved)} is not allowed. Use {_OPTION_OF_SETTING[min(reserved)]}.")
    study_settings: dict[str, object] = {}
    if tune is None:
        for option, value in (("--budget", budget), ("--plan", plan)):
            if value:
                raise UserError(f"{option} requires --tune TRIALS.")
    elif protocol != "base-to-new":
        raise UserError(f"--tune requires --protocol base-to-new, got {protocol}.")
    else:
        study_keys = [key for key in overrides if key.partition(".")[0] in _STUDY_SECTIONS]
        study_settings = {key: overrides.pop(key) for key in study_keys}
    if source and not chosen.source:
        raise UserError(f"--source does not apply to --protocol {protocol}. Omit the option.")
    if shots and len(shots) > 1 and len(chosen.shots) == 1:
        raise UserError(f"--protocol {protocol} accepts one value of --shots, got {len(shots)}.")
    source = source or chosen.source
    test_datasets = tuple(name for name in dict.fromkeys(datasets or chosen.datasets) if name != source)
    all_datasets = [*test_datasets, source] if source else test_datasets
    for name in all_datasets:
        require_name(name)
    backbone, pretrained = resolve_backbone(all_datasets, backbone, pretrained)
    if data_root:
        reject_unused_root(all_datasets)
    root = data_root or default_root(*all_datasets)
    shared = {"data.root": root, "backbone.name": backbone, "backbone.pretrained": pretrained}
    named = {recipe(method).name: method for method in methods}
    if len(named) < len(set(methods)):
        raise UserError("--methods: recipe files must have different names. Rename or omit one.")
    # Keyed by option, which messages about invalid values name.
    overrides_by_option = {"--epochs": {} if epochs is None else {"train.epochs": epochs}, "--set": overrides}
    used_shots = tuple(dict.fromkeys(shots or chosen.shots))
    configs: dict[tuple[str, str, int], Config] = {}
    for name, method in named.items():
        for dataset, count in product((source,) if source else test_datasets, used_shots):
            values = {**shared, "data.name": dataset, "data.shots": count}
            config = configure(method, values, overrides_by_option, protocol=protocol)
            configs[name, dataset, count] = absolute_paths(config)
    grid = Grid(
        chosen,
        datasets=test_datasets,
        configs=configs,
        seeds=tuple(dict.fromkeys(seeds)),
        shots=used_shots,
        source=source,
    )
    resources = ResourcesConfig(
        max_concurrent=max_concurrent,
        cpus_per_trial=cpus_per_run,
        gpus_per_trial="auto" if gpus_per_run is None else gpus_per_run,
    )
    Config.require_used(overrides, grid.configs.values(), "these methods")
    if tune is None:
        run_grid(grid, out, resources, address, predictions=predictions)
        return
    from tune.tuned.comparison import Budget, plan_comparison
    from tune.tuned.run import run_comparison

    comparison = plan_comparison(
        grid,
        resolve_path(out),
        methods=named,
        trials=tune,
        budget=Budget.parse(budget) if budget else None,
        settings=overrides,
        study_settings=study_settings,
        epochs=epochs,
        predictions=predictions,
    )
    if plan:
        print(comparison.describe_plan(resources), flush=True)
    else:
        run_comparison(comparison, resources, address)
