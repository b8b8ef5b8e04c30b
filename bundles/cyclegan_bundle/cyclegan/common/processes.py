# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""Joining and leaving the other processes of a training.

A process group of gloo that is still alive when the interpreter ends can abort the process: its threads then release
tensors, which needs an interpreter. `torch.distributed.destroy_process_group` ends the group only where nobody holds
it, and two things do. Networks wrapped for several processes keep it as long as they live, and functions of
`torch.distributed.nn` keep, as default arguments, the group that was there when they were imported, which
DistributedDataParallel does when it is first built.
"""

from collections.abc import Sequence

import torch
import torch.distributed.nn  # before any group exists: see above
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

__all__ = ["join_processes", "leave_processes"]


def join_processes(**options: object) -> None:
    """Forms the group, by NCCL between GPUs and by gloo between CPU processes.

    Args:
        options: of `torch.distributed.init_process_group`; none under torchrun.
    """
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", **options)  # type: ignore[arg-type]


def leave_processes(networks: Sequence[torch.nn.Module] = ()) -> None:
    """Ends the group when all processes have come here; without a group, nothing.

    Args:
        networks: all that were wrapped for several processes; they train no more.
    """
    if not distributed.is_initialized():
        return
    for network in networks:
        if isinstance(network, DistributedDataParallel):
            network.reducer = network.logger = network.process_group = None
    distributed.barrier()
    distributed.destroy_process_group()
