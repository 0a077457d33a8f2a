"""Training session, which trains, scores and checkpoints a run epoch by epoch."""

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
from prometar.training.drift import OutOfDomain, drift_scores
from prometar.training.epoch import StepCallback, train_epoch
from prometar.training.run import EvaluationSet, Run, initial_state
from prometar.training.run_result import EpochRecord
from prometar.training.scoring import TopPredictions, predict_sets

_CHECKPOINT_FILE = "checkpoint.safetensors"
_UNUSABLE_FILE = "checkpoint.set-aside.safetensors"
"""Name that an unusable checkpoint gets if the run is started over."""


class Session:
    """Training session of a run. If `folder` has a checkpoint, the session resumes from it.

    Args:
        run: Fixed inputs of the run.
        folder: Folder of the run.
        start_stream: Function that streams images.
        before_step: Called before each step. Default: nothing is called.

    Attributes:
        state: Current state.
        history: One record per epoch: epoch (1-based), cumulative seconds, and the mean of each loss. Scored
            epochs also have the values that `score` returns.
        predictions: Predictions of the last call of `score`, by evaluation set. Empty before the first call.

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
        settings and seeds.

        Returns:
            The session and a notice for the user. If the run was not started over, the notice is "".

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
            reason = error.args[0].rstrip(".")
            return cls(run, folder, start_stream, before_step), f"started over: {reason}"

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            WorkError: the checkpoint does not fit the run.
        """
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
        num_epochs = len(checkpoint.history)
        if num_epochs > self.run.config.train.epochs:
            raise checkpoint_error(self._path, f"it contains {num_epochs} epochs, more than train.epochs")
        self.state = checkpoint.state.to(self.run.backbone.clip.device)
        self.history = list(checkpoint.history)

    def _other_run_error(self, inputs: str) -> WorkError:
        """Return the error for a checkpoint of a run with other inputs, such as "weights"."""
        return WorkError(f"{self._path} belongs to a run with other {inputs}.", "Use another --out.")

    @property
    def finished(self) -> bool:
        """True if all epochs have been trained."""
        return len(self.history) == self.run.config.train.epochs

    def run_epoch(self) -> EpochRecord:
        """Train an epoch and save a checkpoint. Return the record of the epoch.

        The last epoch is scored. If the objective is one for searches, each epoch is scored.

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

        epoch = len(self.history) + 1
        record: EpochRecord = {"epoch": epoch, **losses}
        # In a search, the pruner compares the scores of each epoch.
        is_for_search = objective_of(self.run.objective).for_search
        if is_for_search or epoch == self.run.config.train.epochs:
            record |= self.score()
        previous_seconds = self.history[-1]["seconds"] if self.history else 0.0
        record["seconds"] = round(previous_seconds + time.perf_counter() - started, 3)
        self.history.append(record)
        save_checkpoint(self._path, self.state, self.history, **self._digests)
        return record

    def _remaining_batches(self) -> Iterator[Batch]:
        """Return one iterator over all remaining batches, the same in each epoch.

        The first batch is fetched when the iterator is created, so the start of the stream is not timed. If
        the features of all images are cached, pixels are omitted unless something else needs them.
        """
        if self._batches is not None:
            return self._batches
        run = self.run
        first_step = self.state.step
        steps = range(first_step, run.order.num_steps)
        has_all_features = can_skip_images(run.cache, steps, changes_vision=run.method.changes("vision"))
        method_needs_pixels = run.method.augmentation.mixes_pixels or run.order.transform.views > 1
        callback_gets_batch = self._before_step is not None
        omits_pixels = has_all_features and not method_needs_pixels and not callback_gets_batch

        start_stream = stream_labels if omits_pixels else self._start_stream
        self._stream = start_stream(run.order, run.dataset.source, first_step)
        first_batch = list(islice(self._stream, 1))
        self._batches = chain(first_batch, self._stream)
        return self._batches

    def score(self) -> dict[str, float]:
        """Score the current state, and set `predictions`.

        Returns:
            The accuracies in percent by evaluation set, the score that the objective computes from them as
            "objective" and, if the objective measures drift, the values of `drift_scores`.
        """
        out_of_domain = self.run.out_of_domain
        if out_of_domain is not None:
            return self._score_with_drift(out_of_domain)
        sets = self.run.evaluations
        self.predictions = predict_sets(
            self.run.backbone,
            {name: each.model for name, each in sets.items()},
            self.state.evaluation_leaves,
            lambda name: self._eval_batches(sets[name]),
            {name: each.cache for name, each in sets.items()},
        )
        accuracies = {name: each.accuracy for name, each in self.predictions.items()}
        return {**accuracies, "objective": score_accuracies(self.run.objective, accuracies)}

    def _score_with_drift(self, out_of_domain: OutOfDomain) -> dict[str, float]:
        """Score the current state with the accuracy on new classes that drift predicts (see `score`)."""
        backbone = self.run.backbone
        base = self.run.evaluations["base"]
        with backbone.matmul_precision():
            scores, predictions = drift_scores(
                backbone,
                base.model,
                out_of_domain,
                self.state.evaluation_leaves,
                self._eval_batches(base),
                base.cache,
            )
        self.predictions = {"base": predictions}
        accuracies = {"base": scores["base"], "new": scores["new"]}
        return {**scores, "objective": score_accuracies(self.run.objective, accuracies)}

    def close(self) -> None:
        """Close the stream of training images."""
        close = getattr(self._stream, "close", None)
        if close is not None:  # an iterator of a custom `StreamFn` may have no such method
            close()
        self._stream = None
        self._batches = None

    def _eval_batches(self, evaluation: EvaluationSet) -> Iterator[Batch]:
        """Yield the batches of an evaluation set from the cache or, if they are not cached, from a stream.

        If the features of all images are cached, the batches have no pixels.
        """
        order = evaluation.order
        cache = evaluation.cache
        changes_vision = self.run.method.changes("vision")
        if can_skip_images(cache, range(order.num_steps), changes_vision=changes_vision):
            yield from stream_labels(order, self.run.dataset.source)
            return
        key = (order.digest, *self.run.cache_key)
        cached_batches = self.run.shared.evaluation_batches
        if key in cached_batches:
            yield from cached_batches[key]
            return

        num_bytes = len(order.items) * 3 * order.transform.size**2  # RGB, one byte per channel
        # A set fills at most a quarter of the cache, because each set that is added may remove other sets.
        fits = num_bytes <= MAX_BATCH_BYTES // 4
        # If the method does not change the image tower, features stay in `cache`, and images are needed once.
        needs_images_again = changes_vision or cache is None
        should_cache = fits and needs_images_again
        batches: list[Batch] = []
        for batch in self._start_stream(order, self.run.dataset.source, 0):
            if should_cache:
                batches.append(batch)
            yield batch
        if should_cache:
            cached_batches[key] = batches
