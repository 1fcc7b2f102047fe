"""Names and hashes of imported networks, for certificates."""

from __future__ import annotations

import hashlib

from certify.core.claim import Case, Claim
from certify.core.codec import canonical, encode_array
from certify.core.graph import Graph


def claim_about(graph: Graph, cases: tuple[Case, ...]) -> Claim:
    """The claim of ``cases`` about an imported network.

    The hash of a torch module is that of its state at this moment.
    """
    return Claim(*model_name(graph), model_hash(graph), cases, edits=graph.source.get("edits", ()))


def unedited(graph: Graph) -> Graph:
    """The network as it was imported, before any `Edit`."""
    while "base" in graph.source:
        graph = graph.source["base"]
    return graph


def model_name(graph: Graph) -> tuple[str, str]:
    """The file's name, without its folder, or the module's class; and the format."""
    source = unedited(graph).source
    path = str(source.get("path", ""))
    name = str(source.get("name") or path.replace("\\", "/").rpartition("/")[2] or "network")
    return name, str(source.get("format", "graph"))


def model_hash(graph: Graph) -> str:
    """SHA-256 of the network: of its file, of the module's state, or of the graph's constants.

    Of an edited network: of the network as it was imported.
    """
    graph = unedited(graph)
    source = graph.source
    if source.get("sha256"):
        return str(source["sha256"])
    if source.get("module") is not None:
        from certify.importers.torch_module import fingerprint

        return fingerprint(source["module"])
    return _constants_hash(graph)


def _constants_hash(graph: Graph) -> str:
    digest = hashlib.sha256()
    for node in graph.nodes:
        said = [
            node.name,
            node.op,
            list(node.inputs),
            sorted(map(str, node.attrs.items())),
            list(node.shape),
        ]
        digest.update(canonical(said).encode())
    for name in sorted(graph.constants):
        digest.update(canonical([name, encode_array(graph.constants[name])]).encode())
    return digest.hexdigest()
