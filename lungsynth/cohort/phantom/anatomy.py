"""The phantom's thorax: its shapes, which differ from patient to patient, painted in HU of a scan without contrast.

Positions are anatomical millimetres of a mean adult (x to the patient's left, y to posterior, z to superior; the origin
between the hila), stretched to the patient's own thorax by `Thorax.place`. Distances are signed, mm, negative inside.
Courses of vessels, airways and bones are (x, y, z, radius) in these millimetres. The trees of vessels
reach randomly scattered points by short wiring and short paths to the root at once, which looks like vessels (Cuntz et
al. 2010, "One rule to grow them all", doi:10.1371/journal.pcbi.1000877, equation 1); their radii follow Murray's law,
r_parent^p = sum of r_child^p (Murray 1926, doi:10.1073/pnas.12.3.207; p = 3 there, here a little less).
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lungsynth.cohort.phantom.shapes import (
    Canvas,
    Point,
    ellipsoid_mm,
    smooth_field,
    smooth_max,
    smooth_min,
    superellipse_mm,
)

__all__ = [
    "RIB_STEP_MM",
    "Thorax",
    "Tree",
    "cavity_mm",
    "dome_z_mm",
    "grow_tree",
    "heart_mm",
    "mediastinum_mm",
    "paint_table",
    "paint_thorax",
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


_PATH_WEIGHT = 0.45
_MURRAY_POWER = 2.6


@dataclass(frozen=True)
class Tree:
    """Nodes of a tree, the root first.

    Args:
        points_mm: float (n, 3) as (x, y, z).
        parents: int (n,), the root's is itself.
        radii_mm: float (n,).
    """

    points_mm: np.ndarray
    parents: np.ndarray
    radii_mm: np.ndarray


def grow_tree(root_mm: np.ndarray, targets_mm: np.ndarray, *, leaf_radius_mm: float) -> Tree:
    """Connects every target to the root by greedily adding the cheapest branch.

    Args:
        root_mm: (3,).
        targets_mm: (n - 1, 3).
        leaf_radius_mm: radius of the last branches.
    """
    points = np.concatenate([root_mm[None], targets_mm])
    count = len(points)
    parents, path_mm = np.zeros(count, int), np.zeros(count)
    cost_mm = np.linalg.norm(points - points[0], axis=1)
    cost_mm[0] = np.inf
    order = [0]
    for _ in range(count - 1):
        node = int(np.argmin(cost_mm))
        parent = parents[node]
        path_mm[node] = path_mm[parent] + np.linalg.norm(points[node] - points[parent])
        order.append(node)
        cost_mm[node] = np.inf
        by_node = np.linalg.norm(points - points[node], axis=1) + _PATH_WEIGHT * path_mm[node]
        closer = (by_node < cost_mm) & np.isfinite(cost_mm)
        cost_mm[closer], parents[closer] = by_node[closer], node
    return Tree(points_mm=points, parents=parents, radii_mm=_murray_radii(parents, order, leaf_radius_mm))


def _murray_radii(parents: np.ndarray, order: list[int], leaf_radius_mm: float) -> np.ndarray:
    flow = np.zeros(len(parents))
    for node in reversed(order):
        flow[node] = max(flow[node], 1.0)
        if node:
            flow[parents[node]] += flow[node]
    return leaf_radius_mm * flow ** (1 / _MURRAY_POWER)


FAT_HU, MUSCLE_HU, BLOOD_HU, LIVER_HU, CORTEX_HU, MARROW_HU, GAS_HU = -100.0, 50.0, 42.0, 58.0, 620.0, 190.0, -990.0

# (x, y, z) mm and radius mm along each vessel or airway
_AORTA = (
    (-2, -18, -12, 15), (-14, -28, 22, 15), (-8, -22, 44, 14), (6, 0, 57, 14), (16, 22, 50, 13),
    (20, 40, 32, 12), (16, 44, -130, 11),
)  # fmt: skip
_PULMONARY_TRUNK = ((20, -40, -8, 13), (20, -24, 14, 13), (28, -4, 20, 11), (46, 8, 12, 8))
_PULMONARY_RIGHT = ((18, -22, 12, 11), (-6, -8, 10, 10), (-32, 2, 6, 9), (-48, 8, 0, 7))
_VEINS = (
    ((-27, -22, 110, 8), (-25, -20, 60, 8), (-26, -18, 0, 10)),  # superior vena cava
    ((-20, -2, -40, 12), (-20, 6, -130, 12)),  # inferior vena cava
    ((-24, 14, -14, 8), (-50, 10, -18, 6)),
    ((28, 14, -14, 8), (50, 10, -18, 6)),
)
_BRANCHES = (
    ((-8, -18, 56, 6), (-18, -8, 85, 6), (-28, -4, 130, 5)),
    ((2, -8, 60, 4), (14, -2, 130, 4)),
    ((12, 2, 58, 5), (26, 6, 130, 4)),
)
_OESOPHAGUS = ((4, 26, 130, 7), (4, 28, 20, 7), (8, 28, -130, 8))
_TRACHEA = ((0, 6, 140, 9), (2, 12, 40, 9))
_BRONCHI = (
    ((2, 12, 40, 7.5), (-20, 14, 22, 7), (-44, 10, 8, 6)),
    ((2, 12, 40, 7), (26, 15, 18, 6.5), (47, 13, 4, 5.5)),
)
_LOBAR_BRONCHI = (
    ((-40, 11, 10, 4.5), (-58, -4, 34, 2.8)), ((-44, 10, 6, 4.5), (-56, 26, -32, 2.8), (-62, 34, -62, 1.8)),
    ((-48, 8, 0, 4), (-66, -22, -16, 2.2)), ((44, 13, 6, 4.5), (60, -8, 30, 2.8)),
    ((47, 13, 4, 4.5), (58, 32, -34, 2.8), (64, 40, -64, 1.8)), ((48, 10, 2, 4), (68, -20, -12, 2.2)),
)  # fmt: skip


def paint_table(canvas: Canvas, thorax: Thorax) -> None:
    """Paints the table that the patient will lie on; before the warp, as tables are straight."""
    y = canvas.y_mm - thorax.body_half_depth_mm - 8 + (canvas.x_mm / 60) ** 2
    canvas.paint(np.maximum(np.abs(y) - 2, np.abs(canvas.x_mm) - 168), -420)


def paint_thorax(canvas: Canvas, thorax: Thorax, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paints body, bones, mediastinum, lungs and their vessels.

    Args:
        canvas: of air; warped already.
        thorax: the patient.
        rng: for the course of vessels and the texture of the lungs.

    Returns:
        The lungs, vessels and lobar bronchi within them included, and the lumen of trachea and main bronchi; both bool
        (depth, height, width).
    """
    cavity = cavity_mm(canvas, thorax)
    dome_z = dome_z_mm(canvas, thorax)
    heart = heart_mm(canvas, thorax)
    lung = smooth_max(cavity + 2, -mediastinum_mm(canvas, thorax, heart), width_mm=14)
    lung = smooth_max(lung, (dome_z - canvas.z_mm) * 0.75, width_mm=6)
    _paint_wall(canvas, thorax, cavity, rng)
    _paint_cavity(canvas, thorax, cavity, dome_z)
    canvas.paint(lung, _parenchyma_hu(canvas, thorax, rng))
    _paint_mediastinum(canvas, thorax, heart, dome_z)
    _paint_spine(canvas, thorax)
    _paint_lung_vessels(canvas, thorax, lung, rng)
    airway = _paint_airways(canvas, thorax) & (lung >= 0)
    return lung < 0, airway


