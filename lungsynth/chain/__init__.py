"""The chain from assets to labelled slices; the only package that sees all rooms."""

from lungsynth.chain.run import ChainResult, run_chain
from lungsynth.chain.settings import ChainSettings

__all__ = ["ChainResult", "ChainSettings", "run_chain"]
