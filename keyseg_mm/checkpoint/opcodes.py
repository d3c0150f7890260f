"""A reader of the pickles that ``torch.save`` writes of plain values and tensors (protocol 2), and of no others.

The opcodes are those of Python's ``pickletools``. Whatever else a pickle may say is an error, and what it may name is
handed in; a memo is a dict, so that no number in a file decides how much memory it takes.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

_INT, _SHORT, _FLOAT = struct.Struct('<i'), struct.Struct('<H'), struct.Struct('>d')
_MARK = object()
_LONGEST = 64  # bytes of a whole number


class NotQuick(Exception):
    """This file is one for ``torch.load``."""


def unpickle(content: bytes, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any]) -> Any:
    """What a pickle holds.

    Args:
        content: the pickle.
        names: what it may name, by module and name; what is called of it is called with what the pickle says.
        persistent: gives what the pickle refers to by a persistent id.

    Raises:
        NotQuick: it says anything else.
    """
    machine = _Machine(content, names, persistent)
    at, table = 0, _OPCODES
    try:
        while True:
            step = table.get(content[at])
            if step is None:
                raise NotQuick
            at = step(machine, at + 1)
            if at < 0:
                (found,) = machine.stack
                return found
    except (IndexError, KeyError, TypeError, ValueError, struct.error, AttributeError) as error:
        raise NotQuick from error


class _Machine:
    __slots__ = ('content', 'names', 'persistent', 'stack', 'memo')

    def __init__(self, content: bytes, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any]) -> None:
        self.content, self.names, self.persistent = content, names, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        """What was put on the stack since the last mark; both are taken off."""
        stack = self.stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise NotQuick
        found = stack[at + 1 :]
        del stack[at:]
        return found


def _push(make: Callable[[], Any]) -> Callable[[_Machine, int], int]:
    def step(m: _Machine, at: int) -> int:
        m.stack.append(make())
        return at

    return step


def _tuple(count: int) -> Callable[[_Machine, int], int]:
    def step(m: _Machine, at: int) -> int:
        items = tuple(m.stack[-count:])
        if len(items) != count:
            raise NotQuick
        m.stack[-count:] = [items]
        return at

    return step


def _text(m: _Machine, at: int) -> int:
    end = at + 4 + int.from_bytes(m.content[at : at + 4], 'little')
    if end > len(m.content):
        raise NotQuick
    m.stack.append(str(m.content[at + 4 : end], 'utf-8'))
    return end


def _put(m: _Machine, at: int) -> int:
    m.memo[m.content[at]] = m.stack[-1]
    return at + 1


def _long_put(m: _Machine, at: int) -> int:
    m.memo[int.from_bytes(m.content[at : at + 4], 'little')] = m.stack[-1]
    return at + 4


def _get(m: _Machine, at: int) -> int:
    m.stack.append(m.memo[m.content[at]])
    return at + 1


def _long_get(m: _Machine, at: int) -> int:
    m.stack.append(m.memo[int.from_bytes(m.content[at : at + 4], 'little')])
    return at + 4


def _number(form: struct.Struct) -> Callable[[_Machine, int], int]:
    def step(m: _Machine, at: int) -> int:
        m.stack.append(form.unpack_from(m.content, at)[0])
        return at + form.size

    return step


def _byte(m: _Machine, at: int) -> int:
    m.stack.append(m.content[at])
    return at + 1


def _long(m: _Machine, at: int) -> int:
    end = at + 1 + m.content[at]
    if m.content[at] > _LONGEST or end > len(m.content):
        raise NotQuick
    m.stack.append(int.from_bytes(m.content[at + 1 : end], 'little', signed=True))
    return end


def _name(m: _Machine, at: int) -> int:
    middle = m.content.index(b'\n', at)
    end = m.content.index(b'\n', middle + 1)
    m.stack.append(m.names[str(m.content[at:middle], 'ascii'), str(m.content[middle + 1 : end], 'ascii')])
    return end + 1


def _persistent(m: _Machine, at: int) -> int:
    m.stack[-1] = m.persistent(m.stack[-1])
    return at


def _call(m: _Machine, at: int) -> int:
    arguments = m.stack.pop()
    what = m.stack[-1]
    if type(arguments) is not tuple or not callable(what) or what not in m.names.values():
        raise NotQuick
    m.stack[-1] = what(*arguments)
    return at


def _state(m: _Machine, at: int) -> int:
    """What torch hangs on a state_dict: attributes of an OrderedDict."""
    state: Any = m.stack.pop()
    into: Any = m.stack[-1]
    if type(into) is not OrderedDict or type(state) is not dict or set(state) != {'_metadata'}:
        raise NotQuick
    vars(into).update(state)
    return at


def _items(m: _Machine, at: int) -> int:
    items = m.since_mark()
    _fill(m.stack[-1], items)
    return at


def _item(m: _Machine, at: int) -> int:
    items = m.stack[-2:]
    del m.stack[-2:]
    _fill(m.stack[-1], items)
    return at


def _fill(into: Any, items: list[Any]) -> None:
    if type(into) not in (dict, OrderedDict) or len(items) % 2:
        raise NotQuick
    into.update(zip(items[::2], items[1::2]))


def _appends(m: _Machine, at: int) -> int:
    items = m.since_mark()
    if type(m.stack[-1]) is not list:
        raise NotQuick
    m.stack[-1].extend(items)
    return at


def _append(m: _Machine, at: int) -> int:
    item = m.stack.pop()
    if type(m.stack[-1]) is not list:
        raise NotQuick
    m.stack[-1].append(item)
    return at


def _marked_tuple(m: _Machine, at: int) -> int:
    m.stack.append(tuple(m.since_mark()))
    return at


_OPCODES: dict[int, Callable[[_Machine, int], int]] = {
    ord(opcode): step
    for opcode, step in {
        '\x80': lambda m, at: at + 1 if m.content[at] == 2 else -1,
        '}': _push(dict),
        ']': _push(list),
        ')': _push(tuple),
        'N': _push(lambda: None),
        '\x88': _push(lambda: True),
        '\x89': _push(lambda: False),
        '(': _push(lambda: _MARK),
        't': _marked_tuple,
        '\x85': _tuple(1),
        '\x86': _tuple(2),
        '\x87': _tuple(3),
        'X': _text,
        'q': _put,
        'r': _long_put,
        'h': _get,
        'j': _long_get,
        'J': _number(_INT),
        'M': _number(_SHORT),
        'G': _number(_FLOAT),
        'K': _byte,
        '\x8a': _long,
        'c': _name,
        'Q': _persistent,
        'R': _call,
        'b': _state,
        'u': _items,
        's': _item,
        'e': _appends,
        'a': _append,
        '.': lambda m, at: -1,
    }.items()
}
