"""The pickles inside torch's checkpoint files, read without running anything, and written.

A pickle is a program for a stack machine, and Python's own reader calls whatever the program names. This one
knows the opcodes and the few names that a dictionary of tensors is made of; everything else is refused by its
name. Nothing is imported and nothing of a stated size is allocated. Opcodes: Python's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from puna.core import BadFile, Unsupported

# torch's storage classes -> kinds of formats.FORMATS; others are refused by name
STORAGES: Mapping[str, str] = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
# what only those can use who join the parts of quantized matrices: storage classes, and dtypes without one
PARTS: Mapping[str, str] = {"CharStorage": "I8", "float8_e4m3fn": "F8_E4M3"}
_KINDS: Mapping[str, str] = {**STORAGES, **PARTS}
_STORAGE_OF = {kind: name for name, kind in STORAGES.items()}

_REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_REBUILD_TYPED = ("torch._utils", "_rebuild_tensor_v3")  # of a dtype that has no storage class
_UNTYPED = ("torch.storage", "UntypedStorage")
_REBUILD_PARAMETER = ("torch._utils", "_rebuild_parameter")
_ORDERED_DICT = ("collections", "OrderedDict")
_MAX_STACK = 1 << 20  # entries; a checkpoint of 405B has about 1,200 tensors


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A block of numbers beside the pickle."""

    key: str
    kind: str  # a name of formats.FORMATS, one of PARTS, or of a torch storage class that is among neither
    count: int  # numbers; of an untyped storage, bytes


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage; offset and strides in numbers, rows first. Nothing is checked yet."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    module: str
    name: str


class _Mark: ...


# States of Transformer Engine, in Llama 4's files: of any type, and nothing that a model needs.
_EXTRA_STATE = "._extra_state"


def read_tensors(raw: bytes) -> dict[str, TensorRef]:
    """The tensors of a pickled dictionary by name, in its order.

    Raises Unsupported for a pickle that holds or calls anything else, BadFile for one that is damaged.
    """
    try:
        found = _Machine(raw).run()
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error):
        raise BadFile("its pickle is damaged or cut short; get the file again") from None
    if not isinstance(found, dict):
        raise Unsupported(f"it holds a {_kind(found)}, expected a dictionary of tensors by name")
    found = {name: value for name, value in found.items() if not str(name).endswith(_EXTRA_STATE)}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, TensorRef):
            raise Unsupported(
                f"its dictionary holds {name!r:.60}: {_kind(value)}, expected tensors by name only; "
                "save the model's state_dict alone"
            )
    return found


def _kind(value: Any) -> str:
    return f"{value.module}.{value.name}" if isinstance(value, _Global) else type(value).__name__


