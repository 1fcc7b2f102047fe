"""The command line as scripts meet it: words, streams and exit codes."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import tiny_models

import certify
from certify.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def spawn(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with real streams."""
    return process([sys.executable, "-m", "certify", *map(str, arguments)], **options)


def process(command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A program; its streams are read unless ``options`` says otherwise."""
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120}
    return subprocess.run(command, **{**usual, "env": ENVIRONMENT, **options})


def one_error(done: Done | subprocess.CompletedProcess[str]) -> str:
    """The single line on stderr; nothing on stdout."""
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert len(lines[0]) <= 300
    assert lines[0].isprintable()
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    tiny_models.absolute_sum(made / "net.onnx")
    (made / "net.onnx.gz").write_bytes(gzip.compress((made / "net.onnx").read_bytes()))
    tiny_models.specification(made / "holds.vnnlib", tiny_models.HOLDS)
    tiny_models.specification(made / "violated.vnnlib", tiny_models.VIOLATED)
    (made / "holds.vnnlib.gz").write_bytes(gzip.compress((made / "holds.vnnlib").read_bytes()))
    np.save(made / "x.npy", np.array([[0.25, -0.5]], np.float32))
    return made


# -- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_holds(folder: Path, ending: str) -> None:
    done = run("verify", folder / f"net.onnx{ending}", folder / f"holds.vnnlib{ending}")
    assert (done.returncode, done.stdout) == (0, "unsat\n"), done.stderr
    assert "HOLDS" in done.stderr


def read_assignment(text: str) -> dict[str, float]:
    body = text.replace("(", " ").replace(")", " ").split()
    return dict(zip(body[::2], map(float, body[1::2]), strict=True))


def test_violated_prints_an_assignment_that_onnxruntime_confirms(folder: Path) -> None:
    done = spawn("verify", folder / "net.onnx", folder / "violated.vnnlib", "-q")
    assert done.returncode == 1
    assert done.stderr == ""
    word, *rest = done.stdout.splitlines()
    assert word == "sat"
    assert rest[0].startswith("((X_0 ")
    values = read_assignment("\n".join(rest))
    assert list(values) == ["X_0", "X_1", "Y_0"]
    x = np.array([[values["X_0"], values["X_1"]]], np.float32)
    assert (np.abs(x) <= 1).all()
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    assert float(y[0, 0]) == values["Y_0"] >= 1.5


def test_undecided_says_why(folder: Path, tmp_path: Path) -> None:
    # IBP alone bounds |x0| + |x1| by 4, and the attack is off: neither answer can be given.
    far = tiny_models.specification(tmp_path / "far.vnnlib", tiny_models.UNREACHED)
    done = run("verify", folder / "net.onnx", far, "--method", "ibp", "--no-attack")
    assert (done.returncode, done.stdout) == (3, "unknown\n"), done.stderr
    assert "margin" in done.stderr


def test_timeout_is_said_in_time(folder: Path) -> None:
    started = time.monotonic()
    done = run("verify", folder / "net.onnx", folder / "violated.vnnlib", "--timeout", "1e-9")
    assert (done.returncode, done.stdout) == (3, "timeout\n"), done.stderr
    assert time.monotonic() - started < 30


def test_certificate_is_saved_and_checked(folder: Path, tmp_path: Path) -> None:
    for spec, word, code in (("holds", "unsat", 0), ("violated", "sat", 1)):
        file = tmp_path / f"{spec}.json"
        done = run("verify", folder / "net.onnx", folder / f"{spec}.vnnlib", "--certificate", file)
        assert (done.returncode, done.stdout.split()[0]) == (code, word), done.stderr
        assert certify.load_certificate(file).verdict.word == word
        again = run("check", file, "--model", folder / "net.onnx")
        assert (again.returncode, again.stdout.splitlines()[0]) == (0, "accepted"), again.stderr


def test_check_rejects_a_certificate_of_another_model(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    run("verify", folder / "net.onnx", folder / "holds.vnnlib", "--certificate", file)
    other = tiny_models.absolute_sum(tmp_path / "other.onnx", operator="LeakyRelu")
    done = run("check", file, "--model", other)
    assert (done.returncode, done.stdout) == (5, "rejected\n")
    assert "not the model" in done.stderr


@pytest.mark.parametrize(("spec", "first"), [("holds", "unsat"), ("violated", "sat")])
def test_results_file(folder: Path, tmp_path: Path, spec: str, first: str) -> None:
    file = tmp_path / "result.txt"
    done = run("verify", folder / "net.onnx", folder / f"{spec}.vnnlib", "--results-file", file)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == done.stdout
    assert file.read_text().splitlines()[0] == first


def test_float32_semantics_is_named(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    done = run("verify", folder / "net.onnx", folder / "holds.vnnlib", "--semantics", "float32",
               "--certificate", file)
    assert done.returncode == 0, done.stderr
    assert certify.load_certificate(file).guarantee.arithmetic == "float32"


# -- streams --------------------------------------------------------------------------------------


def test_full_disk_on_stdout(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = spawn("verify", folder / "net.onnx", folder / "holds.vnnlib", "-q", stdout=full)
    assert done.returncode == 6
    assert done.stderr.startswith("error: cannot write to standard output: No space left")


def test_closed_stdout_keeps_the_certificate(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    command = (f"{sys.executable} -m certify verify {folder}/net.onnx {folder}/holds.vnnlib -q "
               f"--certificate {file} >&-")
    done = process(command, shell=True)
    assert done.returncode == 6
    assert done.stderr.splitlines() == ["error: standard output is closed"]
    assert certify.load_certificate(file).verdict is certify.Verdict.HOLDS


def test_reader_that_left(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = spawn("verify", folder / "net.onnx", folder / "holds.vnnlib", "-q", stdout=writer)
    os.close(writer)
    assert done.returncode == 6
    assert done.stderr.startswith("error: cannot write to standard output: Broken pipe")


@pytest.mark.parametrize("option", ["--certificate", "--results-file"])
@pytest.mark.parametrize("target", ["/dev/full", "nowhere/file", "."])
def test_output_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("verify", folder / "net.onnx", folder / "holds.vnnlib", option, target)
    assert done.returncode == 6
    assert target in done.stderr.splitlines()[-1]
    assert "saved" not in done.stderr
    assert not list(tmp_path.iterdir())
    assert Path("/dev/full").is_char_device()


def test_a_link_is_not_replaced_by_a_certificate(folder: Path, tmp_path: Path) -> None:
    """As it would be where ``/dev/stdout`` is given and stdout is a file."""
    (tmp_path / "file").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    done = run("verify", folder / "net.onnx", folder / "holds.vnnlib", "--certificate", link)
    assert done.returncode == 6
    assert "link" in one_error(done)
    assert link.is_symlink() and (tmp_path / "file").read_text() == "old"


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    (), ("nonsense",), ("verify",), ("verify", "a.onnx"), ("verify", "a", "b", "c"),
    ("verify", "a", "b", "--timeout", "-1"), ("verify", "a", "b", "--timeout", "soon"),
    ("verify", "a", "b", "--timeout", "nan"), ("verify", "a", "b", "--method", "magic"),
    ("verify", "a", "b", "--seed", "1.5"), ("verify", "a", "b", "--memory", "lots"),
    ("verify", "a", "b", "--memory", "1e400"), ("verify", "a", "b", "--memory", "9KB"),
    ("verify", "a", "b", "--time", "3"), ("verify", "a", "b", "-q", "-v"), ("bound", "a"),
    ("bound", "a", "--input", "x.npy", "--eps", "8/0"),
    ("bound", "a", "--input", "x.npy", "--eps", "-1"),
    ("bound", "a", "--input", "x.npy", "--eps", "1e999999999/3"),
    ("bound", "a", "--input", "x.npy", "--eps", "1", "--clip", "1,0"), ("supports", "--everything"),
    ("check",), ("verify", "\x1b[31mred\nline", "b", "--timeout", "\x1b[31m\n"),
], ids=lambda arguments: ascii(" ".join(arguments)))
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    one_error(done)


def test_missing_and_malformed_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"\x00\x01 not a model")
    (tmp_path / "junk.vnnlib").write_text("(assert")
    cases = [("missing.onnx", folder / "holds.vnnlib", "missing.onnx"),
             (folder / "net.onnx", "missing.vnnlib", "missing.vnnlib"),
             (tmp_path / "junk.onnx", folder / "holds.vnnlib", "junk.onnx"),
             (folder / "net.onnx", tmp_path / "junk.vnnlib", "junk.vnnlib"),
             (folder / "x.npy", folder / "holds.vnnlib", "x.npy"),
             (tmp_path / "weights.pt", folder / "holds.vnnlib", "from_torch")]
    for model, spec, named in cases:
        done = run("verify", model, spec)
        assert done.returncode == 4
        assert named in one_error(done)


def test_spec_of_another_size_names_both_files(folder: Path, tmp_path: Path) -> None:
    spec = tiny_models.specification(tmp_path / "wide.vnnlib", tiny_models.HOLDS, inputs=3)
    done = run("verify", folder / "net.onnx", spec)
    assert done.returncode == 4
    assert "wide.vnnlib" in one_error(done)


def test_unsupported_operator_is_named(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.absolute_sum(tmp_path / "odd.onnx", operator="IsNaN")
    done = run("verify", model, folder / "holds.vnnlib")
    assert done.returncode == 4
    assert "odd.onnx" in one_error(done)


def test_termination_is_quiet(folder: Path) -> None:
    code = ("import os, signal, sys, certify.cli.verify as v\n"
            "v.run = lambda options: os.kill(os.getpid(), signal.SIGTERM)\n"
            "sys.argv = ['certify', 'verify', 'a', 'b']\n"
            "from certify.cli.main import entry; entry()")
    done = process([sys.executable, "-c", code])
    assert done.returncode == 128 + signal.SIGTERM
    assert one_error(done) == "error: terminated"


def test_a_bug_is_one_line_and_has_its_own_code() -> None:
    code = ("import sys, certify.cli.verify as v\n"
            "def broken(options): raise RuntimeError('odd\\nthing')\n"
            "v.run = broken\n"
            "sys.argv = ['certify', 'verify', 'a', 'b'] + sys.argv[1:]\n"
            "from certify.cli.main import entry; entry()")
    start = [sys.executable, "-c", code]
    done = process(start)
    assert done.returncode == 70
    assert "internal: RuntimeError: odd thing" in one_error(done)
    loud = process([*start, "-v"])
    assert "Traceback" in loud.stderr


# -- bound and supports ---------------------------------------------------------------------------


def test_bound_prints_a_table_and_json_that_agree_with_the_library(folder: Path) -> None:
    common = ("bound", folder / "net.onnx", "--input", folder / "x.npy", "--eps", "1/8")
    table = run(*common, "--method", "crown")
    assert table.returncode == 0, table.stderr
    assert table.stdout.split() == ["row", "lower", "upper", "Y_0", "0.49999999", "1.0000001"]
    done = run(*common, "--method", "crown", "--json", "-q")
    assert done.stderr == ""
    (row,) = json.loads(done.stdout)["rows"]
    region = certify.Linf(np.load(folder / "x.npy"), 1 / 8)
    expected = certify.bound(certify.load(folder / "net.onnx"), region, "crown")
    assert row == {"row": "Y_0", "lower": float(expected.lower), "upper": float(expected.upper)}
    assert row["lower"] <= 0.5 <= 1.0 <= row["upper"]


@pytest.mark.parametrize(("options", "low", "high"), [
    (("--norm", "1"), 0.65, 0.85), (("--norm", "2"), 0.6085, 0.8915), (("--rows", "0"), 0.55, 0.95),
    (("--clip", "-0.45,1"), 0.55, 0.8), (("--method", "ibp"), 0.55, 0.95),
    (("--method", "forward"), 0.55, 0.95), (("--semantics", "float32"), 0.55, 0.95),
])
def test_bound_options(folder: Path, options: tuple[str, ...], low: float, high: float) -> None:
    done = run("bound", folder / "net.onnx", "--input", folder / "x.npy", "--eps", "0.1", "--json",
               "-q", *options)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert low - 1e-3 <= row["lower"] <= low + 1e-3  # |x0| + |x1| is linear here: bounds are exact
    assert high - 1e-3 <= row["upper"] <= high + 1e-3


def test_bound_rows_from_a_file_and_wrong_rows(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([[2.0], [-1.0]]))
    common = ("bound", folder / "net.onnx", "--input", folder / "x.npy", "--eps", "1/8", "-q")
    done = run(*common, "--json", "--rows", tmp_path / "rows.npy")
    assert [row["row"] for row in json.loads(done.stdout)["rows"]] == ["row 0", "row 1"]
    for wrong in ("1", "0-1", "a", "", "-0", "0,,0"):
        assert run(*common, f"--rows={wrong}").returncode == 2


@pytest.mark.parametrize(("shape", "word"), [((), "()"), ((0, 1), "(0, 1)"), ((2, 3), "(2, 3)")])
def test_bound_rows_that_do_not_fit_are_named(
    folder: Path, tmp_path: Path, shape: tuple[int, ...], word: str
) -> None:
    np.save(tmp_path / "rows.npy", np.ones(shape))
    done = run("bound", folder / "net.onnx", "--input", folder / "x.npy", "--eps", "1/8", "--rows",
               tmp_path / "rows.npy")
    assert done.returncode == 4
    assert f"rows.npy: coefficients of shape {word}" in one_error(done)


@pytest.mark.parametrize(("shape", "word"), [((5, 1, 2), "5 examples"), ((3,), "(3,)")])
def test_bound_inputs_that_do_not_fit_are_named(
    folder: Path, tmp_path: Path, shape: tuple[int, ...], word: str
) -> None:
    np.save(tmp_path / "many.npy", np.zeros(shape))
    done = run("bound", folder / "net.onnx", "--input", tmp_path / "many.npy", "--eps", "1/8")
    assert done.returncode == 4
    assert "many.npy" in one_error(done)
    assert word in one_error(done)


def test_bound_says_so_where_a_method_has_no_float32_form(folder: Path) -> None:
    done = run("bound", folder / "net.onnx", "--input", folder / "x.npy", "--eps", "1/8",
               "--method", "forward", "--semantics", "float32")
    assert done.returncode == 2
    assert "float32" in one_error(done)


def test_bound_refuses_an_input_that_runs_code(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    done = run("bound", folder / "net.onnx", "--input", tmp_path / "o.npy", "--eps", "1")
    assert done.returncode == 4
    assert "o.npy" in one_error(done)


def test_supports_answers_from_the_registries() -> None:
    from certify.bounds.methods import METHODS
    from certify.core.region import REGIONS
    from certify.ops import load

    registry = load()
    listed = run("supports", "--onnx-operators").stdout.split()
    assert listed == sorted(set(listed))
    assert set(listed) >= {*registry.onnx, "Constant", "Shape", "Identity", "Dropout", "Cast"}
    assert run("supports", "--aten-operators").stdout.split() == sorted(registry.aten)
    regions = run("supports", "--regions").stdout.splitlines()
    assert [line.split()[0] for line in regions] == sorted(REGIONS)
    assert any("center, eps, clip" in line for line in regions)
    methods = run("supports", "--methods").stdout.splitlines()
    assert {line.split()[0] for line in methods} == {"auto", *METHODS}
    oldest, newest = map(int, run("supports", "--onnx-opset-versions").stdout.split())
    assert oldest == 9 < newest
    assert "Relu" in run("supports").stdout


def test_version_name_and_help() -> None:
    assert run("--version").stdout == f"{certify.__version__}\n"
    assert run("--name").stdout == "certify\n"
    for arguments in (("--help",), ("verify", "--help"), ("bound", "--help")):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage: certify" in done.stdout
