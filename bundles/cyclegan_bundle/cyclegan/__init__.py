# SPDX-License-Identifier: Apache-2.0
"""CycleGAN that makes composed lung slices look acquired: HU in, HU out, a bounded and local change."""
