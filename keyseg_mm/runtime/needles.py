"""What secrets look like where they were written down, and finding them there.

A *view* drops from some bytes whatever may stand between the parts of a secret: NULs, which makes numbers of all
widths alike, and UTF-16 like ASCII; all but letters and digits, and their case; all but numbers. A needle is the view
of a secret in one of the ways to write it, and is looked for in the same view of a haystack. Kept of a needle are two
hashes, with which a haystack is searched for all needles at once, in the time that it takes for one.
"""

from __future__ import annotations

import base64
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.keys.derive import sha256

Bytes = NDArray[np.uint8]
#: View, how it was written, and the needle: the view of that.
Form = tuple[str, str, bytes]

_INTEGERS = ('<i1', '<i2', '<i4', '<i8')
_FLOATS = ('<f2', '<f4', '<f8')
_BIG = ('>i2', '>f2', '>f4', '>f8')  # integers of other widths look the same without their NULs
# A run of so many entries is looked for, at up to so many places of a table, not the whole of it: a leak may be cut
# into lines or pages. Even of signs, 64 in a row do not come about by chance.
_RUN, _RUN_OF_SIGNS, _PLACES = 24, 64, 8
# Shorter tables turn up anywhere: a handful of small integers in any file, and signs that all happen to be +1 in every
# fresh batch norm.
_SHORTEST, _SHORTEST_OF_SIGNS = 12, 32
# A haystack is hashed by two words of eight bytes, at every word. An anchor is so long that it has two whole words
# wherever a needle lies; what is shorter comes about by chance.
_WORD, _HASHED = 8, 16
_ANCHOR = _HASHED + _WORD - 1
_APART = 16  # at most so many characters of escaped bytes in a row are written as they are
_ESCAPED = re.compile(rb'\\[xu0-7nrt\'"\\](?:[ -\[\]-~]{0,%d}\\[xu0-7nrt\'"\\]){4,}' % _APART)
#: Bytes at the end of a piece of a haystack that come again in the next one: no needle is written longer.
OVERLAP = 16 * 1024


def squeezed(data: Bytes) -> Bytes:
    """Without NULs."""
    found: Bytes = data[data != 0]
    return found


def _unescaped(data: Bytes) -> Bytes:
    r"""What stands there with ``\x00`` and the like, as Python and JSON write bytes, also one in the other."""
    content, found = data.tobytes(), b''
    for match in _ESCAPED.finditer(content):
        text = content[max(0, match.start() - 2 * _APART) : match.end() + 2 * _APART]
        for _ in range(2):
            text = text.decode('unicode_escape', 'ignore').encode('latin-1', 'ignore')
            found += text
    return squeezed(np.frombuffer(found, np.uint8))


_LOWER = np.zeros(256, np.uint8)
for _code in range(256):
    if chr(_code).isascii() and chr(_code).isalnum():
        _LOWER[_code] = ord(chr(_code).lower())


def _numbers(data: Bytes, negative: bool = False) -> Bytes:
    """Numbers, with a comma after each; of a fraction the digits before and after its point are two."""
    kept = data - np.uint8(ord('0')) < 10  # others wrap around
    there = kept.copy()
    there[1:] |= kept[:-1]
    if negative:
        there[:-1] |= (data[:-1] == ord('-')) & kept[1:]
    found = data[there]
    other = found - np.uint8(ord('0')) >= 10
    found[other & (found != ord('-')) if negative else other] = ord(',')
    return found


_AS_IT_IS = 'as it is'
# Of what `squeezed` has left.
_VIEWS: dict[str, Callable[[Bytes], Bytes]] = {
    'squeezed': lambda data: data,
    'unescaped': _unescaped,
    'letters': lambda data: squeezed(_LOWER[data]),
    'numbers': _numbers,
    'signed numbers': lambda data: _numbers(data, negative=True),
}


