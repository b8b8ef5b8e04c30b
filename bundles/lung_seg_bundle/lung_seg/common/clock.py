# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""How much processor time a training took, also across stops: what a budget shared by several methods is counted in."""

import time
from typing import Any

__all__ = ["CpuClock"]


class CpuClock:
    """Processor minutes of this process and of those whose training it resumes; data loader workers do not count."""

    def __init__(self) -> None:
        self.earlier = 0.0
        self.start = time.process_time()

    def minutes(self) -> float:
        """Minutes so far."""
        return round(self.earlier + (time.process_time() - self.start) / 60, 4)

    def state_dict(self) -> dict[str, Any]:
        """The minutes so far."""
        return {"minutes": self.minutes()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the minutes of an earlier run."""
        self.earlier = state["minutes"]
