"""Sentences of a report: verdict, evidence, caveats and next steps."""

import shlex
from collections.abc import Iterator
from statistics import mean
from typing import Literal

from prometar.cli.console import format_count
from prometar.data.splits.objective import OBJECTIVES
from prometar.io.custom import is_custom
from prometar.metrics import Interval, t_interval
from tune.config import EPOCHS_KEY, MAX_SEED_PAIRS
from tune.records.folder import SETTINGS_FILES, Records
from tune.records.schema import FinalTest, SettingsName, Verdict, mean_differences, seed_means
from tune.report.formatting import describe_difference, format_mean, format_number, phrase
from tune.stages.enqueued import count_enqueued
from tune.stages.statistics import interval_over_datasets

MAX_CAVEATS = 5
LABELS = {"selected": "selected settings", "baseline": "default settings"}
Outcome = Verdict | Literal["unfinished", "leaking"]
"""Verdict of the final test, or the reason why there is none. "leaking": the search read test images."""


def outcome(records: Records) -> Outcome:
    """Return the verdict of a study, or why there is none."""
    if records.study.reads_test_images:
        return "leaking"
    if records.current_test is None or records.selected is None:
        return "unfinished"
    return records.current_test.verdict


def verdict_text(records: Records) -> str:
    """Return two sentences: which settings to use, and why."""
    test = records.final_test
    result = outcome(records)
    search = records.config.search
    if result == "leaking":
        return f"Do not use these results. The objective {search.objective} reads the test images."
    if test is None or result == "unfinished":
        return f"No verdict yet. {_reason_for_no_verdict(records)}"
    trial = f"(trial {test.selected.number})"
    if result == "selected":
        return f"Use the selected settings {trial}. They are better than the default settings."
    if result == "baseline":
        return f"Keep the default settings. {_reason_for_default(records, test)}"
    if not test.seeds:
        return "Use either. No final test was requested, so nothing was compared on test images."
    if test.difference is None:
        return "Use either. Fewer than two seed pairs finished, so no difference can be shown."
    return "Use either. The final test did not show that selected and default settings differ in H."


def _reason_for_no_verdict(records: Records) -> str:
    if records.selected is None:
        return "No trial has finished."
    if records.final_test is None:
        return "The final test has not finished."
    epochs = records.config.test.epochs
    if records.final_test.epochs != epochs:
        return f"The final test with {format_count(epochs, 'epoch')} per run has not finished."
    return f"The final test compared trial {records.final_test.selected.number}, which is no longer selected."


def _reason_for_default(records: Records, test: FinalTest) -> str:
    if not test.baseline_selected:
        trial = f"The selected settings (trial {test.selected.number})"
        if errors := test.selected_failures:
            return f"{trial} failed in {format_count(len(errors), 'run')} of the final test."
        return f"{trial} are worse."
    if all(trial.is_baseline for trial in records.completed):
        return "No trial with other settings was completed."
    stage = "confirmation" if records.confirmation and records.confirmation.seeds else "search"
    return f"The search found nothing better: no other settings scored higher in the {stage}."


def evidence(records: Records) -> list[str]:
    """Return the sentences with the numbers behind the verdict."""
    test = records.current_test
    if test is None or not test.seeds:
        return [line for line in (_about_selection(records), _about_epochs(records)) if line]
    lines = [
        _about_h(test),
        *_about_differences(test),
        _about_other_datasets(test),
        _about_power(test),
        _about_new_accuracy(test),
        _about_epochs(records),
    ]
    return [line for line in lines if line]


def search_summary(records: Records) -> str:
    """Return the numbers of trials, in total and by state."""
    ended = len(records.trials)
    planned = records.config.search.trials
    count = format_count(ended, "trial") if ended > planned else f"{ended} of {planned} trials"
    line = f"Search: {count} ({records.state_summary})."
    enqueued = [trial for trial in records.trials if trial.origin == "enqueued"]
    if not enqueued:
        return line
    # Only the folder of each source: "trial 3 of out/dtd" becomes "out/dtd".
    sources = [trial.source.rpartition(" of ")[2] for trial in enqueued]
    return f"{line} {count_enqueued(sources)}."


def _about_selection(records: Records) -> str:
    selected = records.selected
    baseline = records.baseline
    if selected is None:
        return ""
    trial = "The trial with the default settings" if selected.is_baseline else f"Trial {selected.number}"
    verb = "is selected" if records.confirmation else "leads the search"
    line = f"{trial} {verb}, with a search score of {format_number(selected.objective_if_completed)}."
    if baseline is None or baseline.objective_if_completed is None or selected.is_baseline:
        return line
    return f"{line} The default settings score {format_number(baseline.objective_if_completed)}."


