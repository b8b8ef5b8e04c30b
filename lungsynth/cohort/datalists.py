"""MONAI datalists of a cohort (contract C5.2), which the trainings of the bundles read; paths are relative to it."""

from collections.abc import Iterable, Mapping
from typing import Any

from lungsynth.cohort.records import RATINGS, NoduleRow, SeriesRow, SliceRow
from lungsynth.cohort.split import EXCLUDED, SPLITS

__all__ = ["NORMAL_CATEGORY", "Datalist", "build_datalists"]

NORMAL_CATEGORY = "normal"

Datalist = dict[str, list[dict[str, Any]]]


def build_datalists(
    series: Iterable[SeriesRow], slices: Iterable[SliceRow], nodules: Iterable[NoduleRow], splits: Mapping[str, str]
) -> dict[str, Datalist]:
    """Builds the lists by file name, without `.json`.

    Slices on which no expert drew anything are not in `segmentation`: there is nothing to learn or to measure on them.
    Nodules of which only centre and diameter are known stand there as a kind of their own, `ball`: a training may ask
    for them, nothing is measured on them.

    Args:
        series: rows of the cohort.
        slices: their slices.
        nodules: their nodules; those without a patch are left out.
        splits: by series id; what is excluded stands in no list.
    """
    by_id = {row.series_id: row for row in series}
    lists: dict[str, Datalist] = {
        name: {split: [] for split in SPLITS} for name in ("segmentation", "nodules", "cubes", "lungs", "enhancement")
    }

    def add(name: str, series_id: str, **entry: Any) -> None:
        row, split = by_id[series_id], splits[series_id]
        if split != EXCLUDED:
            who = {"patient_id": row.patient_id, "series_id": series_id, "source": row.source}
            lists[name][split].append({**entry, **who})

    for row in sorted(slices, key=lambda row: row.slice_id):
        files = {"image": f"slices/{row.slice_id}.nii.gz", "label": f"labels/{row.slice_id}.nii.gz"}
        labelled = list(by_id[row.series_id].labelled)
        if labelled:
            add("segmentation", row.series_id, **files, labelled=labelled, kind="slice")
        if row.normal:
            lung = f"lungs/{row.slice_id}.npz"
            add("lungs", row.series_id, lung=lung, **files, category=NORMAL_CATEGORY)
        if row.shows_nodule:
            add("enhancement", row.series_id, **files)
    for nodule in sorted(nodules, key=lambda row: row.nodule_id):
        if nodule.has_patch:
            path = f"nodules/{nodule.nodule_id}.npz"
            add("nodules", nodule.series_id, nodule=path, **_nodule_facts(nodule))
            if nodule.has_cube:
                add("cubes", nodule.series_id, cube=f"cubes/{nodule.nodule_id}.npz", **_nodule_facts(nodule))
            if nodule.expert_mask:
                files = {"image": path, "label": path}
                add("segmentation", nodule.series_id, **files, labelled=["nodule"], kind="nodule")
            elif nodule.ball:
                add("segmentation", nodule.series_id, image=path, label=path, labelled=[], kind="ball")
    return lists


def _nodule_facts(nodule: NoduleRow) -> dict[str, Any]:
    return {
        "nodule_id": nodule.nodule_id,
        "category": nodule.texture_class,
        "diameter_mm": round(nodule.diameter_mm, 4),
        "votes": nodule.votes,
        "mean_hu": round(nodule.mean_hu, 4),
        "solid_fraction": round(nodule.solid_fraction, 4),
        **{name: nodule.attributes.get(name) for name in ("reader_diameter_mm", *RATINGS)},
    }
