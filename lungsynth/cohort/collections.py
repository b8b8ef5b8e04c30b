"""Where public collections come from: their names, licences and citations, recognised by the ids of their files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["UNKNOWN_LICENCE", "Collection", "recognise"]

UNKNOWN_LICENCE = "unknown (state it before sharing weights)"


@dataclass(frozen=True)
class Collection:
    """A collection of scans.

    Args:
        name: the `source` of its series.
        family: collections of one family hold the same patients, perhaps under other ids.
        licence: its short name.
        citation: authors and DOI; empty when unknown.
    """

    name: str
    family: str
    licence: str = UNKNOWN_LICENCE
    citation: str = ""


_LIDC = "Armato et al., LIDC-IDRI, TCIA, doi:10.7937/K9/TCIA.2015.LO9QL9SX"
_LUNA16 = Collection(
    "LUNA16", "LIDC-IDRI", "CC BY 4.0", f"Setio et al., LUNA16, doi:10.1016/j.media.2017.06.015; {_LIDC}"
)
_PHANTOM = Collection("phantom", "phantom", "Apache-2.0", "procedural phantom of lungsynth: no patient's data")

# Ordered: the first pattern found in one of the ids or in the name of the source wins.
_COLLECTIONS = (
    (r"phantom", _PHANTOM),
    (r"luna[-_ ]?16", _LUNA16),
    (r"^lidc-idri", Collection("LIDC-IDRI", "LIDC-IDRI", "CC BY 3.0", _LIDC)),
    (r"^1\.3\.6\.1\.4\.1\.14519\.5\.2\.1\.6279\.6001\.", _LUNA16),
    (
        r"^qin-(lsc|lung)",
        Collection(
            "QIN-LUNG-CT",
            "QIN-LUNG-CT",
            "CC BY 3.0",
            "Goldgof et al., QIN LUNG CT, TCIA, doi:10.7937/K9/TCIA.2015.NPGZYZBZ; "
            "Kalpathy-Cramer et al., TCIA, doi:10.7937/K9/TCIA.2015.1BUVFJR7",
        ),
    ),
    (
        r"^lung[-_](pet-ct-)?dx",
        Collection("Lung-PET-CT-Dx", "Lung-PET-CT-Dx", "CC BY 4.0", "Li et al., doi:10.7937/TCIA.2020.NNC2-0461"),
    ),
    (
        r"^lctsc",
        Collection("LCTSC", "LCTSC", "CC BY 3.0", "Yang et al., LCTSC, TCIA, doi:10.7937/K9/TCIA.2017.3R3FVZ08"),
    ),
    (
        r"^(msd|task06_lung|lung_\d{3})",
        Collection(
            "MSD-Lung",
            "MSD-Lung",
            "CC BY-SA 4.0",
            "Antonelli et al., Medical Segmentation Decathlon, doi:10.1038/s41467-022-30695-9",
        ),
    ),
)


def recognise(ids: Sequence[str], *, folder: str) -> Collection:
    """Finds the collection of a series.

    Args:
        ids: what names the series, the most telling first: patient id, series id, file name.
        folder: name of the source's folder, which names the collection when nothing else does.
    """
    named = {collection.name: collection for _, collection in _COLLECTIONS}
    for name in (*ids, folder):
        if name in named:
            return named[name]
        for pattern, collection in _COLLECTIONS:
            if re.search(pattern, name, flags=re.IGNORECASE):
                return collection
    return Collection(name=folder, family=folder)
