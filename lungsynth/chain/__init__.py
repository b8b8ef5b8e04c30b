"""The chain: settings in, labelled synthetic slices out. `run_chain` is what `scripts/synthesize.py` calls.

The names below are imported when they are asked for: a plan needs neither torch nor MLflow, and their gigabyte.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lungsynth.chain.run import ChainResult, run_chain
    from lungsynth.chain.settings import ChainSettings

__all__ = ["ChainResult", "ChainSettings", "run_chain"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lungsynth.chain import run

    return getattr(run, name)
