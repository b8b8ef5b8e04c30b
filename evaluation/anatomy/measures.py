"""The measures of a lung slice at 0.7 mm that a radiologist can check, and its patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from evaluation.anatomy.outline import PIXEL_MM, lung_region, pleura_hu_per_mm, rib_count
from evaluation.anatomy.texture import PATCH_PX, fine_structure, lung_patches, noise_hu, patch_features
from evaluation.anatomy.vessels import find_vessels, ridge_strength
from lungsynth.errors import InputError
from lungsynth.similarity.samples import Samples

__all__ = ["MEASURES", "AnatomySet", "Measure", "measure_lung", "measure_lungs"]

PATCHES_PER_SLICE = 12
_RANGE_HU = (-1024, 1500)  # metal and padding say nothing of anatomy
_RIM_MM = 3.0  # of the lung, where the pleura's own edge would count as a vessel
_SPREAD_BELOW_HU = -300  # large vessels and the heart's edge are no parenchyma
_QUIET_HU = 50.0  # of the ridge strength within 2 pixels
_NEAR_PX = 5
_MARGIN_PX = 60  # around the lungs: ribs lie there


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure of a slice: its key, title, unit and decimals."""

    key: str
    title: str
    unit: str
    digits: int


MEASURES: tuple[Measure, ...] = (
    Measure(key="vessels", title="Vessels", unit="mm/cm2", digits=2),
    Measure(key="long_share", title="in long branches", unit="", digits=2),
    Measure(key="loops", title="Loops of vessels", unit="1/dm", digits=2),
    Measure(key="taper", title="Calibre, core over periphery", unit="", digits=2),
    Measure(key="specks", title="Specks", unit="1/cm2", digits=3),
    Measure(key="noise", title="Noise", unit="HU", digits=1),
    Measure(key="fine_structure", title="Fine structure", unit="dB", digits=1),
    Measure(key="spectrum_slope", title="Slope of the spectrum", unit="", digits=2),
    Measure(key="pleura", title="Sharpness of the pleura", unit="HU/mm", digits=0),
    Measure(key="ribs", title="Pieces of bone around the lungs", unit="", digits=1),
    Measure(key="spread", title="Spread of HU", unit="HU", digits=0),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class AnatomySet:
    """Measured slices of one side.

    Args:
        values: (N, measures), in the order of `MEASURES`; NaN where a slice has none.
        features: of P patches of lung (P, features).
        patch_of: the slice of each patch (P,).
        owners: of each slice: a patient, or itself.
    """

    values: Float[np.ndarray, "n measures"]
    features: Float[np.ndarray, "p features"]
    patch_of: np.ndarray
    owners: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, places: Sequence[int] | np.ndarray) -> "AnatomySet":
        """The slices at these places, in this order."""
        chosen = np.asarray(places, dtype=np.int64)
        parts = [np.flatnonzero(self.patch_of == place) for place in chosen]
        used = np.concatenate([*parts, np.zeros(0, dtype=np.int64)]).astype(np.int64)
        return AnatomySet(
            values=self.values[chosen],
            features=self.features[used],
            patch_of=np.repeat(np.arange(len(chosen)), [len(part) for part in parts]),
            owners=tuple(self.owners[place] for place in chosen),
        )

    @property
    def n_owners(self) -> int:
        """Patients, or lungs."""
        return len(set(self.owners))

    def of_owners(self, owners: set[str]) -> "AnatomySet":
        """The slices of these owners."""
        return self.take([place for place, owner in enumerate(self.owners) if owner in owners])

    def join(self, other: "AnatomySet") -> "AnatomySet":
        """The slices of both sides."""
        return AnatomySet(
            values=np.concatenate([self.values, other.values]),
            features=np.concatenate([self.features, other.features]),
            patch_of=np.concatenate([self.patch_of, other.patch_of + len(self)]),
            owners=(*self.owners, *other.owners),
        )


def measure_lungs(samples: Samples, *, seed: int = 0) -> AnatomySet:
    """Measures slices at 0.7 mm.

    Args:
        samples: lungs.
        seed: of the choice of patches.

    Raises:
        InputError: when they are on another grid, or there is none.
    """
    if not len(samples) or abs(samples.spacing_mm - PIXEL_MM) > 1e-3:
        raise InputError(
            f"Anatomy is measured on slices at {PIXEL_MM} mm, got {len(samples)} at {samples.spacing_mm:g} mm."
        )
    rows, features = [], []
    for index, (hu, mask) in enumerate(zip(samples.hu, samples.mask, strict=True)):
        values, found = measure_lung(hu, mask >= 0.5, seed=seed + index)
        rows.append([values[measure.key] for measure in MEASURES])
        features.append(patch_features(found))
    return AnatomySet(
        values=np.array(rows, dtype=np.float64),
        features=np.concatenate(features),
        patch_of=np.repeat(np.arange(len(rows)), [len(found) for found in features]),
        owners=samples.owners,
    )


def measure_lung(
    hu: np.ndarray, mask: np.ndarray, *, seed: int = 0
) -> tuple[Mapping[str, float], Float[np.ndarray, "p size size"]]:
    """Measures one slice.

    Args:
        hu: (S, S) at 0.7 mm.
        mask: its lungs, bool (S, S).
        seed: of the choice of patches.

    Returns:
        Values by key of `MEASURES`, all NaN where there is no lung, and patches of lung.
    """
    plane = np.clip(hu, *_RANGE_HU).astype(np.float32)
    region = lung_region(plane, mask)
    depth_mm = ndimage.distance_transform_edt(region) * PIXEL_MM
    if not (depth_mm >= _RIM_MM).any():
        nothing = np.zeros((0, PATCH_PX, PATCH_PX), dtype=np.float32)
        return dict.fromkeys((measure.key for measure in MEASURES), float("nan")), nothing
    box = _around(region)
    plane, region, depth_mm = plane[box], region[box], depth_mm[box].astype(np.float32)
    core = depth_mm >= _RIM_MM
    strength = ridge_strength(np.where(region, plane, np.median(plane[core])))
    vessels = find_vessels(strength, core, depth_mm)
    fine_db, slope = fine_structure(plane, core)
    values = {
        "vessels": vessels.length_mm_per_cm2,
        "long_share": vessels.long_share,
        "loops": vessels.loops_per_dm,
        "taper": vessels.taper,
        "specks": vessels.specks_per_cm2,
        "noise": noise_hu(plane, core, ndimage.maximum_filter(strength, _NEAR_PX) < _QUIET_HU),
        "fine_structure": fine_db,
        "spectrum_slope": slope,
        "pleura": pleura_hu_per_mm(plane, region),
        "ribs": rib_count(plane, region),
        "spread": float(plane[core & (plane < _SPREAD_BELOW_HU)].std()),
    }
    return values, lung_patches(plane, core, count=PATCHES_PER_SLICE, seed=seed)


def _around(region: np.ndarray) -> tuple[slice, slice]:
    """The lungs' box with a margin."""
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(rows[0] - _MARGIN_PX, 0), rows[-1] + _MARGIN_PX + 1),
        slice(max(columns[0] - _MARGIN_PX, 0), columns[-1] + _MARGIN_PX + 1),
    )
