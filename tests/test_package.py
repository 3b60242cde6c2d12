"""The package as a whole: light to import, and whole."""

import subprocess
import sys

import ocresnet

HEAVY = (
    "matplotlib",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "tensorboardX",
    "torch",
    "chex",
    "diffrax",
)


def test_import_is_light():
    code = f"import sys, ocresnet; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_public_names_exist_and_are_documented():
    for name in ocresnet.__all__:
        value = getattr(ocresnet, name)
        if name != "__version__":
            assert value.__doc__ and len(value.__doc__.splitlines()[0]) > 10, name
