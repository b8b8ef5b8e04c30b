"""Feature vectors of samples, selection by similarity, and detection of near-copies."""
