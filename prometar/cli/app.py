"""Hyperparameter studies, single runs and datasets for CLIP prompt learning."""

import sys
from collections.abc import Mapping
from functools import partial
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prometar.cli import data
from prometar.cli.console import (
    TYPER_OPTIONS,
    Command,
    PredictionsOption,
    RootOption,
    TrustOption,
    run_cli,
)
from prometar.cli.predict import predict
from prometar.config.recipes import METHODS, PublishedEntry, describe_entries, describe_settings, recipe
from prometar.config.sections import ConfigData
from prometar.config.settings import (
    Config,
    absolute_paths,
    absolute_root,
    configure,
    load_config,
    parse_assignments,
    valid_recipe,
)
from prometar.data.datasets.catalog import default_root, file_name, open_dataset, reject_unused_root
from prometar.data.datasets.dataset import abbreviated
from prometar.data.splits.objective import ALL_CLASSES, objective_of, protocol_of
from prometar.embedded.datasets import DEFAULT_DATASET, resolve_backbone
from prometar.errors import UserError, one_line
from prometar.io.files import resolve_path, write_atomically
from prometar.metrics import harmonic_mean

if TYPE_CHECKING:
    from prometar.training.classification import ClassificationMetrics

_SET_TITLES = {"all": "all classes", "base": "base classes", "new": "new classes"}
"""Titles of evaluation sets in the table of metrics."""
_NUM_SHOWN_CLASSES = 3
"""Number of classes with the lowest accuracy that are printed."""

app = typer.Typer(no_args_is_help=True, help=__doc__, **TYPER_OPTIONS)
app.add_typer(data.app, name="data")


def _print_version(requested: bool) -> None:
    if requested:
        print(f"prometar {version('prometar')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(cls=Command)
def train(
    config: Annotated[Path | None, typer.Option(help="Configuration, e.g. best.yaml of a study.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Name of a method, or a recipe FILE.yaml. If it differs from the method in --config, only "
            "data, backbone and seed are taken from --config. Default: from --config, or prometar."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help=f"Dataset. Default: from --config, or {DEFAULT_DATASET}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: out/train/METHOD-DATASET-seedSEED.")
    ] = None,
    data_root: RootOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Setting as key=value, e.g. optim.lr=0.01.")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="What to train and test on, and the score. final: train on base, test on base and new "
            "classes. all_classes: train and test on all. Objectives of `search` work too. Default: final.",
            show_default=False,
        ),
    ] = "final",
    alignment_every: Annotated[
        int | None, typer.Option(min=1, help="Record the gradient alignment every N steps. Default: never.")
    ] = None,
    predictions: PredictionsOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Train and test one run. Rerun the same command to resume."""
    objective_of(objective)  # raises a UserError if the objective is unknown
    start: Config | None = None
    if config is not None:
        _require_config_file(config)
        start = load_config(config).require_trusted(str(config), trusted=trust_code)

    given = parse_assignments(settings or [])
    _add_option(given, "method", "--method", method)
    _add_option(given, "data.name", "--dataset", dataset)
    _add_option(given, "data.root", "--data-root", data_root)
    chosen, entries = _configure_run(start, given, objective)

    # The imports load torch, which is slow, so the options are validated first.
    from prometar.analysis.alignment import AlignmentRecorder
    from prometar.methods.composition import build
    from prometar.run_folder import train_run
    from prometar.training.run_result import read_result

    if alignment_every is not None and build(chosen).is_untrained:
        raise UserError(f"--alignment-every requires learnable prompts. {chosen.method} has none.")
    folder = _default_folder(chosen) if out is None else resolve_path(out)
    before_step = None if alignment_every is None else AlignmentRecorder(folder, alignment_every)
    if entries:
        print(one_line(describe_entries(entries)))

    last_epoch = train_run(
        chosen,
        folder,
        objective=objective,
        on_epoch=partial(_print_epoch, chosen.train.epochs),
        before_step=before_step,
        predictions=predictions,
    )

    title = f"{chosen.method} on {chosen.data.name}, seed {chosen.train.seed}"
    _print_accuracies(title, last_epoch, objective)
    if objective != ALL_CLASSES:
        names = abbreviated(read_result(folder).classnames)
        print(one_line(f"Trained on these classes: {names}. To train on all: --objective {ALL_CLASSES}"))
    print(one_line(f"Backbone: {chosen.backbone.name}. Prompts and records: {folder}"))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `prometar train` or `reproduce`.")],
    dataset: Annotated[
        str | None, typer.Option(help="Test on all classes of this dataset. Default: repeat the run's test.")
    ] = None,
    data_root: RootOption = None,
    predictions: PredictionsOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Test a finished run again, or on another dataset."""
    if dataset is not None:
        predictions_path = _test_on_dataset(
            run, dataset, data_root, predictions=predictions, trust_code=trust_code
        )
    elif data_root is not None:
        raise UserError("--data-root requires --dataset. Pass both, or neither to repeat the run's own test.")
    else:
        predictions_path = _repeat_test(run, predictions=predictions, trust_code=trust_code)
    if predictions:
        print(f"Predictions written to {predictions_path}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `prometar train` or `reproduce`.")],
    to: Annotated[Path, typer.Option(help="FILE.safetensors. Its metadata is written to FILE.json.")],
    trust_code: TrustOption = False,
) -> None:
    """Export the prompts of a finished run to a file.

    `prometar predict FILE IMAGES`, or in Python `prometar.load(FILE).predict(images)`, classifies images.
    """
    from prometar.run_folder import export_run
    from prometar.training.run_result import read_result

    metadata_path = export_run(run, to, trust_code=trust_code)
    print(f"Exported to {to} and {metadata_path}")
    result = read_result(run)
    print(one_line(f"Classes: {abbreviated(result.classnames)}"))
    if result.objective != ALL_CLASSES:
        print(f"To train on all classes: prometar train --objective {ALL_CLASSES}")


