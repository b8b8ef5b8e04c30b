"""Table I: methods of segmentation and detection on held-out patients."""
