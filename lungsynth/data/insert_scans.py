"""A MONAI transform that inserts nodules into a user's own scans in three dimensions while they train a detector.

Scans are (1, i, j, k) in HU, in any orientation along the patient's axes, which their meta data tell; so it stands
anywhere behind `LoadImaged` and `EnsureChannelFirstd`, before any transform of intensities.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from nibabel import orientations

from lungsynth.categories import TEXTURES
from lungsynth.cohort.lung_mask import threshold_lung_mask
from lungsynth.config import PlacementConfig
from lungsynth.ct.volume import VOLUME_AXES, Volume, to_volume_axes
from lungsynth.data.insert import SeededMapTransform, like
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label, check_hu, to_int16
from lungsynth.placement.rules import PlacementRules
from lungsynth.scans.cubes import CubeSource
from lungsynth.scans.insert import InsertedScan, insert_nodules
from lungsynth.scans.places import NoRoomError
from lungsynth.scans.plan import plan_scan
from lungsynth.scans.request import parse_requests
from lungsynth.scans.shape import ScanShape

__all__ = ["RandInsertNodules3Dd"]


class RandInsertNodules3Dd(SeededMapTransform):
    """Inserts nodules into a scan, where nodules occur and where they fit, with its noise and sharpness.

    Adds to a dictionary, or extends there: nodule voxels (2) in the label map, where there is one; `boxes` float32
    (n, 6), first voxel and behind the last one along i, j and k (MONAI's `StandardMode`); `labels` int64 (n,), indices
    into `TEXTURES`. A scan that gets no nodule, by chance or for want of room, has those that it had. The same
    `set_random_state` gives the same nodules.

    Args:
        cubes: gives the nodules, such as `CubePool.generated(bundles)`.
        nodules: what is inserted, as after `--nodules` of `lungsynth insert`.
        keys: of the image, one.
        label_key: integers (1, i, j, k), 1 in lung, 2 in nodules; without it in the dictionary, lungs are found by
            threshold, which takes a second or two.
        box_key: of the boxes.
        class_key: of their labels.
        prob: probability of inserting any.
        rules: where they may lie; those of the policy `varied` when None.

    Raises:
        InputError: when the nodules cannot be understood; on a call, when the scan is not as above.
    """

    def __init__(
        self,
        cubes: CubeSource,
        *,
        nodules: str = "any 4-20mm",
        keys: Hashable = "image",
        label_key: Hashable = "label_map",
        box_key: Hashable = "box",
        class_key: Hashable = "label",
        prob: float = 1.0,
        rules: PlacementRules | None = None,
    ) -> None:
        super().__init__(keys, prob)
        self.cubes, self.requests = cubes, parse_requests(nodules)
        self.label_key, self.box_key, self.class_key = label_key, box_key, class_key
        self.rules = PlacementConfig(policy="varied", rules=rules).placement_rules

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The dictionary with nodules."""
        result = dict(data)
        result[self.box_key] = torch.as_tensor(result.get(self.box_key, ()), dtype=torch.float32).reshape(-1, 6)
        result[self.class_key] = torch.as_tensor(result.get(self.class_key, ()), dtype=torch.int64).reshape(-1)
        self.randomize()
        if self._do_transform:
            self._insert(result)
        return result

    def _insert(self, result: dict[Hashable, Any]) -> None:
        image, key = result[self.keys[0]], self.keys[0]
        array, affine = _voxels(image, key)
        check_hu(array, name=str(key))
        hu, turned = to_volume_axes(to_int16(array), affine, name=str(key))
        volume = Volume(hu=hu, affine=turned, series_id=str(key), patient_id=str(key), patient_known=False)
        label = self._labels(result, volume, affine)
        lung = (label == Label.LUNG) | (label == Label.NODULE)
        shape = ScanShape.of(
            hu, lung, spacing_mm=volume.spacing_mm, nodules=(label == Label.NODULE) | (label == Label.UNLABELLED)
        )
        try:
            plan = plan_scan(shape, self.requests, self.cubes, self.rules, seed=self.seed)
        except NoRoomError:  # the scan stays as it is
            return
        inserted = insert_nodules(volume, label, plan.placed, seed=self.seed)
        self._keep(result, inserted, hu, affine)
        classes = torch.tensor([TEXTURES.index(nodule.texture) for nodule in plan.wanted], dtype=torch.int64)
        result[self.class_key] = torch.cat([result[self.class_key], classes])

    def _labels(self, result: Mapping[Hashable, Any], volume: Volume, affine: np.ndarray) -> np.ndarray:
        """The label map on the volume's axes."""
        if self.label_key in result:
            array, _ = _voxels(result[self.label_key], self.label_key, affine)
            return to_volume_axes(np.rint(array).astype(np.uint8), affine, name=str(self.label_key))[0]
        lung = threshold_lung_mask(volume.hu, spacing_mm=volume.spacing_mm)
        return np.where(lung, np.uint8(Label.LUNG), np.uint8(Label.BACKGROUND))

    def _keep(
        self,
        result: dict[Hashable, Any],
        inserted: InsertedScan,
        before: np.ndarray,
        affine: np.ndarray,
    ) -> None:
        """Writes back what changed, on the axes of the dictionary's arrays."""
        array, _ = _voxels(result[self.keys[0]], self.keys[0], affine)
        turn = _FromVolume(affine, array.shape)
        touched = turn(inserted.volume.hu != before)
        # What was not touched stays the user's own, fractions of HU included.
        result[self.keys[0]] = like(result[self.keys[0]], np.where(touched, turn(inserted.volume.hu), array))
        instances = turn(inserted.instances)
        if self.label_key in result:
            old, _ = _voxels(result[self.label_key], self.label_key, affine)
            result[self.label_key] = like(result[self.label_key], np.where(instances > 0, int(Label.NODULE), old))
        boxes = [_box(np.argwhere(instances == number)) for number in range(1, len(inserted.nodules) + 1)]
        added = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6)
        result[self.box_key] = torch.cat([result[self.box_key], added])


class _FromVolume:
    """Turns (depth, height, width) of a `Volume` back to the axes that it came from."""

    def __init__(self, affine: np.ndarray, shape: tuple[int, ...]) -> None:
        self._turn = orientations.ornt_transform(VOLUME_AXES, nib.io_orientation(affine))
        self._shape = shape

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        array = orientations.apply_orientation(volume.transpose(2, 1, 0), self._turn)
        return np.ascontiguousarray(array).reshape(self._shape)


def _voxels(values: Any, key: Hashable, affine: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The array (i, j, k) and its affine."""
    if affine is None:
        if not isinstance(values, MetaTensor):
            raise InputError(f"`{key}`: has no meta data that would tell its axes; load it with LoadImaged.")
        affine = np.asarray(values.affine, dtype=np.float64)
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.ndim != 4 or array.shape[0] != 1:
        raise InputError(f"`{key}`: nodules are inserted into scans of shape (1, i, j, k), got {array.shape}.")
    return array[0], affine


def _box(voxels: np.ndarray) -> list[float]:
    return [*voxels.min(axis=0).tolist(), *(voxels.max(axis=0) + 1).tolist()]
