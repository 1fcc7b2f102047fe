"""The attack alone, with the answers and exit codes of ``certify verify``."""

from __future__ import annotations

import argparse
import sys
import time

_STARTED = time.monotonic()


def main() -> int:
    """Print ``sat``, or ``unknown`` when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("spec")
    parser.add_argument("--timeout", type=float, default=60.0)
    options = parser.parse_args()
    from certify.core.errors import EXIT_UNDECIDED, EXIT_VIOLATED, CertifyError

    try:
        violated = _violated(options)
    except CertifyError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    print("sat" if violated else "unknown")
    return EXIT_VIOLATED if violated else EXIT_UNDECIDED


def _violated(options: argparse.Namespace) -> bool:
    from certify.core.region import Product, as_inputs
    from certify.importers.model_file import load
    from certify.importers.vnnlib import read_vnnlib
    from certify.search.attack import attack
    from certify.search.replay import confirm

    query, network = read_vnnlib(options.spec), load(options.model)
    deadline = _STARTED + options.timeout
    for case in query.cases:
        parts = as_inputs(case.box, list(network.input_shapes))
        region = parts[0] if len(parts) == 1 else Product(parts)
        for candidate in attack(network, region, case.spec, deadline=deadline):
            if candidate.margin <= 0 and confirm(network, case, case.spec, candidate.x) is not None:
                return True
        if time.monotonic() > deadline:
            break
    return False


if __name__ == "__main__":
    sys.exit(main())
