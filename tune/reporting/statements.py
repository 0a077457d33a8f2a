"""What a study's records say, in sentences: the same on the page, in the terminal and in a comparison."""

from collections.abc import Sequence
from statistics import mean

from prometar.bundled.suite import SUITE
from prometar.data.splits.objective import OBJECTIVES
from tune.reporting.formatting import chance, interval, listed, number, shown, signed
from tune.reporting.track_record import track_record
from tune.results.goals import SECONDS, in_words
from tune.results.reader import Records, paired
from tune.results.schema import FinalTest, Reevaluated, TrialRecord
from tune.stages.sequential import LOOKS


def verdict(records: Records) -> str:
    """What was found, in a sentence or two."""
    warning = "Leaking: the search read the test images. " if records.leaking else ""
    return warning + _verdict(records)


def _verdict(records: Records) -> str:
    chosen, finals = records.chosen, records.finals
    if chosen is None:
        return "No trial has finished yet."
    if finals is None:
        return (
            f"The study has not ended. So far trial {chosen.number} leads on the search's own images, "
            f"{records.score} {number(chosen.objective)}; nothing has been tested yet."
        )
    if records.overtaken:
        return (
            f"The study has not ended: its final test is of an earlier choice, {_named(finals.best.number)}; "
            f"now it is {_named(chosen.tested_as)}. The same command goes on from there."
        )
    if finals.same:
        return _kept(records)
    if not finals.seeds:
        return f"Trial {chosen.number} leads on the search's own images; no final test was asked for."
    several = len(finals.datasets) > 1
    difference = finals.difference
    if difference is None:
        if several and any(entry.difference for entry in finals.datasets.values()):
            return "No difference shown over the data sets: fewer than two of them can be compared."
        return "The final test shows nothing: fewer than two seeds were finished by both settings."
    singles = (paired(each.best, each.released).values() for each in finals.datasets.values())
    if not any(map(any, singles)):
        return "The best settings found and the released ones test equal in every pair."
    measured = "best − released " + interval(
        difference, "data set" if several else "paired seed", finals.overall_level
    ).replace(",", " points of H,", 1)
    if not finals.shown:
        found = f"No difference shown: {measured}; the interval holds 0.{_what_it_excludes(finals)}"
    else:
        word = "better" if difference.mean > 0 else "worse"
        found = f"The best settings found test {word} than the released ones: {measured}."
    return f"{found} {_by_dataset(finals)}" if several else found


def _named(tested_as: int) -> str:
    return f"trial {tested_as}" if tested_as else "the released settings"


def _kept(records: Records) -> str:
    """Why the released settings were kept."""
    again = records.lastround
    bounds = records.asked.bounds
    if bounds and not records.keeping:
        return f"No settings keep {in_words(bounds)}, not even the released ones."
    if bounds and all(trial.reference for trial in records.keeping):
        return f"Keep the released settings: no others keep {in_words(bounds)}."
    kept = _keeping(records)
    others = [row for row in kept if not row.reference]
    if bounds and again and not kept:
        return f"No settings keep {in_words(bounds)} in the last round, not even the released ones."
    if bounds and again and not others:
        return f"Keep the released settings: no others keep {in_words(bounds)} in the last round."
    if all(trial.reference for trial in records.complete):
        return "Keep the released settings: no others have finished the search."
    if again is None or not others:
        return "Keep the released settings: no others beat them on the search's own images."
    if again.keep_unless is None:
        return "Keep the released settings: no others beat them in the last round."
    best = max(others, key=lambda row: row.probability or 0.0)
    if best.probability is None:
        return "Keep the released settings: no others have finished the last round."
    return (
        f"Keep the released settings: trial {best.number} comes nearest, and is better on the test with a "
        f"probability of {chance(best.probability)} (expected {signed(best.expected)} points of H); "
        f"{again.keep_unless:g} is asked for."
    )


