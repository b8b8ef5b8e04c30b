"""What has to be said under Tables II and III: whom figures hold for, what is missing, how to read the columns."""

from collections.abc import Iterator, Mapping, Sequence

from evaluation.cohort_subsets import Subset
from evaluation.generation.methods import GenerationMethod
from evaluation.generation.reference import FEW_PATIENTS, Reference
from evaluation.methods import relation_to
from evaluation.paper import GENERATOR_NAMES
from evaluation.segmentation.table import RELATIONS

__all__ = ["UNEQUAL", "notes"]

UNEQUAL = 1.25  # times the shortest training, from which on a table says that trainings differ
_EQUAL = GENERATOR_NAMES["w_capsulegan_equal"]


def notes(
    part: Subset,
    reference: Reference,
    generators: Sequence[GenerationMethod],
    left_out: Mapping[str, str],
    *,
    count: int,
) -> list[str]:
    """Markdown paragraphs."""
    return [text + "\n" for text in _all(part, reference, generators, left_out, count)]


def _all(
    part: Subset, reference: Reference, generators: Sequence[GenerationMethod], left_out: Mapping[str, str], count: int
) -> Iterator[str]:
    for relation, text in RELATIONS.items():
        if named := [generator.title for generator in generators if generator.relation == relation]:
            yield text + ", ".join(named) + "."
    if part.part == "validation":
        yield "**The validation part chose weights: these are no figures of unseen patients.**"
    for reason in dict.fromkeys(left_out.values()):
        yield f"Left out: {', '.join(name for name, why in left_out.items() if why == reason)}: {reason}"
    yield from _about_minutes(generators)
    yield from _about_patients(reference)
    yield from _about_features(part, reference)
    yield (
        "The first line hands out training samples: its distances are the floor, training patients against held-out "
        "ones at the same n, and all that it makes are copies. Distances, two-sample tests, checks and copies: one "
        "sample for each held-out one, of its category and diameter. Inception Score, MS-SSIM, asked and measured: "
        f"{count} a category, diameters as in training."
    )
    yield (
        "Two-sample test: share of right answers of a small CNN that sees HU and mask, on patients that it did not "
        "learn from; 0.5: nobody can tell. Copies: nearer to a training sample than 99 % of the held-out ones come, "
        f"by size; {reference.held_out_copies} of the {len(reference.held_out)} held-out ones do."
    )
    if reference.kind == "slices":
        yield from _about_slices()
    if reference.kind == "nodules":
        yield (
            "Nodules are compared as they reach an image: laid by their alpha on a lung of -850 HU. CT checks, and the "
            "two-sample test on patches as made, see the patches with the surroundings that generators gave them."
        )


def _about_minutes(generators: Sequence[GenerationMethod]) -> Iterator[str]:
    known = {each.title: each.train_minutes for each in generators if each.train_minutes is not None}
    if known and max(known.values()) > UNEQUAL * min(known.values()):
        yield (
            "**Not trained for equal times**, in minutes: "
            + ", ".join(f"{title} {minutes:.3g}" for title, minutes in known.items())
            + ". Methods are compared where these are alike"
            + (f"; the line {_EQUAL} is this method at the others' budget." if _EQUAL in known else ".")
        )


def _about_patients(reference: Reference) -> Iterator[str]:
    patients = len(set(reference.held_out.owners))
    if patients < 2:
        yield "**One patient is held out: nothing here has an interval, and nothing holds for the next patient.**"
    elif patients < FEW_PATIENTS:
        yield (
            f"**{patients} patients are held out: slices of one patient are alike, and n counts slices. Intervals over "
            "so few patients say little, and the order of methods may turn with the next patient.** The two-sample "
            "tests of methods learn from training patients too; the floor's cannot, and may fall below 0.5, since it "
            "learns patients."
        )


def _about_slices() -> Iterator[str]:
    yield (
        "**What is real here is composed**: normal slices of held-out patients with nodules of held-out patients, by "
        "the overlay of the product, on its grid (256 x 256 at 1.4 mm), because whole slices with outlined nodules are "
        "few. Lungs, nodules and texture are real, seams are not: the stages share the overlay with what they are "
        "compared with, methods in one piece were trained on slices composed likewise from training patients. Where "
        "the part has real whole slices, they stand below as a second reference."
    )
    yield (
        "The mask is the lungs', nodules included; a method in one piece tells nobody where its nodule is. The first "
        "stage and the two stages show the same composites, drawn from a large catalogue of generated lungs and "
        "generated nodules alone; several of them may share a lung, which intervals do not know."
    )


def _about_features(part: Subset, reference: Reference) -> Iterator[str]:
    features = reference.features
    if features.classes:
        yield (
            f"The Inception Score is that of the feature network's {len(features.classes)} classes "
            f"({', '.join(features.classes)}), which bound it."
        )
    if reference.kind != "lungs":
        yield (
            "The paper's Inception Score is of ImageNet's 1,000 classes, its FID of other features and another n: its "
            "figures are to be seen, not to be subtracted."
        )
    if features.sidecar and relation_to(part, features.sidecar) == "may_have_trained":
        yield (
            "**The feature network may have been trained on judged patients** (another split of the same collections): "
            "its distances may flatter. Train it on this cohort with scripts/train_features.py."
        )
