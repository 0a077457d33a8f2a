"""Result of a run, stored as result.json in the folder of the run."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prometar.errors import InfrastructureError, UserError
from prometar.io.files import MACHINE_FAULTS, read_bytes, write_atomically
from prometar.training.classification import ClassificationMetrics, Percent

RESULT_FILE = "result.json"
EpochRecord = dict[str, int | float]
"""Losses, accuracies and other numbers of an epoch by name (an element of `Session.history`)."""

RECORD_CONFIG = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)
"""Configuration of records: unknown keys are ignored, values are not converted, numbers are finite."""


class RunResult(BaseModel):
    """Result of a finished run.

    The format of result.json is fixed, so some fields have other names there (aliases).

    Args:
        last_epoch: Record of the last epoch.
        history: Records of all epochs.
        accuracies: Accuracy in percent by evaluation set.
        images: Number of images by evaluation set.
        metrics: Other metrics by evaluation set. Empty in results of version 0.2.
        joint_accuracies: Accuracy in percent of the sets "base" and "new" if each image is classified among
            base and new classes together. Empty if that was not measured (`scoring.joint_classes`).
        objective: Name of the objective, which determines the training and evaluation images and the score.
        classnames: Names of the training classes in label order.
        template: Template of the class texts.
        templates: The dataset's other templates by name.
        run_digest: Digest of the fixed inputs of the run (`Run.digest`).
        data_digest: Digest of the dataset's splits.
        weights_digest: Digest of the weights of the backbone.
        environment: Software versions and machine.
        code: sha256 of each custom component's source file, keyed by its reference `package.module:Name`.
        texts: sha256 of the file `regularizer.texts`, or "".
        val_per_class: Maximum number of validation images per class.
        excluded: Paths of the images that were excluded from the dataset.
        evaluation_digests: Digest of the images' paths by evaluation set. Empty in results of version 0.2.
        cpus: Number of allocated CPUs, or None if unknown.
        gpus: Number of allocated GPUs, or None if unknown.
        tests: For each other dataset on which the run was tested: the accuracy in percent on all of its
            classes, and the digest of its splits.
    """

    model_config = ConfigDict(**RECORD_CONFIG, validate_by_name=True)

    last_epoch: EpochRecord = Field(alias="result")
    accuracies: dict[str, Percent] = Field(min_length=1)
    images: dict[str, int]
    metrics: dict[str, ClassificationMetrics] = Field(default_factory=dict)
    joint_accuracies: dict[str, Percent] = Field(default_factory=dict)
    history: tuple[EpochRecord, ...]
    objective: str
    classnames: tuple[str, ...]
    template: str
    templates: dict[str, str] = Field(default_factory=dict)
    run_digest: str = Field(alias="run")
    data_digest: str = Field(alias="data")
    weights_digest: str = Field(alias="weights")
    environment: dict[str, str]
    code: dict[str, str] = Field(default_factory=dict)
    texts: str = ""
    val_per_class: int = 20
    excluded: tuple[str, ...] = ()
    evaluation_digests: dict[str, str] = Field(default_factory=dict)
    cpus: float | None = None
    gpus: float | None = None
    tests: dict[str, tuple[Percent, str]] = Field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write result.json.

        Raises:
            InfrastructureError: the folder is not writable.
        """
        text = self.model_dump_json(indent=1, by_alias=True, exclude_defaults=True)
        write_atomically(folder / RESULT_FILE, text.encode())


def read_result(folder: Path) -> RunResult:
    """Read result.json.

    Raises:
        UserError: the file is missing or corrupt.
        InfrastructureError: the disk or mount fails. The file may be intact.
    """
    path = folder / RESULT_FILE
    try:
        return RunResult.model_validate_json(read_bytes(path))
    except (OSError, ValidationError) as error:
        if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
            raise InfrastructureError(f"Cannot read {path}: {error.strerror}. Rerun to resume.") from None
        raise UserError(
            f"{path} is missing or corrupt. To recreate it, rerun the command that created the run."
        ) from None
