"""What enhancement did to a set of samples: labels, and HU."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lungsynth.enhancement.change import Changes

__all__ = ["summary"]

_VERDICTS = ("unchecked", "kept", "blended", "refused")


def summary(facts: Iterable[Mapping[str, Any]], changes: Changes) -> dict[str, float | None]:
    """The figures of a set.

    Args:
        facts: of each sample, as `Outcome.facts` gives them.
        changes: of all samples together.

    Returns:
        `samples`; of those `unchecked`, `kept`, `blended` and `refused`; `nodules_found` in the composites; of those
        `nodules_lost`, and `nodules_invented`, by the enhancer, before blending set that right; `labels_kept` (share,
        likewise before; None where nothing was found); `<zone>_mean_hu`, `<zone>_p95_hu` of the samples as they are.
    """
    rows = list(facts)
    verdicts = Counter(row["verdict"] for row in rows)
    found, lost, invented = (sum(row[key] for row in rows) for key in ("found", "lost", "invented"))
    return {
        "samples": len(rows),
        **{verdict: verdicts[verdict] for verdict in _VERDICTS},
        "nodules_found": found,
        "nodules_lost": lost,
        "nodules_invented": invented,
        "labels_kept": 1 - lost / found if found else None,
        **changes.figures(),
    }
