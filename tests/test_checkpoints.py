"""Weights: what torch and numpy write is read back bit for bit, and nothing else is believed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import certify
from certify.core.errors import BadInput, CertifyError, Refused, Unsupported
from certify.importers.checkpoints import load_array, load_weights

WEIGHTS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.transposed": torch.arange(6.0).reshape(2, 3).T,
    "b.double": torch.linspace(-1, 1, 5, dtype=torch.float64),
    "b.brain": torch.tensor([1.0, -2.5], dtype=torch.bfloat16),
    "b.half": torch.tensor([0.5], dtype=torch.float16),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "empty": torch.zeros(0, 3),
    "part": torch.arange(10.0)[3:7],
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "list"])
def test_what_torch_saves_is_read_exactly(tmp_path: Path, new: bool, wrap: str) -> None:
    content = {"plain": OrderedDict(WEIGHTS), "state_dict": {"epoch": 3, "state_dict": WEIGHTS},
               "list": [WEIGHTS]}[wrap]
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    found = load_weights(tmp_path / "w.pt")
    assert list(found) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        plain = tensor.detach()
        want = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
        assert found[name].dtype == want.dtype
        np.testing.assert_array_equal(found[name], want)


def test_a_module_saved_whole_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(Refused, match="unsafe"):
        load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("ending", ["pt", "safetensors", "npz"])
def test_weights_fill_a_module_that_is_then_bounded(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    path = tmp_path / f"w.{ending}"
    arrays = {name: p.detach().numpy() for name, p in first.named_parameters()}
    if ending == "pt":
        torch.save(first.state_dict(), path)
    elif ending == "npz":
        np.savez(path, **arrays)
    else:
        raw = b"".join(a.tobytes() for a in arrays.values())
        ends = np.cumsum([a.nbytes for a in arrays.values()]).tolist()
        header = {
            name: {"dtype": "F32", "shape": list(a.shape), "data_offsets": [end - a.nbytes, end]}
            for (name, a), end in zip(arrays.items(), ends, strict=True)
        }
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw)
    weights = certify.load_weights(path)
    second.load_state_dict({name: torch.tensor(w) for name, w in weights.items()})
    region = certify.Linf(np.zeros((1, 2)), 0.1)
    a, b = (
        certify.bound(certify.from_torch(m, torch.zeros(1, 2)), region) for m in (first, second)
    )
    torch.testing.assert_close(a.lower, b.lower, rtol=0, atol=0)
    if ending != "npz":
        with pytest.raises(Unsupported, match="certify.load_weights"):
            certify.load(path)


def test_real_checkpoints_equal_what_torch_reads(data: Path) -> None:
    paths = [p for p in sorted((data / "nets").rglob("*")) if p.suffix in (".pt", ".pth", ".model")]
    assert len(paths) > 10
    for path in paths:
        found = load_weights(path)
        content = torch.load(path, weights_only=True, map_location="cpu")
        while not isinstance(content, dict) or "state_dict" in content:
            content = content[0] if isinstance(content, list) else content["state_dict"]
        assert set(found) == set(content)
        for name, array in found.items():
            np.testing.assert_array_equal(array, content[name].numpy())


def packed(folder: Path, stream: bytes, storage: bytes = b"\0" * 16) -> Path:
    path = folder / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream)
        archive.writestr("archive/data/0", storage)
    return path


def tensor_stream(count: int, offset: int, shape: str, strides: str) -> bytes:
    """A one-entry state dict in pickle's text form, for sizes torch would never write."""

    def number(n: int) -> bytes:
        return b"J" + n.to_bytes(4, "little", signed=True)

    def numbers(text: str) -> bytes:
        return b"(" + b"".join(number(int(n)) for n in text.split()) + b"t"

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    where = text("0") + text("cpu") + number(count)
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + where + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    layout = number(offset) + numbers(shape) + numbers(strides)
    return b"\x80\x02}" + text("w") + call + storage + layout + b"\x89}tRs."


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides"),
    [
        (4, 0, "5", "1"),  # one element too many
        (4, 1, "4", "1"),  # shifted beyond the end
        (4, 0, "2 2", "3 1"),  # strided beyond the end
        (4, 0, "1000000 1000", "0 0"),  # stretched from nothing
        (4, -1, "2", "1"),
        (4, 0, "-2", "-1"),
        (4, 0, "2 2", "1"),
        (5, 0, "4", "1"),  # claims more than the record holds
    ],
)
def test_a_tensor_must_lie_inside_its_storage(
    tmp_path: Path, count: int, offset: int, shape: str, strides: str
) -> None:
    with pytest.raises(BadInput):
        load_weights(packed(tmp_path, tensor_stream(count, offset, shape, strides)))


