"""Settings of other studies that a study tries first (`--enqueue OUT/STUDY`)."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from prometar.cli.console import format_count
from prometar.errors import UserError, one_line
from prometar.io.files import resolve_path
from tune.config import ConfirmConfig, Enqueued, StudyConfig
from tune.records.folder import Records, StudyFolder, read_records
from tune.records.schema import Candidate, StudyRecord
from tune.space.ranges import Settings

_TOP = ConfirmConfig().top  # number of trials that are taken from a study without a confirmation


def add_settings_of_studies(config: StudyConfig, folder: StudyFolder) -> tuple[StudyConfig, list[str]]:
    """Return the configuration with the enqueued settings of other studies, and notes for the user.

    The studies are read once. A resumed study keeps the settings that it has recorded in study.yaml, even if
    the other studies have changed or are gone. Studies take turns. The selected settings of each study come
    first, then the second best of each, and so on. Equal settings are enqueued once.

    Args:
        config: Configuration with the folders of the studies in `search.enqueued_studies`.
        folder: Folder of the study that tries the settings.

    Raises:
        UserError: a folder does not exist, contains no study with completed trials, or is that of this study.
    """
    recorded: list[Enqueued] = []
    previous = folder.read(StudyRecord)
    if previous is not None:
        # Settings from files have no trial. They are part of `config`.
        recorded = [each for each in previous.config.search.enqueue if each.trial is not None]
    known = {each.source for each in recorded}
    notes: list[str] = []
    by_study: list[list[Enqueued]] = []
    for path in config.search.enqueued_studies:
        if str(path) in known:
            continue
        if resolve_path(path) == folder.path:
            raise UserError(f"--enqueue {path} is the folder of this study. Pass another study.")
        if not path.is_dir():
            raise UserError(f"--enqueue {path} does not exist.")
        found, its_notes = _settings_of(path, config)
        by_study.append(found)
        notes += its_notes
    given = [*config.search.enqueue, *recorded]
    for turn in zip_longest(*by_study):  # None where a study has no more settings
        given += [each for each in turn if each is not None]
    if not given:
        return config, notes

    enqueued: list[Enqueued] = []
    tried: list[Settings] = [config.baseline_settings]
    for each in given:
        if each.settings not in tried:
            tried.append(each.settings)
            enqueued.append(each)
    search = config.search.model_copy(update={"enqueue": tuple(enqueued), "enqueued_studies": ()})
    return config.model_copy(update={"search": search}), notes


def describe_enqueued(config: StudyConfig) -> list[str]:
    """Return a list with a line on the number of enqueued settings by source, or [] if there are none."""
    enqueued = config.search.enqueue
    trials = config.search.trials
    if not enqueued:
        return []
    line = count_enqueued([each.source for each in enqueued])
    if len(enqueued) > trials - 1:
        line += f". With the baseline, --trials {trials} has room for {trials - 1}"
    return [one_line(line)]


def count_enqueued(sources: Sequence[str]) -> str:
    """Return the number of enqueued trials, in total and by source.

    Args:
        sources: File or study from which the settings of each trial come, or "" if it is unknown.

    Example:
        >>> count_enqueued(["out/dtd", "out/dtd", "mine.yaml"])
        'Enqueued: 3 trials (2 from out/dtd, 1 from mine.yaml)'
    """
    text = f"Enqueued: {format_count(len(sources), 'trial')}"
    counts = Counter(source for source in sources if source)
    if not counts:
        return text
    listed = ", ".join(f"{number} from {source}" for source, number in counts.items())
    return f"{text} ({listed})"


def _settings_of(path: Path, config: StudyConfig) -> tuple[list[Enqueued], list[str]]:
    """Return the candidates of a study as settings of this study's space, best first, and notes.

    Args:
        path: Folder of the study.
        config: Configuration of this study, which tries the settings.
    """
    records = read_records(path)
    other = records.config
    space = config.search.space
    baseline = config.baseline.flat()
    found: list[Enqueued] = []
    notes: list[str] = []
    left_out: list[str] = []  # settings whose values are lost, because this study does not search them
    if other.baseline.method != config.baseline.method:
        notes.append(f"{path} tuned another method, {other.baseline.method}.")
    for number, settings in _candidates(records):
        run_config = other.run_config(settings, dataset=other.search.datasets[0], seed=other.search.seed)
        run_settings = run_config.flat()
        for key in settings:
            is_lost = key not in space.ranges and run_settings.get(key) != baseline.get(key)
            if is_lost and key not in left_out:
                left_out.append(key)

        try:
            fitted, changes = space.fit(run_settings)
        except UserError as error:
            notes.append(f"{path}: trial {number} is not tried, because {error}.")
            continue
        if not fitted:
            notes.append(f"{path}: trial {number} is not tried, because it has no setting of the space.")
            continue
        if changes:
            notes.append(f"{path}: trial {number} is tried at the bound of the range: {', '.join(changes)}.")
        if fitted != config.baseline_settings:  # the baseline settings are tried anyway, by trial 0
            found.append(Enqueued(settings=fitted, source=str(path), trial=number))

    if left_out:
        keys = ", ".join(left_out)
        notes.append(f"{path}: values of {keys} are left out, because this study does not search them.")
    return found, [one_line(note) for note in notes]


def _candidates(records: Records) -> list[tuple[int, Settings]]:
    """Return the number and the settings of trials: the selected one, then other confirmed ones, best first.

    Without a confirmation, return the best completed trials. The baseline is included only if the
    confirmation selected it.

    Raises:
        UserError: the study has no completed trial.
    """
    if not records.completed:
        raise UserError(f"--enqueue {records.folder} has no completed trial. Run that study first.")
    confirmation = records.confirmation
    if confirmation is None or not confirmation.seeds:
        best = [trial for trial in records.completed if not trial.is_baseline][:_TOP]
        return [(trial.number, trial.settings) for trial in best]
    selected = confirmation.selected_candidate
    others = [each for each in confirmation.candidates if each is not selected and not each.is_baseline]
    others.sort(key=_score, reverse=True)
    return [(each.number, each.settings) for each in (selected, *others)]


def _score(candidate: Candidate) -> float:
    """Return the mean objective of a candidate. Candidates with a failed rerun come last."""
    return -math.inf if candidate.mean is None else candidate.mean
