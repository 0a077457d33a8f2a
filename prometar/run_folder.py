"""Training runs, whose folders contain config.yaml, checkpoint.safetensors and, at the end, result.json."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from prometar.clip.openclip import load_clip
from prometar.clip.weights import weights_digest
from prometar.config.settings import Config, dump_config, load_config
from prometar.data.datasets.catalog import open_dataset, reject_output_in_dataset
from prometar.data.datasets.dataset import Dataset, classnames
from prometar.data.splits.fewshot import labels_of, select_and_relabel
from prometar.data.splits.objective import FINAL
from prometar.data.streaming.order import eval_order
from prometar.data.streaming.stream import StreamFn, stream_local
from prometar.environment import environment
from prometar.errors import PrometarError, UserError
from prometar.inference.classifier import Classifier, checked_method
from prometar.inference.prompt_file import Card, require_new_prompt_file, write_prompts
from prometar.io.custom import is_custom
from prometar.io.files import file_size, lock_folder, read_bytes, write_atomically
from prometar.methods.composition import build
from prometar.training.cache import RunCache
from prometar.training.checkpoint import Checkpoint, load_checkpoint
from prometar.training.epoch import StepCallback
from prometar.training.run import build_run
from prometar.training.run_result import RESULT_FILE, EpochRecord, RunResult, read_result
from prometar.training.scoring import accuracy
from prometar.training.session import Session


def train_run(
    config: Config,
    folder: Path,
    *,
    objective: str = FINAL,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    before_step: StepCallback | None = None,
    shared: RunCache | None = None,
) -> EpochRecord:
    """Train and test a run in a folder, or resume it from its checkpoint. Return the last epoch's record.

    Args:
        objective: Name of the objective (`prometar.data.splits.objective`).
        on_epoch: Called with the record of each epoch.
        before_step: Called before each step.
        shared: Cache of what several runs share, e.g. the backbone. Default: a new one.

    Raises:
        UserError: the settings, data or weights are invalid, or the folder contains a study or another run.
        WorkError: the checkpoint is corrupt or does not match the run, or the loss is not finite.
    """
    reject_output_in_dataset(folder, config.data.name, config.data.root)
    config_text = dump_config(config).encode()
    _require_same_run(folder, config_text, objective)  # before loading data, which takes time
    run = build_run(config, objective, shared=shared)
    with lock_folder(folder, f"the run {folder}"):
        session = Session(run, folder, before_step=before_step)
        write_atomically(folder / "config.yaml", config_text)
        with closing(session):
            with suppress(UserError):  # keep the training's environment and its tests on other datasets
                if (result := read_result(folder)).history == tuple(session.history):
                    return result.last_epoch
            while not session.finished:
                on_epoch(session.run_epoch())
        write_result(folder, session)
    return session.history[-1]


def _require_same_run(folder: Path, config_text: bytes, objective: str) -> None:
    """Raise a UserError if a folder contains a study, or the configuration or result of another run."""
    if file_size(folder / "study.yaml") is not None:
        raise UserError(f"{folder} contains a study. Choose another folder with --out.")
    if file_size(folder / "checkpoint.safetensors") is not None:
        return  # the session compares the checkpoint with the run
    config_file, result_file = folder / "config.yaml", folder / RESULT_FILE
    is_same = file_size(config_file) is not None and read_bytes(config_file) == config_text
    if is_same and file_size(result_file) is not None:
        with suppress(PrometarError):  # a corrupt result is replaced
            is_same = read_result(folder).objective == objective
    for file in (config_file, result_file):
        if not is_same and file_size(file) is not None:
            raise UserError(f"{file} belongs to another run. Choose another folder with --out.")


def write_result(
    folder: Path, session: Session, *, cpus: float | None = None, gpus: float | None = None
) -> RunResult:
    """Write result.json of a finished session, and return the result.

    Args:
        cpus, gpus: Resources that were allocated to the run, or None if unknown.
    """
    run, last = session.run, session.history[-1]
    result = RunResult(
        last_epoch=last,
        accuracies={name: last[name] for name in run.evaluations},
        images={name: len(evaluation.order.items) for name, evaluation in run.evaluations.items()},
        history=tuple(session.history),
        objective=run.objective,
        classnames=classnames(run.order.items),
        template=run.dataset.template,
        templates=dict(run.dataset.templates),
        run_digest=run.digest,
        data_digest=run.dataset.digest,
        weights_digest=run.backbone.digest,
        environment=environment(),
        code=run.code_digests,
        val_per_class=run.val_per_class,
        cpus=cpus,
        gpus=gpus,
    )
    result.write(folder)
    return result


def evaluate_run(folder: Path, *, trust_code: bool = False) -> dict[str, float]:
    """Test a finished run again. Return the accuracy in percent of each evaluation set, and the score.

    Args:
        trust_code: True to import custom components. By default, runs that use them are refused.

    Raises:
        UserError: the folder does not contain a finished run.
    """
    config, _, result = _load_finished(folder, trust_code)
    objective = result.objective
    if is_custom(objective) and not trust_code:
        raise UserError(f"{folder} uses objective {objective}. Review its code, then pass --trust-code.")
    return Session(build_run(config, objective, val_per_class=result.val_per_class), folder).score()


def evaluate_classifier(classifier: Classifier, dataset: Dataset, stream: StreamFn = stream_local) -> float:
    """Return a classifier's accuracy in percent on all test images of a dataset."""
    items = select_and_relabel(dataset.test, labels_of(dataset.items))
    if not items:
        raise UserError(f"{dataset.name} has no test images.")
    size = classifier.backbone.clip.image_size
    order = eval_order(items, size=size, exif_rotation=dataset.exif_rotation)
    model = classifier.model(dataset.classnames, dataset.template)
    batches = stream(order, dataset.source, 0)
    return accuracy(classifier.backbone, model, classifier.leaves, batches)


