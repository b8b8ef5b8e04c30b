"""The last stage on samples of a catalogue: only what the nodules change is enhanced anew, and labels are looked after.

`regions` (what depends on the nodules) -> `lungs` (enhanced once each) -> `gate` (does the segmentation still find what
it found) -> `stage` (all of it, for one sample) -> `report` (what it did to HU and labels). `identity` says what
decides over the result.
"""

from lungsynth.enhancement.change import Changes
from lungsynth.enhancement.gate import Gate
from lungsynth.enhancement.identity import enhancement_identity
from lungsynth.enhancement.report import summary
from lungsynth.enhancement.stage import EnhancementStage, Outcome, open_stage

__all__ = ["Changes", "EnhancementStage", "Gate", "Outcome", "enhancement_identity", "open_stage", "summary"]
