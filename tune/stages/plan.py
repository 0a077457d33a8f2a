"""Plan of a study: checks, digests of inputs, number of runs, and estimated duration.

`plan_study` reads the image lists of the datasets, but does not open images or load weights.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

from prometar.cli.console import format_count, format_duration
from prometar.clip.openclip import Backbone, load_backbone, require_backbone
from prometar.clip.wording import fill_template
from prometar.config.settings import Config
from prometar.data.datasets.catalog import dataset_location, open_dataset, reject_output_in_dataset
from prometar.data.datasets.class_texts import read_texts, texts_of
from prometar.data.datasets.dataset import Dataset, Item, abbreviated, classnames
from prometar.data.datasets.exclusions import EXCLUDED_FILE
from prometar.data.preparation.check import unreadable_images
from prometar.data.splits.objective import FINAL, SEARCH_OBJECTIVES, FewShotSplit, objective_of, split_dataset
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import stream_local
from prometar.data.streaming.transforms import TransformSpec
from prometar.device import to_cpu
from prometar.environment import num_cpus
from prometar.errors import UserError, WorkError
from prometar.io.custom import convert_errors, is_custom, source_digest
from prometar.io.files import file_size
from prometar.io.stores import join
from prometar.methods.component_check import check_components
from prometar.methods.composition import build
from prometar.step.prompted_clip import prompt_texts
from prometar.training.drift import drift_version, out_of_domain_names
from prometar.training.epoch import rates_of, train_step
from prometar.training.memory import Footprint
from prometar.training.run import build_run, initial_state
from tune.config import StudyConfig
from tune.execution.resources import plan_trials, uses_gpus
from tune.records.schema import ClassSplit
from tune.space.ranges import Settings
from tune.space.space import EPOCHS_KEY, required_values
from tune.stages.statistics import ALPHA_BY_PAIRS, BASELINE_RUNS
from tune.store.pruners import make_pruner
from tune.store.samplers import make_sampler

TOTAL = "Maximum total"
"""Key of the sums over all stages in `StudyPlan.stages`."""
TIMED_STEPS = 3
"""Number of steps that an estimate times, after one untimed step."""


class Amounts(NamedTuple):
    """Maximum numbers of runs, epochs and steps of a stage, each summed over the datasets."""

    runs: int
    epochs: int
    steps: int

    def __str__(self) -> str:
        runs = format_count(self.runs, "run")
        epochs = format_count(self.epochs, "epoch")
        steps = format_count(self.steps, "step")
        return f"{runs}, {epochs}, {steps}"


class StudySplits(NamedTuple):
    """Splits of a dataset: that of search and confirmation, and that of the final test."""

    search: FewShotSplit
    final: FewShotSplit


@dataclass(frozen=True)
class StudyPlan:
    """Plan of a study.

    Args:
        stages: Amounts by stage. Their sums are under the key `TOTAL`.
        remarks: Conditions under which a stage needs fewer runs or epochs, by stage.
        splits: Splits by dataset.
        datasets: Datasets in the order of `search.datasets`.
    """

    stages: Mapping[str, Amounts]
    remarks: Mapping[str, str]
    splits: Mapping[str, StudySplits]
    datasets: tuple[Dataset, ...]

    @property
    def classes(self) -> dict[str, ClassSplit]:
        """Base classes, on which runs train, and new classes, by dataset."""
        classes: dict[str, ClassSplit] = {}
        for name, splits in self.splits.items():
            new_classes = classnames(splits.final.evaluations["new"])
            classes[name] = ClassSplit(base=splits.final.classnames, new=new_classes)
        return classes

    @property
    def num_jobs(self) -> int:
        """Upper bound on the number of jobs: the maximum number of runs. Each job has at least one run."""
        return self.stages[TOTAL].runs

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the datasets and the splits of the search."""
        notes = [f"{dataset.name}: {dataset.note}" for dataset in self.datasets if dataset.note]
        notes += [splits.search.note for splits in self.splits.values() if splits.search.note]
        return list(dict.fromkeys(notes))  # datasets may have equal notes

    def __str__(self) -> str:
        lines: list[str] = []
        for name, classes in self.classes.items():
            base = _describe_classes("base", classes.base)
            new = _describe_classes("new", classes.new)
            lines.append(f"{name}: {base}, {new}")
        for name, amounts in self.stages.items():
            if amounts.runs:
                remark = f" ({self.remarks[name]})" if name in self.remarks else ""
                lines.append(f"{name}: {amounts}{remark}")
        return "\n".join(lines)