def _keeping(records: Records) -> list[Reevaluated]:
    """The last round's rows that keep the bounds; the search tells how long the released settings took."""
    again, bounds, released = records.lastround, records.asked.bounds, records.released
    slow = released is not None and not released.in_time(bounds)
    rows = again.rows if again else ()
    return [row for row in rows if row.keeps(bounds) and not (row.reference and slow)]


def _released_break(records: Records) -> bool:
    """Whether the released settings have figures, where the choice was made, that break a bound."""
    among: Sequence[Reevaluated | TrialRecord]  # of the last round, or of a search that ends without one
    if records.lastround:
        measured = any(row.reference and row.mean is not None for row in records.lastround.rows)
        among = _keeping(records)
    else:
        measured = records.released is not None and records.released.score is not None
        among = records.keeping
    return measured and not any(row.reference for row in among)


def _what_it_excludes(finals: FinalTest) -> str:
    """What the test could have shown, where that is known."""
    if finals.detectable is None or finals.difference is None:
        return ""
    pairs = f"{finals.difference.n} pairs"
    excluded = f" Differences of {finals.matters:g} and more are excluded." if finals.excluded else ""
    seen = "no difference that accuracies can have"
    if finals.detectable < 100:
        seen = f"a true difference of about {number(finals.detectable)}"
    return f" With {pairs}, {seen} would have been shown in four of five tests.{excluded}"


def expectation(records: Records) -> str:
    """What the last round expected of the chosen settings, beside what was tested; "" where it did not."""
    again, finals = records.lastround, records.finals
    row = next((row for row in again.rows if row.number == again.chosen), None) if again else None
    if row is None or row.expected is None or row.probability is None:
        return ""
    difference = finals.difference if finals and not records.overtaken else None
    tested = f"; tested: {signed(difference.mean)}" if difference else ""
    return (
        f"Expected of trial {row.number} before the test: {signed(row.expected)} points of H, better with a "
        f"probability of {chance(row.probability)}{tested}."
    )


def _by_dataset(finals: FinalTest) -> str:
    """How many data sets show what, in a sentence."""
    words = [shown(entry.difference, first="best", second="released") for entry in finals.datasets.values()]
    counts = [f"{word} on {words.count(word)}" for word in dict.fromkeys(words)]
    return f"Data sets one by one: {', '.join(counts)} of {len(words)}."


def advice(records: Records) -> str:
    """Which settings to use."""
    chosen, finals = records.chosen, records.finals
    if chosen is None:
        return ""
    if finals is None or records.overtaken:
        return "Until the final test has been run, the released settings are the ones to use."
    if finals.same:  # the verdict has said it
        return ""
    where = f"trial {finals.best.number}'s settings, in best.yaml"
    if records.leaking:
        return f"Use none of this: the search read the test images. Its best are {where}."
    if _released_break(records):
        return f"Use {where}: the released settings do not keep {in_words(records.asked.bounds)}."
    difference = finals.difference
    if difference is None:
        return f"If any, use {where}; they are not shown to be better than the released ones."
    if not finals.shown:
        return f"Use either: {where}, are not shown to be better than the released ones."
    return f"Use {where}." if difference.mean > 0 else "Keep the released settings."


def alignment(records: Records) -> str:
    """What the final runs' gradients did, in a sentence; empty where it was not measured."""
    found = {
        name: [run.alignment for run in runs if run.alignment is not None]
        for name, runs in records.sides.items()
    }
    means = [f"{name} {signed(mean(cosines))}" for name, cosines in found.items() if cosines]
    if not means:
        return ""
    return (
        "Gradient alignment, the mean cosine of the gradient on a batch's other classes and on the one that "
        f"is left out: {', '.join(means)}. Above 0, a step on some classes also lowers the loss on others."
    )


