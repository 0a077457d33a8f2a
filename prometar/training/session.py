"""Training session: trains, scores and checkpoints a run epoch by epoch."""

import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from prometar.clip.features import can_skip_images
from prometar.clip.weights import describe_mismatch
from prometar.data.splits.objective import objective_of, score_accuracies
from prometar.data.streaming.stream import Batch, StreamFn, stream_labels, stream_local
from prometar.errors import WorkError
from prometar.io.files import cannot_write_error
from prometar.training.cache import MAX_BATCH_BYTES
from prometar.training.checkpoint import Checkpoint, checkpoint_error, load_checkpoint, save_checkpoint
from prometar.training.drift import drift_scores
from prometar.training.epoch import StepCallback, train_epoch
from prometar.training.run import EvaluationSet, Run, initial_state
from prometar.training.run_result import EpochRecord
from prometar.training.scoring import TopPredictions, predict_sets

_CHECKPOINT_FILE = "checkpoint.safetensors"
_UNUSABLE_FILE = "checkpoint.set-aside.safetensors"


class Session:
    """Training session of a run. If `folder` has a checkpoint, the session resumes from it.

    Attributes:
        history: One record per epoch: epoch (1-based), cumulative seconds, and the mean of each loss. Scored
            epochs also have the values that `score` returns.
        predictions: Predictions of the last `score` by evaluation set. Empty before.

    Raises:
        WorkError: the checkpoint is corrupt or outdated, or belongs to another run.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        start_stream: StreamFn = stream_local,
        before_step: StepCallback | None = None,
    ) -> None:
        self.run = run
        self.state = initial_state(run)
        self.history: list[EpochRecord] = []
        self.predictions: dict[str, TopPredictions] = {}
        self._before_step = before_step
        self._path = folder / _CHECKPOINT_FILE
        self._digests = {"run_digest": run.digest, "weights_digest": run.backbone.digest}
        self._start_stream = start_stream
        self._stream: Iterator[Batch] | None = None
        self._batches: Iterator[Batch] | None = None
        checkpoint = load_checkpoint(self._path)
        if checkpoint is not None:
            self._resume(checkpoint)

    @classmethod
    def resume_or_restart(
        cls, run: Run, folder: Path, start_stream: StreamFn, before_step: StepCallback | None = None
    ) -> "tuple[Session, str]":
        """Resume the run in `folder`, or start it over if the checkpoint is unusable.

        An unusable checkpoint is renamed. Starting over does not change the results, which depend only on
        settings and seeds. Returns the session and a notice, which is "" unless the run was started over.

        Raises:
            InfrastructureError: the folder is not writable.
        """
        try:
            return cls(run, folder, start_stream, before_step), ""
        except WorkError as error:
            aside = folder / _UNUSABLE_FILE
            try:
                (folder / _CHECKPOINT_FILE).replace(aside)
            except OSError as os_error:
                raise cannot_write_error(aside, os_error) from None
            return cls(run, folder, start_stream, before_step), f"started over: {error.args[0].rstrip('.')}"

    def _resume(self, checkpoint: Checkpoint) -> None:
        if checkpoint.run_digest != self._digests["run_digest"]:
            raise self._other_run_error("settings or data")
        if checkpoint.weights_digest != self._digests["weights_digest"]:
            raise self._other_run_error("weights")
        expected = self.state.tensors()
        # `self.state` is an initial state, which has no average yet.
        if checkpoint.state.average:
            expected |= {f"average/{name}": leaf for name, leaf in self.state.leaves.items()}
        problem = describe_mismatch(expected, checkpoint.state.tensors())
        if problem:
            raise checkpoint_error(self._path, problem)
        epochs = len(checkpoint.history)
        if epochs > self.run.config.train.epochs:
            raise checkpoint_error(self._path, f"it contains {epochs} epochs, more than train.epochs")
        self.state = checkpoint.state.to(self.run.backbone.clip.device)
        self.history = list(checkpoint.history)

    def _other_run_error(self, inputs: str) -> WorkError:
        """Return the error for a checkpoint of a run with other inputs, such as "weights"."""
        return WorkError(f"{self._path} belongs to a run with other {inputs}.", "Use another --out.")

    @property
    def finished(self) -> bool:
        return len(self.history) == self.run.config.train.epochs

    def run_epoch(self) -> EpochRecord:
        """Train an epoch and save a checkpoint. Score the last epoch, or every epoch in searches.

        Raises:
            WorkError: a loss, a learned tensor or a logit is not finite, or an image is corrupt.
            InfrastructureError: the checkpoint cannot be written.
        """
        batches: Iterator[Batch] | None = None
        if self.state.leaves:  # otherwise, there is nothing to train
            batches = self._remaining_batches()
        started = time.perf_counter()
        losses: dict[str, float] = {}
        if batches is not None:
            self.state, losses = train_epoch(self.run, self.state, batches, self._before_step)
        record: EpochRecord = {"epoch": len(self.history) + 1, **losses}
        score_each_epoch = objective_of(self.run.objective).for_search  # pruners compare scores per epoch
        if score_each_epoch or record["epoch"] == self.run.config.train.epochs:
            record |= self.score()
        previous = self.history[-1]["seconds"] if self.history else 0.0
        record["seconds"] = round(previous + time.perf_counter() - started, 3)
        self.history.append(record)
        save_checkpoint(self._path, self.state, self.history, **self._digests)
        return record

    def _remaining_batches(self) -> Iterator[Batch]:
        """Return one iterator over all remaining batches. The first is fetched now, outside timed code."""
        if self._batches is None:
            run = self.run
            first_step = self.state.step
            method_needs_pixels = run.method.augmentation.mixes_pixels or run.order.transform.views > 1
            callback_gets_batch = self._before_step is not None
            numbers = range(first_step, run.order.num_steps)
            cached = can_skip_images(run.cache, numbers, changes_vision=run.method.changes("vision"))
            omits_pixels = cached and not method_needs_pixels and not callback_gets_batch
            start_stream = stream_labels if omits_pixels else self._start_stream
            self._stream = start_stream(run.order, run.dataset.source, first_step)
            first_batch = list(islice(self._stream, 1))
            self._batches = chain(first_batch, self._stream)
        return self._batches

    def score(self) -> dict[str, float]:
        """Return the accuracies in percent, the resulting score (`objective`) and, if measured, the drift.

        Also sets `predictions`.
        """
        backbone = self.run.backbone
        leaves = self.state.evaluation_leaves
        sets = self.run.evaluations
        if self.run.out_of_domain is not None:
            base = sets["base"]
            batches = self._eval_batches(base)
            out_of_domain = self.run.out_of_domain
            with backbone.matmul_precision():
                scores, predictions = drift_scores(
                    backbone, base.model, out_of_domain, leaves, batches, base.cache
                )
            self.predictions = {"base": predictions}
            accuracies = {"base": scores["base"], "new": scores["new"]}
            return {**scores, "objective": score_accuracies(self.run.objective, accuracies)}
        self.predictions = predict_sets(
            backbone,
            {name: each.model for name, each in sets.items()},
            leaves,
            lambda name: self._eval_batches(sets[name]),
            {name: each.cache for name, each in sets.items()},
        )
        accuracies = {name: each.accuracy for name, each in self.predictions.items()}
        return {**accuracies, "objective": score_accuracies(self.run.objective, accuracies)}

    def close(self) -> None:
        close = getattr(self._stream, "close", None)
        if close is not None:  # an iterator of a custom `StreamFn` may have no such method
            close()
        self._stream = None
        self._batches = None

    def _eval_batches(self, evaluation: EvaluationSet) -> Iterator[Batch]:
        """Yield an evaluation set's batches, cached or streamed. If features are cached, omit pixels."""
        order = evaluation.order
        cache = evaluation.cache
        changes_vision = self.run.method.changes("vision")
        if can_skip_images(cache, range(order.num_steps), changes_vision=changes_vision):
            yield from stream_labels(order, self.run.dataset.source)
            return
        key = (order.digest, *self.run.cache_key)
        known = self.run.shared.evaluation_batches
        if key in known:
            yield from known[key]
            return
        num_bytes = len(order.items) * 3 * order.transform.size**2  # RGB, one byte per channel
        # At most a quarter of the cache, because each set that is added may remove others.
        # If the image tower is not changed, features stay in `cache`, so images are needed only once.
        should_cache = num_bytes <= MAX_BATCH_BYTES // 4 and (changes_vision or cache is None)
        batches: list[Batch] = []
        for batch in self._start_stream(order, self.run.dataset.source, 0):
            if should_cache:
                batches.append(batch)
            yield batch
        if should_cache:
            known[key] = batches
