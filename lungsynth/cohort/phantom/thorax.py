"""The phantom's thorax as shapes: what differs from patient to patient, and where the large parts lie.

Positions are anatomical millimetres of a mean adult (x to the patient's left, y to posterior, z to superior; the origin
between the hila), stretched to the patient's own thorax by `Thorax.place`. Distances are signed, mm, negative inside.
"""

import math
from dataclasses import dataclass

import numpy as np

from lungsynth.cohort.phantom.shapes import Canvas, Point, ellipsoid_mm, smooth_max, smooth_min, superellipse_mm

__all__ = [
    "RIB_STEP_MM",
    "Thorax",
    "cavity_mm",
    "dome_z_mm",
    "heart_mm",
    "mediastinum_mm",
    "rib_height_mm",
    "spine_centre",
]

RIB_STEP_MM = 25.0  # from rib to rib, and from vertebra to vertebra
_MEAN_HALF_WIDTH_MM, _MEAN_HALF_DEPTH_MM = 132.0, 88.0


@dataclass(frozen=True, kw_only=True)
class Thorax:
    """What differs from patient to patient; lengths in mm. Pairs are (right, left)."""

    half_width_mm: float
    half_depth_mm: float
    power: float
    side_scale: tuple[float, float]
    apex_mm: tuple[float, float]
    dome_mm: tuple[float, float]
    heart_scale: float
    heart_turn_degrees: float
    mediastinum_mm: float
    fat_mm: float
    shoulder_mm: float
    breast_mm: float
    rib_drop_mm: float
    rib_phase_mm: float
    lung_hu: float
    gradient_hu: float
    vessel_points: int
    leaf_radius_mm: float
    turn_degrees: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Thorax":
        """Draws a patient: 300 to 355 mm wide, 200 to 260 mm deep, with lungs of their own shape."""

        def between(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        def pair(low: float, high: float) -> tuple[float, float]:
            return between(low, high), between(low, high)

        right_dome = between(-70, -38)
        return cls(
            half_width_mm=between(118, 135), half_depth_mm=between(82, 98), power=between(2.05, 2.6),
            side_scale=pair(0.95, 1.04), apex_mm=pair(104, 122), dome_mm=(right_dome, right_dome - between(4, 20)),
            heart_scale=between(0.85, 1.12), heart_turn_degrees=between(25, 48), mediastinum_mm=between(23, 31),
            fat_mm=between(5, 15), shoulder_mm=between(8, 18), breast_mm=between(0, 14), rib_drop_mm=between(50, 85),
            rib_phase_mm=between(0, RIB_STEP_MM), lung_hu=between(-895, -835), gradient_hu=between(25, 80),
            vessel_points=int(rng.integers(260, 400)), leaf_radius_mm=between(0.68, 0.85), turn_degrees=between(-3, 3),
        )  # fmt: skip

    @property
    def body_half_depth_mm(self) -> float:
        """From the middle of the chest to the skin of the back."""
        return self.half_depth_mm + 19 + self.fat_mm

    def place(self, x: float, y: float, z: float) -> Point:
        """Where a point of the mean adult lies in this patient."""
        return x * self.half_width_mm / _MEAN_HALF_WIDTH_MM, y * self.half_depth_mm / _MEAN_HALF_DEPTH_MM, z


def cavity_mm(canvas: Canvas, thorax: Thorax) -> np.ndarray:
    """Inner side of the rib cage: an egg that closes over the apices."""
    left = canvas.x_mm > 0
    apex = _by_side(left, thorax.apex_mm)
    rise = np.clip((canvas.z_mm - 5) / (apex - 5), 0, 0.995)
    fall = np.clip((5 - canvas.z_mm) / 120, 0, 1)
    width = thorax.half_width_mm * _by_side(left, thorax.side_scale)
    width = width * np.sqrt(1 - rise**2.7) * (1 + 0.05 * fall)
    depth = thorax.half_depth_mm * np.sqrt(1 - rise**2.1) * (1 + 0.03 * fall)
    middle = -4 + 16 * rise**2
    front = superellipse_mm(canvas.x_mm, canvas.y_mm - middle, half_x_mm=width, half_y_mm=depth, power=thorax.power)
    ribs = np.cos(
        rib_height_mm(canvas, thorax, np.arctan2(np.abs(canvas.x_mm), canvas.y_mm)) * (2 * np.pi / RIB_STEP_MM)
    )
    return front + 1.3 * ribs


def _by_side(left: np.ndarray, pair: tuple[float, float]) -> np.ndarray:
    return np.where(left, np.float32(pair[1]), np.float32(pair[0]))


def dome_z_mm(canvas: Canvas, thorax: Thorax) -> np.ndarray:
    """Height of the diaphragm above each (x, y): two domes, the right one higher, deep at the back."""
    domes = []
    for side, top, centre in ((-1, thorax.dome_mm[0], 60.0), (1, thorax.dome_mm[1], 66.0)):
        x, y, _ = thorax.place(side * centre, -14, 0)
        domes.append(top - (canvas.x_mm - x) ** 2 / 120 - (canvas.y_mm - y) ** 2 / 150)
    return smooth_max(domes[0], domes[1], width_mm=8)


def heart_mm(canvas: Canvas, thorax: Thorax) -> np.ndarray:
    """The heart: ventricles with their apex to the left and front, right atrium, left atrium behind."""
    angle, scale = math.radians(thorax.heart_turn_degrees), thorax.heart_scale
    x, y, z = thorax.place(24, -42, -38)
    dx, dy, dz = canvas.x_mm - x, canvas.y_mm - y, canvas.z_mm - z
    dx = dx - 0.25 * dz  # the apex points down and to the left, z negative: further left below
    cos, sin = math.cos(angle), math.sin(angle)
    along, across = dx * cos - dy * sin, dx * sin + dy * cos
    ventricles = ellipsoid_mm(along, across, dz, half_mm=(52 * scale, 38 * scale, 44))
    x, y, z = thorax.place(-16, -26, -34)
    atria = ellipsoid_mm(canvas.x_mm - x, canvas.y_mm - y, canvas.z_mm - z, half_mm=(30 * scale, 33 * scale, 42))
    x, y, z = thorax.place(2, 8, -16)
    left_atrium = ellipsoid_mm(canvas.x_mm - x, canvas.y_mm - y, canvas.z_mm - z, half_mm=(36, 18, 22))
    return smooth_min(smooth_min(ventricles, atria, width_mm=10), left_atrium, width_mm=8)


def mediastinum_mm(canvas: Canvas, thorax: Thorax, heart: np.ndarray) -> np.ndarray:
    """Everything between the lungs: a septum, the great vessels' sheath, the heart in its fat, aorta and spine."""
    x, y, z = canvas.x_mm, canvas.y_mm, canvas.z_mm
    _, spine_y, _ = spine_centre(thorax)
    narrow = np.clip((-z - 45) / 40, 0, 1)
    half = thorax.mediastinum_mm * (1 + 0.15 * np.clip((z - 70) / 30, 0, 1))
    core = superellipse_mm(x - 1, y - (2 + 10 * narrow), half_x_mm=half, half_y_mm=50 - 6 * narrow, power=2.2)
    front = thorax.half_depth_mm
    septum = np.abs(x - 4) - 2.0 - 9 * np.exp(-np.maximum(y + front, 0) / 12)  # widens towards the sternum
    septum = np.maximum(septum, y - spine_y)
    spine = superellipse_mm(x, y - spine_y - 14, half_x_mm=22, half_y_mm=34, power=2.4)
    shape = smooth_min(smooth_min(core, septum, width_mm=9), spine, width_mm=8)
    shape = smooth_min(shape, heart - 3, width_mm=8)
    aorta_x, aorta_y, _ = thorax.place(18, 43, 0)
    descending = np.sqrt((x - aorta_x) ** 2 + (y - aorta_y) ** 2) - 14
    shape = smooth_min(shape, np.maximum(descending, z - 50), width_mm=7)
    knob_x, knob_y, knob_z = thorax.place(16, 12, 52)
    knob = ellipsoid_mm(x - knob_x, y - knob_y, z - knob_z, half_mm=(18, 30, 17))
    return smooth_min(shape, knob, width_mm=8)


def spine_centre(thorax: Thorax) -> Point:
    """Middle of the vertebral bodies."""
    return 0.0, thorax.half_depth_mm - 36.0, 0.0


def rib_height_mm(canvas: Canvas, thorax: Thorax, bearing: np.ndarray) -> np.ndarray:
    """Height above the middle of the nearest rib; `bearing` is 0 at the back and pi in front, ribs sink in between."""
    drop = thorax.rib_drop_mm * (1 - np.cos(bearing)) / 2
    return (canvas.z_mm + drop - thorax.rib_phase_mm) % RIB_STEP_MM - RIB_STEP_MM / 2