def forms_of_secret(raw: bytes) -> Iterator[Form]:
    """The ways to write some secret bytes."""

    def letters(text: str | bytes) -> bytes:
        content = text.encode() if isinstance(text, str) else text
        return squeezed(_LOWER[np.frombuffer(content, np.uint8)]).tobytes()

    for how, data in (('', raw), (', backwards', raw[::-1])):
        yield 'letters', f'hex{how}', letters(data.hex())
        yield 'letters', f'one number{how}', str(int.from_bytes(data, 'big')).encode()
    for form in ('0x{:02x}', '0x{:x}'):
        yield 'letters', 'hex, byte by byte', letters(''.join(map(form.format, raw)))
    # a text looks different at each offset inside a longer one: the first and last characters hang on what is around
    for name, encode, group, width in (('base64', base64.b64encode, 3, 4), ('base32', base64.b32encode, 5, 8)):
        for shift in range(group):
            whole = encode(bytes(shift) + raw).rstrip(b'=')
            yield 'letters', name, letters(whole[width if shift else 0 : -2])
    yield 'squeezed', 'base85', base64.b85encode(raw)
    yield 'squeezed', 'base85', base64.a85encode(raw)
    if len({(after - before) % 256 for before, after in zip(raw, raw[1:])}) == 1:
        return  # no secret but a counter, as a test may take one, and counters stand in many files
    as_text = raw.decode('latin-1').encode()  # as torch.save has bytes pickled
    for how, data in (('raw', raw), ('raw, backwards', raw[::-1]), ('raw, as characters', as_text)):
        yield 'squeezed', how, data.replace(b'\0', b'')
    yield from forms_of_table(np.frombuffer(raw, np.uint8).astype(np.int64))


