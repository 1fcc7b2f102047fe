"""``certify bench``: lists in, tables out, exit codes, and mistakes."""

from __future__ import annotations

import csv
import gzip
import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import onnxruntime
import pytest
import tiny_models
from test_cli import one_error, read_assignment, run

from certify.campaign.instances import read_instances
from certify.campaign.suite import read_suite
from certify.core.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent
HEADED = "family,timeout_s,onnx,vnnlib,expected,note\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``tiny`` as the competition lays one out; one file of each kind is gzipped."""
    made = tmp_path_factory.mktemp("bench") / "tiny"
    (made / "nets").mkdir(parents=True)
    tiny_models.absolute_sum(made / "nets" / "net.onnx")
    tiny_models.absolute_sum(made / "nets" / "odd.onnx", operator="IsNaN")
    packed = gzip.compress((made / "nets" / "net.onnx").read_bytes())
    (made / "nets" / "packed.onnx.gz").write_bytes(packed)
    for name in ("HOLDS", "VIOLATED", "UNREACHED"):
        tiny_models.specification(made / f"{name.lower()}.vnnlib", getattr(tiny_models, name))
    (made / "zipped.vnnlib.gz").write_bytes(
        gzip.compress((made / "violated.vnnlib").read_bytes()))
    (made / "instances.csv").write_text(
        "nets/net.onnx,holds.vnnlib,30\n\n./nets/packed.onnx, ./zipped.vnnlib ,30.0\n")
    (made / "known.csv").write_text(
        HEADED + "a,30,nets/net.onnx,holds.vnnlib,unsat,x\n"
        'b,30,nets/net.onnx,violated.vnnlib,sat,"with, comma"\n'
        "b,30,nets/odd.onnx,holds.vnnlib,unknown,\n"
        "b,30,nets/net.onnx,unreached.vnnlib,,\n")
    (made / "wrong.csv").write_text(
        HEADED + "a,30,nets/net.onnx,violated.vnnlib,unsat,\n"
        "a,30,nets/net.onnx,holds.vnnlib,holds,\n")
    return made


