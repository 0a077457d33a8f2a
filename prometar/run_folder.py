"""Training, testing and exporting runs in their folders.

The folder of a run contains config.yaml, checkpoint.safetensors and, once the run has finished, result.json.
On request, it also contains predictions.parquet, which has the predictions for each test image.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from prometar.clip.openclip import load_clip
from prometar.clip.weights import weights_digest
from prometar.config.settings import Config, dump_config, load_config, texts_path
from prometar.data.datasets.catalog import (
    dataset_location,
    file_name,
    open_dataset,
    reject_output_in_dataset,
)
from prometar.data.datasets.dataset import Dataset, classnames, paths_digest
from prometar.data.datasets.exclusions import read_exclusions
from prometar.data.splits.fewshot import labels_of, select_and_relabel
from prometar.data.splits.objective import FINAL, FewShotSplit, split_dataset
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
from prometar.training.classification import ClassificationMetrics
from prometar.training.epoch import StepCallback
from prometar.training.prediction_file import (
    PREDICTIONS_FILE,
    PredictedSet,
    has_predictions,
    write_predictions,
)
from prometar.training.run import build_run
from prometar.training.run_result import RESULT_FILE, EpochRecord, RunResult, read_result
from prometar.training.scoring import encode_classes, predict
from prometar.training.session import Session


def train_run(
    config: Config,
    folder: Path,
    *,
    objective: str = FINAL,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    before_step: StepCallback | None = None,
    shared: RunCache | None = None,
    predictions: bool = False,
) -> EpochRecord:
    """Train and test a run in a folder, or resume it from its checkpoint.

    Args:
        config: Settings of the run.
        folder: Folder of the run, which is created if it does not exist.
        objective: Name of the objective (`prometar.data.splits.objective`).
        on_epoch: Called with the record of each epoch.
        before_step: Called before each step.
        shared: Cache of what several runs share, such as the backbone. Default: a new cache.
        predictions: True to write predictions.parquet, too.

    Returns:
        The record of the last epoch.

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
            # A complete result is kept, because it has the environment of the training, and perhaps tests on
            # other datasets.
            is_complete = session.finished and _has_result(folder, session)
            if not is_complete:
                while not session.finished:
                    on_epoch(session.run_epoch())
                write_result(folder, session)
            if predictions:
                write_run_predictions(folder, session)
    return session.history[-1]


def _require_same_run(folder: Path, config_text: bytes, objective: str) -> None:
    """Check that a folder contains neither a study nor another run.

    Raises:
        UserError: it contains a study, or the configuration or result of another run.
    """
    if file_size(folder / "study.yaml") is not None:
        raise UserError(f"{folder} contains a study. Choose another folder with --out.")
    if file_size(folder / "checkpoint.safetensors") is not None:
        return  # the session compares the checkpoint with the run
    config_file = folder / "config.yaml"
    result_file = folder / RESULT_FILE
    is_same_run = file_size(config_file) is not None and read_bytes(config_file) == config_text
    if is_same_run and file_size(result_file) is not None:
        with suppress(PrometarError):  # a corrupt result is replaced
            is_same_run = read_result(folder).objective == objective
    if is_same_run:
        return
    for file in (config_file, result_file):
        if file_size(file) is not None:
            raise UserError(f"{file} belongs to another run. Choose another folder with --out.")


def _has_result(folder: Path, session: Session) -> bool:
    """Return True if a folder contains the result of a session: a result with the same epochs."""
    try:
        return read_result(folder).history == tuple(session.history)
    except UserError:  # missing or corrupt
        return False


def write_result(
    folder: Path, session: Session, *, cpus: float | None = None, gpus: float | None = None
) -> RunResult:
    """Write result.json of a finished session, and return the result.

    A session that was resumed after its last epoch is scored first, because predictions are not saved.

    Args:
        folder: Folder of the run.
        session: Session whose last epoch has been trained.
        cpus, gpus: Resources that were allocated to the run, or None if unknown.
    """
    run = session.run
    last = session.history[-1]
    if not session.predictions:
        session.score()
    predicted = predicted_sets(session)
    items_by_set = {name: evaluation.order.items for name, evaluation in run.evaluations.items()}
    result = RunResult(
        last_epoch=last,
        accuracies={name: last[name] for name in run.evaluations},
        images={name: len(items) for name, items in items_by_set.items()},
        metrics={name: predicted_set.metrics for name, predicted_set in predicted.items()},
        joint_accuracies=joint_accuracies(predicted),
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
        texts=run.text_digest,
        excluded=tuple(sorted(run.dataset.excluded)),
        evaluation_digests={name: paths_digest(items) for name, items in items_by_set.items()},
        val_per_class=run.val_per_class,
        cpus=cpus,
        gpus=gpus,
    )
    result.write(folder)
    return result