def evaluate_on_targets(
    folder: Path, names: Sequence[str], stream: StreamFn, *, shared: RunCache | None = None
) -> None:
    """Test a finished run on each dataset of `names` that has no accuracy in result.json yet, and add it.

    Args:
        shared: Cache that may contain the backbone. Default: a new one.

    Raises:
        UserError: a dataset is missing, or has no test images.
    """
    result = read_result(folder)
    classifier = load_run_classifier(folder, trust_code=True, shared=shared)  # the caller trained this run
    for name in names:
        if name not in result.tests:
            dataset = open_dataset(name, classifier.config.data.root)
            accuracy_and_digest = evaluate_classifier(classifier, dataset, stream), dataset.digest
            result = result.model_copy(update={"tests": {**result.tests, name: accuracy_and_digest}})
            result.write(folder)


def load_run_classifier(
    folder: Path, *, trust_code: bool = False, shared: RunCache | None = None
) -> Classifier:
    """Return a classifier with the prompts of a finished run. No images are read.

    Args:
        trust_code: True to import custom components. By default, runs that use them are refused.
        shared: Cache that may contain the backbone. Default: a new one.

    Raises:
        UserError: the folder contains no finished run, weights are missing, or weights or code have changed.
    """
    config, checkpoint, result = _load_finished(folder, trust_code)
    if checkpoint.run_digest != result.run_digest:
        raise UserError(f"{folder}: checkpoint and result belong to different runs. Train the run again.")
    shared = shared or RunCache()
    backbone = shared.backbone(config.backbone, folded=not build(config).changes_blocks)
    if result.weights_digest != backbone.digest:
        pretrained = config.backbone.pretrained or config.backbone.name
        raise UserError(f"The weights of {pretrained} have changed since {folder} was trained. Restore them.")
    leaves = checkpoint.state.to(backbone.clip.device).evaluation_leaves
    path, code = folder / "checkpoint.safetensors", result.code
    num_classes = len(result.classnames)
    method = checked_method(path, config, backbone.clip, num_classes, leaves, code)
    return Classifier(
        backbone=backbone,
        method=method,
        leaves=leaves,
        config=config,
        classnames=result.classnames,
        template=result.template,
        templates=result.templates,
    )


def export_run(folder: Path, to: Path, *, trust_code: bool = False) -> Path:
    """Write the prompts of a finished run, and a card (JSON) that describes them. Return the card's path.

    Raises:
        UserError: `folder` does not contain a finished run, or `to` exists or is not a .safetensors file.
        InfrastructureError: the folder of `to` is not writable.
    """
    require_new_prompt_file(to := Path(os.path.expanduser(to)))
    classifier = load_run_classifier(folder, trust_code=trust_code)
    backbone = classifier.config.backbone
    is_local = backbone.pretrained is not None and os.path.isfile(backbone.pretrained)
    overrides: dict[str, object] = {"data.root": None}  # a card contains no paths of this machine
    if is_local:
        overrides["backbone.pretrained"] = Path(str(backbone.pretrained)).name
    card = Card(
        config=classifier.config.override(overrides),
        digest=weights_digest(load_clip(backbone.name, backbone.pretrained)),  # before `Tower.folded`
        weights_file=is_local,
        **read_result(folder).model_dump(include=set(Card.model_fields)),  # the remaining fields
    )
    return write_prompts(to, classifier.leaves, card)


def _load_finished(folder: Path, trust_code: bool) -> tuple[Config, Checkpoint, RunResult]:
    """Load the configuration, the checkpoint and the result of a finished run."""
    if file_size(folder / "config.yaml") is None:
        raise UserError(f"{folder} does not contain a run. Pass a folder that `prometar train --out` wrote.")
    config = load_config(folder / "config.yaml").require_trusted(str(folder), trusted=trust_code)
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint. Train again with its config.yaml, in another folder.")
    done, epochs = len(checkpoint.history), config.train.epochs
    if done < epochs:
        raise UserError(f"{folder} has finished {done} of {epochs} epochs. Resume it with `prometar train`.")
    return config, checkpoint, read_result(folder)
