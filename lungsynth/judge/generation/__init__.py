"""The judge of generated samples (Table II): nodules and lungs against held-out real ones.

`samples` (what is compared) -> `features` (a network turns images into vectors) -> `distances`, `manifold`,
`diversity`, `two_sample`, `copies`, `ct_checks`, `asked` (figures, each a pure function of arrays and weights)
-> `figures` (all of them with intervals) -> `run` (Table II). `generators` are the lines of the table.
"""