def _describe_classes(kind: str, names: Sequence[str]) -> str:
    """Return the number of classes and some of their names. `kind` is "base" or "new"."""
    return f"{len(names)} {kind} classes ({abbreviated(names)})"


def plan_study(config: StudyConfig) -> StudyPlan:
    """Check everything that can be checked without weights, and count runs, epochs and steps.

    Raises:
        UserError: a dataset is missing or too small, or an option is invalid (e.g. the sampler is unknown, or
            the space is empty).
    """
    _check_search(config)
    baseline = config.baseline
    search = config.search
    weights = baseline.backbone.pretrained
    require_backbone(baseline.backbone.name, weights)
    if weights and weights.endswith(".safetensors") and file_size(Path(weights)) is None:
        raise UserError(f"--pretrained {weights} does not exist.")

    datasets = [_open_dataset(config, name) for name in search.datasets]
    splits = {
        name: StudySplits(
            search=_split(config, search.objective, dataset, seed=baseline.train.seed),
            final=_split(config, FINAL, dataset, seed=baseline.train.seed),
        )
        for name, dataset in zip(search.datasets, datasets, strict=True)
    }
    return StudyPlan(
        stages=_stages(config, splits),
        remarks=_remarks(config, num_datasets=len(splits)),
        splits=splits,
        datasets=tuple(datasets),
    )


def _check_search(config: StudyConfig) -> None:
    """Check method, objective, space, sampler and pruner of a study.

    Raises:
        UserError: one of them is invalid, or they cannot be used together.
    """
    search = config.search
    if any(build(each).is_untrained for each in config.baselines):
        raise UserError(f"--method {config.baseline.method} does not train. Choose a method with prompts.")
    objective = objective_of(search.objective, SEARCH_OBJECTIVES)
    if not objective.for_search:
        raise UserError(f"--objective must be one of {', '.join(SEARCH_OBJECTIVES)}, got {search.objective}.")
    if "new" in search.goals and not objective.has_new_accuracy:
        raise UserError(f"--goals new requires an objective that scores new classes, got {search.objective}.")
    if not search.space.ranges:
        raise UserError(
            f"--space {search.space.name} contains no setting of {config.baseline.method}. "
            "Choose another space."
        )
    fixed = {"method", "train.seed", "data.name", "data.root"} & search.space.ranges.keys()
    if fixed:
        raise UserError(f"--space {search.space.name} must not contain {min(fixed)}, which the study sets.")

    # `override` and `build` raise a UserError if a value is invalid.
    for key, entry in search.space.ranges.items():
        required = required_values(entry, search.space.ranges)  # without them, `key` has no effect
        for value in entry.probe_values:
            settings = {**config.baseline_settings, **required, key: value}
            build(config.baseline.override(settings))

    with convert_errors(search.sampler):
        make_sampler(search.sampler, search.space, seed=1, concurrency=1)
    with convert_errors(search.pruner):
        make_pruner(search, config.max_epochs, concurrency=1)


def _open_dataset(config: StudyConfig, name: str) -> Dataset:
    """Open a dataset of a study.

    Raises:
        UserError: the dataset is missing or invalid, or the study's folder is inside the dataset's folder.
    """
    data = config.baseline.data
    reject_output_in_dataset(config.location.out / config.name, name, data.root)
    args = data.args if name == data.name else {}  # they apply only to `data.name`, the first dataset
    return open_dataset(name, data.root, args)


