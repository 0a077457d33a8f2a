"""predictions.parquet: the most probable classes of each evaluated image of a run."""

from collections.abc import Iterable, Mapping
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
    """Images of an evaluation set, names of its classes, and the predictions for the images in order."""

    items: Items
    classnames: tuple[str, ...]
    predictions: TopPredictions

    @property
    def metrics(self) -> ClassificationMetrics:
        return self.predictions.metrics(self.classnames)


def write_predictions(path: Path, sets: Mapping[str, PredictedSet], *, run_digest: str) -> None:
    """Write the predictions for the images of evaluation sets to a Parquet file.

    Args:
        sets: Predictions by evaluation set.
        run_digest: Digest of the run, which is written to the metadata.

    Raises:
        InfrastructureError: the file cannot be written.
    """
    joint_names: tuple[str, ...] = ()
    if set(JOINT_SETS) <= sets.keys():
        joint_names = tuple(name for side in JOINT_SETS for name in sets[side].classnames)
    rows = [row for part, each in sets.items() for row in _rows(part, each, joint_names)]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({"run": run_digest}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def _rows(part: str, predicted: PredictedSet, joint_names: tuple[str, ...]) -> Iterable[dict[str, object]]:
    found = predicted.predictions
    joint = [None] * len(found.labels_N) if found.joint_N is None else found.joint_N.tolist()
    columns = (predicted.items, found.classes_NK.tolist(), found.probabilities_NK.tolist(), joint)
    for item, classes, probabilities, joint_class in zip(*columns, strict=True):
        yield {
            "image": item.path,
            "part": part,
            "label": item.label,
            "classname": item.classname,
            "predictions": [predicted.classnames[label] for label in classes],
            "probabilities": probabilities,
            "joint_prediction": None if joint_class is None else joint_names[joint_class],
        }


def has_predictions(path: Path, run_digest: str) -> bool:
    """Return True if `path` is a file of predictions of the run with this digest."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):  # missing or corrupt
        return False
    return metadata.get(b"run") == run_digest.encode()
