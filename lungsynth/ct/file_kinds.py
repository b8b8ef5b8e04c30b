"""What a file is: the one table of rules, and the report that says for each file which of them spoke.

Values come first, then the file's own name, then its folder. Rules are tried from the top.

| rule | what is seen | taken for |
|---|---|---|
| values: HU | values below -200, as only air and lung are | CT, whatever its name or folder |
| values: grey | other values than few whole numbers | CT, refused with a reason; with the name of a mask, nothing |
| values: labels | few whole numbers from 0 on | a mask: the rules below say of what |
| name | what is left of the name without that of its image: nodule, tumour, lesion, gtv, cancer | nodule mask |
| name | infection, effusion, consolidation, ... | findings: where they lie, no slice is normal |
| name | vessel, airway, heart, rib, ... | anatomy: not used |
| name | lung, lobe | lung mask |
| dataset.json | `labels` beside the file or above it, or the option `labels` | what it says for each value |
| folder | the same words, in folders that the image does not share | the same |
| folder | `labelsTr`, `labelsTs` beside `imagesTr` | nodule mask, when it has one value (Decathlon) |
| none | | a mask of unknown kind: not used, and no slice of its scan is normal |

Several values need a word for each: from dataset.json or the option. Without one only these are understood: in a lung
mask 1 and 2 (sides), 1 to 5 (lobes), 3 to 5 (LUNA16: 5 is the trachea); in a nodule mask numbers of nodules, or of
readers where the name says votes.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lungsynth.ct.series import MaskFile
from lungsynth.errors import InputError

__all__ = [
    "CT_WORDS",
    "FileReport",
    "Structure",
    "explain_labels",
    "labels_from_text",
    "mask_of",
    "read_dataset_json",
    "structure_of",
    "unexplained",
]

Structure = Literal["lung", "nodule", "finding", "anatomy"]

CT_WORDS = {"ct", "cta", "ctscan", "image", "images", "img", "volume", "vol", "scan", "imaging", "hu"}
# Ordered: the first that is found says what a name means. "lung nodule" is a nodule, "lung vessels" are vessels.
_STRUCTURES: tuple[tuple[Structure, re.Pattern[str]], ...] = (
    (
        "nodule",
        re.compile(r"nodul|tumou?r|lesion|cancer|carcino|neoplas|metasta|malignan|(?<![a-z])(gtv|mass(es)?(?![a-z]))"),
    ),
    (
        "finding",
        re.compile(
            r"infect|covid|consolid|opaci|effusion|fibros|emphysem|pneumon|pneumothor|atelecta|disease|patholog|abnormal"
            r"|crazy|honeycomb|(?<![a-z])ggo(?![a-z])"
        ),
    ),
    (
        "anatomy",
        re.compile(
            r"vessel|arter|vein|venous|aort|heart|cardi|airway|trachea|bronch|spin(e|al)|vertebra|body|o?esophag|liver"
            r"|thora|mediast|skin|bone|background|muscle|fat(?![a-z])|(?<![a-z])(ribs?|cord)(?![a-z])"
        ),
    ),
    ("lung", re.compile(r"lung|lobe|pulmo")),
)
_LUNG_VALUES: tuple[tuple[frozenset[int], tuple[int, ...]], ...] = (
    (frozenset({3, 4, 5}), (3, 4)),  # LUNA16: 5 is the trachea
    (frozenset({1, 2}), (1, 2)),
)
_LOBES = (1, 2, 3, 4, 5)
_VOTES = re.compile(r"(?<![a-z])votes?\d*(?![a-z])")  # values count readers, as in X_nodule_votes4
_LARGEST_JSON = 1 << 26  # bytes


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What files were taken for.

    Args:
        name: of the file as a user knows it, or of the folder of a series' slices.
        count: how many files.
        taken_for: what.
        why: the rule that spoke, or what is wrong.
    """

    name: str
    count: int = 1
    taken_for: str
    why: str


def structure_of(text: str) -> Structure | None:
    """What a name says of the structure that it marks; None when nothing."""
    lower = text.lower()
    return next((structure for structure, words in _STRUCTURES if words.search(lower)), None)


