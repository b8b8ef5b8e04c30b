"""A chest small enough to see, as arrays and as files."""

import numpy as np
from PIL import Image

from lungsynth.ct.volume import Volume
from lungsynth.ct.write import write_nifti
from lungsynth.geometry import axial_affine

SIDE_PX = 128  # of the crops in LIDC's layout
SPACING_MM = (5.0, 5.0, 5.0)
SHAPE = (16, 64, 72)
LUNGS_RCXY = ((32, 20, 14, 9), (32, 52, 14, 9))  # row, column, half axes


def ellipse(centre, half, shape=SHAPE[1:]):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - centre[0]) / half[0]) ** 2 + ((columns - centre[1]) / half[1]) ** 2 <= 1


def ball(centre, radius_mm, shape=SHAPE, spacing_mm=SPACING_MM):
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    squares = sum(((axis - c) * mm) ** 2 for axis, c, mm in zip((z, y, x), centre, spacing_mm, strict=True))
    return squares <= radius_mm**2


def make_chest(seed=0, nodule=None):
    """HU, lung mask and nodule mask (bool); `nodule` is (slice, row, column, radius_mm)."""
    hu = np.full(SHAPE, -1000.0)
    hu[:, ellipse((32, 36), (26, 33))] = 40
    lung = np.zeros(SHAPE, bool)
    for row, column, high, wide in LUNGS_RCXY:
        lung[1:-1, ellipse((row, column), (high, wide))] = True
    hu[lung] = -850
    hu[4:, ellipse((26, 36), (2, 2))] = -1000  # the trachea
    mask = np.zeros(SHAPE, bool) if nodule is None else ball(nodule[:3], nodule[3])
    hu[mask] = 20
    hu += np.random.default_rng(seed).normal(0, 10, SHAPE)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), lung, mask


def make_chest_volume(seed=0, nodule=None, name="P-001"):
    hu, _, _ = make_chest(seed, nodule)
    affine = axial_affine(spacing_mm=SPACING_MM, origin_lps_mm=(-180.0, -160.0, -300.0))
    return Volume(hu=hu, affine=affine, series_id=name, patient_id=name)


def write_chest(folder, name, *, seed=0, nodule=None, with_lung=True):
    """`<name>_ct.nii.gz` with its masks beside it."""
    _, lung, mask = make_chest(seed, nodule)
    volume = make_chest_volume(seed, nodule, name)
    write_nifti(folder / f"{name}_ct.nii.gz", volume)
    if with_lung:
        write_nifti(folder / f"{name}_lung.nii.gz", (lung | mask).astype(np.uint8), volume.affine)
    if nodule is not None:
        write_nifti(folder / f"{name}_nodule.nii.gz", mask.astype(np.uint8), volume.affine)


def votes_of(*radii_px: float) -> np.ndarray:
    """Two slices: on the first each reader drew a disc of such a radius, on the second the last reader alone."""
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    distance = np.hypot(rows - 60, columns - 70)
    first = np.sum([distance < radius for radius in radii_px], axis=0)
    return np.stack([first, distance < radii_px[-1]]).astype(np.uint8)


def write_slices(root, votes: np.ndarray, *, patient: str = "LIDC-IDRI-0001"):
    """One nodule in the public layout: lung at grey 40, what somebody drew at 160."""
    folder = root / patient / "nodule-0"
    for index, plane in enumerate(votes):
        for name, image in [
            ("images", np.where(plane > 0, 160, 40)),
            *((f"mask-{reader}", (plane > reader) * 255) for reader in range(int(votes.max()))),
        ]:
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"slice-{index}.png")
    return folder
