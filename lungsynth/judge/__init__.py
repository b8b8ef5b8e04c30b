"""The judge: how good a stage is, measured on patients that it never saw, beside trivial baselines and the paper.

`test_part` (whom) -> `crops`, `composites`, `scans` (records of what was found) -> `figures` (numbers with intervals)
-> `segmentation` (Table I). `bootstrap`, `matching`, `froc`, `pixels`, `tables`, `paper` and `pictures` know of no
table and serve them all. The room is the last in the line: it may use any other, and none uses it.
"""
