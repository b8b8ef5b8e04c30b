"""Metrics, each with weights, so that patients can be resampled."""
