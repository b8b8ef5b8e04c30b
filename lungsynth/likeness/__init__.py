"""How alike samples are: what the chain ranks generated ones by, and the judge measures them with.

`samples` (what is compared) -> `features` (a network turns images into vectors, learnt by `feature_training`) ->
`distances`, `manifold`, `copies` (figures, each a pure function of arrays and weights).
"""
