"""Interpret the pickle of a checkpoint without running it: plain data or a refusal.

``pickle`` is a small program for a stack machine, and a hostile one can call anything. This
module knows the few instructions that ``torch.save`` emits for dicts, lists, strings, numbers and
tensors, executes those on plain Python values, and refuses the rest. Tensors come out as
``TensorSpec``: what they are and where their bytes lie. Containers cannot be shared, so neither
cycles nor data that grows when walked can be built. Instruction set: CPython's ``pickletools``.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infinito.checkpoint.archive import DamagedError

# Storage class of torch -> (dtype, bytes an element). Nothing else is plain.
STORAGE_TYPES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
PLAIN_DTYPES = frozenset(dtype for dtype, _ in STORAGE_TYPES.values())
MAX_PICKLE_BYTES = 256 << 20
MAX_INSTRUCTIONS = 2_000_000  # each costs at most about 100 bytes of memory
MAX_DEPTH = 32
MAX_DIMENSIONS = 16


@dataclass(frozen=True)
class TensorSpec:
    """A contiguous tensor that owns exactly the bytes of the storage named ``key``."""

    dtype: str
    shape: tuple[int, ...]
    key: str
    n_bytes: int


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    item_bytes: int
    key: str
    n_elements: int


class _Mark:
    pass


_HOOKS = object()  # the empty OrderedDict of backward hooks that every tensor carries
_REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
_ALLOWED_GLOBALS = {_REBUILD_TENSOR, "collections.OrderedDict"} | {
    f"torch.{name}" for name in STORAGE_TYPES
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_LEAVES = (str, int, float, bool, type(None), TensorSpec)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def interpret(data: bytes) -> tuple[Any, list[TensorSpec]]:
    """The value a pickle describes, and its tensors in order. Raises DamagedError."""
    machine = _Machine()
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_INSTRUCTIONS:
                raise DamagedError("its description is too long")
            machine.execute(instruction.name, argument)
        [value] = machine.stack
    except DamagedError:
        raise
    except (ValueError, IndexError, OverflowError) as error:
        raise DamagedError("its description is damaged") from error
    _check_plain(value)
    return value, machine.tensors


def _check_plain(value: Any) -> None:
    pending = [(value, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise DamagedError("its description is nested too deeply")
        if isinstance(node, dict):
            pending.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            pending.extend((child, depth + 1) for child in node)
        elif type(node) not in _LEAVES:
            raise DamagedError("its description holds something that is not plain data")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.tensors: list[TensorSpec] = []

    def execute(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self.stack.append(tuple(self.pop_many(_TUPLES[name])))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise DamagedError(
                f"uses the pickle instruction {name}, which a checkpoint never needs"
            )

    def pop(self) -> Any:
        if isinstance(self.stack[-1], _Mark):
            raise ValueError("nothing lies above the mark")
        return self.stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def put(self, index: int) -> None:
        value = self.pop()
        self.stack.append(value)
        self.memo[index] = value

    def get(self, index: int) -> None:
        value = self.memo.get(index)
        if not isinstance(value, str | _Global):
            raise DamagedError("its description shares data between places")
        self.stack.append(value)

    def append(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) is not list:
            raise DamagedError("its description is damaged")
        target.extend(items)
        self.stack.append(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        keys = items[::2]
        if type(target) is not dict or len(items) % 2 or any(type(key) is not str for key in keys):
            raise DamagedError("its description is damaged")
        if len(set(keys)) < len(keys) or not target.keys().isdisjoint(keys):
            raise DamagedError("its description names a key twice")
        target.update(zip(keys, items[1::2], strict=True))
        self.stack.append(target)

    def find_global(self, argument: str) -> None:
        name = argument.replace(" ", ".")
        if name not in _ALLOWED_GLOBALS:
            raise DamagedError(
                f"refers to {ascii(name)[1:-1][:80]}, which a checkpoint never needs"
            )
        self.stack.append(_Global(name))

    def find_storage(self, _: Any) -> None:
        match self.pop():
            case ("storage", _Global(name), str(key), "cpu", int(count)) if (
                name.removeprefix("torch.") in STORAGE_TYPES and count >= 0
            ):
                dtype, item_bytes = STORAGE_TYPES[name.removeprefix("torch.")]
                self.stack.append(_Storage(dtype, item_bytes, key, count))
            case _:
                raise DamagedError("its description is damaged")

    def reduce(self, _: Any) -> None:
        function, arguments = self.pop_many(2)
        match function, arguments:
            case _Global("collections.OrderedDict"), ():
                self.stack.append(_HOOKS)
            case _Global(name), (
                _Storage() as storage,
                0,
                tuple(shape),
                tuple(strides),
                False,
                h,
            ) if name == _REBUILD_TENSOR and h is _HOOKS:
                self.stack.append(self.tensor(storage, shape, strides))
            case _:
                raise DamagedError("holds a tensor that is not plain")

    def tensor(
        self, storage: _Storage, shape: tuple[Any, ...], strides: tuple[Any, ...]
    ) -> TensorSpec:
        sizes_are_plain = all(type(size) is int and 0 <= size < 2**40 for size in shape)
        if not sizes_are_plain or len(shape) > MAX_DIMENSIONS:
            raise DamagedError("holds a tensor of impossible shape")
        if strides != contiguous_strides(shape) or math.prod(shape) != storage.n_elements:
            raise DamagedError("holds a tensor that does not fit its data")
        n_bytes = storage.n_elements * storage.item_bytes
        spec = TensorSpec(storage.dtype, shape, storage.key, n_bytes)
        self.tensors.append(spec)
        return spec


# Not bound to a machine: one that refers to itself would stay, with all it has read, until the
# next full garbage collection, minutes later in a long training that verifies what it saves.
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "MARK": lambda machine, _: machine.stack.append(_Mark()),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_many(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "GLOBAL": _Machine.find_global,
    "REDUCE": _Machine.reduce,
    "BINPERSID": _Machine.find_storage,
    "STOP": lambda machine, _: None,  # the last instruction: without it, pickletools objects
}


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a row-major tensor, as torch gives them to a fresh one."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