def predicted_sets(session: Session) -> dict[str, PredictedSet]:
    """Return the images and predictions of a scored session by evaluation set."""
    sets: dict[str, PredictedSet] = {}
    for name, predictions in session.predictions.items():
        items = session.run.evaluations[name].order.items
        sets[name] = PredictedSet(items, classnames(items), predictions)
    return sets


def joint_accuracies(sets: Mapping[str, PredictedSet]) -> dict[str, float]:
    """Return the accuracies in percent among base and new classes together, by evaluation set.

    Evaluation sets for which these accuracies were not computed are left out.
    """
    accuracies: dict[str, float] = {}
    for name, predicted_set in sets.items():
        accuracy = predicted_set.predictions.joint_accuracy
        if accuracy is not None:
            accuracies[name] = accuracy
    return accuracies


def write_run_predictions(folder: Path, session: Session) -> None:
    """Write predictions.parquet of a finished session, unless the folder already contains it.

    Raises:
        InfrastructureError: the folder is not writable.
    """
    run = session.run
    path = folder / PREDICTIONS_FILE
    if has_predictions(path, run.digest):
        return
    if not session.predictions:
        session.score()
    write_predictions(path, predicted_sets(session), run_digest=run.digest)


@dataclass(frozen=True)
class Evaluation:
    """Results of a test of a run.

    Args:
        scores: Accuracies in percent by evaluation set, and the score as "objective" (`Session.score`).
        metrics: Other metrics by evaluation set.
        joint_accuracies: Accuracies in percent among base and new classes together, by evaluation set.
    """

    scores: dict[str, float]
    metrics: dict[str, ClassificationMetrics]
    joint_accuracies: dict[str, float]


def evaluate_run(folder: Path, *, trust_code: bool = False, predictions: bool = False) -> Evaluation:
    """Test a finished run again.

    Args:
        folder: Folder of the run.
        trust_code: True to import custom components. By default, runs that use them are refused.
        predictions: True to write predictions.parquet into the run's folder.

    Raises:
        UserError: the folder does not contain a finished run.
    """
    config, _, result = _load_finished(folder, trust_code)
    objective = result.objective
    if is_custom(objective) and not trust_code:
        raise UserError(f"{folder} uses objective {objective}. Review its code, then pass --trust-code.")
    session = Session(build_run(config, objective, val_per_class=result.val_per_class), folder)
    scores = session.score()
    if predictions:
        write_run_predictions(folder, session)
    predicted = predicted_sets(session)
    metrics = {name: predicted_set.metrics for name, predicted_set in predicted.items()}
    return Evaluation(scores, metrics, joint_accuracies(predicted))


def evaluate_classifier(
    classifier: Classifier, dataset: Dataset, stream: StreamFn = stream_local
) -> PredictedSet:
    """Classify all test images of a dataset among all of its classes.

    Raises:
        UserError: the dataset has no test images.
        WorkError: an image is corrupt.
    """
    items = select_and_relabel(dataset.without_excluded(dataset.test), labels_of(dataset.items))
    if not items:
        raise UserError(f"{dataset.name} has no test images.")
    backbone = classifier.backbone
    order = eval_order(items, size=backbone.clip.image_size, exif_rotation=dataset.exif_rotation)
    # Class texts use the templates of the tested dataset, as in training.
    on_dataset = replace(classifier, template=dataset.template, templates=dataset.templates)
    model = on_dataset.model(dataset.classnames, dataset=dataset.name)
    classes = encode_classes(backbone, model, classifier.leaves)
    predictions = predict(backbone, classes, stream(order, dataset.source, 0))
    return PredictedSet(items, dataset.classnames, predictions)


def evaluate_on_targets(
    folder: Path,
    names: Sequence[str],
    stream: StreamFn,
    *,
    predictions: bool = False,
    shared: RunCache | None = None,
) -> None:
    """Test a finished run on other datasets, and add the accuracies to result.json.

    Datasets whose accuracy is already in result.json are skipped.

    Args:
        folder: Folder of the run.
        names: Names of the datasets.
        stream: Function that streams the test images.
        predictions: True to write the predictions for each dataset, too (`target_predictions_path`). Datasets
            whose predictions are missing are not skipped.
        shared: Cache that may contain the backbone. Default: a new cache.

    Raises:
        UserError: a dataset is missing, or has no test images.
    """
    result = read_result(folder)
    classifier = load_run_classifier(folder, trust_code=True, shared=shared)  # the caller trained this run
    for name in names:
        path = target_predictions_path(folder, name)
        lacks_predictions = predictions and not has_predictions(path, result.run_digest)
        if name in result.tests and not lacks_predictions:
            continue
        dataset = open_dataset(name, classifier.config.data.root)
        predicted = evaluate_classifier(classifier, dataset, stream)
        if predictions:
            write_predictions(path, {"all": predicted}, run_digest=result.run_digest)
        tests = dict(result.tests)
        tests[name] = (predicted.predictions.accuracy, dataset.digest)
        result = result.model_copy(update={"tests": tests})
        result.write(folder)


