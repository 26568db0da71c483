"""Interprets the pickles inside PyTorch checkpoints; they can describe tensors and plain containers, nothing else.

Part of `checkpoint_reader.py`, the only module that should import it. A pickle is a program for a stack machine.
Python's own machine imports whatever a pickle names and calls it. This one never looks up a Python object by a name
from the file. A global is only its name, and three tables decide what becomes of it:

- **built** (`STORAGES`, `_BUILDERS`, `__torch__.*`): storages, tensor rebuild functions, parameters, ordered
  dictionaries, `torch.Size` and the modules of a TorchScript archive become `TensorSpec`, `ScriptModule` and plain
  containers, by the code below;
- **inert** (`_INERT`, `_INERT_MODULES`): harmless objects that training scripts save beside the weights
  (`argparse.Namespace`, NumPy scalars, paths, dates, optimisers, config objects) stay names, whatever the file does
  with them, and are dropped at the end;
- **everything else** is `Refused`.

Work and memory are bounded: opcodes, bytes, tensors, nesting. Real files stay far below the limits (ViT-L/14 with Adam
state: about 60 000 opcodes).
"""

import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch


MAX_OPCODES = 1_000_000
MAX_PICKLE_BYTES = 16 << 20
MAX_TENSORS = 50_000
MAX_DEPTH = 64
_MAX_INTEGER_BYTES = 256
_MAX_LINE_BYTES = 64 << 10
_MAX_DIMENSIONS = 32

# Python 2 names, and the platform modules behind `os`.
_MODULE_ALIASES = {"__builtin__": "builtins", "copy_reg": "copyreg", "posix": "os", "nt": "os"}

_STORAGE_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
STORAGES = {"torch.storage.UntypedStorage": torch.uint8} | {
    f"{module}.{name}Storage": dtype for module in ("torch", "torch.cuda") for name, dtype in _STORAGE_DTYPES.items()
}

_DTYPE_NAMES = """
    float16 float32 float64 bfloat16 float8_e4m3fn float8_e5m2 int8 int16 int32 int64 uint8 uint16 uint32 uint64
    bool complex64 complex128
"""
_DTYPES = {f"torch.{name}": getattr(torch, name) for name in _DTYPE_NAMES.split()}

_NUMPY_SCALARS = """
    bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 str_ bytes_
"""
_INERT_NAMES = """
    argparse.Namespace types.SimpleNamespace collections.deque uuid.UUID decimal.Decimal fractions.Fraction
    datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone
    pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.PosixPath pathlib._local.WindowsPath pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
    easydict.EasyDict yacs.config.CfgNode addict.addict.Dict

    torch.Tensor torch._tensor.Tensor torch.nn.parameter.Parameter torch.nn.parameter.Buffer torch.device
    torch.serialization._get_layout torch.amp.grad_scaler._refresh_per_optimizer_state
    torch.cuda.amp.grad_scaler._refresh_per_optimizer_state

    numpy.dtype numpy.ndarray numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor
    numpy.random._pickle.__bit_generator_ctor
    numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct numpy.core.numeric._frombuffer
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct numpy._core.numeric._frombuffer
"""
# With these, a pickle makes an object of one of the classes above, or fills it.
_PARTS_OF_INERT_OBJECTS = """
    _codecs.encode copyreg._reconstructor copyreg.__newobj__ typing.Any
    builtins.object builtins.set builtins.frozenset builtins.list builtins.tuple builtins.dict builtins.int
    builtins.float builtins.bool builtins.str builtins.bytes builtins.bytearray builtins.complex builtins.slice
    builtins.range builtins.NoneType builtins.long builtins.unicode builtins.xrange
"""
_INERT = frozenset(
    [
        *_INERT_NAMES.split(),
        *_PARTS_OF_INERT_OBJECTS.split(),
        *(f"numpy.{n}" for n in _NUMPY_SCALARS.split()),
        *_DTYPES,
    ]
)
# Dassl (CoOp, CLIP-Adapter, MaPLe …) stores scheduler and optimiser objects; Lightning and Hydra store their
# configuration and callbacks.
_INERT_MODULES = (
    "torch.optim.",
    "dassl.optim.",
    "omegaconf.",
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "numpy.dtypes.",
)
_SILENT = ("builtins.", "_codecs.")  # parts of other objects: not listed in the log
_IDENTIFIER = re.compile(r"[A-Za-z_]\w{0,99}")


