"""Search the settings of a prompt-learning method: `python tune/search.py --dataset dtd --data-root DIR`.

Without arguments it runs the embedded default, a few minutes on two cores. The same command again goes on
with the study; a larger --trials extends it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prometar.config import absolute_root, configure, parse_assignments
from prometar.console import run_cli
from prometar.errors import UserError
from prometar.raylocal import configure_ray

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

EMBEDDED = "textures"


@app.command()
def search(
    dataset: Annotated[str, typer.Option(help="A data set; `prometar data list` shows them.")] = EMBEDDED,
    data_root: Annotated[str | None, typer.Option(help="The folder that holds the data sets.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all [24 embedded, else 40].")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs a trial [5 embedded, else the method's].")
    ] = None,
    space: Annotated[str, typer.Option(help="full, regularizer, augmentation, or a YAML file.")] = "full",
    objective: Annotated[str, typer.Option(help="class_holdout or base_val.")] = "class_holdout",
    method: Annotated[str, typer.Option(help="The method whose settings are searched.")] = "prometar",
    backbone: Annotated[
        str | None, typer.Option(help="mini or an open_clip model [mini embedded, else ViT-B-16-quickgelu].")
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="An open_clip tag, or a .pt or .safetensors file [openai].")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of every trial, e.g. optim.lr=0.01.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="The study's name [the data set's].")] = None,
    out: Annotated[Path, typer.Option(help="Where studies lie.")] = Path("out"),
    seed: Annotated[int, typer.Option(help="Of the search, the images and their order.")] = 0,
    final_seeds: Annotated[str, typer.Option(help="Seeds of the last comparison.")] = "1 2 3",
    pruner: Annotated[str, typer.Option(help="median, asha or none.")] = "median",
    val_per_class: Annotated[int, typer.Option(help="Most validation images a class in a score.")] = 20,
    storage: Annotated[str | None, typer.Option(help="An Optuna storage URL [OUT/STUDY/study.db].")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Trials (or workers of --lockstep) at a time [as many as fit].")
    ] = None,
    cpus_per_trial: Annotated[float, typer.Option(help="CPUs a trial.")] = 1.0,
    gpus_per_trial: Annotated[
        str, typer.Option(help="GPUs a trial, or auto: one where there are any.")
    ] = "auto",
    lockstep: Annotated[
        int, typer.Option(help="Trials that a worker trains together, where they differ in numbers alone.")
    ] = 1,
    address: Annotated[str | None, typer.Option(help="Join a running Ray cluster.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's own output.")] = False,
) -> None:
    """Search settings, compare the best with the released ones, and write a report."""
    configure_ray(local=address is None, verbose=verbose)
    from tune.request import Request
    from tune.spaces import load_space
    from tune.study import Place, run_study

    embedded = dataset == EMBEDDED
    backbone = backbone or ("mini" if embedded else "ViT-B-16-quickgelu")
    asked = {
        "data.name": dataset,
        "data.root": absolute_root(data_root) if data_root else None,
        "backbone.name": backbone,
        "backbone.pretrained": pretrained or (None if backbone == "mini" else "openai"),
        "train.seed": seed,
    }
    if epochs is not None or embedded:
        asked["train.epochs"] = 5 if epochs is None else epochs
    request = Request(
        config=configure(method, {**asked, **parse_assignments(settings or [])}),
        space=load_space(space),
        objective=objective,
        seed=seed,
        pruner=pruner,
        val_per_class=val_per_class,
        trials=trials if trials is not None else (24 if embedded else 40),
        final_seeds=_seeds(final_seeds),
    )
    place = Place(
        out=out,
        name=study or dataset,
        storage=storage,
        address=address,
        max_concurrent=max_concurrent,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=_gpus(gpus_per_trial),
        lockstep=lockstep,
        verbose=verbose,
    )
    run_study(request, place)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise UserError(f"--final-seeds '{text}': expected numbers such as '1 2 3'") from None


def _gpus(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--gpus-per-trial '{text}': expected a number, or auto") from None


def main(args: list[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return run_cli(app, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
