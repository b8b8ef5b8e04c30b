"""Nodules in a scan: each is blended into the slices that it reaches, as nodules are into single slices.

In a slice, all is as `compositing.overlay` has it: what is denser than the nodule stays, a nodule at the pleura ends
there, and noise of the scan's level and covariance is topped up. From slice to slice that noise is correlated as the
scan's own is. Outside the nodules the scan is untouched, bit for bit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from lungsynth.cohort.patches import NoduleCube, cube_diameter_mm, sphere_diameter_mm
from lungsynth.compositing.nodule import NoduleMatch, ResampledNodule
from lungsynth.compositing.noise import LungNoise, measure_noise, slice_correlation
from lungsynth.compositing.overlay import NoiseField, blend, box_on_slice, noise_window, within_lung
from lungsynth.ct.volume import Volume
from lungsynth.errors import InputError
from lungsynth.geometry import voxel_to_lps
from lungsynth.hounsfield import Label
from lungsynth.placement.lung_shape import filled_lung
from lungsynth.scans.places import NodulePlace
from lungsynth.scans.resample import ResampledCube, match_cube
from lungsynth.seeds import HashDomain, hash_words
from lungsynth.types import LabelVolume, MaskPlane

__all__ = ["InsertedNodule", "InsertedScan", "PlacedNodule", "insert_nodules"]

_FITS = 8  # scales that are tried; thick slices need some, since a mask gains or loses whole slices
_FIT = 0.02  # of the diameter, within which one is good enough
_LARGEST_STEP = 1.3  # from one scale to the next


@dataclass(frozen=True, eq=False, kw_only=True)
class PlacedNodule:
    """A nodule and where it is to lie.

    Args:
        cube: the nodule.
        place: where.
        diameter_mm: that its mask is to have in the scan, of the sphere of equal volume.
    """

    cube: NoduleCube
    place: NodulePlace
    diameter_mm: float


@dataclass(frozen=True, eq=False, kw_only=True)
class InsertedNodule:
    """What a scan shows of a nodule, measured on its mask.

    Args:
        centre_voxel: (slice, row, column) of the mask's centroid.
        centre_lps_mm: of the same, LPS.
        diameter_mm: of the sphere of equal volume.
        box: (slice, row, column) of the first voxel and behind the last one.
        mean_hu: in its mask.
    """

    centre_voxel: tuple[float, float, float]
    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float
    box: tuple[slice, slice, slice]
    mean_hu: float


@dataclass(frozen=True, eq=False, kw_only=True)
class InsertedScan:
    """A scan with nodules.

    Args:
        volume: with them.
        label: `Label` ids.
        instances: 0, or the number of the inserted nodule, from 1 on.
        nodules: in the order given.
    """

    volume: Volume
    label: LabelVolume
    instances: LabelVolume
    nodules: tuple[InsertedNodule, ...]


def insert_nodules(
    volume: Volume,
    label: LabelVolume,
    nodules: Sequence[PlacedNodule],
    *,
    seed: int,
    thickness_mm: float | None = None,
) -> InsertedScan:
    """Inserts nodules into a scan.

    Args:
        volume: left as it is.
        label: `Label` ids; lung where there is lung.
        nodules: at most 255.
        seed: of the noise.
        thickness_mm: of the slices; their distance when None.

    Raises:
        InputError: when a nodule lies outside the lungs.
    """
    scan = _Canvas(volume, label)
    thickness_mm = max(thickness_mm or 0.0, volume.spacing_mm[0])
    inserted = []
    for number, nodule in enumerate(nodules, start=1):
        noise = scan.noise_at(nodule.place)
        cube = _resampled(nodule, noise, volume.spacing_mm, thickness_mm)
        fields = scan.noise_fields(noise, nodule.place, cube, words=(seed, number))
        inserted.append(scan.draw(nodule.place, cube, fields, number=number))
    return InsertedScan(
        volume=replace(volume, hu=scan.hu), label=scan.label, instances=scan.instances, nodules=tuple(inserted)
    )


def _resampled(
    nodule: PlacedNodule, noise: LungNoise, spacing_mm: tuple[float, float, float], thickness_mm: float
) -> ResampledCube:
    """A nodule whose mask on the scan's grid has the diameter asked for, as nearly as some tries come to it."""
    voxel_mm3 = float(np.prod(spacing_mm))
    scale = nodule.diameter_mm / cube_diameter_mm(nodule.cube)
    low, high = 0.0, math.inf  # scales that are known to be too small and too large
    tried: list[tuple[float, ResampledCube]] = []
    for _ in range(_FITS):
        match = NoduleMatch.of(noise, scale)
        cube = match_cube(
            nodule.place, nodule.cube, match, scale=scale, spacing_mm=spacing_mm, thickness_mm=thickness_mm
        )
        reached = sphere_diameter_mm(cube.voxels, voxel_volume_mm3=voxel_mm3) / nodule.diameter_mm
        tried.append((abs(math.log(reached)), cube))
        if tried[-1][0] <= _FIT:
            break
        low, high = (scale, high) if reached < 1 else (low, scale)
        between = low > 0 and high < math.inf
        scale = math.sqrt(low * high) if between else scale / min(max(reached, 1 / _LARGEST_STEP), _LARGEST_STEP)
    return min(tried, key=lambda fit: fit[0])[1]


