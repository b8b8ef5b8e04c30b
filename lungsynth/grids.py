"""The pixel grids that cohorts, stored assets and networks share, and the diameter of a disc on any of them.

Nodules are kept on 64 x 64 pixels of 0.7 mm (a usual spacing of chest CT), centred on the nodule. Lungs are generated
on a field of 358.4 mm, 256 pixels of 1.4 mm or 512 of 0.7 mm (docs/reference/conventions.md). The bundles' weights and
all stored assets are bound to these numbers: other ones need new cohorts and new trainings.
"""

from typing import Any

import numpy as np

__all__ = ["LUNG_FIELD_MM", "LUNG_SPACING_MM", "PATCH_PX", "PATCH_SPACING_MM", "disc_diameter"]

PATCH_PX = 64  # width of a nodule's patch
PATCH_SPACING_MM = 0.7  # of its pixels
LUNG_FIELD_MM = 358.4  # width of a generated lung slice
LUNG_SPACING_MM = LUNG_FIELD_MM / 256  # of the lung generator's pixels, 1.4 mm


def disc_diameter(area: Any) -> Any:
    """Diameter of the disc of that area, a number or an array: of mm^2 in mm, of a number of pixels in pixels."""
    return 2 * np.sqrt(area / np.pi)
