"""Weights of methods as a repository keeps them: with their sidecar, in half precision where they are large.

Networks load them as they are: numbers are copied into the float32 ones of the network. Counters stay integers.
"""

import hashlib
import io
from pathlib import Path

import torch

from lungsynth.io.atomic import write_bytes, write_json
from lungsynth.weights import read_weights_file

__all__ = ["LARGEST_BYTES", "store_weights"]

LARGEST_BYTES = 3_000_000


def store_weights(weights: Path, to: Path) -> int:
    """Copies a state dict and its sidecar; from 3 MB on in half precision, which the sidecar then says (`stored`).

    Args:
        weights: the file, with its sidecar (contract C6.1) beside it.
        to: the file to write; its sidecar is written first.

    Returns:
        Bytes of the file.

    Raises:
        InputError: when the file is missing or is not the one that its sidecar describes.
    """
    sidecar, content = dict(read_weights_file(weights).sidecar), weights.read_bytes()
    if len(content) >= LARGEST_BYTES:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        buffer = io.BytesIO()
        torch.save({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, buffer)
        content = buffer.getvalue()
        sidecar |= {"sha256": hashlib.sha256(content).hexdigest(), "stored": "half precision"}
    write_json(to.with_suffix(".json"), sidecar, indent=2)
    write_bytes(to, content)
    return len(content)
