"""Pseudo-labelling: the detector runs on scans without expert marks."""