class Refused(Exception):
    """The file asks for something that weights never need. `checkpoint_reader` makes it an `UnsafeCheckpointError`
    with the path."""


class Damaged(Exception):
    """The bytes are not what they should be. `checkpoint_reader` makes it an `OSError` with the path."""


# What parsing arbitrary bytes can raise besides our own two.
PARSE_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    OverflowError,
    struct.error,
    AttributeError,
)


def _is_in_inert_module(module: str, name: str) -> bool:
    """Whether it may be a class there: neither a dotted name nor `__globals__` and its like."""
    return (
        (module + ".").startswith(_INERT_MODULES)
        and ".__" not in f"{module}.{name}"
        and _IDENTIFIER.fullmatch(name) is not None
    )


class Global:
    """A name from a pickle; with `inert`, everything that is done with it is ignored."""

    __slots__ = ("inert", "name")

    def __init__(self, name: str, inert: bool):
        self.name, self.inert = name, inert


class ScriptModule:
    """A module of a TorchScript archive: its attributes."""

    __slots__ = ("state",)

    def __init__(self):
        self.state: dict[str, Any] = {}


class Storage:
    """Where the numbers of tensors are: `numel` numbers of type `dtype`, under `key` in the file."""

    __slots__ = ("dtype", "key", "numel")

    def __init__(self, dtype: torch.dtype, key: str, numel: int):
        self.dtype, self.key, self.numel = dtype, key, numel

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class TensorSpec:
    """A tensor that passed every check. Its numbers are read when it is asked for, so optimiser states cost
    nothing."""

    __slots__ = ("dtype", "offset", "size", "storage", "stride")

    def __init__(self, storage: Storage, dtype: torch.dtype, offset: int, size: tuple, stride: tuple):
        self.storage, self.dtype, self.offset, self.size, self.stride = storage, dtype, offset, size, stride


def printable(text: str) -> str:
    """Text from the file, safe in a message: no control characters, at most 120 characters."""
    return text[:120].encode("unicode_escape").decode("ascii")


# ---- what a global may build


def _build_tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> TensorSpec:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    dtype = dtype or storage.dtype
    size, stride = _whole_numbers(size, "size"), _whole_numbers(stride, "stride")
    (offset,) = _whole_numbers((offset,), "offset")
    if len(size) != len(stride):
        raise Refused(f"refused a tensor of {len(size)} sizes and {len(stride)} strides")
    numel = 1
    for length in size:
        numel *= length
    if numel:
        end = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        # `numel` too: with strides of 0, a storage of one number would claim to be a tensor of 2^40.
        if max(end, numel) * dtype.itemsize > storage.nbytes:
            raise Refused(
                f"refused a tensor outside of its storage of {storage.nbytes} bytes: "
                + printable(f"offset {offset}, size {size}, stride {stride}")
            )
    return TensorSpec(storage, dtype, offset, size, stride)


