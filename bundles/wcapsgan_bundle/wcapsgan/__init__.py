# SPDX-License-Identifier: Apache-2.0
"""The W-CapsuleGAN bundle: networks, training and sampling of lung nodules (layer I) and normal lungs (layer II)."""