def caveats(records: Records) -> list[str]:
    """What the figures do not show."""
    known = [track_record(records), _learned(records), _rough(records)]
    lines = [*filter(None, known), *_out_of_date(records), *_kept_bounds(records)]
    if records.leaking:
        lines.append("This objective reads the test images: the search leaks, its figures are no results.")
    released = records.released
    if records.complete and released is not None and released.state == "FAIL":
        lines.append(
            f"The released settings have failed (trial {released.number}): the search has no figure to set "
            "beside its best. The same command tries them again."
        )
    if len(records.keeping) > 1:  # else no figure is called the best
        lines.append(
            f"The search's best figure is the highest of {len(records.keeping)}, so it is biased upwards, "
            "and not comparable with a test figure."
            + (
                " The last round's figure of the settings it chose is biased too, by less: it is one of few."
                if records.lastround
                else " The final test's figures are no such picks: no choice goes by them."
                if records.finals and records.finals.seeds and not records.leaking
                else ""
            )
        )
    lines += _about_the_score(records)
    lines += _about_the_test(records)
    if records.asked.backbone == "mini":
        lines.append(
            "Backbone mini is the embedded test bed: its figures compare with each other only, "
            "not with published ones."
        )
    elif any(entry.published is not None for entry in records.tests.values()):
        lines.append(
            "Published figures are cited, not run here: their seeds, images and epochs may differ, and their "
            "H is that of mean accuracies, not the mean of each run's."
        )
    else:
        lines.append("No published figure stands beside these: none is known for this very setting.")
    return [*lines, *_pruned(records)]


def _pruned(records: Records) -> list[str]:
    """Why trials were stopped: a time that is used up does not come back."""
    pruned = records.in_state("PRUNED")
    limits = [bound for bound in records.asked.bounds if bound.figure == SECONDS and not bound.least]
    slow = [trial for trial in pruned if not trial.in_time(limits)]
    lines = list[str]()
    if early := len(pruned) - len(slow):
        behind = " by all goals together" if len(records.asked.goals) > 1 else ""
        lines.append(f"Pruned trials ({early}) were judged early{behind}: some might have recovered.")
    if slow:
        lines.append(
            f"Pruned trials ({len(slow)}) did not keep {in_words(limits)}: "
            "they were stopped when they broke it."
        )
    return lines


def _about_the_score(records: Records) -> list[str]:
    """What the search went by, where that is not what a test measures."""
    asked, lines = records.asked, list[str]()
    if asked.objective in OBJECTIVES and OBJECTIVES[asked.objective].predicts:
        lines.append(
            "The search's figures of new classes, and H with them, are predicted from how much the prompts "
            "change what the backbone makes of foreign names: no image of a new class was seen."
        )
    if asked.score != "H" and records.finals and records.finals.seeds:
        lines.append(f"The search went by {asked.score}, and the final test is of H.")
    begun = len(records.trials)
    if records.finals and begun < asked.trials:
        lines.append(f"The search ended after {begun} of the {asked.trials} trials that were asked for.")
    return lines


def _learned(records: Records) -> str:
    """What other studies had to say; "" where none was asked."""
    if records.learned is None:
        return ""
    weighed = records.judged and records.learned.scored_by(
        records.asked.objective, besides=records.asked.datasets
    )
    return f"Learned from {records.learned}: what they promise most of was tried first" + (
        ", and what they promise is weighed in the choice." if weighed else "."
    )


def _rough(records: Records) -> str:
    """Where a choice rests on what leads were worth in other studies than this one."""
    asked = records.asked
    measured = {
        "method": "prometar", "backbone": "mini", "pretrained": None, "shots": 16, "epochs": 5,
        "val_per_class": 20,
    }  # fmt: skip
    alike = all(getattr(asked, key) == value for key, value in measured.items())
    if not records.judged or (alike and len(asked.datasets) == 1 and asked.datasets[0] in SUITE):
        return ""
    return (
        "Expected gains and their probabilities rest on what leads of prometar were worth with the embedded "
        "backbone on one rendered data set, 16 shots, 5 epochs and 20 validation images a class: here they "
        "are rough."
    )


