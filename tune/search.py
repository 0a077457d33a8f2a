"""Search the settings of a prompt-learning method: `python tune/search.py --dataset dtd --data-root DIR`.

Without arguments it runs the embedded default, a few minutes on two cores. The same command again goes on
with the study; a larger --trials extends it.
"""

from __future__ import annotations

if __name__ == "__main__":
    import os
    import sys

    # Python puts tune/ first, where a user's own options.py would be ours.
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [place for place in sys.path if place != _HERE]

    # Before all that takes its time to import.
    from prometar.interrupts import end_at_once

    end_at_once()

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prometar.cli.console import run_cli
from prometar.cli.options import PLAIN, GroupedHelp
from tune.options import AUTO, SPACE, Options, describe_plan, options_of, run

app = typer.Typer(help=__doc__, **PLAIN)

FIRST = "The ten that most people need first"
WHAT = "What is searched"
HOW = "How"
JUDGED = "How settings are judged"
ON = "What is trained"
WHERE = "Where"


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """An option of a group of `--help`."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


@app.command(cls=GroupedHelp)
def search(
    dataset: Annotated[
        list[str] | None,
        _option(FIRST, "Data sets; `prometar data list` shows them. One setting for all [textures]."),
    ] = None,
    data_root: Annotated[str | None, _option(FIRST, "The folder that holds the data sets.")] = None,
    backbone: Annotated[
        str | None, _option(FIRST, "mini or an open_clip model [mini embedded, else ViT-B-16-quickgelu].")
    ] = None,
    method: Annotated[
        str | None, _option(FIRST, "The method whose settings are searched, or FILE.yaml [prometar].")
    ] = None,
    space: Annotated[
        str, _option(FIRST, "recipe, lengths, full, regularizer, augmentation, or a YAML file.")
    ] = SPACE,
    trials: Annotated[int | None, _option(FIRST, "Trials in all [24 embedded, else 40].")] = None,
    epochs: Annotated[int | None, _option(FIRST, "Epochs a trial [5 embedded, else the method's].")] = None,
    max_hours: Annotated[
        float | None, _option(FIRST, "Begin no more trials after so many hours of searching.")
    ] = None,
    out: Annotated[Path, _option(FIRST, "Where studies lie.")] = Options.out,
    plan: Annotated[
        bool, _option(FIRST, "Say how many runs, epochs and steps it takes; run and write nothing.", "--plan")
    ] = False,
    settings: Annotated[
        list[str] | None, _option(WHAT, "key=value of every trial, e.g. optim.lr=0.01.", "--set")
    ] = None,
    enqueue: Annotated[
        list[Path] | None, _option(WHAT, "YAML files of settings to run before any are drawn.")
    ] = None,
    warm_start: Annotated[
        list[Path] | None, _option(WHAT, "Studies' folders: what their trials promise most of is run first.")
    ] = None,
    portfolio: Annotated[
        int,
        _option(WHAT, "Settings that did well on other data sets, run first, a quarter at most.", min=0),
    ] = Options.portfolio,
    sampler: Annotated[str, _option(HOW, "tpe, random, gp, cmaes, grid or quasirandom.")] = Options.sampler,
    pruner: Annotated[
        str | None,
        _option(
            HOW,
            "hopeless, median, asha, hyperband or none [hopeless]; several goals: hopeless or [none]; epochs "
            "searched: none.",
        ),
    ] = None,
    seed: Annotated[
        int, _option(HOW, "Seed of the search, of the images drawn and of their order.")
    ] = Options.seed,
    objective: Annotated[
        str, _option(JUDGED, "drift, class_holdout, base_val, or oracle_test (which leaks).")
    ] = Options.objective,
    goals: Annotated[
        list[str] | None,
        _option(JUDGED, "What to optimise: objective, base, new, seconds. Several: a Pareto front."),
    ] = None,
    at_least: Annotated[
        list[str] | None, _option(JUDGED, "figure=number that settings must reach, such as base=80.")
    ] = None,
    at_most: Annotated[
        list[str] | None, _option(JUDGED, "figure=number they must not pass, such as seconds=600.")
    ] = None,
    seeds_per_trial: Annotated[
        int, _option(JUDGED, "Runs of every trial, with seeds from --seed on.")
    ] = Options.seeds_per_trial,
    top: Annotated[int, _option(JUDGED, "Best settings run again with fresh seeds; 0: none.")] = Options.top,
    top_seeds: Annotated[
        int, _option(JUDGED, "How many fresh seeds the last round takes.")
    ] = Options.top_seeds,
    final_seeds: Annotated[
        str, _option(JUDGED, "Seeds of the last comparison, or auto: pairs until it is decided.")
    ] = AUTO,
    matters: Annotated[
        float, _option(JUDGED, "The smallest difference in H that matters, with --final-seeds auto.")
    ] = Options.matters,
    pretrained: Annotated[
        str | None, _option(ON, "An open_clip tag, or a .pt or .safetensors file [openai].")
    ] = None,
    folds: Annotated[int, _option(ON, "Halves of the base classes to train on, 1 or 2.")] = Options.folds,
    val_per_class: Annotated[
        int, _option(ON, "At most this many validation images per class.")
    ] = Options.val_per_class,
    study: Annotated[str | None, _option(WHERE, "The study's name [the data set's].")] = None,
    storage: Annotated[str | None, _option(WHERE, "An Optuna storage URL [OUT/STUDY/study.db].")] = None,
    files: Annotated[
        str | None, _option(WHERE, "URL of the trials' files, where workers share no folder with --out.")
    ] = None,
    track: Annotated[
        list[str] | None, _option(WHERE, "tensorboard, mlflow or wandb, in the study's folder.")
    ] = None,
    from_records: Annotated[
        bool, _option(WHERE, "Rebuild the study's lost database from its records.", "--from-records")
    ] = Options.from_records,
    address: Annotated[str | None, _option(WHERE, "Join a running Ray cluster.")] = None,
    max_concurrent: Annotated[
        int | None, _option(WHERE, "Trials (or workers of --lockstep) at a time [as many as fit].")
    ] = None,
    cpus_per_trial: Annotated[float, _option(WHERE, "CPUs a trial.")] = Options.cpus_per_trial,
    gpus_per_trial: Annotated[
        str, _option(WHERE, "GPUs a trial, or auto: as little of one as it needs.")
    ] = AUTO,
    lockstep: Annotated[
        int, _option(WHERE, "Trials that a worker trains together, where they differ in numbers alone.")
    ] = Options.lockstep,
    trial_timeout: Annotated[
        float | None, _option(WHERE, "A trial counts as hung after so many seconds without a result [never].")
    ] = None,
    verbose: Annotated[bool, _option(WHERE, "Show Ray's own output.")] = Options.verbose,
) -> None:
    """Search settings, compare the best with the released ones, and write a report."""
    given = locals()  # an option here is a field there, of the same name
    only_planned = given.pop("plan")
    options = options_of(given)
    if only_planned:
        print(describe_plan(options))
    else:
        run(options, alone=True)


def main(args: list[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return run_cli(app, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