def _split(
    config: StudyConfig, objective: str, dataset: Dataset, *, seed: int, shots: int | None = None
) -> FewShotSplit:
    """Return the split of a dataset for an objective and a seed.

    Args:
        shots: Training images per class. Default: those of the baseline.
    """
    return split_dataset(
        objective,
        dataset,
        shots=config.baseline.data.shots if shots is None else shots,
        seed=seed,
        val_per_class=config.search.val_per_class,
    )


def require_readable_images(config: StudyConfig, plan: StudyPlan, notify: Callable[[str], None]) -> None:
    """Decode all images that a stage will read, unless this has been done before.

    A corrupt image would otherwise stop runs after hours. Pixels are not used, so test images stay unseen.

    Args:
        config: Configuration of the study.
        plan: Plan of the study.
        notify: Function that is called with a message if images must be decoded, which takes time.

    Raises:
        WorkError: images cannot be decoded. The message lists them.
    """
    for dataset in plan.datasets:

        def report_start(num_images: int, name: str = dataset.name) -> None:
            count = format_count(num_images, "image")
            notify(f"Decoding {count} of {name} once, to find corrupt files")

        images = _images_of_all_stages(config, dataset)
        errors = unreadable_images(dataset, images, on_start=report_start)
        if errors:
            count = format_count(len(errors), "image")
            paths = abbreviated(sorted(errors))
            raise WorkError(
                f"{count} of {dataset.name} cannot be decoded: {paths}. Replace them, or list them in "
                f"{_exclusion_file(config, dataset)}, one path per line, then rerun this command. "
                "`prometar data check` shows the reasons."
            )


def _exclusion_file(config: StudyConfig, dataset: Dataset) -> str:
    """Return the path of the file in which users list the images to exclude."""
    return join(dataset_location(dataset.name, config.baseline.data.root or ""), EXCLUDED_FILE)


def _images_of_all_stages(config: StudyConfig, dataset: Dataset) -> tuple[Item, ...]:
    """Return the images of a dataset that search, confirmation or final test may read."""
    search = config.search
    if "data.shots" in search.space.ranges:
        return dataset.without_excluded(dataset.items)  # each trial has its own images
    search_seeds = (*search.seeds, *config.confirmation_seeds)
    splits = [_split(config, search.objective, dataset, seed=seed) for seed in search_seeds]
    splits += [_split(config, FINAL, dataset, seed=seed) for seed in config.final_seeds]
    images: dict[str, Item] = {}
    for split in splits:
        for items in (split.train, *split.evaluations.values()):
            images |= {item.path: item for item in items}
    return tuple(images.values())


def inspect_inputs(config: StudyConfig, plan: StudyPlan) -> tuple[dict[str, str], Footprint]:
    """Load the weights, and compute the digests of all inputs that determine results, except settings.

    Returns:
        Digests by input, and the sizes that determine memory use.

    Raises:
        UserError: the weights are missing, a component fails, or a dataset has too few out-of-domain names.
            Also if the file `regularizer.texts` lacks a class, or a class text is too long.
    """
    backbone = load_backbone(config.baseline.backbone.name, config.baseline.backbone.pretrained)
    check_components(config.baseline, backbone.clip)
    digests = {f"split of {dataset.name}": dataset.digest[:12] for dataset in plan.datasets}
    digests["weights"] = backbone.digest[:12]
    for name in _code_names(config):
        digests[f"code of {name}"] = source_digest(name)[:12]

    splits: list[FewShotSplit] = []
    for both in plan.splits.values():
        splits += [both.search, both.final]
    digests |= _digests_of_texts(config, backbone, splits)
    for dataset in plan.datasets:
        _require_short_texts(config.baseline, backbone, dataset)

    if objective_of(config.search.objective).predicts_new:
        digests["drift"] = drift_version(backbone)  # new accuracy is predicted from drift
        for dataset in plan.datasets:
            out_of_domain_names(dataset, backbone.vocabulary)  # raises a UserError if there are too few
    return digests, Footprint.of(backbone.clip, splits)