def forms_of_table(table: NDArray[Any]) -> Iterator[Form]:
    """The ways to write a table: each run of its entries, in each."""
    flat = table.reshape(-1)
    kind = 'floats' if flat.dtype.kind == 'f' else 'signs' if flat.dtype == np.int8 else 'numbers'
    length, shortest = (_RUN_OF_SIGNS, _SHORTEST_OF_SIGNS) if kind == 'signs' else (_RUN, _SHORTEST)
    if len(flat) < shortest:
        return
    length = min(length, len(flat))
    starts = range(0, len(flat) - length + 1, length)
    for start in starts[:: max(1, len(starts) // _PLACES)]:
        yield from _FORMS[kind](flat[start : start + length], start)


def _numbers_forms(run: NDArray[Any], start: int) -> Iterator[Form]:
    numbers = run.tolist()
    for dtype in (*_INTEGERS, *_FLOATS, *_BIG):
        if 'f' in dtype or run.max() <= np.iinfo(dtype).max:
            yield 'squeezed', f'numpy {dtype}', run.astype(dtype).tobytes().replace(b'\0', b'')
    for dtype in (*_INTEGERS, *_FLOATS, *_BIG, '>i4', '>i8') if len(run) < _RUN else ():  # little is left without NULs
        yield _AS_IT_IS, f'numpy {dtype}', run.astype(dtype).tobytes()
    if run.max() < 256:
        yield 'squeezed', 'bytes', bytes(numbers).replace(b'\0', b'')
    yield from _texts('numbers', [str(n) for n in numbers], start)
    for number in (int, float):
        items = (pickle.dumps(number(n), protocol=2)[2:-1] for n in numbers)  # without header and STOP
        yield 'squeezed', f'pickled list of {number.__name__}', b''.join(items).replace(b'\0', b'')


def _signs_forms(run: NDArray[Any], start: int) -> Iterator[Form]:
    numbers = run.tolist()
    if not run.all():  # a mask: without its zeros nothing but ones would be left of it
        for dtype in (*_INTEGERS, *_FLOATS):
            yield _AS_IT_IS, f'numpy {dtype}', run.astype(dtype).tobytes()
        yield 'numbers', 'text', ','.join(map(str, numbers)).encode()
        yield 'letters', 'text', ''.join(str(bool(n)).lower() for n in numbers).encode()
        return
    for dtype in ('<i1', *_FLOATS, '<i2', '<i4', '<i8', '>i2', '>f2', '>f4', '>f8'):
        yield 'squeezed', f'numpy {dtype}', run.astype(dtype).tobytes().replace(b'\0', b'')
    yield from _texts('signed numbers', [str(n) for n in numbers], start)


def _floats_forms(run: NDArray[Any], start: int) -> Iterator[Form]:
    for dtype in (*_FLOATS, '>f2', '>f4', '>f8'):
        yield 'squeezed', f'numpy {dtype}', run.astype(dtype).tobytes().replace(b'\0', b'')
    for how in (lambda x: f'{x:.4f}', lambda x: f'{x:.8f}'.rstrip('0'), repr, lambda x: str(np.float32(x))):
        yield 'signed numbers', 'text', ','.join(how(float(x)) for x in run).replace('.', ',').encode()


def _texts(view: str, words: list[str], start: int) -> Iterator[Form]:
    """As a list, as a list of floats, and as pairs with their places."""
    yield view, 'text', ','.join(words).encode()
    yield view, 'text, as floats', ','.join(f'{word},0' for word in words).encode()
    yield view, 'text, with places', ','.join(f'{start + i},{word}' for i, word in enumerate(words)).encode()


_FORMS: dict[str, Callable[[NDArray[Any], int], Iterator[Form]]] = {
    'numbers': _numbers_forms,
    'signs': _signs_forms,
    'floats': _floats_forms,
}


class Pile:
    """Needles that are looked for together.

    Args:
        needles: what each is, and its form. Those too short to mean anything are left out.
    """

    __slots__ = ('_views',)

    def __init__(self, needles: Iterable[tuple[str, Form]]) -> None:
        by_view: dict[str, dict[bytes, str]] = {}
        for what, (view, how, needle) in needles:
            if len(needle) >= _ANCHOR:
                by_view.setdefault(view, {}).setdefault(needle, f'{what} ({how})')
        self._views = {view: _Index(found) for view, found in by_view.items()}
        if 'squeezed' in self._views:
            self._views['unescaped'] = self._views['squeezed']

    def find(self, data: bytes | memoryview) -> set[str]:
        """What is found in a piece of a haystack."""
        haystack: Bytes = np.frombuffer(data, np.uint8)
        if not haystack.any():
            return set()
        found, short = set(), squeezed(haystack)
        for view, index in self._views.items():
            found |= index.find(haystack if view == _AS_IT_IS else _VIEWS[view](short))
        return found


class _Kept(NamedTuple):
    """What is kept of a needle: where its anchor is in it, its length and hash, and what it is."""

    anchor: int
    length: int
    digest: bytes
    what: str

    @classmethod
    def of(cls, needle: bytes, what: str) -> _Kept:
        # what is in all windows of an anchor has many different bytes, if there are: little else is like it
        inner = slice(_WORD - 1, _HASHED)
        best, most = 0, 0
        for place in range(0, len(needle) - _ANCHOR + 1, 4):
            different = len(set(needle[place:][inner]))
            if different > most:
                best, most = place, different
            if most > _WORD // 2:
                break
        return cls(best, len(needle), sha256(needle), what)


class _Index:
    """The needles of one view, by the hashes of their anchors."""

    __slots__ = ('_factors', '_hashes', '_order', '_is_one', '_shift', '_kept')

    def __init__(self, needles: dict[bytes, str]) -> None:
        self._factors = np.frombuffer(os.urandom(16), '<u8') | np.uint64(1)
        self._kept = [_Kept.of(needle, what) for needle, what in needles.items()]
        anchors = b''.join(needle[kept.anchor :][:_ANCHOR] for needle, kept in zip(needles, self._kept))
        rows = np.frombuffer(anchors, np.uint8).reshape(-1, _ANCHOR)
        pairs = [np.ascontiguousarray(rows[:, place : place + _HASHED]).view('<u8') for place in range(_WORD)]
        hashes = np.stack([self._mix(*pair.T) for pair in pairs], axis=1).ravel()
        self._order = hashes.argsort()
        self._hashes = hashes[self._order]
        bits = len(hashes).bit_length() + 5  # so that one hash in some 64 of another haystack is looked up
        self._shift = np.uint64(64 - bits)
        self._is_one = np.zeros(1 << bits, np.bool_)
        self._is_one[hashes >> self._shift] = True

    def _mix(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
        # a product keeps a change of a highest bit, a sign for one, to its own highest bit: two must not meet there
        mixed: NDArray[np.uint64] = first * self._factors[0] ^ (second * self._factors[1] >> np.uint64(29))
        return mixed

    def find(self, view: Bytes) -> set[str]:
        """What is found in a view."""
        found: set[str] = set()
        if len(view) < _ANCHOR:
            return found
        words = np.frombuffer(view, '<u8', count=len(view) // _WORD)
        mixed = self._mix(words[:-1], words[1:])
        hits = np.flatnonzero(self._is_one[mixed >> self._shift])
        first, last = (np.searchsorted(self._hashes, mixed[hits], side) for side in ('left', 'right'))
        for hit in np.flatnonzero(last > first):
            for number in self._order[first[hit] : last[hit]].tolist():
                kept = self._kept[number // _WORD]
                start = int(hits[hit]) * _WORD - kept.anchor - number % _WORD
                if kept.what not in found and start >= 0:
                    is_there = sha256(view[start : start + kept.length].tobytes()) == kept.digest
                    found |= {kept.what} if is_there else set()
        return found
