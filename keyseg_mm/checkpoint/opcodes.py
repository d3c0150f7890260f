"""A reader of the pickles that ``torch.save`` writes of plain values and tensors (protocol 2), and of no others.

The opcodes are those of Python's ``pickletools``. Whatever else a pickle may say is an error, and what it may name is
handed in; a memo is a dict, so that no number in a file decides how much memory it takes. Keys are texts and numbers
whose hashes nobody can make alike.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from keyseg_mm.checkpoint.known import Known, Names, RefusedError, UnreadableError, check_keys

_INT, _SHORT, _FLOAT = struct.Struct('<i'), struct.Struct('<H'), struct.Struct('>d')
_MARK = object()
_LONGEST = 64  # bytes of a whole number
# A training checkpoint of the largest models takes half of it; done in a second.
_MOST_STEPS = 1_000_000
_PROTOCOL, _LONG_PUT = 2, ord('r')


def unpickle(content: bytes, names: Names, persistent: Callable[[Any], Any], at: int = 0) -> tuple[Any, int]:
    """What a pickle holds, and where it ends.

    Args:
        content: the pickle, and whatever comes after it.
        names: what it may name, by module and name: a :class:`Known`, or a plain value.
        persistent: gives what the pickle refers to by a persistent id.
        at: where it begins.

    Raises:
        RefusedError: it names anything else.
        UnreadableError: it is damaged, or larger than that of any model.
    """
    machine = _Machine(content, names, persistent)
    table, stack, memo = _OPCODES, machine.stack, machine.memo
    try:
        for _ in range(_MOST_STEPS):
            opcode = content[at]
            if opcode == _LONG_PUT:  # every fourth one, and most of them for nothing
                memo[int.from_bytes(content[at + 1 : at + 5], 'little')] = stack[-1]
                at += 5
                continue
            after = table[opcode](machine, at + 1)
            if after < 0:
                (found,) = machine.stack
                return found, at + 1
            at = after
    except RefusedError:
        raise
    except Exception as error:  # a damaged file stumbles over anything
        raise UnreadableError from error
    raise UnreadableError


class _Machine:
    __slots__ = ('content', 'names', 'persistent', 'stack', 'memo')

    def __init__(self, content: bytes, names: Names, persistent: Callable[[Any], Any]) -> None:
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
                raise UnreadableError
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
            raise UnreadableError
        m.stack[-count:] = [items]
        return at

    return step


def _text(m: _Machine, at: int) -> int:
    end = at + 4 + int.from_bytes(m.content[at : at + 4], 'little')
    if end > len(m.content):
        raise UnreadableError
    m.stack.append(str(m.content[at + 4 : end], 'utf-8'))
    return end


def _put(m: _Machine, at: int) -> int:
    m.memo[m.content[at]] = m.stack[-1]
    return at + 1


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
        raise UnreadableError
    m.stack.append(int.from_bytes(m.content[at + 1 : end], 'little', signed=True))
    return end


def _short_text(m: _Machine, at: int) -> int:
    """A text that Python 2 wrote."""
    end = at + 1 + m.content[at]
    if end > len(m.content):
        raise UnreadableError
    m.stack.append(str(m.content[at + 1 : end], 'ascii'))
    return end


def _name(m: _Machine, at: int) -> int:
    middle = m.content.index(b'\n', at)
    end = m.content.index(b'\n', middle + 1)
    module, name = str(m.content[at:middle], 'ascii'), str(m.content[middle + 1 : end], 'ascii')
    module = 'builtins' if module == '__builtin__' else module  # as Python 2 called it, and protocol 2 does
    if (module, name) not in m.names:
        raise RefusedError(f'{module}.{name}')
    m.stack.append(m.names[module, name])
    return end + 1


def _protocol(m: _Machine, at: int) -> int:
    if m.content[at] != _PROTOCOL:
        raise RefusedError(f'pickle protocol {m.content[at]}')
    return at + 1


def _persistent(m: _Machine, at: int) -> int:
    m.stack[-1] = m.persistent(m.stack[-1])
    return at


def _call(m: _Machine, at: int) -> int:
    arguments = m.stack.pop()
    what = m.stack[-1]
    if type(arguments) is not tuple or type(what) is not Known:
        raise UnreadableError
    m.stack[-1] = what.make(*arguments)
    return at


def _state(m: _Machine, at: int) -> int:
    state: Any = m.stack.pop()
    into: Any = m.stack[-1]
    for known in m.names.values():
        if type(known) is Known and known.build is not None and type(into) is known.kind:
            known.build(into, state)
            return at
    raise UnreadableError


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
        raise UnreadableError
    keys = items[::2]
    check_keys(keys)
    into.update(zip(keys, items[1::2]))


def _appends(m: _Machine, at: int) -> int:
    items = m.since_mark()
    if type(m.stack[-1]) is not list:
        raise UnreadableError
    m.stack[-1].extend(items)
    return at


def _append(m: _Machine, at: int) -> int:
    item = m.stack.pop()
    if type(m.stack[-1]) is not list:
        raise UnreadableError
    m.stack[-1].append(item)
    return at


def _marked_tuple(m: _Machine, at: int) -> int:
    m.stack.append(tuple(m.since_mark()))
    return at


_OPCODES: dict[int, Callable[[_Machine, int], int]] = {
    ord(opcode): step
    for opcode, step in {
        '\x80': _protocol,
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
        'U': _short_text,
        'q': _put,
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
        '\x81': _call,
        'b': _state,
        'u': _items,
        's': _item,
        'e': _appends,
        'a': _append,
        '.': lambda m, at: -1,
    }.items()
}
