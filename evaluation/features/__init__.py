"""Training of the feature networks."""
