# SPDX-License-Identifier: Apache-2.0
"""The other methods of the paper's Table II, trained on the same data as the W-CapsuleGAN and sampled in the same way.

Each is an overlay over `train.json` and `inference.json`; docs/methods.md describes them. Generators are called as
`(latent, category, diameter_mm) -> (B, 2, S, S)`, critics as `(samples, category, diameter_mm) -> (B,)`.
"""
