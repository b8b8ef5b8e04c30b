"""What leaves the program: a catalogue rendered to files of one format, with their labels and checksums.

`sample` (a sample with its name) -> `formats` (its files) -> `job` (one part of the work, whole or absent) -> `run`
(all parts, here or with Ray) -> `labels` (annotations.csv, detection JSON, COCO).
"""

from lungsynth.export.formats import FORMATS, Format
from lungsynth.export.job import Job
from lungsynth.export.run import export_catalogue
from lungsynth.export.sample import Exported

__all__ = ["FORMATS", "Exported", "Format", "Job", "export_catalogue"]
