"""One instance of a benchmark, decided in a worker process of ``certify bench``."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.core.atomic import write_whole
from certify.core.errors import BadInput, CertifyError, one_line

if TYPE_CHECKING:
    from certify.core.certificate import Certificate, Counterexample
    from certify.core.graph import Graph

_OPTIONS = ("method", "semantics", "attack", "seed", "device", "memory", "workers")


def prepare(settings: Mapping[str, Any]) -> None:
    """Load what every instance needs, so that the first one is not charged for it."""
    import onnxruntime  # noqa: F401
    import torch

    import certify.ladder  # noqa: F401
    from certify.verify import verify_query  # noqa: F401

    if settings["device"] != "cpu" and torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def decide(item: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Decide an instance within its time limit, reading its files included.

    Args:
        item: the fields of `certify.campaign.instances.Instance`.
        settings: `certify.settings.Options` by name; ``root``, the folder that folders are relative
            to; ``counterexamples``, the folder where they are written.

    Returns:
        ``verdict`` (``error`` where the files cannot be used), ``seconds`` and ``cpu_seconds``
        until the answer, and what the certificate says.
    """
    started, cpu = time.monotonic(), time.process_time()
    try:
        network, certificate = _answer(item, settings, started)
    except CertifyError as problem:
        return {"verdict": "error", "reason": one_line(problem), **_costs(started, cpu)}
    found = {
        "verdict": certificate.verdict.word, "method": certificate.provenance.method,
        "margin": certificate.margin, "reason": certificate.reason,
        "device": certificate.provenance.device, **_costs(started, cpu),
    }
    if certificate.counterexample is not None:
        found["check"] = _check(certificate, network)
        found["counterexample"] = _write(certificate.counterexample, item, settings)
    return found


def _answer(
    item: Mapping[str, Any], settings: Mapping[str, Any], started: float
) -> tuple[Graph, Certificate]:
    from certify.importers.model_file import load
    from certify.importers.vnnlib import read_vnnlib
    from certify.verify import verify_query

    place = Path(settings["root"], item["folder"])
    network = load(_there(place / item["onnx"]))
    query = read_vnnlib(_there(place / item["vnnlib"]))
    options = {name: settings[name] for name in _OPTIONS if settings.get(name) is not None}
    return network, verify_query(network, query, item["timeout"], started=started, **options)


def _there(path: Path) -> Path:
    from certify.campaign.instances import existing

    found = existing(path)
    if found is None:
        raise BadInput(f"{one_line(path, 120)}: no such file, plain or .gz")
    return found


def _costs(started: float, cpu: float) -> dict[str, float]:
    return {"seconds": round(time.monotonic() - started, 6),
            "cpu_seconds": round(time.process_time() - cpu, 6)}


def _check(certificate: Certificate, network: Graph) -> str:
    """Run the model on the counterexample once more: ``"accepted"``, or what is wrong."""
    from certify.recheck import check

    report = check(certificate, network)
    return "accepted" if report.accepted else report.reason


def _write(found: Counterexample, item: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Write the counterexample in the competition's form; the name of its file."""
    from certify.search.witness import format_assignment

    names = [item["family"], item["onnx"], item["vnnlib"]]
    mark = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]  # equal stems are common
    stems = [Path(name).name.removesuffix(".gz").rpartition(".")[0] for name in names[1:]]
    name = re.sub(r"[^A-Za-z0-9_.=+-]", "_", "_".join([names[0], *stems]))[:180]
    folder = Path(settings["counterexamples"])
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}-{mark}.counterexample"
    write_whole(file, f"{format_assignment(found.flat, found.output)}\n".encode("ascii"))
    return file.name
