"""The commands of `lungsynth`: arguments in, a report out; `lungsynth.cli` runs them."""
