# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: written under another name in the same folder, then renamed."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import nn

__all__ = ["replacing", "save_weights", "write_json"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends without an error.

    Args:
        path: the file to write; its folder is made when it is missing. The temporary path has the same suffixes, by
            which nibabel, NumPy and Pillow choose the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.part_{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_weights(path: str | Path, network: nn.Module) -> None:
    """Writes the plain state dict of a network, on the CPU and contiguous.

    The bytes depend on the values alone: given a path, `torch.save` would write its name into the file.
    """
    content = io.BytesIO()
    torch.save({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
