# SPDX-License-Identifier: Apache-2.0
"""Whether bfloat16 pays on the machine at hand, and the generator made ready for it."""

import copy
from typing import Literal

import torch
from torch import nn

__all__ = ["Precision", "bfloat16_is_native", "ready"]

Precision = Literal["auto", "bfloat16", "float32"]


def bfloat16_is_native(device: torch.device | str) -> bool:
    """Whether the device computes in it: GPUs from NVIDIA's Ampere on, CPUs with AVX-512 BF16 or AMX.

    Others emulate it and are slower than in float32, CPUs several times.
    """
    if torch.device(device).type != "cpu":
        return torch.device(device).type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    # Not public in PyTorch 2.13; without them the answer is the slower and safer one.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


def ready(network: nn.Module, *, device: torch.device | str, precision: Precision = "auto") -> nn.Module:
    """A copy of a generator on `device`, to run and not to train, its layers kept in the precision asked for.

    Args:
        network: trained; not changed.
        device: where it will run.
        precision: `auto` takes bfloat16 where it is native. Images stay float32; what is rounded is the change of a
            pixel, which is bounded.

    Raises:
        ValueError: for another precision.
    """
    known = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    known["auto"] = torch.bfloat16 if bfloat16_is_native(device) else torch.float32
    if precision not in known:
        raise ValueError(f"precision must be one of {sorted(known)}, got {precision!r}.")
    return copy.deepcopy(network).to(device, known[precision], memory_format=torch.channels_last).eval()
