# SPDX-License-Identifier: Apache-2.0
"""Where bfloat16 pays."""

import torch

__all__ = ["bfloat16_is_fast"]


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; CPUs without such instructions emulate it, ten times slower."""
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
