"""What a reader must know beside the figures: budgets, what was seen by whom, and what the figures do not say."""

from collections.abc import Iterable, Sequence

from evaluation.utility.report import ArmResult
from evaluation.utility.segmentation import SegmentationTraining
from evaluation.utility.subcohort import CATEGORIES, SubCohort

__all__ = ["notes_of"]

_FOREIGN = (
    "**Generator.** The generated samples come from weights that were trained on other patients than these few "
    "(the weights' split is not that of the sub-cohorts). Their figures are those of a user who takes a generator that "
    "has seen many patients, not of one who trains it on the few. Validation and judged patients trained it only if "
    "its split is another one than this cohort's: compare `generator.split_hash` with `split_hash`."
)
_OWN = "**Generator.** Trained on the patients of each sub-cohort alone, as `own_generator` says a line."
_MIXED = "**Generator.** Some lines have a generator trained on their patients alone (`own_generator`), others not."


def notes_of(
    steps: int, segmentation_steps: int, lines: Sequence[ArmResult], cohorts: Iterable[SubCohort]
) -> list[str]:
    """Notes under the tables.

    Args:
        steps: of each classifier.
        segmentation_steps: of each segmentation.
        lines: of the report.
        cohorts: that trained.
    """
    made = list(cohorts)
    notes = [_real(made), _GENERATOR[_knowledge(lines)]] if _knowledge(lines) else [_real(made)]
    if any(line.experiment == "classification" for line in lines):
        notes.append(
            f"**Classifier.** {steps} steps for every arm, categories drawn evenly but where a line says otherwise. It "
            "sees isolated nodules (`hu` of 64 x 64 pixels at 0.7 mm, without vessels or pleura), as the generator "
            "makes them: this is no test on whole slices. *No network* is the nearest of the categories' medians of "
            "mean HU, and knows the readers' outline, which the networks do not."
        )
    if any(line.experiment == "segmentation" for line in lines):
        segmentation = SegmentationTraining(steps=segmentation_steps)
        notes.append(
            f"**Segmentation.** From scratch, {segmentation.steps} steps of {segmentation.batch_size} squares of "
            f"{segmentation.size_px} pixels for every arm: far from what the bundle reaches, so that differences "
            "count, not levels. Crops are as frequent in all arms with real samples; added slices take the place of "
            "half of the lung slices. The bundle's own pasting of real nodules is off, but in the last arm. The judged "
            "composites are made with the product's overlay, so that arms which trained on it know it; crops are "
            "untouched CT. Sensitivities are those at the threshold that leaves one false positive a composite."
        )
    notes.append(
        "**Intervals** are 95 % percentiles over seeds and judged patients, both drawn again; a seed is another choice "
        "of patients, another start and other added samples. With two or three seeds they are a rough guess."
    )
    return notes


_GENERATOR = {"foreign": _FOREIGN, "own": _OWN, "mixed": _MIXED}


def _knowledge(lines: Sequence[ArmResult]) -> str:
    known = {line.own_generator for line in lines if line.own_generator is not None}
    if len(known) > 1:
        return "mixed"
    return ("own" if known.pop() else "foreign") if known else ""


def _real(cohorts: Sequence[SubCohort]) -> str:
    texts = []
    for patients in sorted({cohort.patients for cohort in cohorts}):
        own = [cohort for cohort in cohorts if cohort.patients == patients]
        counts = ", ".join(f"{_range([cohort.nodules.get(name, 0) for cohort in own])} {name}" for name in CATEGORIES)
        texts.append(f"{patients} patients have {counts}")
    lent = _range([cohort.lung_patients for cohort in cohorts])
    return (
        f"**Real data.** {'; '.join(texts)} nodules. Patients are drawn at random, but so that each category has one. "
        f"Slices with outlined lungs come from {lent} patients, for the segmentation."
    )


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"
