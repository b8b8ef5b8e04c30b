"""The bundles travel in the wheel as data of `lungsynth`, so that an installed package has its weights.

An editable installation finds them in the repository. It goes on Python's path as a folder (setuptools does that where
packages lie under one root, named by ""): a finder of setuptools would come behind Python's own, and a clone called
`lungsynth` beside a user's script would hide the package as an empty namespace.
"""

import sys

from setuptools import find_packages, setup

EDITABLE = "editable_wheel" in sys.argv

setup(
    packages=[
        *find_packages(include=["lungsynth", "lungsynth.*", "evaluation", "evaluation.*"]),
        *([] if EDITABLE else ["lungsynth._bundles"]),
    ],
    package_dir={"": "."} if EDITABLE else {"lungsynth._bundles": "bundles"},
    package_data={
        "lungsynth._bundles": [
            "*_bundle/LICENSE",
            "*_bundle/configs/*",
            "*_bundle/docs/*",
            "*_bundle/models/*",
            "*_bundle/**/*.py",
        ],
        "lungsynth.placement": ["data/*.json"],
        "lungsynth.similarity": ["weights/*.pt", "weights/*.json"],
    },
)
