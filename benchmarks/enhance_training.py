"""The training step of cyclegan_bundle: bfloat16 and channels last, as its config has them, against plain float32.

Both train the same four networks from the same weights on the same batches, by the same code, in turns.
"""

import copy
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SimpleInferer

__all__ = ["training_speedup"]

BATCH, CROP_PX, CHANNELS = 4, 96, 32  # those of configs/train.json
STEPS = 3  # a turn


def training_speedup(bundles: Path, *, repeats: int) -> dict[str, float]:
    """`training_speedup`, CPU seconds a step, and how far the losses of the first step are apart."""
    sys.path.append(str(bundles / "cyclegan_bundle"))
    torch.set_num_threads(1)
    batch, nets = _batch(), _networks()
    plain = _trainer(copy.deepcopy(nets), fast=False)
    fast = _trainer(copy.deepcopy(nets), fast=True)
    torch.manual_seed(0)
    losses = [plain._iteration(plain, batch)]
    torch.manual_seed(0)
    losses.append(fast._iteration(fast, batch))
    best = {"plain": float("inf"), "fast": float("inf")}
    for _ in range(repeats):
        for name, trainer in (("plain", plain), ("fast", fast)):
            best[name] = min(best[name], _seconds(trainer, batch))
    worst = max(abs(losses[0][key] - losses[1][key]) / max(abs(losses[0][key]), 0.01) for key in losses[0])
    return {
        "training_speedup": best["plain"] / best["fast"],
        "training_losses_differ_by": worst,
        "training_step_float32_cpu_seconds": best["plain"],
        "training_step_cpu_seconds": best["fast"],
    }


def _seconds(trainer: Any, batch: dict[str, torch.Tensor]) -> float:
    started = time.process_time()
    for _ in range(STEPS):
        trainer._iteration(trainer, batch)
    return (time.process_time() - started) / STEPS


def _batch() -> dict[str, torch.Tensor]:
    """Noisy lung with a nodule, both domains."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(CROP_PX) - 48, torch.arange(CROP_PX) - 48, indexing="ij")
    nodule = (rows**2 + columns**2 < 40).expand(BATCH, 1, CROP_PX, CROP_PX)
    images = {
        key: torch.where(nodule, 0.45, -0.79) + level * torch.randn(nodule.shape, generator=generator)
        for key, level in (("x", 0.03), ("y", 0.05))
    }
    return images | {"x_nodule": nodule, "y_nodule": nodule}


def _networks() -> Any:
    from cyclegan.network import PatchDiscriminator, ResidualEnhancer
    from cyclegan.trainer import Networks

    torch.manual_seed(0)
    nets = Networks(
        G=ResidualEnhancer(channels=CHANNELS),
        F=ResidualEnhancer(channels=CHANNELS),
        D_X=PatchDiscriminator(channels=CHANNELS),
        D_Y=PatchDiscriminator(channels=CHANNELS),
    )
    for generator in (nets.G, nets.F):  # as after some training: at zero, nothing passes through
        torch.nn.init.normal_(generator.last.weight, std=0.02)
    return nets


def _adam(*networks: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(chain(*(network.parameters() for network in networks)), lr=1e-4, betas=(0.5, 0.999))


def _trainer(nets: Any, *, fast: bool) -> Any:
    from cyclegan.history import ImageHistory
    from cyclegan.losses import GeneratorLoss
    from cyclegan.trainer import CycleGANTrainer, Histories, Optimizers

    if fast:
        for network in vars(nets).values():
            network.to(memory_format=torch.channels_last)
    return CycleGANTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[],
        networks=nets,
        optimizers=Optimizers(generators=_adam(nets.G, nets.F), discriminators=_adam(nets.D_X, nets.D_Y)),
        histories=Histories(x=ImageHistory(), y=ImageHistory()),
        loss=GeneratorLoss(),
        inferer=SimpleInferer(),
        amp=fast,
    )