class _Canvas:
    """A scan while nodules are drawn into it."""

    def __init__(self, volume: Volume, label: LabelVolume) -> None:
        self.volume = volume
        self.hu, self.label = volume.hu.copy(), label.copy()
        self.instances = np.zeros(label.shape, np.uint8)
        self._inside: dict[int, MaskPlane] = {}

    def noise_at(self, place: NodulePlace) -> LungNoise:
        """Noise and sharpness of the slice of a place."""
        index = min(max(round(place.voxel[0]), 0), len(self.hu) - 1)
        if not (lung := self._lung(index)).any():
            raise _outside(self.volume, place)
        return measure_noise(self.volume.hu[index], lung, spacing_mm=self.volume.spacing_mm[1:])

    def noise_fields(
        self, noise: LungNoise, place: NodulePlace, cube: ResampledCube, *, words: tuple[int, ...]
    ) -> Iterator[NoiseField | None]:
        """Noise of each slice of a nodule, on its plane; the next slice's is correlated with it as the scan's are."""
        level_hu = noise.noise_hu(*place.voxel[1:])
        if level_hu == 0:
            yield from [None] * len(cube.planes)
            return
        top, left = min(plane.top for plane in cube.planes), min(plane.left for plane in cube.planes)
        bottom = max(plane.top + plane.weight.shape[0] for plane in cube.planes)
        right = max(plane.left + plane.weight.shape[1] for plane in cube.planes)
        kept = np.float32(self._correlation_at(place))
        fresh = np.sqrt(1 - kept * kept)
        unit = None
        for depth, plane in enumerate(cube.planes):
            drawn = noise_window(noise, (bottom - top, right - left), hash_words(HashDomain.SEED, *words, depth))
            unit = drawn if unit is None else kept * unit + fresh * drawn
            height, width = plane.weight.shape
            own = unit[plane.top - top :][:height, plane.left - left :][:, :width]
            yield NoiseField(level_hu, noise.dense_share, own, noise.fine)

    def draw(
        self, place: NodulePlace, cube: ResampledCube, fields: Iterator[NoiseField | None], *, number: int
    ) -> InsertedNodule:
        """Blends a nodule into its slices and says what is seen of it."""
        first = math.floor(place.voxel[0]) + cube.first
        for index, (plane, field) in enumerate(zip(cube.planes, fields, strict=True), start=first):
            if 0 <= index < len(self.hu):
                self._draw_plane(place, index, plane, field, number)
        return self._measured(place, slice(max(0, first), first + len(cube.planes)), number)

    def _draw_plane(
        self, place: NodulePlace, index: int, plane: ResampledNodule, field: NoiseField | None, number: int
    ) -> None:
        top, left = math.floor(place.voxel[1]) + plane.top, math.floor(place.voxel[2]) + plane.left
        window, part = box_on_slice(top, left, plane.weight.shape, self.hu.shape[1:])
        if window.row_from >= window.row_to or window.column_from >= window.column_to:
            return
        plane = within_lung(plane, part, self._lung(index), window)
        if field is not None:
            field = field._replace(unit=field.unit[part])
        self.hu[index][window.pixels] = blend(self.hu[index][window.pixels], plane, part, field)
        mask = plane.nodule[part]
        self.label[index][window.pixels][mask] = Label.NODULE
        self.instances[index][window.pixels][mask] = number

    def _measured(self, place: NodulePlace, slices: slice, number: int) -> InsertedNodule:
        mask = self.instances[slices] == number
        if not mask.any():
            raise _outside(self.volume, place)
        depth, rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
        box = (slice(depth.start + slices.start, depth.stop + slices.start), rows, columns)
        mask = mask[depth, rows, columns]
        centre = np.argwhere(mask).mean(axis=0) + [part.start for part in box]
        voxel_mm3 = float(np.prod(self.volume.spacing_mm))
        return InsertedNodule(
            centre_voxel=(float(centre[0]), float(centre[1]), float(centre[2])),
            centre_lps_mm=tuple(voxel_to_lps(self.volume.affine, centre).tolist()),
            diameter_mm=sphere_diameter_mm(int(mask.sum()), voxel_volume_mm3=voxel_mm3),
            box=box,
            mean_hu=float(self.hu[box][mask].mean()),
        )

    def _lung(self, index: int) -> MaskPlane:
        """Lung of a slice with its vessels and what else lies in it."""
        if index not in self._inside:
            lung = self.label[index] != Label.BACKGROUND
            self._inside[index] = filled_lung(np.pad(lung, 1), self.volume.spacing_mm[1:])[1:-1, 1:-1]
        return self._inside[index]

    def _correlation_at(self, place: NodulePlace) -> float:
        index = min(max(round(place.voxel[0]), 0), len(self.hu) - 1)
        neighbour = index + 1 if index + 1 < len(self.hu) else max(0, index - 1)
        if neighbour == index:
            return 0.0
        lung = self._lung(index) & self._lung(neighbour)
        return slice_correlation(self.volume.hu[index], self.volume.hu[neighbour], lung)


def _outside(volume: Volume, place: NodulePlace) -> InputError:
    at = ", ".join(f"{value:g}" for value in place.voxel)
    return InputError(
        f"{volume.series_id}: a nodule at voxel (slice, row, column) ({at}) lies outside the lungs. Let "
        "lungsynth.scans.places find a place, or give a lung mask."
    )
