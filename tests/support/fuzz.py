"""What is fuzzed: each format with good examples, ways to change them, and what reads them.

An input is right, or an error of this package; anything else is a finding: another error, a crash, five seconds.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch

from keyseg_mm import Identity, SecretKey
from keyseg_mm.checkpoint.files import read_checkpoint
from keyseg_mm.checkpoint.safetensors import write_safetensors
from keyseg_mm.entries import MapEntry
from keyseg_mm.envelope import read_seal, read_wrapped, write_seal
from keyseg_mm.errors import KeyFileError, KeysegError
from keyseg_mm.keys import keyfile, locator
from keyseg_mm.keys.identity import Recipient, read_key
from keyseg_mm.keys.keyfile import parse_key
from keyseg_mm.keys.locator import locate, refuse_secret
from keyseg_mm.mm.config_text import refuse_programs
from keyseg_mm.model.points import Point
from keyseg_mm.seal.nested import tensors_of
from keyseg_mm.seal.sections import Sealing, seal_checkpoint, unseal_checkpoint
from keyseg_mm.stamp import Stamp, stamps_of
from keyseg_mm.wrapping import Secrets, close_envelope, open_envelope

_JSON_ERRORS = (ValueError, RecursionError)  # what Python says of a text, and ours of a document
KEY, IDENTITY = SecretKey(bytes(range(32))), Identity(bytes(range(32)))
SALT = bytes(range(16))


@dataclass(frozen=True)
class Target:
    """A format.

    Attributes:
        examples: makes good inputs.
        act: reads one.
        is_file: whether it is that of a file of weights, which takes longer.
        inner: changes what lies inside of an input, so that its outer form stays right.
        errors: what is no finding, beside this package's errors.
    """

    examples: Callable[[], list[bytes]]
    act: Callable[[bytes], object]
    is_file: bool = False
    inner: Callable[[bytes, random.Random], bytes] | None = None
    errors: tuple[type[Exception], ...] = ()

    def read(self, data: bytes) -> bool:
        """Whether an input is right; raises what is a finding."""
        try:
            self.act(data)
        except (KeysegError, *self.errors):
            return False
        return True


# ---- changes

_TOKENS = [  # of JSON, of texts, of pickles
    *(
        b'0',
        b'-1',
        b'1e999',
        b'NaN',
        b'null',
        b'true',
        b'""',
        b'[]',
        b'{}',
        b'"',
        b'\\',
        b'9' * 30,
        b'9' * 5000,
        b'[' * 2000,
    ),
    *(
        b'\0',
        b'\xff' * 4,
        b'\xff' * 8,
        b'\xf0\x9f\x98\x80',
        b'\xed\xa0\x80',
        b'\x1b[31m',
        b':',
        b'#',
        b'\n',
        b' ',
        b'=',
    ),
    *(b'h\0', b'q\0', b'R', b'b', b'\x81', b'(', b't', b'\x85', b'Q', b'}', b']', b'N', b'.', b'cos\nsystem\n', b'K\0'),
]


def mutate(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """An input with some changes; deterministic by ``draw``."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at, end = sorted(draw.randrange(len(found) + 1) for _ in range(2))
        end = min(end, at + draw.choice((1, 2, 8, 64, 10**9)))
        how = draw.randrange(8)
        if how == 0 and found:
            found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
        elif how == 1 and found:
            found[draw.randrange(len(found))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        elif how == 2:
            del found[at:end]
        elif how == 3:
            found[at:at] = draw.choice(_TOKENS)
        elif how == 4:
            token = draw.choice(_TOKENS)
            found[at : at + len(token)] = token
        elif how == 5:
            found[at:at] = found[at:end][:4096]
        elif how == 6:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            found[at:at] = other[start : start + draw.choice((1, 4, 32, 256))]
        else:
            size = draw.choice((1, 2, 4, 8))
            value = draw.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)) % 2 ** (8 * size)
            found[at : at + size] = value.to_bytes(size, draw.choice(('little', 'big')))
    return bytes(found)


def change_json(data: bytes, draw: random.Random) -> bytes:
    """Other values somewhere in a JSON document, written as stamps are."""
    values: list[Any] = [None, True, 0, -1, 2**31, 2**64, 1.5, '', 'a', 'in:a', [], {}, [[]], 'x' * 600, '00' * 16]
    document = json.loads(data)
    spots: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            spots.append((value, key))
            walk(value[key])

    walk(document)
    for _ in range(draw.choice((1, 1, 2, 3))):
        owner, key = draw.choice(spots)
        how = draw.randrange(4)
        with suppress(KeyError, IndexError):  # an earlier change took it away
            if how == 0:
                del owner[key]
            elif how == 1 and isinstance(owner[key], str):
                owner[key] = mutate(owner[key].encode(), draw, [b'a']).decode('utf-8', 'replace')
            elif how == 2:
                owner[key] = draw.choice(draw.choice(spots)[0:1] and values)
            elif isinstance(owner, list):
                owner.append(owner[key])
            else:
                owner[draw.choice(('key_id', 'entries', 'seal', 'new'))] = owner[key]
    return json.dumps(document, separators=(',', ':')).encode()


