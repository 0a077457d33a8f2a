"""`prometar reproduce`: protocols of the field."""

from pathlib import Path
from typing import Annotated, Any

import typer

from prometar.cli.options import RootOption, number_or_auto
from prometar.config.settings import absolute_paths, absolute_root, configure, parse_assignments
from prometar.distributed.local_ray import configure_ray
from prometar.errors import UserError

METHODS = ["zero-shot", "coop", "ivlp", "promptsrc", "prometar"]
SEEDS = [1, 2, 3]
_OPTIONS = {
    "method": "--methods", "data.name": "--datasets", "data.root": "--data-root", "data.shots": "--shots",
    "train.seed": "--seeds", "train.epochs": "--epochs", "backbone.name": "--backbone",
    "backbone.pretrained": "--pretrained",
}  # fmt: skip


def reproduce(
    protocol: Annotated[
        str, typer.Option(help="base-to-new, cross-dataset, domain-generalisation or few-shot.")
    ] = "base-to-new",
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            help="Datasets [the protocol's own: ten or eleven benchmarks, or ImageNet's four variants]."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Dataset that cross-dataset and domain-generalisation train on [imagenet]."),
    ] = None,
    methods: Annotated[
        list[str], typer.Option(help="Methods, each as its authors ran it, or custom recipes FILE.yaml.")
    ] = METHODS,
    seeds: Annotated[
        list[int],
        typer.Option(min=0, max=2**32 - 1, help="Seeds of the images, the prompts and the order."),
    ] = SEEDS,
    shots: Annotated[
        list[int] | None, typer.Option(min=1, help="Training images per class [16; few-shot: 1 2 4 8 16].")
    ] = None,
    compare_to: Annotated[
        str | None, typer.Option(help="Reference of the paired comparison [prometar].")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of runs and tables.")] = Path("out/reproduce"),
    data_root: RootOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="mini or an open_clip model [mini for rendered datasets, else ViT-B-16-quickgelu]."
        ),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="An open_clip tag, or a .safetensors file [openai].")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every method [each method's own].")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of every run, e.g. optim.lr=0.01.")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Maximum number of concurrent runs [as many as fit].")
    ] = None,
    cpus_per_run: Annotated[float, typer.Option(help="CPUs per run.")] = 1.0,
    gpus_per_run: Annotated[str, typer.Option(help="GPUs per run, or auto: one if there are any.")] = "auto",
    address: Annotated[str | None, typer.Option(help="Join a running Ray cluster.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's own output.")] = False,
) -> None:
    """Run methods under a protocol of the field, and compare them. Rerun the same command to resume."""
    configure_ray(local=address is None, verbose=verbose)
    from prometar.bundled.suite import default_backbone
    from prometar.config.recipes import recipe
    from prometar.distributed.placement import Shares
    from prometar.reproduce.grid import Grid
    from prometar.reproduce.protocols import protocol_of
    from prometar.reproduce.published import settings_of
    from prometar.reproduce.run import reproduce

    chosen = protocol_of(protocol)
    trained_on = source or chosen.source
    names = tuple(name for name in dict.fromkeys(datasets or chosen.datasets) if name != trained_on)
    used = (*names, trained_on) if trained_on else names
    backbone, pretrained = default_backbone(used, backbone, pretrained)
    values: dict[str, Any] = {
        "data.root": absolute_root(data_root) if data_root else None,
        "backbone.name": backbone,
        "backbone.pretrained": pretrained,
        **({"train.epochs": epochs} if epochs is not None else {}),
        **_settings(settings or []),
    }
    grid = Grid(
        protocol=chosen,
        datasets=names,
        configs={
            name: absolute_paths(configure(method, {**settings_of(protocol, name), **values}))
            for name, method in {recipe(method).name: method for method in methods}.items()
        },
        seeds=tuple(dict.fromkeys(seeds)),
        shots=tuple(dict.fromkeys(shots or chosen.shots)),
        source=trained_on,
        compared_to=compare_to,
    )
    shares = Shares(max_concurrent, cpus_per_run, number_or_auto("--gpus-per-run", gpus_per_run), "run")
    reproduce(grid, out, shares, address=address, verbose=verbose)


def _settings(assignments: list[str]) -> dict[str, Any]:
    values = parse_assignments(assignments)
    for key in values:
        if key in _OPTIONS:
            raise UserError(f"--set {key}: use {_OPTIONS[key]}")
        if key.startswith("data.args"):
            raise UserError(f"--set {key}: the datasets of a grid take no settings")
    return values
