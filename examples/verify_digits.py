"""Verify the shipped digit classifier and show the certificates (``make demo``).

Every specification in ``examples/digits/instances.csv`` says: no image within a radius of this test
digit gets another label. Each is decided, its certificate saved, read back and checked again.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path

import numpy as np

import certify
from certify.verify import verify_query

FOLDER = Path(__file__).resolve().parent / "digits"
SHADES = " .:-=+*#%@"


def decide(network_file: Path, spec_file: Path, seconds: float) -> certify.Certificate:
    """The certificate for one instance."""
    return verify_query(certify.load(network_file), certify.read_vnnlib(spec_file), seconds)


def picture(image: np.ndarray) -> list[str]:
    """An 8x8 image as text, two characters per pixel."""
    levels = np.clip(image.reshape(8, 8) * len(SHADES), 0, len(SHADES) - 1).astype(int)
    return ["".join(SHADES[v] * 2 for v in row) for row in levels]


def show_counterexample(certificate: certify.Certificate) -> None:
    """The middle of the region beside the image that is misread."""
    found = certificate.counterexample
    if found is None:
        return
    lower, upper = certificate.claim.cases[found.case].region.bounding_box()
    before, after = (lower + upper) / 2, np.asarray(found.input)
    print(f"\n   the digit          read as a {found.output.argmax()}")
    for left, right in zip(picture(before), picture(after), strict=True):
        print(f"   {left}   {right}".rstrip())
    print()


def main() -> int:
    """Run every instance; the exit status is 1 if a certificate does not hold up."""
    started, results, refused = time.monotonic(), [], 0
    saved = FOLDER / "certificates"
    saved.mkdir(exist_ok=True)
    shown = False
    for network, spec, seconds in csv.reader((FOLDER / "instances.csv").read_text().splitlines()):
        certificate = decide(FOLDER / network, FOLDER / spec, float(seconds))
        file = saved / f"{Path(spec).stem}.json"
        certificate.save(file)
        accepted = certify.check(certify.load_certificate(file), str(FOLDER / network)).accepted
        refused += not accepted
        results.append(certificate.verdict)
        mark = "checked" if accepted else "REJECTED"
        print(f"{Path(spec).stem:12}  {certificate.sentence()}  [{mark}]", flush=True)
        if certificate.counterexample is not None and not shown:
            show_counterexample(certificate)
            shown = True
    counts = ", ".join(f"{results.count(v)} {v.value}" for v in certify.Verdict if v in results)
    print(f"\n{len(results)} specifications: {counts}; {len(results) - refused} certificates "
          f"checked again; {time.monotonic() - started:.0f} s. Certificates: {saved}")
    here = os.path.relpath(FOLDER)
    print(f"Try: {sys.executable} -m certify verify {here}/digits.onnx {here}/digit3_eps1.vnnlib")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
