"""Generated nodules in three dimensions: wcapsgan_bundle's cubes, of the texture and diameter asked."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lungsynth.bundles import bundle_root, open_bundle, read_weights
from lungsynth.cohort.patches import NoduleCube
from lungsynth.errors import InputError
from lungsynth.seeds import SeedStream, seeds

__all__ = ["CUBE_CONFIGS", "CUBE_WEIGHTS", "generate_cubes", "weights_sha256"]

CUBE_CONFIGS = ("inference.json", "inference_cube.json")
CUBE_WEIGHTS = "model_cube.pt"


def generate_cubes(
    bundles: Path, categories: Sequence[str], diameters_mm: Sequence[float], *, seed: int
) -> list[NoduleCube]:
    """Generates one nodule for each category and diameter.

    The diameter is that of the sphere of the nodule's volume, where alpha is 0.5 or more. Cube i follows from `seed`, i
    and its own request, whatever else is asked in the same call.

    Args:
        bundles: folder of the bundles.
        categories: names of the bundle, as `ground_glass`, `part_solid` and `solid`.
        diameters_mm: as many, up to the sampler's `largest_mm`.
        seed: not negative.

    Raises:
        InputError: where the bundle has no weights for cubes or cannot make what is asked.
    """
    sampler = _sampler(bundles, weights_sha256(bundles))
    try:
        made = sampler(seeds(seed, SeedStream.GENERATED_CUBES, n=len(categories)), categories, diameters_mm)
    except ValueError as error:  # the bundle's own words: what may be asked, and what came
        raise InputError(str(error)) from error
    return [NoduleCube(hu=hu, alpha=alpha) for hu, alpha in zip(made["hu"], made["alpha"], strict=True)]


def weights_sha256(bundles: Path) -> str:
    """SHA-256 of the weights that make cubes.

    Raises:
        InputError: where there are none, or they are not those of their sidecar.
    """
    _check_weights(bundles)
    return read_weights(bundles, "wcapsgan", file=CUBE_WEIGHTS).sha256


@lru_cache(maxsize=1)
def _sampler(bundles: Path, sha256: str) -> Any:
    """The sampler of these weights; opened once for many scans."""
    return open_bundle(bundles, "wcapsgan", configs=CUBE_CONFIGS, weights=CUBE_WEIGHTS)


def _check_weights(bundles: Path) -> None:
    path = bundle_root(bundles, "wcapsgan") / "models" / CUBE_WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{path}: expected weights that make nodules in three dimensions, found none. Give `bundles` a folder "
            "whose wcapsgan_bundle has them, train them (configs/train_cube.json), or insert real nodules of a cohort."
        )