app.command(cls=Command)(predict)


@app.command()
def methods(
    method: Annotated[
        str | None, typer.Argument(help="Name of a method, or a recipe FILE.yaml. Default: list all methods.")
    ] = None,
) -> None:
    """Show the published settings of a method, and their source."""
    if method is None:
        width = max(map(len, METHODS))
        for name in METHODS:
            built_in = recipe(name)
            print(one_line(f"{name:{width}}  {built_in.title}: {built_in.about}"))
        return

    chosen = valid_recipe(method)
    for label in ("title", "about", "paper", "source", "unverified"):
        text = getattr(chosen, label)
        if text:
            print(one_line(f"{label}: {text}"))
    print(one_line(f"settings: {describe_settings(chosen.settings) or 'those of ProMetaR'}"))
    for entry in chosen.by:
        print(one_line(f"for {entry}"))


@app.command()
def push(
    prompts: Annotated[Path, typer.Argument(help="FILE.safetensors from `prometar export`.")],
    repository: Annotated[str, typer.Argument(help="owner/name. Created if it does not exist.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
) -> None:
    """Upload a prompt file to the Hugging Face Hub.

    `prometar.load("hf://owner/name")` loads the file.
    """
    from prometar.inference.prompt_file import push as push_prompts

    url = push_prompts(prompts, repository, public=public)
    print(f"Uploaded to {url}")


@app.command()
def alignment(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs trained with `prometar train --alignment-every N`.")
    ],
    to: Annotated[Path | None, typer.Option(help="Write a plot of all runs to this HTML file.")] = None,
) -> None:
    """Show the cosine similarity of support and query gradients."""
    from prometar.analysis.alignment import ALIGNMENT_FILE, read_alignment, render_page, summary

    records = {str(run): read_alignment(run / ALIGNMENT_FILE) for run in runs}
    for name, record in records.items():
        print(f"{name}: {summary(record)}")
    if to is not None:
        write_atomically(resolve_path(to), render_page(records).encode())
        print(f"Plot written to {to}")


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs (subfolders are searched too), of studies or of `reproduce`."),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Reference: a label in the table, or a folder of `reproduce`. Default: the first study or "
            "folder of `reproduce`; for other runs prometar or, if absent, the first label."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric to compare, such as joint_H, base_macro_f1 or new_calibration_error. Repeatable. "
            "Default: base, new and H, or accuracy."
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this CSV file.")] = None,
) -> None:
    """Compare methods, studies or reproductions, paired by seed."""
    from rich.console import Console

    from prometar.comparison.finished_runs import compare_runs
    from prometar.comparison.render import as_csv, print_comparison

    metrics = [] if metric is None else metric
    differences, notes = compare_runs(runs, reference=reference, metrics=metrics)
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    print_comparison(differences, notes, console)
    if csv is not None:
        write_atomically(resolve_path(csv), as_csv(differences).encode())
        print(f"Table written to {csv}")