def _code_names(config: StudyConfig) -> list[str]:
    """Return the names (`module:Name`) of the user's own classes and functions that the study uses."""
    search = config.search
    names = [search.objective, search.sampler, search.pruner, *search.datasets]
    for key in search.space.ranges:
        names += [str(value) for value in search.space.probe_values(key)]
    return [*filter(is_custom, names), *config.baseline.custom_components.values()]


def _digests_of_texts(
    config: StudyConfig, backbone: Backbone, splits: Sequence[FewShotSplit]
) -> dict[str, str]:
    """Return the digests of the files of `regularizer.texts`, those of the baseline and of the space.

    Raises:
        UserError: a file cannot be read or lacks a class, or a text is too long for the backbone.
    """
    digests: dict[str, str] = {}
    regularizer = build(config.baseline).regularizer
    paths = [regularizer.texts, *config.search.space.probe_values("regularizer.texts")]
    for path in dict.fromkeys(str(each) for each in paths if each is not None):
        texts, digest = read_texts(Path(path))
        digests[f"texts of {path}"] = digest[:12]
        for split in splits:
            texts_by_class = texts_of(texts, split.classnames, path=path, equal_numbers=regularizer.draw)
            all_texts: list[str] = []
            for class_texts in texts_by_class:
                all_texts += class_texts
            backbone.tokenize(all_texts)  # raises a UserError if a text is too long
    return digests


def _require_short_texts(baseline: Config, backbone: Backbone, dataset: Dataset) -> None:
    """Raise a UserError if class texts of the baseline have more tokens than the backbone accepts."""
    method = build(baseline)
    regularizer = method.regularizer
    texts = prompt_texts(
        dataset.classnames,
        method.prompts,
        init=baseline.prompts.init,
        template=dataset.template,
        templates=dataset.templates,
    )
    if regularizer.uses_text:
        templates = regularizer.templates or (dataset.template_named(regularizer.template_name),)
        for template in templates:
            texts += [fill_template(template, name) for name in dataset.classnames]
    backbone.tokenize(texts)


def _stages(config: StudyConfig, splits: Mapping[str, StudySplits]) -> dict[str, Amounts]:
    """Return the amounts of each stage, and their sums."""
    search = config.search
    confirm = config.confirm
    batch_sizes = [each.train.batch_size for each in config.baselines]
    batch_sizes += map(int, search.space.probe_values("train.batch_size"))
    smallest_batch_size = min(batch_sizes)  # gives the maximum number of steps
    transform = TransformSpec(1, train=False)  # arbitrary, because no transform changes the number of steps

    def max_steps(split: FewShotSplit) -> int:
        """Return the maximum number of steps per epoch."""
        return ImageOrder(split.train, transform, batch_size=smallest_batch_size).steps_per_epoch

    def amounts(*, runs_per_dataset: int, epochs_per_run: int, steps_per_epoch: int) -> Amounts:
        """Return the amounts of a stage. `steps_per_epoch` is the sum over the datasets."""
        runs = runs_per_dataset * len(splits)
        return Amounts(
            runs=runs,
            epochs=runs * epochs_per_run,
            steps=runs_per_dataset * epochs_per_run * steps_per_epoch,
        )

    search_steps = sum(max_steps(each.search) for each in splits.values())
    final_steps = sum(max_steps(each.final) for each in splits.values())
    num_reruns = 0  # a single candidate is not rerun
    if confirm.top and search.trials > 1:
        num_candidates = min(confirm.top + 1, search.trials)  # with the baseline
        num_reruns = num_candidates * confirm.seeds
    final_epochs = max([config.max_test_epochs, *map(int, search.space.probe_values(EPOCHS_KEY))])
    stages = {
        "Search": amounts(
            runs_per_dataset=search.trials * len(search.seeds),
            epochs_per_run=config.max_epochs,
            steps_per_epoch=search_steps,
        ),
        "Confirmation": amounts(
            runs_per_dataset=num_reruns, epochs_per_run=final_epochs, steps_per_epoch=search_steps
        ),
        "Final test": amounts(
            runs_per_dataset=2 * len(config.final_seeds),
            epochs_per_run=final_epochs,
            steps_per_epoch=final_steps,
        ),
    }
    total = Amounts(
        runs=sum(each.runs for each in stages.values()),
        epochs=sum(each.epochs for each in stages.values()),
        steps=sum(each.steps for each in stages.values()),
    )
    return {**stages, TOTAL: total}