def _about_h(test: FinalTest) -> str:
    if test.difference is None:
        return ""
    over = f"{_datasets(test)} and seed pairs" if len(test.datasets) > 1 else "seed pairs"
    measured = describe_difference(test.difference, test.interval_name)
    return f"Mean difference in H over {over} (selected minus default settings, test images): {measured}."


def _datasets(test: FinalTest) -> str:
    return format_count(len(test.datasets), "dataset")


def _about_differences(test: FinalTest) -> Iterator[str]:
    base = _mean_interval(test, "base")
    new = _mean_interval(test, "new")
    if base is None or new is None:
        return
    base_text = describe_difference(base, test.interval_name)
    new_text = describe_difference(new, test.interval_name)
    yield f"Mean difference in base accuracy: {base_text}. Mean difference in new accuracy: {new_text}."
    relevant = test.min_relevant or 1.0
    if base.mean > 0 and (new.high < 0 or new.mean <= -relevant):  # a significant or relevant fall
        means = f"{base.mean:+.1f} base, {new.mean:+.1f} new"
        line = f"On average, base accuracy rose and new accuracy fell: {means}."
        if not base.excludes_zero:
            line += " The interval of the difference in base accuracy contains 0."
        if not new.excludes_zero:
            line += " The interval of the difference in new accuracy contains 0."
        yield line


def _mean_interval(test: FinalTest, metric: str) -> Interval | None:
    """Return the interval of the mean difference in a metric over seed pairs.

    None if the baseline was selected, because then nothing is compared.
    """
    if test.baseline_selected:
        return None
    differences = mean_differences(test.datasets.values(), metric)
    return t_interval(list(differences.values()), level=1 - test.alpha)


def _about_other_datasets(test: FinalTest) -> str:
    intervals = [each.difference for each in test.datasets.values()]
    over_datasets = interval_over_datasets([each.mean for each in intervals if each])
    if test.difference is None or over_datasets is None:
        return ""
    measured = describe_difference(over_datasets)
    return f"If these datasets are a random sample, the mean difference in H on other datasets is {measured}."


def _about_power(test: FinalTest) -> str:
    if test.verdict != "either" or test.detectable is None or test.detectable >= 100:  # H is at most 100
        return ""
    line = f"This test has 80% power to detect a true difference of {test.detectable:.1f} points in H."
    relevant = test.min_relevant
    if relevant and test.difference and test.difference.within(relevant):
        unit = "point" if relevant == 1 else "points"
        line += f" The interval excludes differences of {relevant:g} {unit} or more."
    return line


def _about_new_accuracy(test: FinalTest) -> str:
    names = test.compared_names
    by_name = {name: seed_means(test.runs(name), "new").values() for name in names}
    texts = [f"{format_mean(values)} with the {LABELS[name]}" for name, values in by_name.items() if values]
    if not texts:
        return ""
    num_seeds = max(len(values) for values in by_name.values())
    statistics = f"mean ± standard deviation over {num_seeds} seeds" if num_seeds > 1 else "1 seed"
    return f"New accuracy ({statistics}): {', '.join(texts)}."


def _about_epochs(records: Records) -> str:
    test = records.current_test
    final = test.epochs if test else records.config.test.epochs
    if EPOCHS_KEY not in records.config.search.space.ranges:
        trial = records.baseline_config[EPOCHS_KEY]
        return f"Epochs: {trial} per trial, {final} per run of the confirmation and the final test."
    epochs = f"{final} with the default settings"
    if test is not None and not test.baseline_selected and EPOCHS_KEY in test.selected.settings:
        epochs = f"{test.selected.settings[EPOCHS_KEY]} with the selected settings, {epochs}"
    return f"Epochs: set by the search. Final test: {epochs}."


def caveats(records: Records) -> list[str]:
    """Return the most important caveats, at most MAX_CAVEATS of them."""
    return list(_caveats(records))[:MAX_CAVEATS]


