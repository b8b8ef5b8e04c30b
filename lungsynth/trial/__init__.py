"""Virtual trials: known nodules put into a user's own slices by design, with and without, and a detector asked.

`design` says what is varied, `samples` puts it on slices, `detectors` and `detections` ask any detector, `outcomes`
says what was found, `statistics` and `report` what that means; `run` does all in turn.
"""