def _remarks(config: StudyConfig, *, num_datasets: int) -> dict[str, str]:
    """Return the conditions under which a stage needs fewer runs or epochs, by stage."""
    remarks: dict[str, str] = {}
    if config.search.pruner != "none":
        remarks["Search"] = "pruned trials train for fewer epochs"
    if config.test.seeds == "auto":
        pairs_of_first_analysis = min(ALPHA_BY_PAIRS)
        min_runs = 2 * num_datasets * pairs_of_first_analysis
        baseline_runs = BASELINE_RUNS * num_datasets
        baseline_case = f"{baseline_runs} runs if the default settings are selected"
        remarks["Final test"] = f"{min_runs} runs if the first seed pairs suffice, {baseline_case}"
    return remarks


def count_steps_per_epoch(config: StudyConfig, plan: StudyPlan, settings: Settings) -> int:
    """Return the number of training steps per epoch of a trial, summed over its datasets and seeds."""
    transform = TransformSpec(1, train=False)  # arbitrary, because no transform changes the number of steps
    steps = 0
    inputs = zip(config.search.datasets, plan.splits.values(), plan.datasets, strict=True)
    for name, splits, dataset in inputs:
        split = splits.search
        run_config = config.run_config(settings, dataset=name, seed=config.search.seed)
        if run_config.data.shots != config.baseline.data.shots:
            split = _split(
                config,
                config.search.objective,
                dataset,
                seed=config.search.seed,
                shots=run_config.data.shots,
            )
        order = ImageOrder(split.train, transform, batch_size=run_config.train.batch_size)
        steps += order.steps_per_epoch
    return steps * len(config.search.seeds)


def estimate(config: StudyConfig, plan: StudyPlan) -> str:
    """Load the weights, time a few steps, and describe the resources per trial and the time for all steps.

    The estimate assumes that concurrent trials do not slow each other down.

    Raises:
        UserError: a trial does not fit on this machine, or data or weights are missing or corrupt.
    """
    _, footprint = inspect_inputs(config, plan)
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = torch.cuda.device_count()
    nodes = [{"CPU": float(num_cpus()), "GPU": float(gpus), "memory": float(total_bytes)}]
    on_gpu = uses_gpus(nodes, config.resources)
    memory = max(footprint.memory_bytes(each, on_gpu=on_gpu) for each in config.baselines)
    resources, summary = plan_trials(nodes, config.resources, config.search.trials, memory)
    torch.set_num_threads(resources.threads)
    seconds = seconds_per_step(config)
    steps_per_trainer = plan.stages[TOTAL].steps / resources.num_concurrent
    max_duration = format_duration(steps_per_trainer * seconds)
    return (
        f"{summary}\n"
        f"On this machine, a training step takes {seconds:.2g} s, and all steps take at most {max_duration}. "
        "Starting the workers and scoring images take more time."
    )


def seconds_per_step(config: StudyConfig) -> float:
    """Return the mean duration of a training step of the baseline in seconds, including data loading.

    The first step, which is slower, counts only if it is the only step of the run.
    """
    run = build_run(config.baseline, config.search.objective, val_per_class=config.search.val_per_class)
    state = initial_state(run)
    rates = rates_of(run.config, 0)
    durations: list[float] = []
    started = time.perf_counter()
    for batch in islice(stream_local(run.order, run.dataset.source), 1 + TIMED_STEPS):
        state, scalars = train_step(run, state, batch, rates)
        to_cpu(scalars)  # waits for the device
        finished = time.perf_counter()
        durations.append(finished - started)
        started = finished
    if len(durations) > 1:
        durations = durations[1:]
    return mean(durations)
