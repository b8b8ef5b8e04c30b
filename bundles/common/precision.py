# SPDX-License-Identifier: Apache-2.0
"""Whether networks compute in bfloat16 on the machine at hand (`amp` in the configs)."""

import torch

__all__ = ["use_bfloat16"]

_CPU_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86 with AMX, ARM


def use_bfloat16(device: torch.device | str, amp: bool | None = None) -> bool:
    """Whether a network runs in bfloat16: as `amp` says, or where the device has instructions for it.

    NVIDIA's GPUs from Ampere on have them, and CPUs with AVX-512 BF16, AMX or ARM's BF16. Others emulate bfloat16 and
    are slower than in float32, CPUs several times. Other kinds of devices were not tried and get float32.

    Args:
        device: where the network runs.
        amp: True or False decides; None leaves it to the device.
    """
    if amp is not None:
        return amp
    kind = torch.device(device).type
    if kind == "cpu":
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in _CPU_FEATURES)
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