@pytest.fixture(scope="module")
def competition(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("competition") / "new" / "folder"
    done = run("bench", models / "instances.csv", "--out", out, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[:5] == ["tiny", "2", "2", "1", "1"]
    return out


def rows(out: Path) -> list[list[str]]:
    return list(csv.reader((out / "results.csv").read_text().splitlines()))


def test_the_competitions_list_gives_the_competitions_table(competition: Path) -> None:
    found = rows(competition)
    assert [row[:3] + [row[4]] for row in found] == [
        ["tiny", "nets/net.onnx", "holds.vnnlib", "unsat"],
        ["tiny", "./nets/packed.onnx", "./zipped.vnnlib", "sat"]]
    assert all(float(row[3]) == 0 and 0 < float(row[5]) < 30 for row in found)


def test_counterexamples_are_files_that_onnxruntime_confirms(
    competition: Path, models: Path
) -> None:
    (file,) = (competition / "counterexamples").iterdir()
    values = read_assignment(file.read_text())
    x = [[values["X_0"], values["X_1"]]]
    session = onnxruntime.InferenceSession(models / "nets" / "net.onnx",
                                           providers=["CPUExecutionProvider"])
    from numpy import asarray, float32

    (y,) = session.run(None, {"x": asarray(x, float32)})
    assert float(y[0, 0]) == values["Y_0"] >= 1.5
    assert max(map(abs, x[0])) <= 1
    _, record = map(json.loads, (competition / "items.jsonl").read_text().splitlines())
    assert record["result"]["check"] == "accepted"
    assert record["result"]["counterexample"] == file.name


def test_records_say_what_each_instance_cost(competition: Path) -> None:
    for line in (competition / "items.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["item"]["timeout"] == 30
        assert record["peak_memory"] > 2**25
        assert record["result"]["cpu_seconds"] > 0
        assert record["result"]["method"]
    manifest = json.loads((competition / "manifest.json").read_text())
    assert manifest["settings"]["method"] == "auto" and manifest["items"]["count"] == 2


def test_the_plot_is_a_picture(competition: Path) -> None:
    picture = ElementTree.parse(competition / "cactus.svg").getroot()
    assert picture.tag.endswith("svg")
    assert "all (2)" in "".join(picture.itertext())


def test_the_same_command_does_nothing_again(competition: Path, models: Path) -> None:
    before = (competition / "items.jsonl").read_bytes()
    done = run("bench", models / "instances.csv", "--out", competition)
    assert done.returncode == 0
    assert "2 of 2 done before" in done.stderr
    assert (competition / "items.jsonl").read_bytes() == before


@pytest.mark.parametrize(("option", "said"), [
    (("--method", "crown"), 'method was "auto" and is now "crown"'),
    (("--no-attack",), "attack was true and is now false"),
    (("--timeout-scale", "1/2"), "timeout_scale was 1.0 and is now 0.5"),
    (("--timeout", "3"), "timeout was null and is now 3.0"),
    (("--limit", "1"), "limit was null and is now 1"),
    (("--seed", "3"), "seed was 0 and is now 3"),
    (("--worker-memory", "9GiB"), "worker_memory was null"),
    (("--semantics", "float32"), "semantics"), (("--memory", "1GiB"), "memory"),
])
def test_other_settings_are_refused(
    competition: Path, models: Path, option: tuple[str, ...], said: str
) -> None:
    done = run("bench", models / "instances.csv", "--out", competition, *option)
    assert done.returncode == 2
    assert said in one_error(done)


def test_summary_only_makes_the_tables_again(competition: Path, models: Path) -> None:
    names = ("results.csv", "summary.md", "summary.txt", "cactus.svg")
    before = {name: (competition / name).read_bytes() for name in names}
    for name in names:
        (competition / name).unlink()
    with open(competition / "items.jsonl", "ab") as file:
        file.write(b'{"key": "torn')
    done = run("bench", "--out", competition, "--summary-only")
    assert done.returncode == 0, done.stderr
    assert {name: (competition / name).read_bytes() for name in names} == before
    run("bench", models / "instances.csv", "--out", competition)
    assert not (competition / "items.jsonl").read_bytes().endswith(b"torn")


@pytest.fixture(scope="module")
def known(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("known")
    done = run("bench", models / "known.csv", "--out", out, "--method", "crown", "--workers", "2",
               "-v")
    assert done.returncode == 0, done.stderr
    for line in ("a nets/net.onnx holds.vnnlib: unsat", "b nets/odd.onnx holds.vnnlib: error"):
        assert line in done.stderr
    return out


def test_families_are_counted_apart(known: Path) -> None:
    lines = [line.split() for line in (known / "summary.txt").read_text().splitlines()]
    table = {line[0]: dict(zip(lines[0], line, strict=False)) for line in lines[1:4]}
    counts = {name: {k: row[k] for k in ("instances", "solved", "unsat", "sat", "error", "wrong")}
              for name, row in table.items()}
    one = {"instances": "1", "solved": "1", "unsat": "1", "sat": "0", "error": "0", "wrong": "0"}
    assert counts["a"] == one
    assert counts["b"]["instances"] == "3" and counts["b"]["error"] == "1"
    assert counts["all"]["instances"] == "4" and counts["all"]["sat"] == "1"


def test_an_instance_that_cannot_be_read_is_an_error_with_its_reason(known: Path) -> None:
    assert [row[4] for row in rows(known)][2] == "error"
    text = (known / "summary.txt").read_text()
    assert "error: b nets/odd.onnx holds.vnnlib:" in text and "IsNaN" in text


@pytest.fixture(scope="module")
def contradicted(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wrong")


def test_a_contradiction_comes_first_and_has_its_exit_code(
    models: Path, contradicted: Path
) -> None:
    done = run("bench", models / "wrong.csv", "--out", contradicted)
    assert done.returncode == 5
    first = "WRONG: a nets/net.onnx violated.vnnlib: sat by search, expected unsat"
    assert done.stdout.splitlines()[0] == first
    assert first in done.stderr
    assert (contradicted / "summary.md").read_text().startswith("**WRONG**")
    assert run("bench", "--out", contradicted, "--summary-only").returncode == 5


# -- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "said"), [
    ("nets/net.onnx,holds.vnnlib\n", r"line 1: 2 columns where 3 belong"),
    ("nets/net.onnx,holds.vnnlib,30\nnets/net.onnx,unreached.vnnlib,soon\n", r"line 2: .*'soon'"),
    ("nets/net.onnx,holds.vnnlib,-3\n", "line 1: .*above 0"),
    ("nets/net.onnx,holds.vnnlib,nan\n", "line 1: .*above 0"),
    ("nets/net.onnx,holds.vnnlib,30\n\nnets/none.onnx,holds.vnnlib,30\n", "line 3: .*none.onnx"),
    ("nets/net.onnx,none.vnnlib,30\n", "line 1: .*none.vnnlib"),
    ("nets/net.onnx,holds.vnnlib,30\nnets/net.onnx,holds.vnnlib,60\n",
     "line 2: the same instance as in line 1"),
    ("nets/net.onnx,,30\n", "line 1: no name of a property"),
    ("onnx,vnnlib\nnets/net.onnx,holds.vnnlib\n", "line 2: no column 'timeout'"),
    ("onnx,vnnlib,timeout,expected\nnets/net.onnx,holds.vnnlib,3,maybe\n", "line 2: .*'maybe'"),
    ("onnx,vnnlib,timeout\n", "no instances"), ("", "no instances"),
    ('"nets/net.onnx,holds.vnnlib,30\n', "cannot be read"),
])
def test_a_bad_line_is_named(models: Path, text: str, said: str) -> None:
    file = models / "bad.csv"
    file.write_text(text)
    with pytest.raises(BadInput, match=said) as refused:
        read_instances(file)
    assert "bad.csv" in str(refused.value)


def test_lists_that_cannot_be_read(models: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("none.csv", "bytes.csv", "."):
        done = run("bench", tmp_path / name, "--out", tmp_path / "out")
        assert done.returncode == 4
        one_error(done)
    assert not (tmp_path / "out").exists()


def test_paths_are_relative_to_the_list_wherever_one_stands(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    (here,) = {i.family for i in read_instances(Path("instances.csv"))}
    monkeypatch.chdir(tmp_path)
    (there,) = {i.family for i in read_instances(Path(os.path.relpath(models)) / "instances.csv")}
    assert here == there == "tiny"


@pytest.mark.parametrize("arguments", [
    ("{csv}",), ("--out", "{out}"), ("{csv}", "--out", "{out}", "--shard", "3/2"),
    ("{csv}", "--out", "{out}", "--workers", "0"), ("{csv}", "--out", "{out}", "--limit", "x"),
    ("{csv}", "--out", "{out}", "--timeout", "3", "--timeout-scale", "2"),
    ("{csv}", "--out", "{out}", "--timeout-scale", "0"),
    ("{csv}", "--out", "{out}", "--root", "{out}"), ("x.toml", "--out", "{out}"),
])
def test_wrong_usage(models: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    names = {"csv": models / "instances.csv", "out": tmp_path / "out"}
    done = run("bench", *(a.format(**names) for a in arguments))
    assert done.returncode == 2
    one_error(done)
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_refused_at_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = run("bench", models / "known.csv", "--out", tmp_path / "out", "--device", "cuda")
    assert done.returncode == 2 and "--device cuda" in one_error(done)
    assert not (tmp_path / "out").exists()


def test_unknown_families_and_foreign_folders(models: Path, tmp_path: Path) -> None:
    done = run("bench", models / "known.csv", "--out", tmp_path / "out", "--families", "a,c")
    assert done.returncode == 4 and "no family c; there are a, b" in one_error(done)
    done = run("bench", "--out", tmp_path, "--summary-only")
    assert done.returncode == 4 and "manifest.json is missing" in one_error(done)
    (tmp_path / "file").write_text("")
    done = run("bench", models / "known.csv", "--out", tmp_path / "file")
    assert done.returncode == 6
    one_error(done)


def test_families_limits_and_shards_choose(models: Path, tmp_path: Path) -> None:
    common = ("bench", models / "known.csv", "--out", tmp_path, "-q", "--families", "b", "--limit",
              "2", "--timeout-scale", "1/2", "--method", "ibp")
    done = run(*common, "--shard", "2/2")
    assert "1 of 2 instances finished" in done.stdout
    assert run(*common, "--shard", "1/2").returncode == 0
    assert [row[:3] for row in rows(tmp_path)] == [
        ["b", "nets/net.onnx", "violated.vnnlib"], ["b", "nets/odd.onnx", "holds.vnnlib"]]
    files = sorted(p.name for p in tmp_path.glob("*.jsonl"))
    assert files == ["items-1of2.jsonl", "items-2of2.jsonl"]
    limits = {json.loads((tmp_path / f).read_text())["item"]["timeout"] for f in files}
    assert limits == {15.0}


# -- suites ---------------------------------------------------------------------------------------


def test_a_suite_runs_on_a_clone(models: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text('source = "https://example.org/x"\n[families]\n'
                     'first = "tiny/instances.csv"\nabsent = "elsewhere/instances.csv"\n')
    common = ("bench", suite, "--root", models.parent, "--out", tmp_path / "out")
    done = run(*common, "-q", "--families", "first", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "out")[0][:2] == ["first", "nets/net.onnx"]
    done = run(*common)
    assert done.returncode == 4
    assert "elsewhere/instances.csv" in one_error(done)
    assert "https://example.org/x" in one_error(done)


@pytest.mark.parametrize("text", ["", "[", 'nets = ["a"]', 'source = "x"\n[families]\na = 3\n',
                                  'source = "x"\nfamilies = {}\n', '[families]\na = "b"\n'])
def test_a_suite_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(BadInput, match=r"s\.toml"):
        read_suite(tmp_path / "s.toml", tmp_path, set())


@pytest.mark.parametrize("year", range(2021, 2026))
def test_shipped_suites_read_a_clone(tmp_path: Path, models: Path, year: int) -> None:
    import tomllib

    suite = ROOT / "benchmarks" / "suites" / f"vnncomp{year}.toml"
    families = tomllib.loads(suite.read_text())["families"]
    for listed in families.values():
        place = (tmp_path / listed).parent
        place.mkdir(parents=True)
        (tmp_path / listed).write_text("a.onnx,b.vnnlib,3\n")
        (place / "a.onnx.gz").write_bytes(b"")
        (place / "b.vnnlib").write_bytes(b"")
    found = read_suite(suite, tmp_path, set())
    assert [i.family for i in found] == list(families)
    assert [f"{i.folder}/" for i in found] == [v[: v.rindex("/") + 1] for v in families.values()]
    with pytest.raises(BadInput, match=f"vnncomp{year}"):
        read_suite(suite, models, set())
