# SPDX-License-Identifier: Apache-2.0
"""Whether bfloat16 pays on the machine at hand."""

import torch

__all__ = ["resolve_amp"]


def resolve_amp(amp: bool | None, device: str | torch.device) -> bool:
    """Whether the network runs in bfloat16: as asked for, else where the device computes with it natively.

    GPUs from NVIDIA's Ampere on do; of CPUs those with AVX-512 BF16 or AMX. Elsewhere bfloat16 is emulated and slower
    than float32, several times on CPUs.

    Args:
        amp: True or False decides; None lets the device decide.
        device: where the network runs.
    """
    if amp is not None:
        return amp
    if torch.device(device).type != "cpu":
        return torch.device(device).type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    # Not public in PyTorch 2.13; without them the answer is the slower and safer one.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)
