"""A run's folder: config.yaml, checkpoint.safetensors while and after it trains, result.json at its end."""

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prometar.clip.openclip import load_clip
from prometar.clip.weights import weights_digest
from prometar.config.settings import Config, dump_config, load_config
from prometar.data.datasets.catalog import open_dataset, require_outside
from prometar.data.datasets.dataset import Dataset, classnames
from prometar.data.splits.fewshot import labels_of, select
from prometar.data.splits.objective import own_objective
from prometar.data.streaming.plan import eval_plan
from prometar.data.streaming.stream import StreamOptions, stream
from prometar.distributed.local_ray import start_ray
from prometar.environment import environment
from prometar.errors import UserError
from prometar.inference.classifier import Classifier, require_prompts
from prometar.inference.prompt_file import Card, require_prompts_target, write_prompts
from prometar.io.files import read_bytes, size_of, write_atomically
from prometar.io.lock import locked
from prometar.methods.composition import build_prompts
from prometar.training.checkpoint import Checkpoint, load_checkpoint
from prometar.training.epoch import Watch
from prometar.training.run import Run, backbone_of, build_run
from prometar.training.run_result import FILE, RunResult, read_result
from prometar.training.scoring import accuracy
from prometar.training.session import Session, Stream

FINAL = "final"
"""The objective of a run outside a search: train on all base classes, test once at the end."""


def ray_stream(run: Run, options: StreamOptions | None = None) -> Stream:
    """The run's images on Ray Data; Ray must be running."""
    return lambda plan, step: stream(plan, run.dataset.source, start_step=step, options=options)