# The package tune registers its commands, such as search, as entry points.
for _command in sorted(entry_points(group="prometar.commands"), key=lambda entry: entry.name):
    app.command(name=_command.name, cls=Command)(_command.load())


def _require_config_file(path: Path) -> None:
    """Raise a UserError if `path` is a folder, such as that of a study or a run."""
    if not path.is_dir():
        return
    fix = "Pass a file, such as best.yaml in the folder of a study."
    for name in ("best.yaml", "config.yaml"):
        file = path / name
        if file.is_file():
            fix = f"Pass --config {file}."
            break
    raise UserError(f"--config {path} is a folder. {fix}")


def _default_folder(config: Config) -> Path:
    """Return the folder of a run without `--out`."""
    name = f"{Path(config.method).name}-{file_name(config.data.name)}-seed{config.train.seed}"
    return Path("out/train") / name


def _add_option(given: ConfigData, key: str, option: str, value: str | None) -> None:
    """Add the value of an option to the settings that were given with `--set`.

    Raises:
        UserError: the setting was also given with `--set`.
    """
    if value is None:
        return
    if key in given:
        raise UserError(f"--set {key} conflicts with {option}. Pass one of them.")
    given[key] = value


def _configure_run(
    start: Config | None, given: ConfigData, objective: str
) -> tuple[Config, list[PublishedEntry]]:
    """Return the configuration of a run, and the entries of the recipe's `by` that apply to the run.

    Args:
        start: Configuration given with `--config`, or None.
        given: Settings by dotted key, given with `--set` and other options.
        objective: Name of the objective.

    Raises:
        UserError: a setting is unknown, invalid or unused, or the data root does not apply to the dataset.
    """
    values = dict(given)
    if start is None:
        _set_default_dataset_and_backbone(values)
    defaults = Config() if start is None else start
    _set_default_root(values, defaults)

    method = str(values.get("method", defaults.method))
    entries: list[PublishedEntry] = []
    if start is not None and method == start.method:
        # A written configuration is complete. It contains published settings already.
        chosen = start.override(values, where="--set").with_defaults()
    else:
        kept = {} if start is None else _settings_for_another_method(start)
        overrides = {key: value for key, value in values.items() if key != "method"}
        protocol = protocol_of(objective)
        chosen = configure(method, kept, {"--set": overrides}, protocol=protocol)
        entries = recipe(method).entries_for(chosen.data.name, protocol, chosen.data.shots)
    chosen = absolute_paths(chosen)
    Config.require_used(values, [chosen], "these settings")
    return chosen, entries


def _set_default_dataset_and_backbone(values: ConfigData) -> None:
    """Add the dataset and the backbone of a run without `--config` to its settings, unless they are given."""
    values.setdefault("data.name", DEFAULT_DATASET)
    backbone, pretrained = resolve_backbone(
        [str(values["data.name"])], values.get("backbone.name"), values.get("backbone.pretrained")
    )
    values["backbone.name"] = backbone
    values["backbone.pretrained"] = pretrained


def _set_default_root(values: ConfigData, defaults: Config) -> None:
    """Add the default data root to the settings of a run, unless `values` or `defaults` contain one.

    Raises:
        UserError: a data root is given, but the images of the dataset are rendered.
    """
    dataset = str(values.get("data.name", defaults.data.name))
    if values.get("data.root") is not None:
        reject_unused_root([dataset])
    root = default_root(dataset)
    if defaults.data.root is None and root is not None:
        values.setdefault("data.root", root)


def _settings_for_another_method(config: Config) -> dict[str, object]:
    """Return the settings that --config contributes to another method: data, backbone and seed."""
    settings = {key: value for key, value in config.flat().items() if key.startswith(("data.", "backbone."))}
    settings["train.seed"] = config.train.seed
    return settings


