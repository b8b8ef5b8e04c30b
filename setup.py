"""The bundles travel in the wheel as data of `lungsynth`, so that an installed package has its weights.

An editable installation finds them in the repository and must not map them: setuptools would then put a finder behind
Python's own, and a clone called `lungsynth` beside a user's script would hide the package as an empty namespace.
"""

import sys

from setuptools import find_packages, setup

BUNDLES = {} if "editable_wheel" in sys.argv else {"lungsynth._bundles": "bundles"}

setup(
    packages=[*find_packages(include=["lungsynth", "lungsynth.*", "evaluation", "evaluation.*"]), *BUNDLES],
    package_dir=BUNDLES,
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