def _whole_numbers(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > _MAX_DIMENSIONS:
        raise Refused(f"refused a tensor whose {what} is not a short tuple")
    if any(type(value) is not int or not 0 <= value < 2**62 for value in values):
        raise Refused(
            f"refused a tensor of {what} {printable(repr([v for v in values if type(v) is int]))}: expected whole "
            f"numbers >= 0"
        )
    return tuple(values)


def _rebuild_tensor_v2(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    return _build_tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    if not isinstance(dtype, Global) or dtype.name not in _DTYPES:
        raise TypeError("a tensor of unknown dtype")
    return _build_tensor(storage, offset, size, stride, _DTYPES[dtype.name])


def _rebuild_parameter(data, requires_grad=False, hooks=None, state=None):
    if not isinstance(data, TensorSpec):
        raise TypeError("a parameter without a tensor")
    return data


def _rebuild_from_type_v2(function, tensor_type, arguments, state):
    """A tensor or parameter with Python attributes: the attributes are left out."""
    name = function.name if isinstance(function, Global) else ""
    if not name.startswith("torch._utils._rebuild_"):
        raise TypeError("a tensor subclass without a known rebuild function")
    return _BUILDERS[name](*arguments)


def _dictionary(items=(), *_):
    """OrderedDict, Counter and defaultdict (whose first argument is its factory), as plain dictionaries."""
    pairs = items.items() if isinstance(items, dict) else items if isinstance(items, list | tuple) else ()
    result: dict[str, Any] = {}
    for key, value in pairs:
        _set_item(result, key, value)
    return result


def _set_item(target: dict[str, Any], key: Any, value: Any) -> None:
    """Keys become strings. Hashing other keys could be used for an attack: nested tuples hash in exponential time, and
    integers can be chosen to collide."""
    if type(key) is str:
        target[key] = value
    elif key is None or type(key) in (int, float, bool):
        target[str(key)] = value
    # Keys of other types, such as the classes of Lightning's callbacks, never lead to weights: left out.


def _size(values=()):
    if not isinstance(values, tuple):
        raise TypeError("torch.Size of something else than a tuple")
    return values


_BUILDERS: dict[str, Callable] = {
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "collections.Counter": _dictionary,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _build_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type_v2,
    # typed lists of a TorchScript archive
    **{f"torch.jit._pickle.build_{kind}list": lambda values: values for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": lambda value, _type: value,
}


# ---- the interpreter


class PickleMachine:
    """Runs one or more pickles that follow each other in `buffer`.

    Args:
        buffer: anything that slices to bytes and has `find` (`bytearray`, `mmap`).
        claim: called with every `Storage` that a pickle mentions; raises `Refused` if the file cannot hold it.

    After a `load`, `position` is the byte after its STOP, and `inert` holds the names of the objects that were not
    built.

    A pickle works on a stack. MARK begins a group: the stack so far moves to `_outer` and an empty one takes its
    place, so that "everything since the last MARK" is the whole of `_stack`. The memo holds objects by number, for use
    again.
    """

    def __init__(self, buffer: Any, claim: Callable[[Storage], None]):
        self.position = 0
        self.inert: set[str] = set()
        self._buffer, self._claim = buffer, claim
        self._opcodes = self._tensors = 0
        self._globals: dict[tuple[str, str], Global] = {}
        self._stack: list[Any] = []
        self._outer: list[list] = []  # for each open MARK, the stack below it
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next object. Raises `Refused` or `Damaged`, nothing else."""
        self._stack, self._outer, self._memo = [], [], {}
        try:
            while True:
                self._spend(1)
                opcode = self._take(1)[0]
                if opcode == _STOP:
                    return self._stack.pop()
                run = _OPCODES.get(opcode)
                if run is None:
                    raise ValueError(f"unknown opcode {opcode:#04x}")
                run(self)
        except PARSE_ERRORS as error:
            raise Damaged(f"pickle, byte {self.position}: {printable(str(error)) or type(error).__name__}") from error

    def _spend(self, steps: int) -> None:
        self._opcodes += steps
        if self._opcodes > MAX_OPCODES:
            raise Refused(f"refused a pickle of more than {MAX_OPCODES} steps")

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0:
            raise ValueError("negative length")
        if end > len(self._buffer):
            raise EOFError("truncated")
        if end > MAX_PICKLE_BYTES:
            raise Refused(f"refused a pickle of more than {MAX_PICKLE_BYTES} bytes")
        data = self._buffer[self.position : end]
        self.position = end
        return data

    def _number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self._take(count), "little", signed=signed)

    def _line(self) -> str:
        end = self._buffer.find(b"\n", self.position, self.position + _MAX_LINE_BYTES)
        if end < 0:
            raise EOFError("a line without an end")
        return self._take(end + 1 - self.position)[:-1].decode("utf-8")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    # numbers and text

    def _integer_line(self) -> None:
        text = self._line().removesuffix("L")
        self._push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))

    def _long(self, width: int) -> None:
        count = self._number(width)
        if count > _MAX_INTEGER_BYTES:
            raise Refused(f"refused an integer of {count} bytes")
        self._push(self._number(count, signed=True))

    def _text(self, width: int, encoding: str = "utf-8") -> None:
        self._push(self._take(self._number(width)).decode(encoding))

    def _bytes(self, width: int) -> None:
        self._push(bytes(self._take(self._number(width))))

    # containers

    def _append(self, items: list) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not _is_inert(target):
            raise TypeError(f"append to a {type(target).__name__}")

    def _set_items(self, items: list) -> None:
        target = self._stack[-1]
        if len(items) % 2:
            raise ValueError("a key without a value")
        if type(target) is dict:
            for i in range(0, len(items), 2):
                _set_item(target, items[i], items[i + 1])
        elif not _is_inert(target):
            raise TypeError(f"items for a {type(target).__name__}")

    def _dict_from_mark(self) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _set_from_mark(self) -> None:
        self._pop_mark()
        self._push(_A_SET)

    def _add_to_set(self) -> None:
        self._pop_mark()
        if not _is_inert(self._stack[-1]):
            raise TypeError("set items for something else")

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError("empty stack")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    # globals and objects

    def _global(self, module: Any, name: Any) -> Global:
        if type(module) is not str or type(name) is not str:
            raise TypeError("a global whose name is not text")
        known = self._globals.get((module, name))
        if known is not None:
            return known
        module = _MODULE_ALIASES.get(module, module)
        full = f"{module}.{name}"
        if full in STORAGES or full in _BUILDERS or module.split(".", 1)[0] == "__torch__":
            result = Global(full, inert=False)
        elif full in _INERT or _is_in_inert_module(module, name):
            result = Global(full, inert=True)
        else:
            hint = (
                ": the file holds a whole model object, only its state_dict() can be read"
                if "nn.modules" in module
                else ""
            )
            raise Refused(f"refused global {printable(full)}{hint}")
        self._globals[module, name] = result
        return result

    def _construct(self, callee: Any, arguments: Any) -> Any:
        if not isinstance(callee, Global):
            raise TypeError("a call of something that is not a global")
        if callee.inert:
            if (
                callee.name == "copyreg._reconstructor"
                and type(arguments) is tuple
                and arguments
                and _is_inert(arguments[0])
            ):
                callee = arguments[0]  # protocols 0 and 1: the class comes first
            if not callee.name.startswith(_SILENT):
                self.inert.add(callee.name)
            return callee
        if callee.name.startswith("__torch__"):
            return ScriptModule()
        if callee.name not in _BUILDERS:
            raise Refused(f"refused a call of {callee.name}")
        if type(arguments) is not tuple:
            raise TypeError("arguments that are not a tuple")
        if arguments and isinstance(arguments[0], list | dict):
            self._spend(len(arguments[0]))  # a copy: its cost is not in the opcodes
        result = _BUILDERS[callee.name](*arguments)
        if isinstance(result, TensorSpec):
            self._tensors += 1
            if self._tensors > MAX_TENSORS:
                raise Refused(f"refused more than {MAX_TENSORS} tensors")
        return result

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(self._global(module, name))

    def _instance(self) -> None:
        callee = self._global(self._line(), self._line())
        self._push(self._construct(callee, tuple(self._pop_mark())))

    def _object(self) -> None:
        callee, *arguments = self._pop_mark()
        self._push(self._construct(callee, tuple(arguments)))

    def _call(self) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        self._push(self._construct(callee, arguments))

    def _call_with_keywords(self) -> None:
        keywords = self._stack.pop()
        if keywords and not _is_inert(self._stack[-2]):
            raise Refused("refused a call with keyword arguments")
        self._call()

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, ScriptModule):
            if type(state) is not dict:
                raise TypeError("a module whose state is not a dictionary")
            target.state = state
        elif type(target) not in (dict, TensorSpec) and not _is_inert(target):  # attributes of these are left out
            raise TypeError(f"attributes for a {type(target).__name__}")

    def _persistent(self) -> None:
        pid = self._stack.pop()
        if type(pid) is tuple and pid[:1] == ("module",):
            raise Refused("refused a whole model object: only its state_dict() can be read")
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("a persistent id that is not a storage")
        _, storage_type, key, _location, numel, *view = pid
        if not isinstance(storage_type, Global) or storage_type.name not in STORAGES:
            raise ValueError("a storage of unknown type")
        if type(key) is not str or type(numel) is not int or view not in ([], [None]):
            raise ValueError("a storage of unknown layout")
        storage = Storage(STORAGES[storage_type.name], key, numel)
        self._claim(storage)
        self._push(storage)


def _is_inert(value: Any) -> bool:
    return isinstance(value, Global) and value.inert


_A_SET = Global("builtins.set", inert=True)
_M = PickleMachine
_STOP = ord(".")
# The protocol's opcodes, each with its name in `pickletools`. Those that are missing are refused as unknown: PERSID,
# EXT1 to EXT4 and out-of-band buffers, which `torch.save` never writes.
_OPCODES_BY_BYTE: dict[bytes, Callable[[PickleMachine], None]] = {
    # frames, the stack
    b"\x80": lambda m: m._take(1),  # PROTO: nothing here depends on the protocol's number
    b"\x95": lambda m: m._take(8),  # FRAME
    b"(": _M._mark,  # MARK
    b"0": _M._pop,  # POP
    b"1": lambda m: m._pop_mark() and None,  # POP_MARK
    b"2": lambda m: m._push(m._stack[-1]),  # DUP
    # constants and numbers
    b"N": lambda m: m._push(None),  # NONE
    b"\x88": lambda m: m._push(True),  # NEWTRUE
    b"\x89": lambda m: m._push(False),  # NEWFALSE
    b"I": _M._integer_line,  # INT
    b"L": _M._integer_line,  # LONG
    b"J": lambda m: m._push(m._number(4, signed=True)),  # BININT
    b"K": lambda m: m._push(m._number(1)),  # BININT1
    b"M": lambda m: m._push(m._number(2)),  # BININT2
    b"\x8a": lambda m: m._long(1),  # LONG1
    b"\x8b": lambda m: m._long(4),  # LONG4
    b"F": lambda m: m._push(float(m._line())),  # FLOAT
    b"G": lambda m: m._push(struct.unpack(">d", m._take(8))[0]),  # BINFLOAT
    # text and bytes
    b"S": lambda m: m._push(m._line()[1:-1]),  # STRING: without quotes; escapes stay, since only labels use this form
    b"V": lambda m: m._push(m._line()),  # UNICODE
    b"U": lambda m: m._text(1, "latin-1"),  # SHORT_BINSTRING
    b"T": lambda m: m._text(4, "latin-1"),  # BINSTRING
    b"\x8c": lambda m: m._text(1),  # SHORT_BINUNICODE
    b"X": lambda m: m._text(4),  # BINUNICODE
    b"\x8d": lambda m: m._text(8),  # BINUNICODE8
    b"C": lambda m: m._bytes(1),  # SHORT_BINBYTES
    b"B": lambda m: m._bytes(4),  # BINBYTES
    b"\x8e": lambda m: m._bytes(8),  # BINBYTES8
    b"\x96": lambda m: m._bytes(8),  # BYTEARRAY8
    # lists, tuples, dictionaries, sets
    b"]": lambda m: m._push([]),  # EMPTY_LIST
    b"l": lambda m: m._push(m._pop_mark()),  # LIST
    b"a": lambda m: m._append([m._stack.pop()]),  # APPEND
    b"e": lambda m: m._append(m._pop_mark()),  # APPENDS
    b")": lambda m: m._push(()),  # EMPTY_TUPLE
    b"t": lambda m: m._push(tuple(m._pop_mark())),  # TUPLE
    b"\x85": lambda m: m._tuple(1),  # TUPLE1
    b"\x86": lambda m: m._tuple(2),  # TUPLE2
    b"\x87": lambda m: m._tuple(3),  # TUPLE3
    b"}": lambda m: m._push({}),  # EMPTY_DICT
    b"d": _M._dict_from_mark,  # DICT
    b"s": lambda m: m._set_items([m._stack.pop(), m._stack.pop()][::-1]),  # SETITEM
    b"u": lambda m: m._set_items(m._pop_mark()),  # SETITEMS
    b"\x8f": lambda m: m._push(_A_SET),  # EMPTY_SET
    b"\x90": _M._add_to_set,  # ADDITEMS
    b"\x91": _M._set_from_mark,  # FROZENSET
    # memo
    b"p": lambda m: m._memo.__setitem__(int(m._line()), m._stack[-1]),  # PUT
    b"q": lambda m: m._memo.__setitem__(m._number(1), m._stack[-1]),  # BINPUT
    b"r": lambda m: m._memo.__setitem__(m._number(4), m._stack[-1]),  # LONG_BINPUT
    b"\x94": lambda m: m._memo.__setitem__(len(m._memo), m._stack[-1]),  # MEMOIZE
    b"g": lambda m: m._push(m._memo[int(m._line())]),  # GET
    b"h": lambda m: m._push(m._memo[m._number(1)]),  # BINGET
    b"j": lambda m: m._push(m._memo[m._number(4)]),  # LONG_BINGET
    # globals and objects
    b"c": lambda m: m._push(m._global(m._line(), m._line())),  # GLOBAL
    b"\x93": _M._stack_global,  # STACK_GLOBAL
    b"i": _M._instance,  # INST
    b"o": _M._object,  # OBJ
    b"R": _M._call,  # REDUCE
    b"\x81": _M._call,  # NEWOBJ
    b"\x92": _M._call_with_keywords,  # NEWOBJ_EX
    b"b": _M._build,  # BUILD
    b"Q": _M._persistent,  # BINPERSID
}
_OPCODES = {code[0]: run for code, run in _OPCODES_BY_BYTE.items()}


# ---- what came out of it


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    return value.state.values() if isinstance(value, ScriptModule) else ()


def check_nesting(root: Any) -> None:
    """Refuses cycles and nesting beyond `MAX_DEPTH`, in time linear in the size of the graph and without recursion."""
    # A depth-first walk. `path` holds (container, its children that are still to visit, height so far) from the root
    # down; `active` the containers on that path, to find cycles; `heights` those that are done, since one may be
    # shared by many.
    heights: dict[int, int] = {}
    path: list[tuple[int, Iterator, int]] = [(id(root), iter(_children(root)), 1)]
    active = {id(root)}
    while path:
        node, remaining, height = path.pop()
        for child in remaining:
            grandchildren = _children(child)
            if not grandchildren:
                continue
            if id(child) in active:
                raise Refused("refused an object that contains itself")
            if id(child) in heights:
                height = max(height, heights[id(child)] + 1)
                continue
            path += [(node, remaining, height), (id(child), iter(grandchildren), 1)]
            active.add(id(child))
            break
        else:
            active.discard(node)
            heights[node] = height
            if path:
                parent, others, parent_height = path[-1]
                path[-1] = (parent, others, max(parent_height, height + 1))
        if max(len(path), height) > MAX_DEPTH:
            raise Refused(f"refused objects nested more than {MAX_DEPTH} deep")
