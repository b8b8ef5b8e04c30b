"""Does a virtual trial hold for real nodules? Detectors on both, on the same slices, sizes and textures."""
