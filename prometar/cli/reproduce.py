"""`prometar reproduce`: the field's protocols, from a grid of runs to the tables."""

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
            help="Data sets [the protocol's own: ten or eleven benchmarks, or ImageNet's four variants]."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="What cross-dataset and domain-generalisation train on [imagenet].")
    ] = None,
    methods: Annotated[
        list[str], typer.Option(help="Methods, each as its authors ran it, or recipes FILE.yaml of your own.")
    ] = METHODS,
    seeds: Annotated[
        list[int], typer.Option(help="They draw the images, the prompts and the order.")
    ] = SEEDS,
    shots: Annotated[
        list[int] | None, typer.Option(help="Training images a class [16; few-shot: 1 2 4 8 16].")
    ] = None,
    compare_to: Annotated[
        str | None, typer.Option(help="The method that the others are compared to, in pairs [prometar].")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs and tables lie.")] = Path("out/reproduce"),
    data_root: RootOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="mini or an open_clip model [mini for the embedded suite, else ViT-B-16-quickgelu]."
        ),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="An open_clip tag, or a .safetensors file [openai].")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every method [each method's own].")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of every run, e.g. optim.lr=0.01.")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Runs at a time [as many as fit].")] = None,
    cpus_per_run: Annotated[float, typer.Option(help="CPUs per run.")] = 1.0,
    gpus_per_run: Annotated[
        str, typer.Option(help="GPUs per run, or auto: one where there are any.")
    ] = "auto",
    address: Annotated[str | None, typer.Option(help="Join a running Ray cluster.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's own output.")] = False,
) -> None:
    """Run methods by a protocol of the field; compare in pairs. The same command goes on."""
    configure_ray(local=address is None, verbose=verbose)
    from prometar.bundled.suite import default_backbone
    from prometar.config.recipes import is_file, recipe
    from prometar.distributed.placement import Shares
    from prometar.reproduce.grid import Asked
    from prometar.reproduce.protocols import protocol_of
    from prometar.reproduce.published import settings_of
    from prometar.reproduce.run import Place, reproduce

    chosen = protocol_of(protocol)
    names = tuple(datasets or chosen.datasets)
    trained_on = source or chosen.source
    used = (*names, trained_on) if trained_on else names
    backbone, pretrained = default_backbone(used, backbone, pretrained)
    values: dict[str, Any] = {
        "data.root": absolute_root(data_root) if data_root else None,
        "backbone.name": backbone,
        "backbone.pretrained": pretrained,
        **({"train.epochs": epochs} if epochs is not None else {}),
        **_settings(settings or []),
    }
    recipes = {recipe(method).name: method for method in methods}
    if len(recipes) != len(methods):
        raise UserError(f"--methods must be different names, found {', '.join(methods)}")
    asked = Asked(
        protocol=chosen,
        datasets=names,
        configs={
            name: absolute_paths(configure(method, {**settings_of(protocol, name), **values}))
            for name, method in recipes.items()
        },
        seeds=tuple(seeds),
        shots=tuple(shots or chosen.shots),
        source=trained_on,
        compared_to=compare_to,
        recipes={name: configure(method) for name, method in recipes.items() if is_file(method)},
    )
    place = Place(
        out=out,
        shares=Shares(max_concurrent, cpus_per_run, number_or_auto("--gpus-per-run", gpus_per_run), "run"),
        address=address,
        verbose=verbose,
    )
    reproduce(asked, place)


def _settings(assignments: list[str]) -> dict[str, Any]:
    values = parse_assignments(assignments)
    for key in values:
        if key in _OPTIONS:
            raise UserError(f"--set {key}: use {_OPTIONS[key]}")
        if key.startswith("data.args"):
            raise UserError(f"--set {key}: the data sets of a grid are opened without settings of their own")
    return values
