"""Are these values HU? Judged where it is known what they must be: in the lung, and in the tissue around it.

The minimum and the maximum of a scan say little: padding, air and metal reach as far in images that are no HU. Lung is
about -850 HU, soft tissue and fat lie within -100..100. Where they do not, the usual mistakes are tried, and the one
that explains what was found is named.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from lungsynth.cohort.lung_mask import threshold_lung_mask
from lungsynth.errors import InputError
from lungsynth.hounsfield import AIR_HU, CT_RANGE_HU
from lungsynth.types import HuVolume

__all__ = ["check_lung_and_tissue", "explain_missing_lung"]

_LUNG_HU = (-990.0, -250.0)  # medians, from emphysema to lungs that are mostly consolidated
_TISSUE_HU = (-200.0, 250.0)  # medians, from fat to contrast agent
_TISSUE_ABOVE_HU = -400
_FEWEST_VOXELS = 50  # of tissue, for a median
_WIDTH_MM = (25.0, 600.0)  # of both lungs together, from a premature infant to the largest field of view
_OFFSET = 1024
_GREY_LEVELS, _GREY_STEP_HU = (32, 256), 3.0  # how many values an 8-bit image has, and how far apart
_SEEN_SLICES = 32  # of a scan, which are enough for medians

_MaskVolume = Bool[np.ndarray, "depth height width"]
# What a wrong image does when a mistake is undone, and the mistake in words.
_MISTAKES: tuple[tuple[Callable[[np.ndarray], np.ndarray], str], ...] = (
    (lambda hu: hu - _OFFSET, f"look {_OFFSET} too high: RescaleIntercept was not applied"),
    (lambda hu: -hu, "have the wrong sign: RescaleSlope was taken as -1"),
)


def check_lung_and_tissue(
    hu: HuVolume, lung: _MaskVolume, *, spacing_mm: tuple[float, float, float], drawn: bool, name: str, hint: str = ""
) -> None:
    """Refuses a scan whose lung or tissue is not where it is in HU, or that only had 256 grey levels.

    Args:
        hu: the scan.
        lung: its lungs, not empty.
        spacing_mm: (slice, row, column).
        drawn: whether the lungs come from a mask file, which may be that of another scan.
        name: the file, for the message.
        hint: what is known of the values, for the message.

    Raises:
        InputError: naming the file, what was found, the mistake if it is known, and the remedy.
    """
    _check_width(lung, spacing_mm, drawn=drawn, name=name)
    _check_grey_levels(hu, name=name)
    lung_hu, tissue_hu = _levels(hu, lung)
    if _plausible(lung_hu, tissue_hu):
        return
    if drawn and _is_chest(hu, spacing_mm):
        raise InputError(
            f"{name}: its lung mask does not lie on its lungs (median {lung_hu:.0f} HU inside); it belongs to another "
            "scan, or is flipped or inverted."
        )
    mistake = _mistake(hu, spacing_mm)
    raise InputError(_sentence(name, f"lung at {lung_hu:.0f} and tissue at {tissue_hu:.0f} HU", mistake, hint))


def explain_missing_lung(hu: HuVolume, *, spacing_mm: tuple[float, float, float], name: str, hint: str = "") -> str:
    """Why no lung was found, as one sentence: the values are no HU, or this is no chest."""
    mistake = _mistake(hu, spacing_mm)
    if mistake is None:
        known = f" ({hint})" if hint else ""
        return (
            f"{name}: no lung was found (no air inside the body); give a chest CT in HU{known}, or put a lung mask "
            "beside it."
        )
    return _sentence(name, "no lung was found", mistake, hint)


def _sentence(name: str, found: str, mistake: str | None, hint: str) -> str:
    what = f"; its values {mistake}" if mistake else ""
    known = f" ({hint})" if hint else ""
    return (
        f"{name}: expected CT in HU (lung about -850, tissue about 0), {found}{what}{known}. Convert it back to HU "
        "(apply RescaleSlope and RescaleIntercept once) before preparing it."
    )


def _levels(hu: np.ndarray, lung: _MaskVolume) -> tuple[float, float]:
    """Medians of lung, and of tissue in the box around it; NaN where there is hardly any tissue."""
    slices, rows, columns = (np.flatnonzero(lung.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    step = max(1, len(slices) // _SEEN_SLICES)  # the first one has lung
    box = (slices[::step], slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    hu, lung = hu[box], lung[box]
    around = hu[~lung]
    tissue = around[around > _TISSUE_ABOVE_HU]
    enough = len(tissue) >= _FEWEST_VOXELS
    return float(np.median(hu[lung])), float(np.median(tissue)) if enough else float("nan")


def _plausible(lung_hu: float, tissue_hu: float) -> bool:
    if not _LUNG_HU[0] <= lung_hu <= _LUNG_HU[1]:
        return False
    return bool(np.isnan(tissue_hu)) or _TISSUE_HU[0] <= tissue_hu <= _TISSUE_HU[1]


def _is_chest(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> bool:
    lung = threshold_lung_mask(hu.clip(*CT_RANGE_HU).astype(np.int16), spacing_mm=spacing_mm)
    return bool(lung.any()) and _plausible(*_levels(hu, lung))


def _mistake(hu: HuVolume, spacing_mm: tuple[float, float, float]) -> str | None:
    """The mistake that explains values, in words; None when none of the usual ones does."""
    wide = hu.astype(np.int32)
    for undone, words in _MISTAKES:
        if _is_chest(undone(wide), spacing_mm):
            return words
    # 1024 too low leaves nothing but tissue above the lower end, to which lung and air were clipped.
    low = wide[wide > CT_RANGE_HU[0] + 4]
    if low.size > 0.02 * wide.size and np.median(low) < AIR_HU + 2 * _TISSUE_HU[1] and (low > -300).mean() < 0.2:
        return f"look {_OFFSET} too low: RescaleIntercept was applied twice"
    return None


def _check_width(lung: _MaskVolume, spacing_mm: tuple[float, float, float], *, drawn: bool, name: str) -> None:
    columns = np.flatnonzero(lung.any(axis=(0, 1)))
    width_mm = (columns[-1] - columns[0] + 1) * spacing_mm[2]
    if width_mm > _WIDTH_MM[1] or (width_mm < _WIDTH_MM[0] and not drawn):
        raise InputError(
            f"{name}: its lungs are {width_mm:.0f} mm wide at a pixel spacing of {spacing_mm[2]:g} mm, which no "
            "patient's are; mend the spacing (PixelSpacing, pixdim or ElementSpacing)."
        )


def _check_grey_levels(hu: HuVolume, *, name: str) -> None:
    """Refuses 8-bit images that were stretched to HU: few values, all far apart."""
    seen = hu[:: max(1, len(hu) // _SEEN_SLICES)]
    values = np.flatnonzero(np.bincount((seen.ravel() - CT_RANGE_HU[0]).clip(0))) + CT_RANGE_HU[0]
    if not _GREY_LEVELS[0] <= len(values) <= _GREY_LEVELS[1]:
        return
    steps = np.diff(values)
    if steps.min() >= 2 and np.median(steps) >= _GREY_STEP_HU:
        raise InputError(
            f"{name}: holds only {len(values)} values, {np.median(steps):.0f} HU apart: grey values of 8 bits "
            "that were stretched to HU after a window. Export the CT again."
        )