def has_all_predictions(folder: Path, run_digest: str, targets: Sequence[str] = ()) -> bool:
    """Return True if a folder contains the predictions of a run for its own test images and for `targets`."""
    paths = [folder / PREDICTIONS_FILE]
    paths += [target_predictions_path(folder, name) for name in targets]
    return all(has_predictions(path, run_digest) for path in paths)


def target_predictions_path(folder: Path, dataset: str) -> Path:
    """Return the path of the predictions of a run for the test images of another dataset."""
    return folder / f"{Path(PREDICTIONS_FILE).stem}-{file_name(dataset)}.parquet"


def used_same_images(result: RunResult, config: Config) -> bool:
    """Return True if a finished run has used the images that it would use now.

    This is False if images that the run used are excluded now, or if images are no longer excluded.

    Raises:
        UserError: the dataset cannot be opened.
    """
    data = config.data
    if data.root is None or data.reference:  # rendered datasets and custom loaders have no excluded.txt
        return True
    now = frozenset(read_exclusions(dataset_location(data.name, data.root)))
    then = frozenset(result.excluded)
    if now == then:
        return True
    dataset = open_dataset(data.name, data.root)

    def split_without(excluded: frozenset[str]) -> FewShotSplit:
        return split_dataset(
            result.objective,
            replace(dataset, excluded=excluded),
            shots=data.shots,
            seed=config.train.seed,
            val_per_class=result.val_per_class,
        )

    # The run may use none of the images whose exclusion has changed.
    split_then = split_without(then)
    split_now = split_without(now)
    return split_then.train == split_now.train and split_then.evaluations == split_now.evaluations


def has_other_images(folder: Path, config: Config) -> bool:
    """Return True if a folder contains a result of images other than those that the run would use now.

    Raises:
        UserError: the dataset cannot be opened.
        InfrastructureError: the disk or mount of the folder fails.
    """
    try:
        result = read_result(folder)
    except UserError:  # missing or corrupt
        return False
    return not used_same_images(result, config)


def load_run_classifier(
    folder: Path, *, trust_code: bool = False, shared: RunCache | None = None
) -> Classifier:
    """Return a classifier with the prompts of a finished run. No images are read.

    Args:
        folder: Folder of the run.
        trust_code: True to import custom components. By default, runs that use them are refused.
        shared: Cache that may contain the backbone. Default: a new cache.

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
    method = checked_method(
        folder / "checkpoint.safetensors",
        config,
        backbone.clip,
        len(result.classnames),
        leaves,
        result.code,
    )
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

    Args:
        folder: Folder of the run.
        to: Path of the new prompt file, which ends in .safetensors.
        trust_code: True to import custom components. By default, runs that use them are refused.

    Raises:
        UserError: `folder` does not contain a finished run, or `to` exists or is not a .safetensors file.
        InfrastructureError: the folder of `to` is not writable.
    """
    to = Path(os.path.expanduser(to))
    require_new_prompt_file(to)
    classifier = load_run_classifier(folder, trust_code=trust_code)
    backbone = classifier.config.backbone

    # A card contains no paths of this machine.
    overrides: dict[str, object] = {"data.root": None}
    uses_weights_file = False
    if backbone.pretrained is not None and os.path.isfile(backbone.pretrained):
        uses_weights_file = True
        overrides["backbone.pretrained"] = Path(backbone.pretrained).name
    texts = texts_path(classifier.config)
    if texts is not None:  # predictions do not need the file, so its name is enough
        overrides["regularizer.texts"] = Path(texts).name

    # The digest is that of the original weights, which `Tower.folded` may have changed in the classifier.
    original = load_clip(backbone.name, backbone.pretrained)
    fields_of_result = read_result(folder).model_dump(include=set(Card.model_fields))
    card = Card(
        config=classifier.config.override(overrides),
        digest=weights_digest(original),
        weights_file=uses_weights_file,
        **fields_of_result,
    )
    return write_prompts(to, classifier.leaves, card)


def _load_finished(folder: Path, trust_code: bool) -> tuple[Config, Checkpoint, RunResult]:
    """Load the configuration, the checkpoint and the result of a finished run.

    Raises:
        UserError: the folder does not contain a finished run, or the run uses custom components and
            `trust_code` is False.
        WorkError: the checkpoint is corrupt.
    """
    if file_size(folder / "config.yaml") is None:
        raise UserError(f"{folder} does not contain a run. Pass a folder that `prometar train --out` wrote.")
    config = load_config(folder / "config.yaml").require_trusted(str(folder), trusted=trust_code)
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint. Train again with its config.yaml, in another folder.")
    num_epochs = len(checkpoint.history)
    if num_epochs < config.train.epochs:
        finished = f"{num_epochs} of {config.train.epochs} epochs"
        raise UserError(f"{folder} has finished {finished}. Resume it with `prometar train`.")
    return config, checkpoint, read_result(folder)
