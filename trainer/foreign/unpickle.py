"""A reader of pickles that makes data and nothing else: no import, no call, no attribute.

The opcodes are decoded by the standard library's disassembler; what they do is done here, on lists,
`Pairs` and the inert things of inert.py. So there is nothing in it that could run, whatever the
file says; the list of allowed names is there to tell what is no checkpoint.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

from trainer.foreign.inert import Forbidden, Name, Pairs, Record, called, named, stored

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": Pairs,
    "EMPTY_SET": list,
}
_NOTHING = ("PROTO", "FRAME")
_MARK = object()


def read_pickle(data: bytes) -> Any:
    """Raises: Forbidden, whatever is wrong with it."""
    try:
        return _Machine().run(data)
    except (ValueError, IndexError, TypeError, UnicodeError, OverflowError) as e:
        raise Forbidden(f"it is no pickle ({str(e)[:120]})") from e


class _Machine:
    """A stack, and a memory of what was made before."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        stream = io.BytesIO(data)
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return self._pop()
            self._do(opcode.name, argument)
        raise Forbidden("it ends before its end")

    def _do(self, name: str, argument: Any) -> None:
        if name in _NOTHING:
            return
        if name in _ARGUMENT:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name in _DO:
            _DO[name](self, argument)
        else:
            raise Forbidden(f"it uses the opcode {name}, which no checkpoint does")

    # --- the stack ---------------------------------------------------------------------------

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise Forbidden("its marks do not fit")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise Forbidden("its marks do not fit")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:  # IndexError below the bottom is caught above
            at -= 1
            if at < 0:
                raise Forbidden("its marks do not fit")
        found = self._stack[at + 1 :]
        del self._stack[at:]
        return found

    # --- containers --------------------------------------------------------------------------

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise Forbidden("it appends to what is no list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, Pairs) or len(items) % 2:
            raise Forbidden("it sets items of what is no dictionary")
        target.items.extend(zip(items[::2], items[1::2], strict=True))

    def _two(self) -> list[Any]:
        value = self._pop()
        return [self._pop(), value]

    def _dictionary(self) -> None:
        items = self._since_mark()
        self._stack.append(Pairs())
        self._set_items(items)

    # --- memory ------------------------------------------------------------------------------

    def _put(self, at: int) -> None:
        self._memo[at] = self._top()

    def _get(self, at: int) -> None:
        if at not in self._memo:
            raise Forbidden("it remembers what it never said")
        self._stack.append(self._memo[at])

    # --- names and objects -------------------------------------------------------------------

    def _global(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._stack.append(named(module, name))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(named(module, name))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(called(function, arguments))

    def _new(self, *, with_keywords: bool) -> None:
        keywords = self._pop() if with_keywords else Pairs()
        if not isinstance(keywords, Pairs) or keywords.items:
            raise Forbidden("it makes an object with named arguments")
        self._reduce()

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, Name) or not isinstance(target, Pairs):
            raise Forbidden("it changes the state of what has none")

    def _persistent(self) -> None:
        self._stack.append(stored(self._pop()))


_DO: dict[str, Callable[[_Machine, Any], Any]] = {
    "POP": lambda m, _: m._stack.pop(),
    "POP_MARK": lambda m, _: m._since_mark(),
    "DUP": lambda m, _: m._stack.append(m._top()),
    "TUPLE": lambda m, _: m._stack.append(tuple(m._since_mark())),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "LIST": lambda m, _: m._stack.append(m._since_mark()),
    "FROZENSET": lambda m, _: m._stack.append(m._since_mark()),
    "DICT": lambda m, _: m._dictionary(),
    "APPEND": lambda m, _: m._extend([m._pop()]),
    "APPENDS": lambda m, _: m._extend(m._since_mark()),
    "ADDITEMS": lambda m, _: m._extend(m._since_mark()),
    "SETITEM": lambda m, _: m._set_items(m._two()),
    "SETITEMS": lambda m, _: m._set_items(m._since_mark()),
    "PUT": lambda m, at: m._put(at),
    "BINPUT": lambda m, at: m._put(at),
    "LONG_BINPUT": lambda m, at: m._put(at),
    "MEMOIZE": lambda m, _: m._put(len(m._memo)),
    "GET": lambda m, at: m._get(at),
    "BINGET": lambda m, at: m._get(at),
    "LONG_BINGET": lambda m, at: m._get(at),
    "GLOBAL": lambda m, text: m._global(text),
    "STACK_GLOBAL": lambda m, _: m._stack_global(),
    "REDUCE": lambda m, _: m._reduce(),
    "NEWOBJ": lambda m, _: m._new(with_keywords=False),
    "NEWOBJ_EX": lambda m, _: m._new(with_keywords=True),
    "BUILD": lambda m, _: m._build(),
    "BINPERSID": lambda m, _: m._persistent(),
}
