"""Separation of a cohort by the segmentation network: nodules out of scans that nobody has looked at, and a purer set
of normal slices.

`stacks` (scans out of a cohort) -> `detection` (candidates and their voxels) -> `finding` (what each means) ->
`series` (one series) -> `run` (a cohort). The only room beside the chain that uses both the cohort and a bundle.
"""

from lungsynth.separation.run import Separation, SeparationSettings, separate_cohort

__all__ = ["Separation", "SeparationSettings", "separate_cohort"]
