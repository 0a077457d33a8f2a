"""predictions.parquet: the most probable classes of each evaluated image of a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prometar.data.datasets.dataset import Items
from prometar.io.files import write_atomically
from prometar.training.classification import ClassificationMetrics
from prometar.training.scoring import JOINT_SETS, TopPredictions

PREDICTIONS_FILE = "predictions.parquet"
_SCHEMA = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),  # path relative to the dataset's image folder
        pa.field("part", pa.string(), nullable=False),  # evaluation set: base, new or all
        pa.field("label", pa.int64(), nullable=False),  # from 0, within the part
        pa.field("classname", pa.string(), nullable=False),
        pa.field("predictions", pa.list_(pa.string()), nullable=False),  # most probable class first
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("joint_prediction", pa.string()),  # among base and new classes, if that was computed
    ]
)


@dataclass(frozen=True)
class PredictedSet:
    """Images of an evaluation set with their predictions.

    Args:
        items: Images.
        classnames: Names of the classes, in label order.
        predictions: Predictions for the images, in the same order.
    """

    items: Items
    classnames: tuple[str, ...]
    predictions: TopPredictions

    @property
    def metrics(self) -> ClassificationMetrics:
        """Metrics of the predictions beyond their accuracy."""
        return self.predictions.metrics(self.classnames)


def write_predictions(path: Path, sets: Mapping[str, PredictedSet], *, run_digest: str) -> None:
    """Write the predictions for the images of evaluation sets to a Parquet file.

    Args:
        sets: Predictions by evaluation set.
        run_digest: Digest of the run, which is written to the metadata.

    Raises:
        InfrastructureError: the file cannot be written.
    """
    joint_names: list[str] = []
    if set(JOINT_SETS) <= sets.keys():
        for part in JOINT_SETS:
            joint_names += sets[part].classnames
    rows: list[dict[str, object]] = []
    for part, predicted in sets.items():
        rows += _rows(part, predicted, joint_names)
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({"run": run_digest}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def _rows(part: str, predicted: PredictedSet, joint_names: Sequence[str]) -> Iterable[dict[str, object]]:
    """Yield a row of the file per image of an evaluation set.

    Args:
        part: Name of the evaluation set.
        joint_names: Names of the base classes, then of the new classes. Empty without joint predictions.
    """
    predictions = predicted.predictions
    joint_predictions: list[str | None] = [None] * len(predictions.labels_N)
    if predictions.joint_N is not None:
        joint_predictions = [joint_names[label] for label in predictions.joint_N.tolist()]
    for item, labels, probabilities, joint_prediction in zip(
        predicted.items,
        predictions.classes_NK.tolist(),
        predictions.probabilities_NK.tolist(),
        joint_predictions,
        strict=True,
    ):
        yield {
            "image": item.path,
            "part": part,
            "label": item.label,
            "classname": item.classname,
            "predictions": [predicted.classnames[label] for label in labels],
            "probabilities": probabilities,
            "joint_prediction": joint_prediction,
        }


def has_predictions(path: Path, run_digest: str) -> bool:
    """Return True if `path` is a file of predictions of the run with this digest."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):  # missing or corrupt
        return False
    return metadata.get(b"run") == run_digest.encode()
