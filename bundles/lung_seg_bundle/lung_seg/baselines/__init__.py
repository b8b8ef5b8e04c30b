# SPDX-License-Identifier: Apache-2.0
"""The other methods of the paper's Table I, trained on the same data as the dense U-Net and asked in the same way.

Each is an overlay over `train.json` and `inference.json`; docs/methods.md describes them.
"""
