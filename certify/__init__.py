"""certify: is this neural network provably robust here?

A network, a region and a specification go in; a `Certificate` that another program can check comes
out. Importing this package imports nothing heavy: every public name is loaded when first used.

Example:
    >>> import certify, numpy
    >>> region = certify.Linf(numpy.zeros(2), 8 / 255, clip=(0, 1))
    >>> region.bounding_box()[1].max() <= 8 / 255 + 1e-9
    np.True_
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certify.bounds.methods import Bounds, bound
    from certify.core.certificate import Certificate, Verdict, load_certificate
    from certify.core.region import (
        L0,
        L1,
        L2,
        Box,
        Ellipsoid,
        Linf,
        Lp,
        Polytope,
        Product,
        Substitutions,
        UnionOfBoxes,
        Zonotope,
    )
    from certify.core.spec import Spec
    from certify.evaluation.evaluate import Evaluation, evaluate
    from certify.evaluation.lipschitz import lipschitz
    from certify.evaluation.transformed.sweep import evaluate_transform
    from certify.features import ProofFeatures, proof_features
    from certify.grid_search import grid_search
    from certify.importers.checkpoints import load_array, load_weights
    from certify.importers.model_file import load
    from certify.importers.region_file import load_region
    from certify.importers.torch_graph import from_torch
    from certify.importers.vnnlib import read_vnnlib
    from certify.recheck import check
    from certify.smooth import smooth
    from certify.verify import verify

__version__ = "0.1.0"

_HOME = {
    "Bounds": "certify.bounds.methods",
    "Box": "certify.core.region",
    "Certificate": "certify.core.certificate",
    "Evaluation": "certify.evaluation.evaluate",
    "L0": "certify.core.region",
    "L1": "certify.core.region",
    "L2": "certify.core.region",
    "Linf": "certify.core.region",
    "Lp": "certify.core.region",
    "Product": "certify.core.region",
    "ProofFeatures": "certify.features",
    "Spec": "certify.core.spec",
    "Zonotope": "certify.core.region",
    "Verdict": "certify.core.certificate",
    "bound": "certify.bounds.methods",
    "check": "certify.recheck",
    "Ellipsoid": "certify.core.region",
    "Polytope": "certify.core.region",
    "Substitutions": "certify.core.region",
    "UnionOfBoxes": "certify.core.region",
    "evaluate": "certify.evaluation.evaluate",
    "evaluate_transform": "certify.evaluation.transformed.sweep",
    "from_torch": "certify.importers.torch_graph",
    "grid_search": "certify.grid_search",
    "lipschitz": "certify.evaluation.lipschitz",
    "load": "certify.importers.model_file",
    "load_array": "certify.importers.checkpoints",
    "load_certificate": "certify.core.certificate",
    "load_region": "certify.importers.region_file",
    "load_weights": "certify.importers.checkpoints",
    "proof_features": "certify.features",
    "read_vnnlib": "certify.importers.vnnlib",
    "smooth": "certify.smooth",
    "verify": "certify.verify",
}

__all__ = [
    "L0", "L1", "L2", "Bounds", "Box", "Certificate", "Ellipsoid", "Evaluation", "Linf", "Lp",
    "Polytope", "Product", "ProofFeatures", "Spec", "Substitutions", "UnionOfBoxes", "Verdict",
    "Zonotope", "__version__", "bound", "check", "evaluate", "evaluate_transform", "from_torch",
    "grid_search", "lipschitz", "load", "load_array", "load_certificate", "load_region",
    "load_weights", "proof_features", "read_vnnlib", "smooth", "verify",
]


_ROOMS = ("semantic", "smoothing", "training")  # packages with public names of their own


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"certify.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """A package whose public names win over submodules of the same name.

    Importing ``certify.verify`` would otherwise bind the module over the function `verify`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

_ROOT = Path(__file__).resolve().parent.parent
if not (_ROOT / "certify" / "kernels").exists() and (_ROOT / "kernels" / "__init__.py").exists():
    __path__.append(str(_ROOT))  # a raw checkout: kernels/ lies beside this package
