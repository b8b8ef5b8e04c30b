"""Does synthetic data help who has few patients? Trained with and without it, judged on patients never seen.

`subcohort` (few real patients) -> `arms` (what is added to them) -> `patches`, `classifier`, `classification` (a
classifier of nodules) and `pasted`, `segmentation` (the segmentation bundle) -> `estimates` (figures with intervals
over seeds and patients) -> `report`, `plot` -> `run`.
"""
