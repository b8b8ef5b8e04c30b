"""The CycleGAN, applied near the nodules, with a check that the slice still matches its labels."""
