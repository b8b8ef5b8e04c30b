"""What nodules are asked for: `part_solid 8-12mm x3, ground_glass 6mm`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lungsynth.categories import ANY, TEXTURES
from lungsynth.errors import InputError

__all__ = ["DIAMETERS_MM", "NoduleRequest", "WantedNodule", "draw_wanted", "parse_requests"]

DIAMETERS_MM = (3.0, 40.0)  # below, nothing shows on usual slices; above, a nodule fills its cube of 45 mm
_MOST = 100  # nodules of a scan: more fit into no lung
_DIGITS = 2
_REQUEST = re.compile(
    r"(?P<texture>[A-Za-z_\- ]*[A-Za-z])\s+(?P<low>\d+(?:\.\d+)?)(?:\s*-\s*(?P<high>\d+(?:\.\d+)?))?\s*mm"
    r"(?:\s*x\s*(?P<count>\d+))?"
)
_EXAMPLE = "part_solid 8-12mm x3, ground_glass 6mm"


@dataclass(frozen=True, kw_only=True)
class NoduleRequest:
    """Some nodules of one texture.

    Args:
        texture: one of `TEXTURES`, or `ANY`: each as likely.
        diameter_mm: smallest and largest; drawn between them, evenly on a scale of ratios.
        count: how many.

    Raises:
        InputError: when a value is out of its range.
    """

    texture: str
    diameter_mm: tuple[float, float]
    count: int = 1

    def __post_init__(self) -> None:
        if self.texture not in (*TEXTURES, ANY):
            raise InputError(f"A nodule's texture is one of {', '.join(TEXTURES)} or any, got {self.texture!r}.")
        low, high = self.diameter_mm
        if not DIAMETERS_MM[0] <= low <= high <= DIAMETERS_MM[1]:
            raise InputError(
                f"Nodules of {DIAMETERS_MM[0]:g} to {DIAMETERS_MM[1]:g} mm can be inserted, smallest first, got "
                f"{low:g}-{high:g} mm."
            )
        if not 1 <= self.count <= _MOST:
            raise InputError(f"1 to {_MOST} nodules can be asked for at once, got x{self.count}.")

    def __str__(self) -> str:
        low, high = self.diameter_mm
        return f"{self.texture} {low:g}{'' if low == high else f'-{high:g}'}mm x{self.count}"


@dataclass(frozen=True, kw_only=True)
class WantedNodule:
    """One nodule to find a place for.

    Args:
        texture: one of `TEXTURES`.
        diameter_mm: of the sphere of equal volume.
    """

    texture: str
    diameter_mm: float


def parse_requests(text: str) -> tuple[NoduleRequest, ...]:
    """Reads requests, separated by commas.

    Args:
        text: each `TEXTURE LOW[-HIGH]mm [xCOUNT]`.

    Raises:
        InputError: when a part is not so.
    """
    requests = []
    for part in text.split(","):
        match = _REQUEST.fullmatch(part.strip())
        if match is None:
            raise InputError(
                f"`nodules`: expected TEXTURE LOW-HIGHmm xCOUNT, such as {_EXAMPLE!r}, got {part.strip()!r}."
            )
        texture = re.sub(r"[\s\-]+", "_", match["texture"].strip().lower())
        low = float(match["low"])
        diameter_mm = (low, float(match["high"] or low))
        requests.append(NoduleRequest(texture=texture, diameter_mm=diameter_mm, count=int(match["count"] or 1)))
    if (count := sum(request.count for request in requests)) > _MOST:
        raise InputError(f"`nodules`: at most {_MOST} can be asked for in one scan, got {count}.")
    return tuple(requests)


def draw_wanted(requests: Sequence[NoduleRequest], *, seed: int) -> list[WantedNodule]:
    """The nodules of some requests, in their order; nodule i depends on the seed, i and its request alone."""
    asked = [request for request in requests for _ in range(request.count)]
    return [_drawn(request, np.random.default_rng([seed, index])) for index, request in enumerate(asked)]


def _drawn(request: NoduleRequest, rng: np.random.Generator) -> WantedNodule:
    share, texture = rng.random(), TEXTURES[int(rng.integers(len(TEXTURES)))]
    low, high = request.diameter_mm
    return WantedNodule(
        texture=texture if request.texture == ANY else request.texture,
        diameter_mm=round(low * (high / low) ** share, _DIGITS),
    )
