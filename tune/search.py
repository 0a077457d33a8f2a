"""Search the settings of a prompt-learning method: `python tune/search.py --dataset dtd --data-root DIR`.

Without arguments it runs the embedded default, a few minutes on two cores. The same command again goes on
with the study; a larger --trials extends it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prometar.cli.console import run_cli
from prometar.cli.options import PLAIN, ManyValues
from tune.options import AUTO, SPACE, Options, describe_plan, options_of, run

app = typer.Typer(help=__doc__, **PLAIN)


@app.command(cls=ManyValues)
def search(
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Data sets; `prometar data list` shows them. One setting for all [textures]."),
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="The folder that holds the data sets.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all [24 embedded, else 40].")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs a trial [5 embedded, else the method's].")
    ] = None,
    space: Annotated[
        str, typer.Option(help="recipe, full, regularizer, augmentation, or a YAML file.")
    ] = SPACE,
    objective: Annotated[
        str, typer.Option(help="drift, class_holdout, base_val, or oracle_test (which leaks).")
    ] = Options.objective,
    goals: Annotated[
        list[str] | None,
        typer.Option(help="What to optimise: objective, base, new, seconds. Several: a Pareto front."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="The method whose settings are searched, or FILE.yaml.")
    ] = Options.method,
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
    out: Annotated[Path, typer.Option(help="Where studies lie.")] = Options.out,
    seed: Annotated[int, typer.Option(help="Of the search, the images and their order.")] = Options.seed,
    seeds_per_trial: Annotated[
        int, typer.Option(help="Runs of every trial, with seeds from --seed on.")
    ] = Options.seeds_per_trial,
    folds: Annotated[
        int, typer.Option(help="Halves of the base classes to train on, 1 or 2.")
    ] = Options.folds,
    top: Annotated[
        int, typer.Option(help="Best settings run again with fresh seeds; 0: none.")
    ] = Options.top,
    top_seeds: Annotated[int, typer.Option(help="Fresh seeds of that last round.")] = Options.top_seeds,
    final_seeds: Annotated[
        str, typer.Option(help="Seeds of the last comparison, or auto: pairs until it is decided.")
    ] = AUTO,
    matters: Annotated[
        float, typer.Option(help="The smallest difference in H that matters, with --final-seeds auto.")
    ] = Options.matters,
    sampler: Annotated[
        str, typer.Option(help="tpe, random, gp, cmaes, grid or quasirandom.")
    ] = Options.sampler,
    pruner: Annotated[
        str | None,
        typer.Option(help="hopeless, median, asha, hyperband or none [hopeless; none with several goals]."),
    ] = None,
    portfolio: Annotated[
        int, typer.Option(help="Settings that did well on other data sets, run first; 0: none.", min=0)
    ] = Options.portfolio,
    enqueue: Annotated[
        list[Path] | None, typer.Option(help="YAML files of settings to run before any are drawn.")
    ] = None,
    warm_start: Annotated[
        list[Path] | None, typer.Option(help="Studies' folders, whose best settings are run first.")
    ] = None,
    val_per_class: Annotated[
        int, typer.Option(help="Most validation images a class in a score.")
    ] = Options.val_per_class,
    max_hours: Annotated[float | None, typer.Option(help="Begin no trial after so long a search.")] = None,
    trial_timeout: Annotated[
        float | None, typer.Option(help="Seconds without a result, after which a trial hangs [never].")
    ] = None,
    files: Annotated[
        str | None, typer.Option(help="URL of the trials' files, where workers share no folder with --out.")
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="tensorboard, mlflow or wandb, in the study's folder.")
    ] = None,
    storage: Annotated[str | None, typer.Option(help="An Optuna storage URL [OUT/STUDY/study.db].")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Trials (or workers of --lockstep) at a time [as many as fit].")
    ] = None,
    cpus_per_trial: Annotated[float, typer.Option(help="CPUs a trial.")] = Options.cpus_per_trial,
    gpus_per_trial: Annotated[
        str, typer.Option(help="GPUs a trial, or auto: as little of one as it needs.")
    ] = AUTO,
    lockstep: Annotated[
        int, typer.Option(help="Trials that a worker trains together, where they differ in numbers alone.")
    ] = Options.lockstep,
    address: Annotated[str | None, typer.Option(help="Join a running Ray cluster.")] = None,
    from_records: Annotated[
        bool, typer.Option("--from-records", help="Rebuild the study's lost database from its records.")
    ] = Options.from_records,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what it takes: runs, epochs, steps. Nothing is run or written."),
    ] = False,
    verbose: Annotated[bool, typer.Option(help="Show Ray's own output.")] = Options.verbose,
) -> None:
    """Search settings, compare the best with the released ones, and write a report."""
    given = locals()  # an option here is a field there, of the same name
    only_planned = given.pop("plan")
    options = options_of(given)
    if only_planned:
        print(describe_plan(options))
    else:
        run(options)


def main(args: list[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return run_cli(app, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