def _caveats(records: Records) -> Iterator[str]:
    """Yield all caveats, the most important first, because reports omit those after the first MAX_CAVEATS."""
    test = records.final_test
    baseline = records.baseline
    if records.completed and baseline and baseline.objective_if_completed is None:
        yield f"The baseline trial failed ({baseline.reason[:80]}). Rerun the same command to retry it."
    yield from records.study.exclusion_notes
    if records.current_test:
        yield from _test_caveats(records, records.current_test)
    objective = OBJECTIVES.get(records.config.search.objective)  # None: custom
    if objective and objective.predicts_new:
        yield (
            "The search predicts new accuracy from drift: how much the prompts change CLIP's "
            "predictions over class names unrelated to the dataset. It uses no images of new classes."
        )
    elif records.study.score_name != "H":
        yield f"The search maximized {records.study.score_name}. The final test compares H."
    if len(records.completed) > 1:
        yield (
            f"The best search score is the maximum of {len(records.completed)} noisy scores, so it is "
            "biased upward. Rely on the final test."
        )
    if records.baseline_config.get("backbone.name") == "mini":
        yield "The bundled backbone mini is for testing. Do not compare its accuracies with published ones."
    elif test and any(each.published is not None for each in test.datasets.values()):
        yield "Published numbers are cited from papers. Seeds, images and epochs may differ."


def _test_caveats(records: Records, test: FinalTest) -> Iterator[str]:
    if errors := test.failures:
        counts = f"{len(errors)} of {len(test.runs())}"
        error = errors[0][:80]
        rule = "Their seed pairs are ignored"
        if test.selected_failures:
            rule = "A failed run with the selected settings decides against them"
        yield f"{counts} final-test runs failed ({error}). {rule}."
    if test.extended_after:
        yield (
            f"--final-seeds was changed after a look at {phrase(test.extended_after)} seed pairs. "
            "The interval ignores this, so a difference may be shown by chance in more than 5% of studies."
        )
    if earlier := sorted(test.earlier_tests):
        yield (
            f"The same test images were used earlier, to test {phrase(earlier, 'trial')}. "
            "The interval does not account for choices made after seeing those results."
        )
    if shared := sorted(set(records.config.search.seeds) & set(test.seeds)):
        yield (
            f"The search and the final test share {phrase(shared, 'seed')} and thus training images. "
            "This favors the selected settings."
        )
    if test.difference is None:
        return
    if test.is_sequential and len(test.seeds) < MAX_SEED_PAIRS:
        yield (
            f"The test stopped early, after {len(test.seeds)} of up to {MAX_SEED_PAIRS} seed pairs. "
            "The interval allows for this, but the mean tends to exaggerate the difference."
        )
    unit = "these datasets" if len(test.datasets) > 1 else "this dataset"
    yield (
        f"The interval reflects variation between training seeds on {unit}. "
        "It does not cover other datasets, backbones, shots or searches."
    )


def next_steps(records: Records) -> list[tuple[str, str]]:
    """Return the next steps that follow from the verdict, each with its command, or "" if it has none."""
    test = records.final_test
    match outcome(records):
        case "leaking":
            return [("Use an objective that does not read test images, such as --objective drift.", "")]
        case "unfinished":
            return [("Rerun the same command to resume:", records.study.command)]
        case "selected":
            return [_next_step_train(records, "selected")]
        case "baseline":
            return [_next_step_train(records, "baseline"), _next_step_search_longer(records)]
    if test is None or not test.seeds:
        return [("To test the selected settings, rerun the same command with --final-seeds auto.", "")]
    # The test found no clear winner.
    steps = [_next_step_train(records, "selected"), _next_step_train(records, "baseline")]
    if test.recommends_baseline:
        steps.reverse()  # the better settings first
    return [*steps, _next_step_search_longer(records)]


def _next_step_search_longer(records: Records) -> tuple[str, str]:
    example = f"such as --trials {2 * records.config.search.trials}"
    return (f"To search longer, rerun the same command with more trials, {example}.", "")


def _next_step_train(records: Records, name: SettingsName) -> tuple[str, str]:
    """Return the next step that trains with the named settings."""
    test = records.final_test
    config = records.folder / SETTINGS_FILES[name]
    has_custom_code = bool(records.config.baseline.custom_components)
    if test is not None and name == "selected":
        has_custom_code |= any(is_custom(str(value)) for value in test.selected.settings.values())
    command = f"prometar train --config {shlex.quote(str(config))}"
    if has_custom_code:
        command += " --trust-code"
    return f"Train with the {LABELS[name]}:", command


def alignment(test: FinalTest) -> str:
    """Return a sentence on gradient alignment in the final test, or "" if it was not measured."""
    texts = []
    for name in test.compared_names:
        values = [run.alignment for run in test.runs(name) if run.alignment is not None]
        if values:
            texts.append(f"{mean(values):+.2f} with the {LABELS[name]}")
    if not texts:
        return ""
    return f"Mean cosine similarity of support and query gradients: {phrase(texts)}."