def read_dataset_json(path: Path) -> dict[int, str] | None:
    """What `labels` of a dataset.json says for each value but 0; None when the file says nothing of labels.

    Both directions are known: `{"1": "cancer"}` of the Decathlon and `{"cancer": 1}` of nnU-Net, lists for regions too.

    Raises:
        InputError: when it cannot be read, or a value is no whole number.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        labels = content.get("labels") if isinstance(content, dict) else None
        return None if not isinstance(labels, dict) else _by_value(labels)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: could not be read as dataset.json ({error}); mend or remove it.") from error


def _by_value(labels: Mapping[str, Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, str):  # the Decathlon's direction
            names[int(key)] = value
            continue
        for one in value if isinstance(value, list) else [value]:
            number = int(one)
            names[number] = f"{names[number]} {key}" if number in names else str(key)
    return {number: name for number, name in names.items() if number != 0}


def labels_from_text(text: str) -> dict[int, str]:
    """The option `labels`, such as `1=lung,2=nodule`, by value.

    Raises:
        InputError: when it is written otherwise.
    """
    try:
        pairs = [part.split("=") for part in text.split(",") if part.strip()]
        found = {int(value): name.strip() for value, name in pairs}
    except ValueError as error:
        raise InputError(f"`labels` is written like 1=lung,2=nodule, got {text!r}.") from error
    if not found or not all(found.values()):
        raise InputError(f"`labels` is written like 1=lung,2=nodule, got {text!r}.")
    return found


def explain_labels(path: Path, values: tuple[int, ...], names: Mapping[int, str], *, source: str) -> MaskFile:
    """A mask whose values somebody named.

    Args:
        path: the mask.
        values: in the file, without 0.
        names: by value.
        source: who named them, for the message.

    Raises:
        InputError: when the file has values that nobody named.
    """
    if unnamed := [value for value in values if value not in names]:
        known = ", ".join(f"{value} {name}" for value, name in sorted(names.items()))
        raise InputError(
            f"{path}: holds the {_counted(unnamed)}, which {source} does not name (it names {known}). Correct the "
            "file, or name all values with `--labels 1=lung,2=nodule`."
        )
    by_structure: dict[str, list[int]] = {"lung": [], "nodule": [], "finding": [], "anatomy": []}
    for value in values:
        by_structure[structure_of(names[value]) or "finding"].append(value)
    return MaskFile(
        path=path,
        lung=tuple(by_structure["lung"]),
        nodule=tuple(by_structure["nodule"]),
        finding=tuple(by_structure["finding"]),
    )


def mask_of(path: Path, values: tuple[int, ...], structure: Structure) -> MaskFile:
    """A mask of one structure, by its name or folder.

    Raises:
        InputError: when it has several values and nobody says what they mean.
    """
    used = values or (1,)
    if structure == "lung" and len(values) > 1:
        meant = next((meant for known, meant in _LUNG_VALUES if set(values) <= known), ())
        used = values if values == _LOBES else tuple(value for value in values if value in meant)
        if not used:
            raise unexplained(path, values)
    votes = structure == "nodule" and _VOTES.search(path.name.lower()) is not None
    if structure == "nodule" and len(values) > 1 and not (votes or _are_numbers(values)):
        raise unexplained(path, values)
    marked = {} if structure == "anatomy" else {structure: used}
    return MaskFile(path=path, votes=votes, **marked)


def unexplained(path: Path, values: tuple[int, ...]) -> InputError:
    """The refusal of a file of several values on which there is no word."""
    return InputError(
        f"{path}: holds the {_counted(values)}, and nothing says what they mean. Put a dataset.json with `labels` "
        "beside or above it, or name them with `--labels 1=lung,2=nodule`."
    )


def _are_numbers(values: tuple[int, ...]) -> bool:
    """Whether values count nodules: 1, 2, 3, ..."""
    return values == tuple(range(1, len(values) + 1))


def _counted(values: Iterable[int]) -> str:
    listed = [str(value) for value in values]
    shown = listed if len(listed) <= 8 else [*listed[:7], "...", listed[-1]]
    return f"value{'s' * (len(listed) > 1)} {', '.join(shown)}"