def change_pickle(data: bytes, draw: random.Random) -> bytes:
    """Another pickle in a ``.pth`` file that is an archive as it should be."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([name for name in parts if name.endswith('data.pkl')] * 8 + list(parts))
    parts[name] = mutate(parts[name], draw, list(parts.values()))
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return file.getvalue()


def change_header(data: bytes, draw: random.Random) -> bytes:
    """Another header in a ``.safetensors`` file, after its length."""
    end = 8 + int.from_bytes(data[:8], 'little')
    change = change_json if draw.randrange(2) else lambda text, draw: mutate(text, draw, [text])
    text = change(data[8:end], draw)
    return len(text).to_bytes(8, 'little') + text + data[end:]


# ---- examples


def _stamp(sealed: bool = False) -> Stamp:
    transform = {'type': 'ChannelPermutation'}
    entries = (MapEntry('in:a', 4, transform, ('a.weight',)), MapEntry('out:b:0', 8, transform))
    stamp = Stamp(KEY.id, SALT, entries)
    return close_envelope(stamp, Secrets(KEY.features(SALT)), [KEY, IDENTITY]) if sealed else stamp


@cache
def _sealed() -> dict[str, Any]:
    weights = {'a.weight': torch.arange(12.0).view(3, 4), 'b': torch.ones(2, dtype=torch.int64), 'n': torch.tensor(1.5)}
    content = {'meta': {'epoch': 1, 'classes': ['a', 'b']}, 'state_dict': weights}
    content['optimizer'] = {'state': {0: {'step': torch.ones(1)}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]}
    return seal_checkpoint(content, Sealing(KEY, (KEY, IDENTITY)))


def _pth(**how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(_sealed(), file, **how)
    return file.getvalue()


def _pth_of_training() -> bytes:
    import numpy as np
    from mmengine.logging import HistoryBuffer

    hub = {'log_scalars': {'loss': HistoryBuffer([1.0], [1])}, 'runtime_info': {'best': np.float32(1), 'text': b'a'}}
    file = io.BytesIO()
    torch.save({'state_dict': {'a': torch.nn.Parameter(torch.ones(2))}, 'message_hub': hub, 'set': {1}}, file)
    return file.getvalue()


def _safetensors() -> bytes:
    file = io.BytesIO()
    write_safetensors({name: _sealed()[name] for name in ('meta', 'state_dict')}, file)
    return file.getvalue()


def _stamps() -> list[bytes]:
    sealed = next(iter(stamps_of(_sealed()['state_dict']).values()))
    return [_stamp().to_bytes(), _stamp(True).to_bytes(), sealed.to_bytes()]


def _sealed_key() -> list[bytes]:
    with mock.patch.object(keyfile, 'SCRYPT_COST', {'n': 2, 'r': 1, 'p': 1}):
        return [keyfile._seal(KEY, 'pass').encode()]


def _seals() -> list[bytes]:
    stamp = next(iter(stamps_of(_sealed()['state_dict']).values()))
    assert stamp.seal is not None
    return [json.dumps(write_seal(stamp.seal)).encode()]


def _lines() -> list[bytes]:
    return [json.dumps(line).encode() for line in json.loads(_stamps()[1])['recipients']]


# ---- what reads them


def _read_file(data: bytes) -> None:
    content = read_checkpoint(data)
    tensors_of(content)
    if stamps_of(content['state_dict']):
        unseal_checkpoint(KEY, content)


def _open(data: bytes) -> None:
    stamp = Stamp.from_bytes(data)
    for key in (KEY, IDENTITY):
        with suppress(KeysegError):
            open_envelope(key, stamp)


def _locate(data: bytes) -> None:
    """Programs are not run, nor is the system's keyring asked."""

    def no(_: str) -> Any:
        raise KeyFileError('not here')

    text = data.decode('utf-8', 'surrogateescape')
    with mock.patch.object(locator, '_of_command', no), mock.patch.object(locator, '_of_keyring', no):
        locate(text)
    refuse_secret(text)


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode('utf-8', 'surrogateescape'))


TARGETS = {
    'key files': Target(
        lambda: [KEY.to_text().encode(), b'# a comment\n' + IDENTITY.to_text().encode() + b'\n'],
        lambda data: parse_key(data, 'here'),
    ),
    'sealed key files': Target(_sealed_key, lambda data: parse_key(data, 'here', lambda _: 'pass'), inner=change_json),
    'keys and identities': Target(lambda: [KEY.to_text().encode(), IDENTITY.to_text().encode()], _text(read_key)),
    'recipients': Target(lambda: [IDENTITY.recipient.to_text().encode()], _text(Recipient.from_text)),
    'locators': Target(
        lambda: [
            b'file:a.key',
            b'env:KEYSEG_KEY',
            b'random:1',
            b'none',
            b'cmd:a b',
            b'keyring:a',
            KEY.to_text().encode(),
        ],
        _locate,
    ),
    'points': Target(lambda: [b'out:backbone:0', b'in:decode_head.convs.0.conv', b'out:neck'], _text(Point.parse)),
    'stamps': Target(_stamps, Stamp.from_bytes, inner=change_json),
    'envelopes': Target(_stamps, _open, inner=change_json),
    'lines of an envelope': Target(
        _lines, lambda data: read_wrapped(json.loads(data)), False, change_json, _JSON_ERRORS
    ),
    'seals': Target(_seals, lambda data: read_seal(json.loads(data)), False, change_json, _JSON_ERRORS),
    'configs in checkpoints': Target(
        lambda: [b"model = dict(type='EncoderDecoder', a=[1, -2.5, None], b={'type': 'mmseg.FCNHead'})\nx = 'y'\n"],
        _text(refuse_programs),
    ),
    '.pth': Target(lambda: [_pth(), _pth_of_training()], _read_file, True, change_pickle),
    '.pth of before torch 1.6': Target(lambda: [_pth(_use_new_zipfile_serialization=False)], _read_file, True),
    '.safetensors': Target(lambda: [_safetensors()], _read_file, True, change_header),
}


def inputs(target: Target, seed: int) -> Any:
    """Inputs without end, deterministic by the seed."""
    examples = target.examples()
    draw = random.Random(seed)  # noqa: S311
    while True:
        example = draw.choice(examples)
        inner = target.inner if draw.randrange(4) else None
        yield mutate(example, draw, examples) if inner is None else inner(example, draw)
