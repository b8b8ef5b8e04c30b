"""A tiny cohort (contract C5) for tests of what borrows from one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lungsynth.cohort.schema import NoduleRow, SeriesRow, columns
from lungsynth.ct.write import write_plane
from lungsynth.geometry import axial_affine


def write_fake_cohort(folder: Path, sampler: Callable) -> Path:
    """Real slices on a grid of their own; those of training are named t, of the test part x; patients p0 .. p5."""
    for name in ("nodules", "lungs", "slices", "labels"):
        (folder / name).mkdir()
    lists = {name: {"training": [], "validation": [], "test": []} for name in ("nodules", "lungs", "enhancement")}
    diameters = [6.0 + index % 5 for index in range(24)]
    sample = sampler(list(range(900, 924)), ["ground_glass", "part_solid", "solid"] * 8, diameters)
    for index in range(24):
        who = f"{'tx'[index >= 18]}{index}"
        hu, alpha = sample["hu"][index][None], sample["alpha"][index][None]
        np.savez(folder / "nodules" / f"{who}.npz", hu=hu, alpha=alpha, largest=0)
        facts = {"category": sample["category"][index], "diameter_mm": float(sample["diameter_mm"][index])}
        entry = {"nodule": f"nodules/{who}.npz", "nodule_id": who, "patient_id": f"p{index % 6}", **facts}
        lists["nodules"]["training" if who[0] == "t" else "test"].append(entry)
    affine = axial_affine(spacing_mm=(5.0, 2.0, 2.0), origin_lps_mm=(-100.0, -90.0, 40.0))
    for who in ("t0", "t1", "x0"):
        label = np.zeros((90, 110), np.uint8)
        label[20:70, 10:45] = label[20:70, 60:95] = 1
        hu = np.where(label == 1, -860 - len(lists["lungs"]["training"]), 30).astype(np.int16)
        for kind, plane in (("slices", hu), ("labels", label)):
            write_plane(folder / kind / f"{who}.nii.gz", plane, affine)
        entry = {"image": f"slices/{who}.nii.gz", "label": f"labels/{who}.nii.gz", "category": "normal"}
        np.savez(folder / "lungs" / f"{who}.npz", hu=np.resize(hu, (256, 256)), mask=np.resize(label, (256, 256)))
        entry |= {"patient_id": f"p{who[1:]}", "lung": f"lungs/{who}.npz"}
        lists["lungs"]["training" if who[0] == "t" else "test"].append(entry)
    label[30:34, 20:24] = 2
    write_plane(folder / "labels" / "t9.nii.gz", label, affine)
    lists["enhancement"]["training"].append(
        {"image": "slices/t0.nii.gz", "label": "labels/t9.nii.gz", "patient_id": "p0"}
    )
    for name, row_type in (("series", SeriesRow), ("nodules", NoduleRow)):
        (folder / f"{name}.csv").write_text(
            ",".join(column.name for column in columns(row_type)) + "\n", encoding="utf-8"
        )
    lists["segmentation"] = {}
    (folder / "cohort.json").write_text(json.dumps({"format": 1, "split_hash": "ab" * 32}), encoding="utf-8")
    for name, entries in lists.items():
        (folder / f"{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder
