"""The bundles travel in the wheel as data of `lungsynth`, so that an installed package has its weights."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lungsynth", "lungsynth.*", "evaluation", "evaluation.*"]), "lungsynth._bundles"],
    package_dir={"lungsynth._bundles": "bundles"},
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
