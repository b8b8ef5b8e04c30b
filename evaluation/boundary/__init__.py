"""Whether the boundary of an inserted nodule is visible."""