class _Machine:
    """The stack machine. Sizes are checked by slicing: what is not there is missing, never allocated."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            opcode = self.take(1)
            if opcode == b".":
                return self.stack.pop()
            action = _ACTIONS.get(opcode)
            if action is None:
                raise Unsupported(
                    f"its pickle uses the opcode {opcode!r}, which no dictionary of tensors needs; it may "
                    "contain code and is not read"
                )
            action(self)
            if len(self.stack) > _MAX_STACK:
                raise BadFile("its pickle is no checkpoint: it nests or lists too much")

    def take(self, n: int) -> bytes:
        part = self.raw[self.at : self.at + n]
        if len(part) != n or n < 0:
            raise ValueError("beyond the end")
        self.at += n
        return part

    def skip(self, n: int) -> None:
        self.take(n)

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self.take(struct.calcsize(code)))[0])

    def line(self) -> str:
        end = self.raw.index(b"\n", self.at)
        text = self.take(end - self.at).decode()
        self.at += 1
        return text

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def pop_tuple(self, n: int) -> None:
        if len(self.stack) < n:
            raise ValueError("empty stack")
        self.stack[len(self.stack) - n :] = [tuple(self.stack[len(self.stack) - n :])]

    def text(self, n: int) -> None:
        self.stack.append(self.take(n).decode())

    def find(self, module: str, name: str) -> None:
        known = {_REBUILD_TENSOR, _REBUILD_TYPED, _REBUILD_PARAMETER, _ORDERED_DICT, _UNTYPED}
        is_storage = module == "torch" and (name.endswith("Storage") or name in PARTS)
        if (module, name) not in known and not is_storage:
            raise Unsupported(
                f"its pickle names {module}.{name}, which no dictionary of tensors needs; it may contain "
                "code and is not read: get the checkpoint from a source you trust, or in safetensors"
            )
        self.stack.append(_Global(module, name))

    def find_on_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("names are strings")
        self.find(module, name)

    def set_items(self, pairs: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise ValueError("not a dictionary")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def append(self, items: Sequence[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("not a list")
        self.stack[-1].extend(items)

    def persistent(self) -> None:
        """torch's reference to a storage: ("storage", class, key, device, numbers)."""
        what, storage, key, _, count = self.stack.pop()
        if what != "storage" or not isinstance(storage, _Global) or type(count) is not int:
            raise ValueError("no storage")
        if not isinstance(key, str):
            raise ValueError("no key")
        self.stack.append(StorageRef(key, _KINDS.get(storage.name, storage.name), count))

    def reduce(self) -> None:
        """Call the few functions that are known: here they only describe."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise ValueError("no call")
        which = (function.module, function.name)
        if which == _ORDERED_DICT and (not arguments or arguments == ([],)):
            self.stack.append({})
        elif which == _REBUILD_TENSOR:
            storage, offset, shape, strides = arguments[:4]
            self.stack.append(_tensor(storage, offset, shape, strides))
        elif which == _REBUILD_TYPED:
            storage, offset, shape, strides, _, _, dtype = arguments[:7]
            self.stack.append(_tensor(_typed(storage, dtype), offset, shape, strides))
        elif which == _REBUILD_PARAMETER and isinstance(arguments[0], TensorRef):
            self.stack.append(arguments[0])
        else:
            raise Unsupported(f"its pickle calls {function.module}.{function.name} in a way not known")

    def build(self) -> None:
        """Attributes of the object below; of a state_dict that is torch's `_metadata`, which we do not
        need.
        """
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise Unsupported("its pickle sets attributes of objects; it may contain code and is not read")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRef:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, StorageRef) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("no tensor")
    return TensorRef(storage, offset, tuple(shape), tuple(strides))


def _typed(storage: Any, dtype: Any) -> StorageRef:
    """A storage of bytes as one of a dtype, of one byte each as all of PARTS are."""
    if not isinstance(storage, StorageRef) or not isinstance(dtype, _Global):
        raise ValueError("no tensor")
    return replace(storage, kind=_KINDS.get(dtype.name, dtype.name))


def _push(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value)


def _put(m: _Machine, i: int) -> None:
    m.memo[i] = m.stack[-1]


_ACTIONS: Mapping[bytes, Callable[[_Machine], None]] = {
    b"\x80": lambda m: m.skip(1),  # protocol
    b"\x95": lambda m: m.skip(8),  # length of a frame
    b"(": lambda m: m.stack.append(_Mark()),
    b"}": lambda m: m.stack.append({}),
    b"]": lambda m: m.stack.append([]),
    b")": lambda m: m.stack.append(()),
    b"N": _push(None),
    b"\x88": _push(True),
    b"\x89": _push(False),
    b"K": lambda m: m.stack.append(m.number("<B")),
    b"M": lambda m: m.stack.append(m.number("<H")),
    b"J": lambda m: m.stack.append(m.number("<i")),
    b"\x8a": lambda m: m.stack.append(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    b"X": lambda m: m.text(m.number("<I")),
    b"\x8c": lambda m: m.text(m.number("<B")),
    b"q": lambda m: _put(m, m.number("<B")),
    b"r": lambda m: _put(m, m.number("<I")),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"h": lambda m: m.stack.append(m.memo[m.number("<B")]),
    b"j": lambda m: m.stack.append(m.memo[m.number("<I")]),
    b"\x85": lambda m: m.pop_tuple(1),
    b"\x86": lambda m: m.pop_tuple(2),
    b"\x87": lambda m: m.pop_tuple(3),
    b"t": lambda m: m.stack.append(tuple(m.pop_to_mark())),
    b"l": lambda m: m.stack.append(m.pop_to_mark()),
    b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.pop_to_mark()),
    b"c": lambda m: m.find(m.line(), m.line()),
    b"\x93": lambda m: m.find_on_stack(),
    b"Q": lambda m: m.persistent(),
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
}


def write_tensors(tensors: Mapping[str, TensorRef]) -> bytes:
    """A pickle (protocol 2) that torch.load(weights_only=True) reads as a dictionary of these tensors."""
    parts = [b"\x80\x02}("]
    for name, tensor in tensors.items():
        storage = tensor.storage
        persistent = (
            _pickled("storage") + b"ctorch\n" + _STORAGE_OF[storage.kind].encode() + b"\n"
            + _pickled(storage.key) + _pickled("cpu") + _pickled(storage.count)
        )  # fmt: skip
        parts += [
            _pickled(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(" + persistent + b"tQ",
            _pickled(tensor.offset) + _pickled(tensor.shape) + _pickled(tensor.strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    return b"".join([*parts, b"u."])


def _pickled(value: str | int | tuple[int, ...]) -> bytes:
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_pickled, value)) + b"t"
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw
