"""Which packages are installed; everything else about the project is in pyproject.toml.

A top-level package `experiments` would clash in anyone's environment: the folder of the checkout is
installed inside `ocresnet`.
"""

from setuptools import find_namespace_packages, setup

setup(
    package_dir={"ocresnet.experiments": "experiments"},
    packages=[
        *find_namespace_packages(include=["ocresnet", "ocresnet.*"]),
        *(
            f"ocresnet.{name}"
            for name in find_namespace_packages(include=["experiments", "experiments.*"])
        ),
    ],
)
