"""Reading assets: the array of a file `<hash>.npy`, mapped, and its bytes checked against its name."""

from pathlib import Path

import numpy as np

from lungsynth.errors import InputError
from lungsynth.layers.assets import AssetArray, content_hash

__all__ = ["load_asset", "open_asset"]

_REMEDY = "Restore the file, or delete it and run the same command again."


def open_asset(path: Path) -> AssetArray:
    """Maps an asset without reading it.

    Raises:
        InputError: when the file is missing, is no array, or one of another kind.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: expected an array, got what cannot be read: {error}. {_REMEDY}") from error
    if array.ndim != 3 or array.dtype != np.int16:
        raise InputError(f"{path}: expected int16 (2, H, W), got {array.dtype} {array.shape}. {_REMEDY}")
    return array


def load_asset(path: Path) -> AssetArray:
    """Maps an asset and checks its bytes against its name.

    Raises:
        InputError: likewise, or when the bytes were changed.
    """
    array = open_asset(path)
    found = content_hash(array)
    if found != path.stem:
        raise InputError(f"{path}: expected bytes with the hash {path.stem}, got {found}; it was changed. {_REMEDY}")
    return array