def _paint_wall(canvas: Canvas, thorax: Thorax, cavity: np.ndarray, rng: np.random.Generator) -> None:
    """Skin, fat, muscle, scapulae, ribs, sternum and clavicles."""
    x, y, z = canvas.x_mm, canvas.y_mm, canvas.z_mm
    bearing = np.arctan2(np.abs(x), y)  # 0 at the back, pi in front
    up = np.clip((z - 5) / 70, 0, 1)
    half_width = np.minimum(thorax.half_width_mm + 23 + thorax.fat_mm + thorax.shoulder_mm * up, 173)
    half_depth = thorax.body_half_depth_mm * (1 - 0.1 * np.clip((z - 40) / 60, 0, 1))
    body = superellipse_mm(x, y, half_x_mm=half_width, half_y_mm=half_depth, power=2.35)
    breast = np.exp(-(((bearing - 2.55) / 0.3) ** 2) - ((z - 10) / 45) ** 2)
    body = body - thorax.breast_mm * breast + 3 * np.exp(-((x / 22) ** 2))
    body = smooth_max(body, y - (half_depth - 5), width_mm=14)
    canvas.paint(body, 10)
    canvas.paint(body + 2.2, FAT_HU)
    thickness = thorax.fat_mm * (0.8 + 0.35 * np.sin(bearing) ** 2) + thorax.breast_mm * breast
    knots = (40 / 5, 26 / canvas.pixel_mm, 26 / canvas.pixel_mm)
    strands = smooth_field(rng, canvas.hu.shape, knot_px=knots)
    canvas.paint(np.maximum(body + thickness + 1.5 * strands, body + 4), MUSCLE_HU)
    planes = np.where(np.abs(cavity - 13 - 2.5 * strands) < 15, np.abs(strands - 0.2) * 9 - 1.4, 9)
    canvas.paint(np.maximum(planes, np.maximum(13 - cavity, body + 4)), FAT_HU + 15)
    blade = np.maximum(np.abs(cavity - 20 - 6 * (bearing - 1)) - 3, np.abs(bearing - 0.98) * 100 - 34)
    _paint_bone(canvas, np.maximum(blade, 18 - z), cortex_mm=1.5)
    ring = np.maximum(np.abs(cavity - 6) - 6.5, -cavity)
    canvas.paint(ring, MUSCLE_HU)
    _paint_ribs(canvas, thorax, cavity, bearing)


