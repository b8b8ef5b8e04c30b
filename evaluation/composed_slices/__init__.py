"""Whole diseased slices composed of real lungs and real nodules: the reference of Table III."""
