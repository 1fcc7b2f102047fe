"""Measures auto_LiRPA on one network and method in this process; prints one JSON object.

Runs in an environment of its own that has auto_LiRPA, torch and onnx; nothing of this project but
the converter and the clock is used. The library's defaults are kept.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed.clock import measure, resident_mb

METHODS = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "forward": "forward",
           "alpha-20": "CROWN-Optimized"}
_AGREE = 1e-4  # relative


def main() -> None:
    """One measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("problems", type=Path, help="written by benchmarks.speed.ours --export")
    parser.add_argument("--method", choices=METHODS, default="crown")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(_measured(options)))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch
    from auto_LiRPA import (  # type: ignore[import-not-found]
        BoundedModule,
        BoundedTensor,
        PerturbationLpNorm,
        __version__,
    )

    from benchmarks.speed.onnx_to_torch import Network

    torch.set_num_threads(options.threads)
    given = np.load(options.problems)
    module = Network(options.onnx).eval()
    begun = time.perf_counter()
    model = BoundedModule(module, torch.empty(given["lower0"].shape[1:]))
    built = time.perf_counter() - begun
    margins: dict[int, Any] = {}

    def call(number: int) -> None:
        lower, upper = (torch.from_numpy(given[f"{end}{number}"][0]) for end in ("lower", "upper"))
        region = PerturbationLpNorm(norm=np.inf, x_L=lower, x_U=upper)
        x = BoundedTensor((lower + upper) / 2, region)
        with torch.set_grad_enabled(options.method == "alpha-20"):
            found, _ = model.compute_bounds(x=(x,), C=torch.from_numpy(given[f"C{number}"]),
                                            method=METHODS[options.method], bound_upper=False)
        margins[number] = found.detach()[0].double() - torch.from_numpy(given[f"d{number}"])

    base = resident_mb()[0]
    calls = [partial(call, i) for i in range(int(given["count"]))]
    timing = measure(calls, options.repeats, options.budget)
    peak = resident_mb()[1]
    _same_function(module, given)
    return {**timing._asdict(), "base_mb": base, "peak_mb": peak, "build_s": built,
            "margin": float(margins[0].mean()), "version": __version__}


def _same_function(module: Any, given: Any) -> None:
    """Refuse to compare different networks."""
    import torch

    x = torch.from_numpy((given["lower0"][0] + given["upper0"][0]) / 2)
    expected = torch.from_numpy(given["y0"]).reshape(-1).float()
    with torch.no_grad():
        found = module(x).reshape(-1)
    if float((found - expected).abs().max()) > _AGREE * max(1.0, float(expected.abs().max())):
        raise ValueError("the converted network computes something else")


if __name__ == "__main__":
    main()
