"""Search the settings of a prompt-learning method: `python tune/search.py --dataset dtd --data-root DIR`.

Without arguments it runs the embedded default, a few minutes on two cores. The same command again goes on
with the study; a larger --trials extends it.
"""

from __future__ import annotations

if __name__ == "__main__":  # before all that takes its time to import
    from prometar.interrupts import end_at_once

    end_at_once()

import sys
from collections.abc import Collection
from itertools import count, islice
from pathlib import Path
from typing import Annotated

import typer

from prometar.cli.console import run_cli
from prometar.cli.options import PLAIN, ManyValues, number_or_auto
from prometar.config.settings import absolute_paths, absolute_root, configure, parse_assignments
from prometar.distributed.local_ray import configure_ray
from prometar.errors import UserError

app = typer.Typer(help=__doc__, **PLAIN)

EMBEDDED = "textures"
AUTO = "auto"


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
    ] = "recipe",
    objective: Annotated[
        str, typer.Option(help="drift, class_holdout, base_val, or oracle_test (which leaks).")
    ] = "drift",
    goals: Annotated[
        list[str] | None,
        typer.Option(help="What to optimise: objective, base, new, seconds. Several: a Pareto front."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="The method whose settings are searched, or FILE.yaml.")
    ] = "prometar",
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
    seeds_per_trial: Annotated[int, typer.Option(help="Runs of every trial, with seeds from --seed on.")] = 1,
    folds: Annotated[int, typer.Option(help="Halves of the base classes to train on, 1 or 2.")] = 1,
    top: Annotated[int, typer.Option(help="Best settings run again with fresh seeds; 0: none.")] = 3,
    top_seeds: Annotated[int, typer.Option(help="Fresh seeds of that last round.")] = 2,
    final_seeds: Annotated[
        str, typer.Option(help="Seeds of the last comparison, or auto: pairs until it is decided.")
    ] = "auto",
    matters: Annotated[
        float, typer.Option(help="The smallest difference in H that matters, with --final-seeds auto.")
    ] = 1.0,
    sampler: Annotated[str, typer.Option(help="tpe, random, gp, cmaes, grid or quasirandom.")] = "tpe",
    pruner: Annotated[
        str | None,
        typer.Option(help="hopeless, median, asha, hyperband or none [hopeless; none with several goals]."),
    ] = None,
    portfolio: Annotated[
        int, typer.Option(help="Settings that did well on other data sets, run first; 0: none.", min=0)
    ] = 5,
    enqueue: Annotated[
        list[Path] | None, typer.Option(help="YAML files of settings to run before any are drawn.")
    ] = None,
    warm_start: Annotated[
        list[Path] | None, typer.Option(help="Studies' folders, whose best settings are run first.")
    ] = None,
    val_per_class: Annotated[int, typer.Option(help="Most validation images a class in a score.")] = 20,
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
    cpus_per_trial: Annotated[float, typer.Option(help="CPUs a trial.")] = 1.0,
    gpus_per_trial: Annotated[
        str, typer.Option(help="GPUs a trial, or auto: as little of one as it needs.")
    ] = "auto",
    lockstep: Annotated[
        int, typer.Option(help="Trials that a worker trains together, where they differ in numbers alone.")
    ] = 1,
    address: Annotated[str | None, typer.Option(help="Join a running Ray cluster.")] = None,
    from_records: Annotated[
        bool, typer.Option("--from-records", help="Rebuild the study's lost database from its records.")
    ] = False,
    verbose: Annotated[bool, typer.Option(help="Show Ray's own output.")] = False,
) -> None:
    """Search settings, compare the best with the released ones, and write a report."""
    configure_ray(local=address is None, verbose=verbose)
    from prometar.bundled.suite import SUITE
    from prometar.data.datasets.catalog import file_name
    from prometar.io.stores import join
    from tune.space.portfolio import first_trials
    from tune.space.spaces import load_space
    from tune.stages.warm_start import enqueued, warm
    from tune.study import Place, run_study
    from tune.study_spec import StudySpec

    chosen = parse_assignments(settings or [])
    if "data.name" in chosen:
        raise UserError("--set data.name: a search's data sets are given by --dataset")
    names = tuple(dataset or [EMBEDDED])
    name, embedded = study or "-".join(map(file_name, names)), SUITE.keys() >= set(names)
    backbone = backbone or ("mini" if embedded else "ViT-B-16-quickgelu")
    asked = {
        "data.name": names[0],
        "data.root": absolute_root(data_root) if data_root else None,
        "backbone.name": backbone,
        "backbone.pretrained": pretrained or (None if backbone == "mini" else "openai"),
        "train.seed": seed,
    }
    if epochs is not None or embedded:
        asked["train.epochs"] = 5 if epochs is None else epochs
    searched = load_space(space)
    several = len(goals or []) > 1
    spec = StudySpec(
        config=absolute_paths(configure(method, {**asked, **chosen})),
        space=searched,
        objective=objective,
        seed=seed,
        sampler=sampler,
        pruner=pruner or ("none" if several else "hopeless"),
        goals=tuple(goals or ["objective"]),
        val_per_class=val_per_class,
        trials=trials if trials is not None else (24 if embedded else 40),
        datasets=names,
        seeds_per_trial=seeds_per_trial,
        folds=folds,
        top=top,
        top_seeds=top_seeds,
        final_seeds=final_seeds_of(final_seeds, range(seed, seed + seeds_per_trial)),
        matters=matters if final_seeds.strip() == AUTO else None,
    )
    place = Place(
        out=out,
        name=name,
        storage=storage,
        files=join(absolute_root(files), name) if files else None,
        trackers=tuple(track or ()),
        address=address,
        max_concurrent=max_concurrent,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=number_or_auto("--gpus-per-trial", gpus_per_trial),
        lockstep=lockstep,
        max_hours=max_hours,
        trial_timeout=trial_timeout,
        starts=(
            *(("enqueued", enqueued(path, searched)) for path in enqueue or []),
            *(("warm start", warm(path, searched)) for path in warm_start or []),
            ("portfolio", first_trials(searched, backbone, names, portfolio)),
        ),
        from_records=from_records,
        verbose=verbose,
    )
    run_study(spec, place)


def final_seeds_of(text: str, searched: Collection[int]) -> tuple[int, ...]:
    """The seeds given, or as many as a comparison takes at most, none of them the search's own.

    Example:
        >>> final_seeds_of("auto", [0, 1])[:3]
        (2, 3, 4)
    """
    from tune.stages.sequential import LOOKS

    if text.strip() == AUTO:
        fresh = (seed for seed in count(1) if seed not in searched)
        return tuple(islice(fresh, LOOKS[-1].pairs))
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise UserError(f"--final-seeds '{text}': expected auto, or numbers such as '1 2 3'") from None


def main(args: list[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    return run_cli(app, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