def _repeat_test(run: Path, *, predictions: bool, trust_code: bool) -> Path:
    """Repeat the test of a finished run, and print the results.

    Returns:
        The path for predictions.
    """
    from prometar.run_folder import evaluate_run
    from prometar.training.prediction_file import PREDICTIONS_FILE
    from prometar.training.run_result import read_result

    evaluation = evaluate_run(run, trust_code=trust_code, predictions=predictions)
    _print_accuracies(str(run), evaluation.scores, read_result(run).objective)
    _print_metrics(evaluation.metrics, evaluation.joint_accuracies)
    return run / PREDICTIONS_FILE


def _test_on_dataset(
    run: Path, dataset: str, data_root: str | None, *, predictions: bool, trust_code: bool
) -> Path:
    """Test a finished run on all classes of a dataset, and print the results.

    Returns:
        The path for predictions.
    """
    from prometar.run_folder import evaluate_classifier, load_run_classifier, target_predictions_path
    from prometar.training.prediction_file import write_predictions
    from prometar.training.run_result import read_result

    root = data_root
    if root is None:
        root = default_root(dataset)
    else:
        reject_unused_root([dataset])
    if root is not None:
        root = absolute_root(root)

    classifier = load_run_classifier(run, trust_code=trust_code)
    predicted = evaluate_classifier(classifier, open_dataset(dataset, root))
    print(f"{run} on {dataset}: {predicted.predictions.accuracy:.2f} %")
    _print_metrics({"all": predicted.metrics}, {})

    path = target_predictions_path(run, dataset)
    if predictions:
        write_predictions(path, {"all": predicted}, run_digest=read_result(run).run_digest)
    return path


def _print_epoch(num_epochs: int, record: dict[str, Any]) -> None:
    """Print the progress of a run after an epoch, given the record of the epoch."""
    loss = ""
    if "direct_ce" in record:  # cross-entropy on the whole batch, which untrained runs do not have
        loss = f", loss {record['direct_ce']:.3f}"
    print(f"epoch {record['epoch']}/{num_epochs}{loss}, {record['seconds']:.0f} s elapsed", flush=True)


def _print_accuracies(title: str, scores: dict[str, Any], objective: str) -> None:
    """Print the accuracies of a run and, if it differs from an accuracy, the score, in one line.

    Args:
        scores: Values in percent: accuracies by evaluation set, and the score as "objective".
        objective: Name of the objective, which defines the score.
    """
    rule = objective_of(objective)
    new = "new (predicted)" if rule.predicts_new else "new"
    labels = {"all": "all classes", "base": "base", "new": new}
    has_accuracies = any(key in scores for key in labels)
    # Without new classes, the only accuracy is the score, so the score is not printed again.
    if "new" in scores or not has_accuracies:
        labels["objective"] = rule.title
    values = [f"{label} {scores[key]:.2f} %" for key, label in labels.items() if key in scores]
    print(one_line(f"{title}: {', '.join(values)}"))


def _print_metrics(
    metrics: "Mapping[str, ClassificationMetrics]", joint_accuracies: Mapping[str, float]
) -> None:
    """Print the metrics of each evaluation set, and the accuracies among base and new classes together."""
    for name, set_metrics in metrics.items():
        title = _SET_TITLES.get(name, name)
        calibration = f"calibration error {set_metrics.calibration_error:.1f} points"
        lowest = _lowest_accuracies(set_metrics)
        print(one_line(f"{title}: macro F1 {set_metrics.macro_f1:.2f} %, {calibration}, lowest: {lowest}"))
    if joint_accuracies:
        texts = [f"{name} {accuracy:.2f} %" for name, accuracy in joint_accuracies.items()]
        harmonic = harmonic_mean(joint_accuracies)
        print(f"among base and new classes together: {', '.join(texts)}, H {harmonic:.2f} %")


def _lowest_accuracies(metrics: "ClassificationMetrics") -> str:
    """Return the classes with images and the lowest accuracies, such as "cat 41 %, dog 52 %"."""
    classes = zip(metrics.class_accuracies, metrics.classnames, metrics.num_images, strict=True)
    with_images = [(accuracy, classname) for accuracy, classname, num_images in classes if num_images > 0]
    shown = sorted(with_images)[:_NUM_SHOWN_CLASSES]
    return ", ".join(f"{classname} {accuracy:.0f} %" for accuracy, classname in shown)


def main(args: list[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    return run_cli(app, sys.argv[1:] if args is None else args)
