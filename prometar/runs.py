"""Runs in folders: config.yaml, checkpoint.safetensors, and result.json at the end."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from prometar.clip.openclip import load_clip
from prometar.clip.weights import weights_digest
from prometar.config.settings import Config, dump_config, load_config
from prometar.data.datasets.catalog import open_dataset, require_outside
from prometar.data.datasets.dataset import Dataset, classnames
from prometar.data.splits.fewshot import labels_of, select
from prometar.data.splits.objective import FINAL
from prometar.data.streaming.plan import eval_plan
from prometar.data.streaming.stream import Stream, stream_local
from prometar.environment import environment
from prometar.errors import PrometarError, UserError
from prometar.inference.classifier import Classifier, prompts_of
from prometar.inference.prompt_file import Card, require_prompts_target, write_prompts
from prometar.io.custom import is_reference
from prometar.io.files import locked, read_bytes, size_of, write_atomically
from prometar.training.checkpoint import Checkpoint, load_checkpoint
from prometar.training.epoch import Watch
from prometar.training.run import backbone_of, build_run
from prometar.training.run_result import FILE, EpochRecord, RunResult, read_result
from prometar.training.scoring import accuracy
from prometar.training.session import Session


def train_run(
    config: Config,
    folder: Path,
    *,
    objective: str = FINAL,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    watch: Watch | None = None,
) -> EpochRecord:
    """Train and test a run, from the folder's checkpoint if there is one. Return the last epoch's record.

    Args:
        objective: Images and scores (`prometar.data.splits.objective`).
        on_epoch: Receives each epoch's record.
        watch: Receives the state and the batch before each step.

    Raises:
        UserError: an error in the configuration, the data or the weights.
        WorkError: the folder contains another run, or the loss is not finite.
    """
    require_outside(folder, config.data.name, config.data.root)
    described = dump_config(config).encode()
    _require_free(folder, described, objective)  # before the data and the weights are loaded
    run = build_run(config, objective)
    with locked(folder, f"the run {folder}"):
        session = Session(run, folder, watch=watch)
        write_atomically(folder / "config.yaml", described)
        with closing(session):
            while not session.finished:
                on_epoch(session.epoch())
        write_result(folder, session)
    return session.history[-1]


def _require_free(folder: Path, described: bytes, objective: str) -> None:
    """Refuse a folder of other results.

    Raises:
        UserError: the folder contains a study, or files of a run that cannot be resumed.
    """
    if size_of(folder / "study.yaml") is not None:
        raise UserError(f"{folder} contains a study. Choose another folder with --out.")
    if size_of(folder / "checkpoint.safetensors") is not None:
        return  # the session compares it
    config, result = folder / "config.yaml", folder / FILE
    same = size_of(config) is not None and read_bytes(config) == described
    if same and size_of(result) is not None:
        with suppress(PrometarError):  # a corrupt one is written again
            same = read_result(folder).objective == objective
    for file in (config, result):
        if not same and size_of(file) is not None:
            raise UserError(f"{file} belongs to another run. Choose another folder with --out.")


def write_result(
    folder: Path, session: Session, *, cpus: float | None = None, gpus: float | None = None
) -> RunResult:
    """Write result.json of a finished session, and return it.

    Args:
        cpus, gpus: Resources of the run.
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
    """Test a finished run's prompts again. Return accuracies in percent and their harmonic mean.

    Args:
        trust_parts: Import modules that the folder's files name (default: such folders are rejected).

    Raises:
        UserError: the folder does not contain a finished run.
    """
    config, _, result = _finished(folder, trust_parts)
    objective = result.objective
    if is_reference(objective) and not trust_parts:
        raise UserError(f"{folder} names the custom objective {objective}. Read it, then pass --trust-parts.")
    return Session(build_run(config, objective), folder).score()


def evaluate_on(classifier: Classifier, dataset: Dataset, stream: Stream = stream_local) -> float:
    """Return the accuracy in percent on all test images of a dataset."""
    items = select(dataset.test, labels_of(dataset.items))
    if not items:
        raise UserError(f"{dataset.name} has no test images.")
    plan = eval_plan(items, size=classifier.backbone.clip.image_size)
    model = classifier.model(dataset.classnames, dataset.template)
    batches = stream(plan, dataset.source, 0)
    return accuracy(classifier.backbone, model, classifier.leaves, batches)


def evaluate_targets(folder: Path, names: Sequence[str], stream: Stream = stream_local) -> None:
    """Test a finished run's prompts on other datasets, unless its result contains them already.

    Raises:
        UserError: a dataset is missing, or has no test images.
    """
    result = read_result(folder)
    classifier = trained(folder, trust_parts=True)
    for name in names:
        if name not in result.tests:
            dataset = open_dataset(name, classifier.config.data.root)
            tested = evaluate_on(classifier, dataset, stream), dataset.digest
            result = result.model_copy(update={"tests": {**result.tests, name: tested}})
            result.write(folder)


def trained(folder: Path, *, trust_parts: bool = False) -> Classifier:
    """Return a finished run's prompts as a classifier. Its images are not needed.

    Raises:
        UserError: the folder does not contain a finished run, or the weights are missing.
    """
    config, checkpoint, result = _finished(folder, trust_parts)
    if checkpoint.run != result.run:
        raise UserError(f"{folder}: checkpoint and result belong to different runs. Train the run again.")
    backbone = backbone_of(config.backbone)
    if result.weights != backbone.digest:
        pretrained = config.backbone.pretrained or config.backbone.name
        raise UserError(f"{folder} was trained with other weights than {pretrained} contains now.")
    state = checkpoint.state.to(backbone.clip.device)
    prompts = prompts_of(folder / "checkpoint.safetensors", config, backbone.clip, state.tested)
    return Classifier(backbone, prompts, state.tested, config, result.classnames, result.template)


def export_run(folder: Path, to: Path, *, trust_parts: bool = False) -> Path:
    """Write a finished run's prompts and their card. Return the path of the readable card.

    Raises:
        UserError: no finished run, another suffix than .safetensors, or a file that exists.
        WorkError: the folder is not writable.
    """
    require_prompts_target(to)
    classifier, result = trained(folder, trust_parts=trust_parts), read_result(folder)
    backbone = classifier.config.backbone
    local = backbone.pretrained is not None and os.path.isfile(backbone.pretrained)
    shared: dict[str, object] = {"data.root": None}
    if local:
        shared["backbone.pretrained"] = Path(str(backbone.pretrained)).name
    card = Card(
        config=classifier.config.override(shared),
        digest=weights_digest(load_clip(backbone.name, backbone.pretrained)),
        weights_file=local,
        **result.model_dump(include=set(Card.model_fields)),
    )
    return write_prompts(to, classifier.leaves, card)


def _finished(folder: Path, trust_parts: bool) -> tuple[Config, Checkpoint, RunResult]:
    """Return the files of a finished run."""
    if size_of(folder / "config.yaml") is None:
        raise UserError(f"{folder} does not contain a run. Pass a folder that `prometar train --out` wrote.")
    config = load_config(folder / "config.yaml").refuse_own(str(folder), trusted=trust_parts)
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint.safetensors. Train its config.yaml in another folder.")
    done, epochs = len(checkpoint.history), config.train.epochs
    if done < epochs:
        raise UserError(f"{folder} has finished {done} of {epochs} epochs. Resume it with `prometar train`.")
    return config, checkpoint, read_result(folder)
