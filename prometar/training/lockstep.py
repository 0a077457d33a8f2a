"""Runs trained in lockstep: one process, one pass over the images, several configurations."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from prometar.errors import StorageError, UserError
from prometar.step.cuda_graph import Graph
from prometar.step.state import State
from prometar.step.vmapped import require_one_structure
from prometar.training.epoch import close_epoch, train_together
from prometar.training.session import Session


class Lockstep:
    """Sessions trained together: each has the state, the records and the checkpoints of its own run.

    They must share backbone, images and their order, and a method's structure; numbers (weights, rates,
    shares of a mix) may differ. Equal to runs alone within rounding, not bit for bit.

    Raises:
        UserError: sessions that cannot go together; says what differs.

    Example:
        >>> together = Lockstep([Session(run, folder, stream) for run, folder in runs])  # doctest: +SKIP
        >>> while together.sessions:  # doctest: +SKIP
        ...     together.epoch()
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.sessions = [session for session in sessions if not session.finished]
        self._graph = Graph()
        _require_together(self.sessions)

    def epoch(self) -> list[dict[str, Any] | UserError]:
        """Train all by one epoch; each session's record, in order, or why it ended.

        Sessions that are finished or have failed are left out of the next epoch.

        Raises:
            WorkError: the images, which all see, cannot be read.
        """
        for session in self.sessions[1:]:
            session.close()  # a stream of its own would stay behind
        runs = [session.run for session in self.sessions]
        states = [session.state for session in self.sessions]
        batches, started = self.sessions[0].batches(), time.perf_counter()
        ended, logs, finite = train_together(runs, states, batches, self._graph)
        share = (time.perf_counter() - started) / len(runs)
        outcomes = [
            _conclude(session, state, {name: values[:, k] for name, values in logs.items()}, fine, share)
            for k, (session, state, fine) in enumerate(zip(self.sessions, ended, finite, strict=True))
        ]
        stream = self.sessions[0]
        self.sessions = [
            session
            for session, outcome in zip(self.sessions, outcomes, strict=True)
            if not (session.finished or isinstance(outcome, UserError))
        ]
        if len(self.sessions) < len(runs):
            self._graph = Graph()  # what was recorded for more holds memory for more
        if not self.sessions or self.sessions[0] is not stream:
            stream.close()
        return outcomes


def _conclude(
    session: Session, state: State, log: dict[str, Tensor], finite: bool, seconds: float
) -> dict[str, Any] | UserError:
    started = time.perf_counter() - seconds  # its share of what took place together
    try:
        closed = close_epoch(session.run, state, log, session.state.step, finite=finite)
        return session.conclude(*closed, started)
    except StorageError:
        raise
    except UserError as error:
        return error


def partition(sessions: Sequence[Session]) -> list[list[Session]]:
    """The sessions in groups that can be trained in lockstep, in their order."""
    groups: list[list[Session]] = []
    for session in sessions:
        for group in groups:
            with suppress(UserError):
                _require_together([group[0], session])
                group.append(session)
                break
        else:
            groups.append([session])
    return groups


def _require_together(sessions: Sequence[Session]) -> None:
    if not sessions:
        return
    require_one_structure([session.run.method for session in sessions])
    first = sessions[0]
    if not first.state.prompts:
        raise UserError(f"{first.run.config.method} has nothing to train")
    for other in sessions[1:]:
        _require_same("backbone", first.run.config.backbone, other.run.config.backbone)
        _require_same("prompts.init", first.run.config.prompts.init, other.run.config.prompts.init)
        _require_same("data set", first.run.config.data, other.run.config.data)
        _require_same("images and their order", first.run.plan.digest, other.run.plan.digest)
        _require_same("epoch", len(first.history), len(other.history))


def _require_same(what: str, one: object, other: object) -> None:
    if one != other:
        raise UserError(f"runs in lockstep must have the same {what}, found {one} and {other}")
