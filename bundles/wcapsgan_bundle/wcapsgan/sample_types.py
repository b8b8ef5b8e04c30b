# SPDX-License-Identifier: Apache-2.0
"""What can be generated: `sample_type` in the configs."""

from typing import NamedTuple

__all__ = ["SAMPLE_TYPES", "SampleType", "sample_type_of", "spatial_dims_of"]


class SampleType(NamedTuple):
    """A type of samples.

    Attributes:
        spatial_dims: 2 or 3.
        has_diameter: whether samples are requested by their diameter.
        mask_key: name of the mask in npz files.
    """

    spatial_dims: int
    has_diameter: bool
    mask_key: str


SAMPLE_TYPES = {
    "nodule": SampleType(spatial_dims=2, has_diameter=True, mask_key="alpha"),
    "cube": SampleType(spatial_dims=3, has_diameter=True, mask_key="alpha"),
    "lung": SampleType(spatial_dims=2, has_diameter=False, mask_key="mask"),
    "slice": SampleType(spatial_dims=2, has_diameter=False, mask_key="mask"),
}


def sample_type_of(name: str) -> SampleType:
    """The type of that name.

    Raises:
        ValueError: when there is none.
    """
    if name not in SAMPLE_TYPES:
        raise ValueError(f"sample_type must be one of {list(SAMPLE_TYPES)}, got {name!r}.")
    return SAMPLE_TYPES[name]


def spatial_dims_of(sample_type: str) -> int:
    """The spatial dimensions of a type of samples; errors as in `sample_type_of`."""
    return sample_type_of(sample_type).spatial_dims