def train_run(
    config: Config,
    folder: Path,
    *,
    objective: str = FINAL,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train on all base classes and test; goes on from the folder's checkpoint. Returns the last record.

    `objective`: other images and scores than those (`prometar.data.splits.objective`).
    `on_epoch` is told each epoch's record; `watch` sees each step's state and batch (`analysis.alignment`).

    Raises:
        UserError: whatever is wrong with the configuration, the data or the weights.
        WorkError: the folder holds another run, or the loss is not finite.
    """
    require_outside(folder, config.data.name, config.data.root)
    described = dump_config(config).encode()
    _require_free(folder, described, objective)  # before much is fetched and loaded
    run = build_run(config, objective)
    with locked(folder, f"the run {folder}"):
        session = Session(run, folder, ray_stream(run), watch)
        write_atomically(folder / "config.yaml", described)
        with closing(session):
            while not session.finished:
                on_epoch(session.epoch())
        write_result(folder, session)
    return session.history[-1]


def _require_free(folder: Path, described: bytes, objective: str) -> None:
    """Raises a UserError where it holds a study, or files that a run without a checkpoint would replace."""
    if size_of(folder / "study.yaml") is not None:
        raise UserError(f"{folder} holds a study: name another folder with --out")
    if size_of(folder / "checkpoint.safetensors") is not None:
        return  # the session compares it
    config, result = folder / "config.yaml", folder / FILE
    own = size_of(config) is not None and read_bytes(config) == described
    if own and size_of(result) is not None:
        with suppress(ValidationError):  # a damaged one is written again
            own = RunResult.model_validate_json(read_bytes(result)).objective == objective
    for file in (config, result):
        if not own and size_of(file) is not None:
            raise UserError(
                f"{file} is there already, and of no run that goes on here: name another folder with --out"
            )


def write_result(
    folder: Path, session: Session, *, cpus: float | None = None, gpus: float | None = None
) -> RunResult:
    """Write result.json of a session that has ended, and return what it says.

    cpus, gpus: What it held while it ran.
    """
    run, last = session.run, session.history[-1]
    result = RunResult(
        result=last,
        accuracies={name: last[name] for name in run.evaluations},
        images={name: len(found.plan.items) for name, found in run.evaluations.items()},
        history=tuple(session.history),
        objective=run.objective,
        classnames=classnames(run.plan.items),
        template=run.dataset.template,
        run=run.digest,
        data=run.dataset.digest,
        weights=run.backbone.digest,
        environment=environment(),
        code=run.code,
        cpus=cpus,
        gpus=gpus,
    )
    result.write(folder)
    return result


def evaluate_run(folder: Path, *, trust_parts: bool = False) -> dict[str, float]:
    """Test a finished run's prompts again: accuracies in percent and their harmonic mean.

    Args:
        trust_parts: Whether modules that the folder's files name may be imported (default: they are refused).
    Raises:
        UserError: the folder holds no run, or one that has not finished.
    """
    config, _, result = _finished(folder, trust_parts)
    objective = own_objective(result.objective)
    if objective and not trust_parts:
        raise UserError(f"{folder} names code that is not prometar's ({objective[0]}): pass --trust-parts")
    run = build_run(config, result.objective)
    return Session(run, folder, ray_stream(run)).score()


def trained(folder: Path, *, trust_parts: bool = False) -> Classifier:
    """A finished run's prompts as a classifier; its images are not needed.

    Raises:
        UserError: the folder holds no run, or one that has not finished; the weights are missing.
    """
    config, checkpoint, result = _finished(folder, trust_parts)
    if checkpoint.run != result.run:
        raise UserError(f"the checkpoint and the result in {folder} are of two runs: train it again")
    backbone = backbone_of(config.backbone)
    if result.weights != backbone.digest:
        pretrained = config.backbone.pretrained or config.backbone.name
        raise UserError(f"the run in {folder} was trained with other weights than {pretrained} now holds")
    state = checkpoint.state.to(backbone.clip.device)
    prompts = build_prompts(config)
    require_prompts(folder / "checkpoint.safetensors", backbone.clip, prompts, state.tested)
    return Classifier(backbone, prompts, state.tested, config, result.classnames, result.template)


def evaluate_on(classifier: Classifier, dataset: Dataset, *, options: StreamOptions | None = None) -> float:
    """Accuracy in percent on all test images of a data set, among its own classes; Ray must be running."""
    labels = labels_of((*dataset.train, *dataset.val, *dataset.test))
    items = select(dataset.test, labels)
    if not items:
        raise UserError(f"{dataset.name} has no test images")
    plan = eval_plan(items, size=classifier.backbone.clip.image_size)
    model = classifier.model(dataset.classnames, dataset.template)
    batches = stream(plan, dataset.source, options=options)
    return accuracy(classifier.backbone, model, classifier.leaves, batches)


def evaluate_run_on(folder: Path, name: str, root: str | None, *, trust_parts: bool = False) -> float:
    """`evaluate_on` of a run's folder and a data set by name.

    Raises:
        UserError: no finished run, or a data set that is unknown or missing.
    """
    dataset, classifier = open_dataset(name, root), trained(folder, trust_parts=trust_parts)
    start_ray()
    return evaluate_on(classifier, dataset)


def export_run(folder: Path, to: Path, *, trust_parts: bool = False) -> Path:
    """Write a finished run's prompts and their card. Returns the path of the readable card.

    Raises:
        UserError: no finished run, another suffix than .safetensors, or a file that exists.
        WorkError: the folder is not writable.
    """
    require_prompts_target(to)
    classifier, result = trained(folder, trust_parts=trust_parts), read_result(folder)
    backbone = classifier.config.backbone
    local = backbone.pretrained is not None and os.path.isfile(backbone.pretrained)
    shared: dict[str, Any] = {"data.root": None}
    if local:
        shared["backbone.pretrained"] = Path(str(backbone.pretrained)).name
    card = Card(
        config=classifier.config.override(shared),
        objective=result.objective,
        classnames=result.classnames,
        template=result.template,
        digest=weights_digest(load_clip(backbone.name, backbone.pretrained)),
        weights_file=local,
        accuracies=result.accuracies,
        images=result.images,
        environment=result.environment,
        code=result.code,
    )
    return write_prompts(to, classifier.leaves, card)


def _finished(folder: Path, trust_parts: bool) -> tuple[Config, Checkpoint, RunResult]:
    """What the folder of a run that has ended holds."""
    if size_of(folder / "config.yaml") is None:
        raise UserError(f"{folder} holds no run: pass a folder that `prometar train --out` wrote")
    config = load_config(folder / "config.yaml").refuse_own(str(folder), trusted=trust_parts)
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    if checkpoint is None:
        alone = "only its result was kept: train it in another folder, by its config.yaml"
        what = "train the run first" if size_of(folder / FILE) is None else alone
        raise UserError(f"{folder} has no checkpoint.safetensors: {what}")
    done, epochs = len(checkpoint.history), config.train.epochs
    if done < epochs:
        raise UserError(
            f"the run in {folder} has done {done} of {epochs} epochs: finish it with `prometar train`"
        )
    return config, checkpoint, read_result(folder)