def _paint_ribs(canvas: Canvas, thorax: Thorax, cavity: np.ndarray, bearing: np.ndarray) -> None:
    """Ribs sink from the spine to the front, so that a slice cuts several of them at once."""
    x, z = canvas.x_mm, canvas.z_mm
    height = rib_height_mm(canvas, thorax, bearing)
    rib = (np.sqrt((height / 6.5) ** 2 + ((cavity - 6) / 4.2) ** 2) - 1) * 4.2
    _paint_bone(canvas, np.maximum(rib, (bearing - 2.45) * 60), cortex_mm=1.6)
    canvas.paint(np.maximum(rib, np.maximum((2.45 - bearing) * 60, (bearing - 3.0) * 60)), 110)
    front = -thorax.half_depth_mm - 6
    sternum = superellipse_mm(x, canvas.y_mm - front, half_x_mm=19, half_y_mm=6.5, power=2.6)
    _paint_bone(canvas, np.maximum(sternum, np.abs(z + 2) - 73), cortex_mm=1.6)
    for side in (-1, 1):
        start, end = thorax.place(side * 22, -62, 88), thorax.place(side * 120, -34, 112)
        canvas.tube(start, end, radii_mm=(8, 6), hu=CORTEX_HU)
        canvas.tube(start, end, radii_mm=(5.5, 3.5), hu=MARROW_HU)


def _paint_bone(canvas: Canvas, distance: np.ndarray, *, cortex_mm: float) -> None:
    canvas.paint(distance, CORTEX_HU)
    canvas.paint(distance + cortex_mm + canvas.pixel_mm * 0.35, MARROW_HU)


def _paint_cavity(canvas: Canvas, thorax: Thorax, cavity: np.ndarray, dome_z: np.ndarray) -> None:
    """Fat within the rib cage; below the diaphragm liver, spleen and a stomach with a bubble of gas."""
    x, y, z = canvas.x_mm, canvas.y_mm, canvas.z_mm
    canvas.paint(np.maximum(cavity, z - 96), FAT_HU)
    below = np.maximum(cavity + 1.5, z - dome_z)
    canvas.paint(below, MUSCLE_HU)
    canvas.paint(below + 3, FAT_HU)
    canvas.paint(smooth_max(below + 2, x - 18 - 0.35 * y, width_mm=12), LIVER_HU)
    for centre, half, hu in (
        ((86, 40, -112), (34, 46, 46), 52.0),
        ((52, -30, -104), (46, 40, 40), 34.0),
        ((50, -46, -98), (27, 16, 22), GAS_HU),
    ):
        cx, cy, cz = thorax.place(*centre)
        organ = ellipsoid_mm(x - cx, y - cy, z - cz - (thorax.dome_mm[1] + 65), half_mm=half)
        canvas.paint(np.maximum(organ, below + 5), hu)


def _paint_mediastinum(canvas: Canvas, thorax: Thorax, heart: np.ndarray, dome_z: np.ndarray) -> None:
    above = (dome_z - canvas.z_mm) * 0.7
    canvas.paint(smooth_max(heart, above - 4, width_mm=6), BLOOD_HU)
    groove = np.abs(heart + 13) - 0.8
    canvas.paint(np.maximum(groove, above), BLOOD_HU - 22)
    for course in (_OESOPHAGUS, *_BRANCHES, *_VEINS, _PULMONARY_TRUNK, _PULMONARY_RIGHT, _AORTA):
        _paint_course(canvas, thorax, course, BLOOD_HU)
    _paint_course(canvas, thorax, tuple((x, y, z, 1.8) for x, y, z, _ in _OESOPHAGUS), -500)


def _paint_course(canvas: Canvas, thorax: Thorax, course: tuple[tuple[float, ...], ...], hu: float, *,
                  wall_mm: float = 0.0) -> None:  # fmt: skip
    for (ax, ay, az, a), (bx, by, bz, b) in pairwise(course):
        radii = (a + wall_mm, b + wall_mm)
        canvas.tube(thorax.place(ax, ay, az), thorax.place(bx, by, bz), radii_mm=radii, hu=hu)


