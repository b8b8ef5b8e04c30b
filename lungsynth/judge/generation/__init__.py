"""The judge of generated samples (Tables II and III) against held-out real ones.

What is compared, features and distances stand in `lungsynth.likeness`. With them `diversity`, `two_sample`,
`ct_checks`, `asked` (figures, each a pure function of arrays and weights) -> `figures` (all of them with intervals)
-> `run` (the tables). `generators` and `stages` are the lines of the tables.
"""
