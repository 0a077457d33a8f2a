"""One run of a grid: train from where it was left, test, write its record."""

from contextlib import closing
from dataclasses import replace

import torch

from prometar.config.settings import dump_config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.streaming.stream import StreamOptions
from prometar.device import give_back
from prometar.distributed.gpus import only_given_gpus, require_given_gpus
from prometar.environment import environment
from prometar.errors import StorageError, UserError
from prometar.inference.classifier import Classifier
from prometar.io.files import write_atomically
from prometar.reproduce.grid import WEIGHTS, Job, Record, read_record
from prometar.runs import evaluate_on, ray_stream, write_result
from prometar.training.run import build_run
from prometar.training.session import Session


class Worker:
    """Does one job after the other in a process; backbone, data and frozen features stay in it."""

    def ready(self) -> None:
        """Answers when the process is there.

        Raises:
            StorageError: torch cannot use the GPU that it was given.
        """
        only_given_gpus()
        require_given_gpus("run")

    def run(self, job: Job) -> Record:
        """The record of a finished run, or of one that failed in a way that no repetition would mend.

        Raises:
            StorageError: nothing can be kept, or this machine lacks what the driver has; no run is to blame.
        """
        torch.set_num_threads(job.threads)
        try:
            return _run(job)
        except StorageError:
            raise
        except UserError as error:
            return job.failed(str(error))
        finally:
            give_back()


def _run(job: Job) -> Record:
    entry, options = job.entry, StreamOptions.in_bundle(job.stream_cpus)
    run = build_run(entry.config, entry.objective)
    session, note = Session.or_anew(run, job.folder, ray_stream(run, options))
    write_atomically(job.folder / "config.yaml", dump_config(entry.config).encode())
    with closing(session):
        while not session.finished:
            session.epoch()
    result, dataset = write_result(job.folder, session), run.dataset
    # There is one where it was killed between two targets, or new ones are asked for.
    before = read_record(entry, job.folder) or Record(entry=entry)
    record = replace(
        before,
        accuracies=result.accuracies,
        num_classes={**before.num_classes, dataset.name: len(dataset.classnames)},
        seconds=session.history[-1]["seconds"],
        reason="",
        environment=environment(),
        note=note,
        contents={**before.contents, dataset.name: dataset.digest, WEIGHTS: result.weights},
    )
    record.write(job.folder)
    classifier = Classifier(
        run.backbone, run.method.prompts, session.state.tested, entry.config, result.classnames,
        dataset.template,
    )  # fmt: skip
    for target in entry.targets:
        if target not in record.tests:
            tested = open_dataset(target, entry.config.data.root)
            tests = {**record.tests, target: evaluate_on(classifier, tested, options=options)}
            num_classes = {**record.num_classes, target: len(tested.classnames)}
            contents = {**record.contents, target: tested.digest}
            record = replace(record, tests=tests, num_classes=num_classes, contents=contents)
            record.write(job.folder)
    return record
