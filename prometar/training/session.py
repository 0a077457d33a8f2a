"""Training session: one run that resumes from its checkpoint, trains an epoch, scores, and saves."""

import time
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from cachetools import LRUCache

from prometar.clip.features import suffices
from prometar.clip.weights import mismatch
from prometar.data.splits.objective import score_accuracies
from prometar.data.streaming.stream import Batch, Stream, stream_labels, stream_local
from prometar.errors import WorkError
from prometar.io.files import write_error
from prometar.training.checkpoint import Checkpoint, corrupt, load_checkpoint, save_checkpoint
from prometar.training.drift import drift_scores
from prometar.training.epoch import Watch, train_epoch
from prometar.training.run import Evaluation, Run, initial_state
from prometar.training.run_result import EpochRecord
from prometar.training.scoring import accuracy

_CHECKPOINT, _SET_ASIDE = "checkpoint.safetensors", "checkpoint.set-aside.safetensors"

MOST_IMAGES = 2 * 2**30
"""Bytes of evaluation images that a process caches."""
_IMAGES: LRUCache[Hashable, Sequence[Batch]] = LRUCache(
    MOST_IMAGES, getsizeof=lambda batches: sum(batch.images.nbytes for batch in batches)
)
"""Evaluation images by plan and source. Centre crops never change."""


class Session:
    """One run in training. It resumes from the checkpoint in `folder`, bit for bit.

    Attributes:
        history: One record per epoch: epoch (1-based), seconds (so far), the mean of each loss, and after a
            scored epoch the accuracies in percent and `objective`.

    Raises:
        WorkError: the checkpoint is corrupt, or belongs to another run.
    """

    def __init__(
        self, run: Run, folder: Path, stream: Stream = stream_local, watch: Watch | None = None
    ) -> None:
        self.run = run
        self.state = initial_state(run)
        self.history: list[EpochRecord] = []
        self._watch = watch
        self._path = folder / _CHECKPOINT
        self._owner = {"run": run.digest, "weights": run.backbone.digest}  # now, so that no step waits for it
        self._stream = stream
        self._source: Iterator[Batch] | None = None
        self._batches: Iterator[Batch] | None = None
        found = load_checkpoint(self._path)
        if found is not None:
            self._resume(found)

    @classmethod
    def or_anew(
        cls, run: Run, folder: Path, stream: Stream, watch: Watch | None = None
    ) -> "tuple[Session, str]":
        """Return the session in `folder`; if its checkpoint cannot be used, a new one and the reason.

        The results are the same, since a run is a function of its settings and seeds. The checkpoint is
        renamed.

        Raises:
            StorageError: the folder is not writable.
        """
        try:
            return cls(run, folder, stream, watch), ""
        except WorkError as error:
            aside = folder / _SET_ASIDE
            try:
                (folder / _CHECKPOINT).replace(aside)
            except OSError as reason:
                raise write_error(aside, reason) from None
            return cls(run, folder, stream, watch), f"started over: {error}"

    def _resume(self, found: Checkpoint) -> None:
        for digest, what in ((found.run, "run"), (found.weights, "weights")):
            if digest != self._owner[what]:
                different = "weights" if what == "weights" else "settings or data"
                raise WorkError(f"{self._path} belongs to a run with other {different}. Use another folder.")
        wanted = self.state.tensors()
        if found.state.average:
            wanted |= {f"average/{name}": leaf for name, leaf in self.state.prompts.items()}
        if problem := mismatch(wanted, found.state.tensors()):
            raise corrupt(self._path, problem)
        if len(found.history) > self.run.config.train.epochs:
            raise corrupt(self._path, f"it contains {len(found.history)} epochs")
        self.state, self.history = found.state.to(self.run.backbone.clip.device), list(found.history)

    @property
    def finished(self) -> bool:
        return len(self.history) == self.run.config.train.epochs

    def epoch(self) -> EpochRecord:
        """Train one epoch, score it if the objective requires it, write the checkpoint. Return the record.

        Raises:
            WorkError: the loss is not finite, or an image is corrupt. StorageError: a full disk.
        """
        batches = self._open() if self.state.prompts else None
        started, losses = time.perf_counter(), dict[str, float]()
        if batches is not None:
            self.state, losses = train_epoch(self.run, self.state, batches, self._watch)
        record: EpochRecord = {"epoch": len(self.history) + 1, **losses}
        if self.run.every_epoch or record["epoch"] == self.run.config.train.epochs:
            record |= self.score()
        before = self.history[-1]["seconds"] if self.history else 0.0
        record["seconds"] = round(before + time.perf_counter() - started, 3)
        self.history.append(record)
        save_checkpoint(self._path, self.state, self.history, **self._owner)
        return record

    def _open(self) -> Iterator[Batch]:
        """Return the batches from the state's step on. Prefetches one, so that start-up is not measured."""
        if self._batches is None:
            run, start = self.run, self.state.step
            reads_pixels = self._watch is not None or run.method.augmentation.of_images
            rest = range(start, run.plan.num_steps)
            known = not reads_pixels and suffices(run.backbone.clip, run.seen, rest)
            self._source = (stream_labels if known else self._stream)(run.plan, run.dataset.source, start)
            self._batches = chain([*islice(self._source, 1)], self._source)
        return self._batches

    def score(self) -> dict[str, float]:
        """Return accuracies in percent by set, and `objective`: usually their harmonic mean."""
        backbone, leaves, sets = self.run.backbone, self.state.tested, self.run.evaluations
        if self.run.foreign is not None:
            base = sets["base"]
            images = self._images(base)
            figures = drift_scores(backbone, base.model, self.run.foreign, leaves, images, base.seen)
            scored = {"base": figures["base"], "new": figures["new"]}
            return {**figures, "objective": score_accuracies(self.run.objective, scored)}
        accuracies = {
            name: accuracy(backbone, e.model, leaves, self._images(e), e.seen) for name, e in sets.items()
        }
        return {**accuracies, "objective": score_accuracies(self.run.objective, accuracies)}

    def close(self) -> None:
        """Close the stream."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
        self._source = self._batches = None

    def _images(self, scored: Evaluation) -> Iterator[Batch]:
        """Return the batches of an evaluation set, from the cache if they are there."""
        plan, seen, clip = scored.plan, scored.seen, self.run.backbone.clip
        if suffices(clip, seen, range(plan.num_steps)):
            yield from stream_labels(plan, self.run.dataset.source)
            return
        key = (plan.digest, *self.run.source)
        if key in _IMAGES:
            yield from _IMAGES[key]
            return
        num_bytes = len(plan.items) * 3 * plan.transform.size**2
        cache = num_bytes <= _IMAGES.maxsize // 4 and not suffices(clip, seen)
        batches: list[Batch] = []
        for batch in self._stream(plan, self.run.dataset.source, 0):
            if cache:
                batches.append(batch)
            yield batch
        if cache:
            _IMAGES[key] = batches
