"""The pickle stream of a torch checkpoint, read without pickle.

This module interprets the handful of opcodes
``torch.save`` writes for containers and tensors, over inert values: no name is ever imported, no
object is ever called. Whatever else a stream asks for is refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from certify.core.errors import BadInput, LimitExceeded, Refused, Unsupported, one_line

_MOST_OPCODES = 2_000_000
_MOST_VALUES = 1_000_000  # of a loaded structure, shared parts counted as often as they appear

STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1",
    "ByteStorage": "|u1", "BoolStorage": "|b1",
}
_CALLS = {
    "collections OrderedDict": "dict",
    "torch._utils _rebuild_tensor": "tensor",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_parameter": "parameter",
    "torch Size": "size",
}


class _Global(NamedTuple):
    """A name of the stream; never resolved."""

    text: str


class Storage(NamedTuple):
    """Raw elements a tensor is cut from.

    Attributes:
        kind: torch storage class.
        key: name of the record that holds the bytes.
        elements: how many it claims to have.
    """

    kind: str
    key: str
    elements: int


@dataclass(frozen=True)
class Sketch:
    """A tensor before its bytes are known."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


def read_stream(stream: io.BytesIO) -> Any:
    """The value of the pickle at the stream's position: containers, plain values and `Sketch` es.

    Raises:
        BadInput: damaged.
        LimitExceeded: it unfolds into too much.
        Refused: it names code.
        Unsupported: a kind of tensor that is not read.
    """
    return _Machine(_all_ops(stream)).run()


def _all_ops(stream: io.BytesIO) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST") and not _harmless(str(argument)):
                name = one_line(str(argument).replace(" ", "."), 60)
                raise Refused(f"unsafe pickle: it names {name}; save only model.state_dict()")
            found.append((opcode.name, argument))
            if len(found) > _MOST_OPCODES:
                raise LimitExceeded(f"pickle of more than {_MOST_OPCODES} opcodes")
    except (ValueError, IndexError, UnicodeError, OverflowError) as problem:
        if isinstance(problem, BadInput):
            raise
        raise BadInput("not a checkpoint, or a damaged one: its pickle stream is broken") from None
    return found


def _harmless(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    return name in _CALLS or (module == "torch" and attribute in STORAGES)


class _Machine:
    """Runs one pickle stream over inert values."""

    def __init__(self, ops: list[tuple[str, Any]]) -> None:
        self._ops = ops
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the stream leaves on the stack; raises as `read_stream`."""
        try:
            for name, argument in self._ops:
                step = _STEPS.get(name)
                if step is None:
                    raise Refused(f"unsafe pickle: opcode {name} is not part of a state dict")
                step(self, argument)
            result = self._stack.pop()
        except (IndexError, KeyError, TypeError, AttributeError) as problem:
            raise BadInput(f"damaged pickle stream: {problem}") from None
        _check_unfolded(result)
        return result

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def top(self) -> Any:
        return self._stack[-1]

    def to_mark(self) -> list[Any]:
        """Everything above the last mark, which goes too."""
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError("no mark")
        found = self._stack[at + 1 :]
        del self._stack[at:]
        return found

    def store(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self.top()

    def recall(self, index: int) -> None:
        self.push(self._memo[index])

    def fill(self, pairs: list[Any]) -> None:
        """SETITEM and SETITEMS: keys and values alternate."""
        target = self.top()
        if not isinstance(target, dict) or len(pairs) % 2:
            raise TypeError("items for something that is not a dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int, float)) and key is not None:
                raise TypeError("a key that is not plain")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise TypeError("items for something that is not a list")
        target.extend(values)

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, _Global) or not isinstance(arguments, tuple):
            raise Refused("unsafe pickle: it calls something that is not a tensor or container")
        self.push(_call(called.text, arguments))

    def build(self) -> None:
        """State of an ordered dictionary: only its unimportant ``_metadata``."""
        self.pop()
        if not isinstance(self.top(), dict):
            raise Refused("unsafe pickle: it sets the state of an object")


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    kind = _CALLS.get(name)
    if kind == "dict":
        if arguments and arguments != ([],):
            raise Unsupported("an ordered dictionary with initial content is not read")
        return {}
    if kind == "size":
        return tuple(arguments[0])
    if kind == "parameter":
        if not isinstance(arguments[0], Sketch):
            raise TypeError("a parameter that is not a tensor")
        return arguments[0]
    if kind == "tensor":
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in numbers):
            raise TypeError("a tensor that is malformed")
        if len(shape) != len(strides) or len(shape) > 16:
            raise TypeError("a tensor whose shape and strides differ in length")
        return Sketch(storage, offset, tuple(shape), tuple(strides))
    raise Refused(f"unsafe pickle: it calls {one_line(name, 60)}")


def _storage(identity: Any) -> Storage:
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise TypeError("a persistent object that is not a storage")
    kind, key, count = identity[1], identity[2], identity[4]
    if len(identity) > 5 and identity[5] is not None:
        raise Unsupported("checkpoints with storage views are not read; save them again")
    if not isinstance(kind, _Global) or not isinstance(key, str) or type(count) is not int:
        raise TypeError("a storage that is malformed")
    return Storage(kind.text.removeprefix("torch "), key, count)


def _check_unfolded(root: Any) -> None:
    """Raises `LimitExceeded` when the structure is huge once shared parts are written out."""
    stack, count = [root], 0
    while stack:
        value = stack.pop()
        count += 1
        if count > _MOST_VALUES:
            raise LimitExceeded(f"the pickle unfolds into more than {_MOST_VALUES} values")
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)


_Step = Callable[[_Machine, Any], None]


def _push_argument(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _tuple_of(count: int) -> _Step:
    def step(machine: _Machine, argument: Any) -> None:
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return step


_STEPS: dict[str, _Step] = {
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE",
         "SHORT_BINUNICODE"),
        _push_argument,
    ),
    "PROTO": lambda m, a: None,
    "STOP": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    "MARK": lambda m, a: m.push(_MARK),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "TUPLE": lambda m, a: m.push(tuple(m.to_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": lambda m, a: m.push(m.to_mark()),
    "GLOBAL": lambda m, a: m.push(_Global(a)),
    "BINPUT": lambda m, a: m.store(a),
    "LONG_BINPUT": lambda m, a: m.store(a),
    "MEMOIZE": lambda m, a: m.store(None),
    "BINGET": lambda m, a: m.recall(a),
    "LONG_BINGET": lambda m, a: m.recall(a),
    "APPEND": lambda m, a: m.append([m.pop()]),
    "APPENDS": lambda m, a: m.append(m.to_mark()),
    "SETITEM": lambda m, a: m.fill([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, a: m.fill(m.to_mark()),
    "REDUCE": lambda m, a: m.reduce(),
    "BUILD": lambda m, a: m.build(),
    "BINPERSID": lambda m, a: m.push(_storage(m.pop())),
}
