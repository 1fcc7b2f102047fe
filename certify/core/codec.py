"""Frozen dataclasses, arrays and numbers as canonical JSON, and strictly back.

Canonical means: keys sorted, no spaces, ASCII, floats by their shortest exact ``repr``. One value
has one text, so a digest of the text is a digest of the value. Reading is driven by the type
annotations of the dataclasses: what is not declared there is refused.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, NoReturn

import numpy as np

from certify.core.arrays import is_tensor
from certify.core.decimals import parse_numeral
from certify.core.errors import BadInput, one_line

LARGEST_ARRAY = 2**28  # elements
_DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool")
_ARRAY_KEYS = {"dtype", "shape", "base64"}


def canonical(data: Any) -> str:
    """The one JSON text of plain data.

    Raises:
        ValueError: a float that is not finite.
    """
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def parse(text: str) -> Any:
    """Plain data from JSON.

    Raises:
        BadInput: not JSON, a key given twice, NaN or infinity, nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise BadInput("not a certificate: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {one_line(error)}") from None
    except ValueError as error:
        raise BadInput(one_line(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [k for k, _ in pairs]
        twice = next(k for k in keys if keys.count(k) > 1)
        raise BadInput(f"the key {one_line(twice, 40)!r} is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise BadInput(f"the number {name} is not allowed")


class Kind(NamedTuple):
    """A class that a file may name, and how one is built from its decoded fields, validated."""

    cls: type
    build: Callable[..., Any]


@dataclass(frozen=True)
class Codec:
    """Values to plain data and back.

    Attributes:
        kinds: what may stand under the key ``"kind"``. Every other dataclass is known from the
            annotation of the field that holds it.
    """

    kinds: Mapping[str, Kind]

    def encode(self, value: Any) -> Any:
        """Plain data for ``value``; classes in ``kinds`` carry their name.

        Raises:
            TypeError: a value of a type that has no place in a file.
        """
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, np.generic):
            return self.encode(value.item())
        if isinstance(value, np.ndarray) or is_tensor(value):
            return encode_array(value)
        if isinstance(value, (int, float)):
            return value
        if isinstance(value, Decimal):
            return {"decimal": str(value)}
        if isinstance(value, Mapping):
            return {str(k): self.encode(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [self.encode(v) for v in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._encode_fields(value)
        raise TypeError(f"a {type(value).__name__} cannot be written to a certificate")

    def _encode_fields(self, value: Any) -> dict[str, Any]:
        name = type(value).__name__
        plain = {
            f.name: self.encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
        return {"kind": name, **plain} if name in self.kinds else plain

    def decode(self, hint: Any, data: Any, where: str) -> Any:
        """The value of type ``hint`` that ``data`` describes; ``where`` is the place, for messages.

        Raises:
            BadInput: anything that does not fit the annotation.
        """
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return self._decode_union(args, data, where)
        if origin is tuple:
            return self._decode_tuple(args, data, where)
        if origin is not None and issubclass(origin, Mapping):
            expect(isinstance(data, dict), where, "an object", data)
            return {
                k: self.decode(args[1], v, f"{where}.{one_line(k, 40)}") for k, v in data.items()
            }
        if hint is np.ndarray:
            return decode_array(data, where)
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _decode_enum(hint, data, where)
        if hint in (bool, int, float, str):
            return _decode_scalar(hint, data, where)
        named = any(isinstance(hint, type) and issubclass(k.cls, hint) for k in self.kinds.values())
        if dataclasses.is_dataclass(hint) and not named:
            return self._decode_fields(hint, data, where)
        found = self.decode_any(data, where)
        expect(
            not isinstance(hint, type) or isinstance(found, hint), where, f"a {_label(hint)}", data
        )
        return found

    def decode_any(self, data: Any, where: str) -> Any:
        """A self-describing value: an array, a decimal, a named class, a list, a plain scalar."""
        if isinstance(data, list):
            return tuple(self.decode_any(v, f"{where}[{i}]") for i, v in enumerate(data))
        if not isinstance(data, dict):
            if isinstance(data, float):
                return _decode_scalar(float, data, where)
            return data
        if set(data) == _ARRAY_KEYS:
            return decode_array(data, where)
        if set(data) == {"decimal"}:
            expect(isinstance(data["decimal"], str), where, "a decimal numeral", data["decimal"])
            return parse_numeral(data["decimal"]).exact
        name = data.get("kind")
        if not isinstance(name, str) or name not in self.kinds:
            raise BadInput(
                f"{where}: unknown kind {one_line(repr(name), 40)}; known are "
                f"{', '.join(sorted(self.kinds))}"
            )
        kind = self.kinds[name]
        rest = {k: v for k, v in data.items() if k != "kind"}
        values = {
            k: self.decode_any(v, f"{where}.{k}") for k, v in _fields(kind.cls, rest, where).items()
        }
        return _built(kind.build, values, where)

    def _decode_fields(self, cls: Any, data: Any, where: str) -> Any:
        hints = typing.get_type_hints(cls)
        values = {
            k: self.decode(hints[k], v, f"{where}.{k}")
            for k, v in _fields(cls, data, where).items()
        }
        return _built(cls, values, where)

    def _decode_union(self, args: tuple[Any, ...], data: Any, where: str) -> Any:
        if data is None and type(None) in args:
            return None
        wanted = [a for a in args if a is not type(None)]
        for hint in wanted[:-1]:
            try:
                return self.decode(hint, data, where)
            except BadInput:
                continue
        return self.decode(wanted[-1], data, where)

    def _decode_tuple(self, args: tuple[Any, ...], data: Any, where: str) -> Any:
        expect(isinstance(data, list), where, "a list", data)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(self.decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
        expect(len(data) == len(args), where, f"{len(args)} entries", data)
        return tuple(
            self.decode(a, v, f"{where}[{i}]")
            for i, (a, v) in enumerate(zip(args, data, strict=True))
        )


def _fields(cls: Any, data: Any, where: str) -> dict[str, Any]:
    """``data`` if its keys are exactly the fields of ``cls``."""
    expect(isinstance(data, dict), where, "an object", data)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    unknown, missing = sorted(set(data) - set(names)), sorted(set(names) - set(data))
    if unknown or missing:
        said = (
            f"unknown field {one_line(unknown[0], 40)!r}" if unknown else f"no field {missing[0]!r}"
        )
        raise BadInput(f"{where}: {said}")
    return dict(data)


def _built(build: Callable[..., Any], values: dict[str, Any], where: str) -> Any:
    """``build(**values)``; whatever the values are, only `BadInput` comes out."""
    try:
        return build(**values)
    except BadInput as error:
        raise BadInput(f"{where}: {one_line(error)}") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise BadInput(f"{where}: {one_line(error)}") from None


def encode_array(value: Any) -> dict[str, Any]:
    """``{"dtype", "shape", "base64"}``; little-endian, row-major; tensors are detached."""
    if is_tensor(value):
        value = value.detach().cpu()
        if str(value.dtype).removeprefix("torch.") not in _DTYPES:
            value = value.double()
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        array = array.astype(np.float64)
    raw = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(raw).decode("ascii"),
    }


def decode_array(data: Any, where: str) -> np.ndarray:
    """The read-only array ``encode_array`` wrote.

    Raises:
        BadInput: a wrong dtype, shape or length, or a NaN.
    """
    expect(isinstance(data, dict) and set(data) == _ARRAY_KEYS, where, "an array", data)
    name, shape, text = data["dtype"], data["shape"], data["base64"]
    expect(
        isinstance(name, str) and name in _DTYPES,
        f"{where}.dtype",
        f"one of {', '.join(_DTYPES)}",
        name,
    )
    good = (
        isinstance(shape, list)
        and len(shape) <= 32
        and all(type(n) is int and n >= 0 for n in shape)
    )
    expect(good, f"{where}.shape", "a list of sizes", shape)
    expect(isinstance(text, str), f"{where}.base64", "text", text)
    dtype = np.dtype(name).newbyteorder("<")
    count = math.prod(shape)
    if count > LARGEST_ARRAY or max(shape, default=0) > LARGEST_ARRAY:
        raise BadInput(f"{where}: {count} elements are beyond the limit of {LARGEST_ARRAY}")
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(f"{where}.base64: not base64") from None
    if len(raw) != count * dtype.itemsize:
        raise BadInput(
            f"{where}: shape {shape} of {name} needs {count * dtype.itemsize} bytes, "
            f"found {len(raw)}"
        )
    if name == "bool" and any(b > 1 for b in raw):
        raise BadInput(f"{where}: a bool that is neither 0 nor 1")
    array = np.frombuffer(raw, dtype).astype(np.dtype(name)).reshape(shape)
    if array.dtype.kind == "f" and bool(np.isnan(array).any()):
        raise BadInput(f"{where}: holds a NaN")
    array.setflags(write=False)
    return array


def expect(good: bool, where: str, wanted: str, data: Any) -> None:
    """Raise `BadInput` with the place, what is wanted and what was found, unless ``good``."""
    if not good:
        raise BadInput(f"{where}: must be {wanted}; got {_shown(data)}")


def _shown(data: Any) -> str:
    if isinstance(data, (dict, list)):
        return "an object" if isinstance(data, dict) else f"a list of {len(data)}"
    return one_line(repr(data), 60)


def _label(hint: Any) -> str:
    return str(getattr(hint, "__name__", hint))


def _decode_scalar(hint: type, data: Any, where: str) -> Any:
    expect(
        type(data) is hint, where, {"str": "text"}.get(hint.__name__, f"a {hint.__name__}"), data
    )
    expect(hint is not float or math.isfinite(data), where, "finite", data)
    return data


def _decode_enum(hint: type[Enum], data: Any, where: str) -> Any:
    try:
        return hint(data)
    except (ValueError, TypeError):
        known = ", ".join(str(m.value) for m in hint)
        raise BadInput(f"{where}: must be one of {known}; got {_shown(data)}") from None
