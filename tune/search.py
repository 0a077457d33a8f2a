"""Search the settings of a prompt-learning method: `python tune/search.py --dataset dtd --data-root DIR`.

Without arguments it runs the embedded default, 15 to 25 minutes on two cores. The same command again goes on
with the study; a larger --trials extends it.
"""

if __name__ == "__main__":
    import os
    import sys

    # Python puts tune/ first, where a user's own options.py would be ours.
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [place for place in sys.path if place != _HERE]

import sys
from collections.abc import Iterator, Mapping
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from prometar.cli.console import run_cli
from prometar.cli.options import PLAIN, GroupedHelp
from tune.options import Options, describe_plan, options_of, run

app = typer.Typer(help=__doc__, **PLAIN)

FIRST = "The ten that most people need first"
WHAT = "What is searched"
HOW = "How"
JUDGED = "How settings are judged"
ON = "What is trained"
WHERE = "Where"


TEXT, TEXTS, FILES, COUNT, NUMBER = str | None, list[str] | None, list[Path] | None, int | None, float | None


def _option(kind: Any, text: str, *names: str, **more: Any) -> tuple[Any, Any]:
    """What an option takes, and what `--help` says of it."""
    return kind, typer.Option(*names, help=text, **more)


OPTIONS: Mapping[str, Mapping[str, tuple[Any, Any]]] = {
    FIRST: {
        "dataset": _option(
            TEXTS, "Data sets; `prometar data list` shows them. One setting for all [textures]."
        ),
        "data_root": _option(TEXT, "The folder that holds the data sets."),
        "backbone": _option(TEXT, "mini or an open_clip model [mini embedded, else ViT-B-16-quickgelu]."),
        "method": _option(TEXT, "The method whose settings are searched, or FILE.yaml [prometar]."),
        "space": _option(str, "recipe, lengths, full, regularizer, augmentation, or a YAML file."),
        "trials": _option(COUNT, "Trials in all [24 embedded, else 40]."),
        "epochs": _option(COUNT, "Epochs a trial [5 embedded, else the method's]."),
        "max_hours": _option(NUMBER, "Begin no more trials after so many hours of searching."),
        "out": _option(Path, "Where studies lie."),
        "plan": _option(
            bool, "Say how many runs, epochs and steps it takes; run and write nothing.", "--plan"
        ),
    },
    WHAT: {
        "settings": _option(TEXTS, "key=value of every trial, e.g. optim.lr=0.01.", "--set"),
        "enqueue": _option(FILES, "YAML files of settings to run before any are drawn."),
        "warm_start": _option(FILES, "Studies' folders: what their trials promise most of is run first."),
        "portfolio": _option(
            int, "Settings that did well on other data sets, run first, a quarter at most.", min=0
        ),
    },
    HOW: {
        "sampler": _option(str, "tpe, random, gp, cmaes, grid or quasirandom."),
        "pruner": _option(
            TEXT,
            "hopeless, median, asha, hyperband or none [hopeless]; several goals: hopeless or [none]; epochs "
            "searched: none.",
        ),
        "seed": _option(int, "Seed of the search, of the images drawn and of their order."),
    },
    JUDGED: {
        "objective": _option(str, "drift, base_val, or oracle_test (which leaks)."),
        "goals": _option(TEXTS, "What to optimise: objective, base, new, seconds. Several: a Pareto front."),
        "at_least": _option(TEXTS, "figure=number that settings must reach, such as base=80."),
        "at_most": _option(TEXTS, "figure=number they must not pass, such as seconds=600."),
        "seeds_per_trial": _option(int, "Runs of every trial, with seeds from --seed on."),
        "top": _option(int, "Best settings run again with fresh seeds; 0: none."),
        "top_seeds": _option(int, "How many fresh seeds the last round takes."),
        "final_seeds": _option(str, "Seeds of the last comparison, or auto: pairs until it is decided."),
        "matters": _option(float, "The smallest difference in H that matters, with --final-seeds auto."),
    },
    ON: {
        "pretrained": _option(TEXT, "An open_clip tag, or a .safetensors file [openai]."),
        "val_per_class": _option(int, "At most this many validation images per class."),
    },
    WHERE: {
        "study": _option(TEXT, "The study's name [the data set's]."),
        "storage": _option(TEXT, "An Optuna storage URL [OUT/STUDY/study.db]."),
        "files": _option(TEXT, "URL of the trials' files, where workers share no folder with --out."),
        "track": _option(TEXTS, "tensorboard, mlflow or wandb, in the study's folder."),
        "from_records": _option(
            bool, "Rebuild the study's lost database from its records.", "--from-records"
        ),
        "address": _option(TEXT, "Join a running Ray cluster."),
        "max_concurrent": _option(COUNT, "Trials at a time [as many as fit]."),
        "cpus_per_trial": _option(float, "CPUs a trial."),
        "gpus_per_trial": _option(str, "GPUs a trial, or auto: as little of one as it needs."),
        "trial_timeout": _option(
            NUMBER, "A trial counts as hung after so many seconds without a result [never]."
        ),
        "verbose": _option(bool, "Show Ray's own output."),
    },
}
"""Those of `Options`, which has their defaults, by the groups of `--help`; and --plan."""


def _parameters() -> Iterator[Parameter]:
    """The command's, as typer reads them."""
    for group, options in OPTIONS.items():
        for name, (kind, option) in options.items():
            option.rich_help_panel = group
            default = getattr(Options, name) if name != "plan" else False
            yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


@app.command(cls=GroupedHelp)
def search(**given: Any) -> None:
    """Search settings, compare the best with the released ones. The same command goes on."""
    only_planned = given.pop("plan")
    options = options_of(given)
    if only_planned:
        print(describe_plan(options))
    else:
        run(options, alone=True)


search.__signature__ = Signature(list(_parameters()))  # type: ignore[attr-defined]


def main(args: list[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return run_cli(app, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
