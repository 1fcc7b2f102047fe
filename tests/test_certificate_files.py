"""Certificates in files: what cannot be read or written, and what is never replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from certificates import certificate, same

from certify.core.atomic import write_whole
from certify.core.certificate import (
    Verdict,
    load_certificate,
)
from certify.core.errors import BadInput, CannotWrite, LimitExceeded


@pytest.mark.parametrize("verdict", list(Verdict))
def test_round_trip_through_a_file(verdict: Verdict, tmp_path: Path) -> None:
    made = certificate(verdict)
    made.save(tmp_path / "c.json")
    back = load_certificate(tmp_path / "c.json")
    assert back.text() == made.text()
    assert same(back.evidence[0], made.evidence[0])
    assert same(back.counterexample, made.counterexample)
    assert same(back.provenance, made.provenance)
    assert str(back) == made.sentence()
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json", tmp_path / "nul\0.json"):
        with pytest.raises(BadInput):
            load_certificate(path)
    with pytest.raises(CannotWrite):
        certificate().save(tmp_path / "no" / "folder.json")
    with pytest.raises(CannotWrite):
        certificate().save(tmp_path)
    (tmp_path / "latin").write_bytes(b"\xff\n")
    with pytest.raises(BadInput, match="ASCII"):
        load_certificate(tmp_path / "latin")
    assert [p.name for p in tmp_path.iterdir()] == ["latin"]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(LimitExceeded):
        load_certificate(path)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    certificate().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space"):
        certificate(Verdict.UNKNOWN).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["device", "pipe", "link", "dangling", "folder"])
def test_devices_and_links_are_never_replaced(tmp_path: Path, kind: str) -> None:
    """Moving a finished file there would succeed, for root, and destroy what is there."""
    target = tmp_path / "target"
    if kind == "device":
        target = Path("/dev/full")
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("/dev/null" if kind == "link" else tmp_path / "nowhere")
    before = target.lstat()
    with pytest.raises(CannotWrite, match=target.name):
        write_whole(target, b"content")
    after = target.lstat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert set(tmp_path.iterdir()) <= {target}
