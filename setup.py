"""Package metadata; tool settings are in pyproject.toml, the tested set in constraints.txt."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """The version, read from the package without importing it."""
    text = (ROOT / "certify" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("certify/__init__.py states no __version__")
    return found.group(1)


RUN = [
    "cvxpy>=1.5",
    "numba>=0.61",
    "numpy>=2.0",
    "onnx>=1.21",
    "onnxruntime>=1.20",
    "rich>=13.0",
    "scipy>=1.14",
    "torch>=2.8",
]
HUB = ["safetensors>=0.4"]
IMAGES = ["pillow>=10"]
Z3 = ["z3-solver>=4.12"]
TEST = [
    *HUB,
    *IMAGES,
    "hypothesis>=6.100",
    "mpmath>=1.3",
    "mypy>=1.11",
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    "scikit-learn>=1.5",
]

setup(
    name="certify",
    version=version(),
    description="Certified robustness of neural networks: a network and a specification in, "
    "a checked certificate out",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # kernels/ is a folder of its own; it is imported as certify.kernels, never as "kernels".
    packages=[*find_packages(include=["certify", "certify.*"]), "certify.kernels"],
    package_dir={"certify.kernels": "kernels"},
    package_data={"certify": ["py.typed"]},
    install_requires=RUN,
    extras_require={"hub": HUB, "images": IMAGES, "test": TEST, "z3": Z3},
    entry_points={"console_scripts": ["certify = certify.cli.main:entry"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