def test_the_hand_written_stream_is_sound(tmp_path: Path) -> None:
    """So that the cases above fail for the reason they state."""
    values = np.arange(4, dtype="<f4").tobytes()
    found = load_weights(packed(tmp_path, tensor_stream(4, 0, "2 2", "2 1"), values))
    np.testing.assert_array_equal(found["w"], [[0, 1], [2, 3]])


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("CANARY_EXECUTED", "w"))


@pytest.mark.parametrize("protocol", range(5))
def test_code_is_refused_in_every_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Refused, BadInput)):
        load_weights(packed(tmp_path, pickle.dumps({"w": _Payload()}, protocol)))
    assert not (tmp_path / "CANARY_EXECUTED").exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02}}h\x00s.",  # recalls what was never stored
        b"\x80\x02" + b"(" * 1000 + b"l" * 1000 + b".",  # lists in lists
        b"\x80\x02" + b")\x85" + b"\x85" * 50000 + b"}s.",  # tuples in tuples
        b"\x80\x02]q\x00h\x00a.",  # a list inside itself
        b"\x80\x02}(}}u.",  # a key that is a dictionary
        b"\x80\x02t.", b".", b"", b"\x80\x02N.", b"\x80\x02}Q.",
    ],
)
def test_odd_streams_only_raise_our_own_errors(tmp_path: Path, stream: bytes) -> None:
    with pytest.raises(CertifyError):
        load_weights(packed(tmp_path, stream))


def safetensors(folder: Path, header: object, body: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_safetensors_are_read(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [1], "data_offsets": [8, 10]},
    }
    body = np.array([1.5, -2], "<f4").tobytes() + b"\x80\x3f"
    found = load_weights(safetensors(tmp_path, header, body))
    np.testing.assert_array_equal(found["w"], [[1.5], [-2]])
    np.testing.assert_array_equal(found["b"], [1.0])


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},  # a gap
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},  # bytes left over
        {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1}},
        {"w": {"dtype": "F32", "shape": [2]}},
        {"w": 1}, [], b"{", b"\xff\xff", b"[" * 50,
    ],
)
def test_malformed_safetensors_are_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(BadInput):
        load_weights(safetensors(tmp_path, header, b"\0" * 8))


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i8", "|b1", "|u1", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_saves_is_read_exactly(tmp_path: Path, kind: str, order: str) -> None:
    array = np.asarray(np.arange(6).reshape(2, 3).astype(kind), order=order)
    np.save(tmp_path / "x.npy", array)
    found = load_array(tmp_path / "x.npy")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")


def test_npz_gives_every_array(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", a=np.eye(2), b=np.arange(3))
    found = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(found["a"], np.eye(2))
    np.testing.assert_array_equal(found["b"], np.arange(3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_must_be_finite(tmp_path: Path, value: float) -> None:
    np.savez(tmp_path / "w.npz", fine=np.ones(2), broken=np.array([1.0, value]))
    with pytest.raises(BadInput, match=r"w\.npz.*'broken'"):
        load_weights(tmp_path / "w.npz")


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "w.pickle").write_bytes(b"")
    with pytest.raises(Unsupported, match=r"w\.pickle.*\.safetensors"):
        load_weights(tmp_path / "w.pickle")


def test_damaged_archives_only_raise_our_own_errors(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    good, rng = buffer.getvalue(), np.random.default_rng(2)
    for _ in range(300):
        raw = bytearray(good)
        for at in rng.integers(0, len(raw), 3):
            raw[at] = rng.integers(0, 256)
        (tmp_path / "w.pt").write_bytes(raw)
        try:
            found = load_weights(tmp_path / "w.pt")
        except CertifyError as problem:
            assert str(problem).isprintable()
        else:
            assert all(isinstance(a, np.ndarray) for a in found.values())
