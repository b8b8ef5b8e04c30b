"""What has to be said under Table I: whom the figures hold for, what is missing, and which lines to distrust."""

from collections.abc import Iterator, Mapping, Sequence

from lungsynth.judge.contestants import Contestant
from lungsynth.judge.figures import FEWEST_LESIONS
from lungsynth.judge.records import Outcome
from lungsynth.judge.test_part import TestPart

__all__ = ["RELATIONS", "notes"]

RELATIONS = {
    "held_out": "The judged patients were held out from the training (same split) of: ",
    "other_collections": "Trained on other collections than the judged ones: ",
    "may_have_trained": "**May have been trained on judged patients** (another split of the same collections, "
    "or nothing known): ",
}


def notes(
    part: TestPart, contestants: Sequence[Contestant], outcomes: Sequence[Outcome], left_out: Mapping[str, str]
) -> list[str]:
    """Markdown paragraphs."""
    return [text + "\n" for text in _all(part, contestants, outcomes, left_out)]


def _all(
    part: TestPart, contestants: Sequence[Contestant], outcomes: Sequence[Outcome], left_out: Mapping[str, str]
) -> Iterator[str]:
    for relation, text in RELATIONS.items():
        if named := [contestant.title for contestant in contestants if contestant.relation == relation]:
            yield text + ", ".join(named) + "."
    unchosen = [
        contestant.title
        for contestant, outcome in zip(contestants, outcomes, strict=True)
        if contestant.relation and contestant.chosen_point != outcome.operating_point
    ]
    if unchosen and part.part == "test":
        yield (
            f"**Operating points of other weights**: {', '.join(unchosen)}. Their sidecars state none, or another one. "
            "Judge them with `--part validation`, write its `probability_at_one_false_positive_a_slice` into their "
            "`inference*.json` and sidecars as `operating_point`, and judge again. FROC and CPM do not depend on it."
        )
    if part.part == "validation":
        yield "**The validation part chose weights and operating points: these are no figures of unseen patients.**"
    for name, reason in left_out.items():
        yield f"Left out: {name}: {reason}"
    yield from _about_images(part, outcomes[0] if outcomes else Outcome())
    if outcomes and sum(len(case.targets) for case in outcomes[0].scans.cases) < FEWEST_LESIONS:
        yield f"(c) of the composites, a slice instead of a scan: the scans have fewer than {FEWEST_LESIONS} lesions."
    yield (
        "The paper measured on LUNA16 and does not say how; its accuracy may count pixels or candidates. "
        "Methods without a nodule map have no accuracy and no Dice."
    )


def _about_images(part: TestPart, outcome: Outcome) -> Iterator[str]:
    if not outcome.crops.cases:
        yield "The cohort has no nodule of 3 mm or more that experts drew: there are no figures of crops."
    elif part.min_votes < 2:
        yield "No nodule of the cohort was drawn by two readers: masks are those of one."
    if outcome.crops.cases:
        yield (
            "Nodules are centred in their crops: a guess at the middle hits them all. The sensitivity with the nodule "
            "off the centre, and that on composites, cannot be had by such a guess."
        )
    if not outcome.composites:
        yield "The cohort lacks nodules or normal slices: there are no composites."
    else:
        yield (
            "Composites show one nodule each on a slice without a labelled nodule. Nobody looked for nodules there: "
            "tumours that were never labelled (LCTSC are radiotherapy cases) count as false positives."
        )
    if not any(case.targets for case in outcome.scans.cases):
        yield "No scan of the cohort has a labelled lesion: there are no false positives a scan."
    elif len({case.patient for case in outcome.scans.cases}) < 2:
        yield "One patient's scans have labelled lesions: their figures have no interval."