def _kept_bounds(records: Records) -> list[str]:
    """What keeps the bounds that were asked for."""
    bounds, released = records.asked.bounds, records.released
    if not bounds:
        return []
    does = "do" if released in records.keeping else "do not"
    lines = [
        f"{len(records.keeping)} of {len(records.complete)} finished trials keep {in_words(bounds)}; the "
        f"released settings {does}."
    ]
    for side, runs in records.sides.items():
        for bound in (bound for bound in bounds if bound.figure != SECONDS):  # of one run, not of a trial
            figures = [getattr(run, bound.figure) for run in runs if run.done]
            if None not in figures and figures and bound.excess(mean(figures)) > 0:
                name = "released" if side == "released" else "chosen"
                lines.append(f"In the final test the {name} settings break {bound}: {number(mean(figures))}.")
    return lines


def _about_the_test(records: Records) -> list[str]:
    """What the final test does not show."""
    finals, lines = records.finals, list[str]()
    if finals is None:
        return lines
    several = len(finals.datasets) > 1
    if finals.difference:
        n = finals.difference.n
        lines.append(
            "The interval over data sets is about other data sets like these "
            f"({n} were tested); with so few it is rough, and they were not drawn at random."
            if several
            else f"The interval is about other training seeds ({n} pairs) on these classes and images. It "
            "says nothing about another data set, backbone, or number of shots, nor about what a second "
            "search would have picked."
        )
    lines += _when_it_ended(finals)
    if several and any(entry.difference for entry in finals.datasets.values()):
        one = "one misses" if finals.matters is None else "up to one misses"
        lines.append(f"Each data set's interval stands alone: of {_such(finals)} such, {one} by chance.")
    shared = sorted(set(records.asked.seeds) & set(finals.seeds))
    if shared:
        lines.append(
            f"Final {'seed' if len(shared) == 1 else 'seeds'} {listed(shared)} also served the search: the "
            "settings were chosen on training images of the same draw."
        )
    if finals.looked_before:
        lines.append(
            f"The same settings were looked at before, after {listed(finals.looked_before)} pairs: an "
            "interval that is looked at until it shows something is wrong more often than it says."
        )
    searched = [n for n in finals.tested if n]
    if set(searched) - {finals.best.number}:
        of = "trial" if len(searched) == 1 else "trials"
        lines.append(
            f"Settings of {of} {listed(searched)} have been tested: later choices may have been made "
            "knowing that."
        )
    return lines


def _such(finals: FinalTest) -> int:
    """Of how many intervals of a data set one misses: where pairs were added, any of all looks may."""
    return round(1 / (finals.alpha if finals.matters is None else sum(look.alpha for look in LOOKS)))


def _when_it_ended(finals: FinalTest) -> list[str]:
    """What added pairs, and what that does to the interval."""
    if finals.matters is None or finals.same:
        return []
    if len(finals.datasets) > 1:
        return [
            "Seeds were added until the mean difference over these data sets was shown, one of "
            f"{finals.matters:g} points of H was excluded, or no seeds were left: {len(finals.seeds)} were "
            "run. The interval over data sets also allows for other data sets, and is mostly wider."
        ]
    if finals.difference is None:
        return []
    return [
        f"Pairs were added until a difference was shown, one of {finals.matters:g} points of H was excluded, "
        f"or no seeds were left. The interval's {finals.level} % are those of one look alone: of "
        f"{_such(finals)} such studies, up to one ends with an interval that misses."
    ]


def _out_of_date(records: Records) -> list[str]:
    """Later rounds that a longer search has overtaken."""
    lines = []
    again = "The same command goes on from there."
    if records.lastround and records.best and records.asked.goals == ("objective",):
        numbers = {row.number for row in records.lastround.rows}
        longer = len(records.complete) > records.lastround.among
        if longer and records.best.number not in numbers:
            lines.append(
                f"The last round is out of date: trial {records.best.number} leads the search now, and "
                f"was no part of it. {again}"
            )
    chosen = records.chosen
    if records.finals and chosen and records.overtaken:
        lines.append(
            f"The final test is out of date: trial {records.finals.best.number} led when it was run, "
            f"trial {chosen.number} does now. {again}"
        )
    return lines
