"""How nodules get there: resampled, matched in noise and edge, overlaid in HU, rendered."""
