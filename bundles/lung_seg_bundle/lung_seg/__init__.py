# SPDX-License-Identifier: Apache-2.0
"""Dense U-Net that finds lung and nodules on axial CT slices.

Images are int16 or float32 HU until `transforms.py` or `inferer.py` map the window [-1000, 400] to [-1, 1].
Slices are (1, H, W): rows anterior to posterior, columns from the patient's right to left; spacing is (row, column) mm.
Two channels come out: lung (nodules included) and nodule.
"""

CHANNELS = ("lung", "nodule")
IGNORED = 255  # the label of pixels that nobody looked at

__all__ = ["CHANNELS", "IGNORED"]