def _paint_airways(canvas: Canvas, thorax: Thorax) -> np.ndarray:
    """Walls first, then the lumen; returns the lumen of trachea and main bronchi, bool (depth, height, width)."""
    for course in _LOBAR_BRONCHI:
        _paint_course(canvas, thorax, course, -200.0, wall_mm=1.3)
    for course in (*_BRONCHI, _TRACHEA):
        _paint_course(canvas, thorax, course, 10.0, wall_mm=1.4)
    for course in _LOBAR_BRONCHI:
        _paint_course(canvas, thorax, course, GAS_HU)
    before = canvas.hu.copy()
    for course in (*_BRONCHI, _TRACHEA):
        _paint_course(canvas, thorax, course, GAS_HU)
    return (canvas.hu < before) & (canvas.hu < -500)


def _paint_spine(canvas: Canvas, thorax: Thorax) -> None:
    """Vertebral bodies with discs between them, arch, spinous and transverse processes, and the canal."""
    x, z = canvas.x_mm, canvas.z_mm
    y = canvas.y_mm - spine_centre(thorax)[1]
    level = np.abs((z - thorax.rib_phase_mm) % RIB_STEP_MM - RIB_STEP_MM / 2)  # 0 at mid-vertebra
    back = superellipse_mm(x, y - 34, half_x_mm=46, half_y_mm=17, power=3)
    canvas.paint(back, MUSCLE_HU)
    body = superellipse_mm(x, y, half_x_mm=17.5, half_y_mm=14, power=2.6)
    canvas.paint(body, 85)
    _paint_bone(canvas, np.maximum(body, level - 10), cortex_mm=1.2)
    arch = np.sqrt((x / 1.15) ** 2 + (y - 22) ** 2) - 12.5
    _paint_bone(canvas, np.maximum(arch, level - 11), cortex_mm=2)
    spinous = np.maximum(np.abs(x) - 3.2, np.maximum(26 - y, y - 56 + 1.2 * level))
    _paint_bone(canvas, spinous, cortex_mm=1.5)
    transverse = np.maximum(np.abs(y - 24 - 0.18 * np.abs(x)) - 4.5, np.abs(x) - 36)
    _paint_bone(canvas, np.maximum(transverse, level - 6), cortex_mm=1.6)
    canvas.paint(np.sqrt((x / 1.15) ** 2 + (y - 21) ** 2) - 8, 15)


def _parenchyma_hu(canvas: Canvas, thorax: Thorax, rng: np.random.Generator) -> np.ndarray:
    """Lung tissue: denser at the back (gravity), with a slow mottle and a faint fissure in each."""
    knots = (5.0, 14 / canvas.pixel_mm, 14 / canvas.pixel_mm)
    hu = thorax.lung_hu + thorax.gradient_hu * canvas.y_mm / (2 * thorax.half_depth_mm)
    hu = hu + 14 * smooth_field(rng, canvas.hu.shape, knot_px=knots)
    for sign, tilt, middle in ((-1, 0.75, 4.0), (1, 0.8, 12.0)):
        fissure = (
            np.abs(canvas.y_mm - middle - tilt * canvas.z_mm + 0.002 * (canvas.x_mm - sign * 70) ** 2) * 0.78 - 0.6
        )
        hu = hu + 110 * canvas.cover(np.maximum(fissure, -sign * canvas.x_mm))
    return hu


def _paint_lung_vessels(canvas: Canvas, thorax: Thorax, lung: np.ndarray, rng: np.random.Generator) -> None:
    """An artery and a vein tree in each lung, from the hilum outwards, ending short of the pleura."""
    within = canvas.cover(lung)
    for side in (-1, 1):
        inside = np.argwhere((lung < -5) & (canvas.x_mm * side > 0))
        if not len(inside):
            continue
        for root, share in (((side * 47, 8, 4), 1.0), ((side * 48, 10, -16), 0.7)):
            count = int(thorax.vessel_points * share)
            chosen = inside[rng.integers(0, len(inside), count)]
            at = tuple(chosen.T)
            targets = np.stack([canvas.x_mm[at], canvas.y_mm[at], canvas.z_mm[at[0], 0, 0]], axis=1).astype(float)
            targets += rng.uniform(-0.5, 0.5, targets.shape) * canvas.pixel_mm
            tree = grow_tree(np.array(thorax.place(*root)), targets, leaf_radius_mm=thorax.leaf_radius_mm)
            for node in range(1, count + 1):
                parent = tree.parents[node]
                start, end = tuple(tree.points_mm[parent]), tuple(tree.points_mm[node])
                radius = min(float(tree.radii_mm[node]), 5.0)
                canvas.tube(start, end, radii_mm=(radius * 1.1, radius), hu=BLOOD_HU, within=within)
