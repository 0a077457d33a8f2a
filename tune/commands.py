"""Commands `defaults`, `report` and `reproduce`, which `prometar` finds through entry points."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from prometar.cli.console import RootOption
from prometar.config.recipes import Protocol, recipe
from prometar.config.settings import Config, absolute_paths, configure, parse_assignments
from prometar.embedded.datasets import resolve_backbone
from prometar.errors import UserError
from prometar.io.files import resolve_path
from tune.config import ResourcesConfig, StudyConfig
from tune.execution.ray_cluster import configure_ray

if TYPE_CHECKING:
    from tune.reproduce.grid import BenchmarkProtocol

_Value = TypeVar("_Value")

DEFAULT_METHODS = ["zero-shot", "coop", "ivlp", "promptsrc", "prometar"]
DEFAULT_SEEDS = [1, 2, 3]
DEFAULT_OUT = Path("out/reproduce")
_STUDY_SECTIONS = StudyConfig.model_fields.keys() - {"baseline"}
"""Sections of --set that configure the studies of `reproduce --tune`. Other sections configure their runs."""
_OPTION_OF_SETTING = {  # settings that --set must not contain, because `reproduce` has options for them
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
    """Return an option whose help text ends with its default, and whose value has these limits."""
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
    from prometar.io.files import write_atomically
    from tune.defaults import average_best_of, describe_average_best, recipe_text
    from tune.records.folder import read_records

    if to is not None and not is_recipe_file(str(to)):
        raise UserError(f"--to must be a YAML file, such as average.yaml, got {to}.")
    folders = _unique(resolve_path(study) for study in studies)
    records = [read_records(folder) for folder in folders]
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
    from tune.reproduce.grid import PROTOCOLS, Grid
    from tune.reproduce.run_grid import run_grid

    overrides = parse_assignments(settings or [])
    chosen = PROTOCOLS[protocol]
    _check_options(chosen, overrides, source=source, shots=shots, tune=tune, budget=budget, plan=plan)
    study_settings: dict[str, object] = {}
    if tune is not None:
        study_settings = {key: value for key, value in overrides.items() if _configures_study(key)}
    run_settings = {key: value for key, value in overrides.items() if key not in study_settings}

    source = source or chosen.source
    test_datasets = tuple(name for name in _unique(datasets or chosen.datasets) if name != source)
    training_datasets = (source,) if source else test_datasets
    all_datasets = _unique([*test_datasets, *training_datasets])
    shared = _shared_settings(all_datasets, backbone, pretrained, data_root)

    method_by_name = {recipe(method).name: method for method in methods}
    if len(method_by_name) < len(set(methods)):  # a method that is given twice runs once
        raise UserError("--methods: recipe files must have different names. Rename or omit one.")
    # The keys are options, so that messages can name the option with an invalid value.
    values_by_option: dict[str, dict[str, object]] = {"--epochs": {}, "--set": run_settings}
    if epochs is not None:
        values_by_option["--epochs"]["train.epochs"] = epochs
    used_shots = tuple(_unique(shots or chosen.shots))
    configs: dict[tuple[str, str, int], Config] = {}  # by name of the method, dataset and shots
    for name, dataset, num_shots in product(method_by_name, training_datasets, used_shots):
        values = {**shared, "data.name": dataset, "data.shots": num_shots}
        config = configure(method_by_name[name], values, values_by_option, protocol=protocol)
        configs[name, dataset, num_shots] = absolute_paths(config)
    Config.require_used(run_settings, configs.values(), "these methods")
    grid = Grid(
        chosen,
        datasets=test_datasets,
        configs=configs,
        seeds=tuple(_unique(seeds)),
        shots=used_shots,
        source=source,
    )

    resources = ResourcesConfig(
        max_concurrent=max_concurrent,
        cpus_per_trial=cpus_per_run,
        gpus_per_trial="auto" if gpus_per_run is None else gpus_per_run,
    )
    if tune is None:
        run_grid(grid, out, resources, address, predictions=predictions)
        return
    from tune.tuned.comparison import Budget, plan_comparison
    from tune.tuned.run import run_comparison

    comparison = plan_comparison(
        grid,
        resolve_path(out),
        methods=method_by_name,
        trials=tune,
        budget=Budget.parse(budget) if budget else None,
        settings=run_settings,
        study_settings=study_settings,
        epochs=epochs,
        predictions=predictions,
    )
    if plan:
        print(comparison.describe_plan(resources), flush=True)
    else:
        run_comparison(comparison, resources, address)


def _unique(values: Iterable[_Value]) -> list[_Value]:
    """Return the values without repetitions, in order of first appearance."""
    return list(dict.fromkeys(values))


def _configures_study(key: str) -> bool:
    """Return True if a setting of --set configures studies, False if it configures their runs."""
    section, _, _ = key.partition(".")
    return section in _STUDY_SECTIONS


def _check_options(
    protocol: "BenchmarkProtocol",
    overrides: Mapping[str, object],
    *,
    source: str | None,
    shots: Sequence[int] | None,
    tune: int | None,
    budget: Sequence[str] | None,
    plan: bool,
) -> None:
    """Check whether the options of `reproduce` can be used together.

    Args:
        protocol: The chosen benchmark protocol.
        overrides: Settings of --set, by their keys.
        source, shots, tune, budget, plan: Values of the options with these names.

    Raises:
        UserError: --set is used for a setting that has an option, or an option does not apply.
    """
    reserved = overrides.keys() & _OPTION_OF_SETTING.keys()
    if reserved:
        key = min(reserved)
        raise UserError(f"--set {key} is not allowed. Use {_OPTION_OF_SETTING[key]}.")
    if tune is not None and protocol.name != "base-to-new":
        raise UserError(f"--tune requires --protocol base-to-new, got {protocol.name}.")
    if tune is None and budget:
        raise UserError("--budget requires --tune TRIALS.")
    if tune is None and plan:
        raise UserError("--plan requires --tune TRIALS.")
    if source and not protocol.source:
        raise UserError(f"--source does not apply to --protocol {protocol.name}. Omit the option.")
    if shots and len(shots) > 1 and not protocol.accepts_several_shots:
        raise UserError(f"--protocol {protocol.name} accepts one value of --shots, got {len(shots)}.")


def _shared_settings(
    datasets: Sequence[str], backbone: str | None, pretrained: str | None, data_root: str | None
) -> dict[str, object]:
    """Return the data root and the backbone that all runs of `reproduce` share.

    Raises:
        UserError: a dataset does not exist, or `data_root` is given although no dataset needs it.
    """
    from prometar.data.datasets.catalog import default_root, reject_unused_root, require_name

    for name in datasets:
        require_name(name)
    if data_root:
        reject_unused_root(datasets)
    name, weights = resolve_backbone(datasets, backbone, pretrained)
    return {
        "data.root": data_root or default_root(*datasets),
        "backbone.name": name,
        "backbone.pretrained": weights,
    }
