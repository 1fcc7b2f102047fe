"""``certify features``: which neurons of the last hidden layer a proof rests on."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from certify.cli.arguments import add_verbosity, whole
from certify.cli.inputs import about, device_named, read_model
from certify.cli.regions import add_region, region_file, region_of
from certify.cli.streams import check_target, result, say, write_file
from certify.cli.table import columns
from certify.core.errors import EXIT_HOLDS, EXIT_UNDECIDED
from certify.settings import METHOD_NAMES

if TYPE_CHECKING:
    from certify.core.graph import Graph
    from certify.core.region import Region
    from certify.features import ProofFeatures

_DRAWN = 24


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "features", help="the neurons a proof rests on",
        description="Find a minimal set of neurons of the last hidden layer whose intervals alone "
        "prove that an input's class does not change.")
    parser.add_argument("model", metavar="MODEL", help="an ONNX file, plain or gzip")
    add_region(parser)
    parser.add_argument("--label", required=True, type=whole, metavar="K", help="the class")
    parser.add_argument("--method", choices=METHOD_NAMES, default="crown", help="default: crown")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu",
                        help="default: cpu")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw what the features look at")
    parser.add_argument("--shape", type=_shape, metavar="H,W",
                        help="read a flat input as an image, H,W or C,H,W")
    parser.add_argument("--json", action="store_true", help="JSON with all digits, not a table")
    add_verbosity(parser)
    parser.set_defaults(run=run)


def _shape(text: str) -> tuple[int, ...]:
    found = tuple(whole(part.strip()) for part in text.split(","))
    if len(found) not in (2, 3) or 0 in found:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not H,W or C,H,W")
    return found


def run(options: argparse.Namespace) -> int:
    """Find the features, print, draw; the exit code is 0 where the intervals prove the class."""
    check_target(options.plot)
    network = read_model(options.model)
    device = device_named(options.device)
    from certify.core.spec import Spec
    from certify.features import proof_features

    with about(options.model, region_file(options)):
        region = region_of(options)
        spec = Spec.classify(options.label, math.prod(network.output_shape))
        found = proof_features(network, region, spec, options.method, device=device)
        wanted = options.plot is not None and found.proved
        drawn = _picture(options, network, region, found) if wanted else None
    result(_as_json(found) if options.json else _as_table(found))
    if not options.quiet:
        say(sentence(found))
    if drawn is not None:
        write_file(options.plot, drawn)
        if not options.quiet:
            say(f"picture saved: {options.plot}")
    elif options.plot is not None and not options.quiet:
        say("no picture: there is no proof to draw the features of")
    return EXIT_HOLDS if found.proved else EXIT_UNDECIDED


def sentence(found: ProofFeatures) -> str:
    """The result in one sentence."""
    total = len(found.lower)
    if not found.proved:
        return (f"not proved: the intervals of all {total} features by {found.method} leave a "
                f"margin of {found.full_margin:.4g}; a smaller radius or --method alpha may help")
    return (f"proved: {len(found.kept)} of {total} features are enough and none of them can be "
            f"left out (margin {found.margin:.4g}, with all {found.full_margin:.4g}; "
            f"{found.method}, real arithmetic, {found.checks} checks)")


def _as_table(found: ProofFeatures) -> str:
    rows = [("feature", "priority", "lower", "upper")]
    rows += [(f"{found.node}[{i}]", f"{found.priority[i]:.6g}", f"{found.lower[i]:.6g}",
              f"{found.upper[i]:.6g}") for i in found.kept.tolist()]
    return columns(rows)


def _as_json(found: ProofFeatures) -> str:
    def finite(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return json.dumps({
        "node": found.node, "method": found.method, "proved": found.proved,
        "features": len(found.lower), "margin": finite(found.margin),
        "full_margin": finite(found.full_margin), "checks": found.checks,
        "kept": [{"feature": i, "priority": finite(found.priority[i]),
                  "lower": finite(found.lower[i]), "upper": finite(found.upper[i])}
                 for i in found.kept.tolist()],
    }, indent=1)


def _picture(
    options: argparse.Namespace, network: Graph, region: Region, found: ProofFeatures
) -> str:
    from certify.features import feature_gradients
    from certify.report.features import pictures

    kept = found.kept[:_DRAWN]
    labels = [f"feature {i}\npriority {found.priority[i]:.3g}" for i in kept.tolist()]
    more = len(found.kept) - len(kept)
    caption = ["mean input gradient over points of the region; red raises the feature, blue lowers "
               "it", f"{len(found.kept)} of {len(found.lower)} features prove the class"
               + (f"; {more} of lower priority are not drawn" if more else "")]
    gradients = feature_gradients(network, region, found.node, kept)
    return pictures(gradients, labels, caption, options.shape)
