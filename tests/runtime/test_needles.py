"""Each way in which a secret may have been written is found, and nothing else is taken for one."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from keyseg_mm import SecretKey, Stamp, find_leaks
from keyseg_mm.bind import derive_map, map_subkey
from keyseg_mm.errors import KeysegError, SecretExposedError
from keyseg_mm.runtime import haystack
from keyseg_mm.runtime.haystack import Search, search_file
from keyseg_mm.runtime.leaks import Needles, search_object
from keyseg_mm.stamp import MapEntry

RAW, SALT = bytes((73 * n * n + 11 * n + 5) % 256 for n in range(32)), bytes(16)
KEY, TEXT = SecretKey(RAW), 3 * RAW.hex().encode()
STAMP = Stamp(
    KEY.id,
    SALT,
    (
        MapEntry('in:x', 320, {'type': 'ChannelPermutation'}),
        MapEntry('in:y', 64, {'type': 'SignedChannelPermutation'}),
        MapEntry('in:z', 8, {'type': 'ChannelRotation'}),
    ),
)
TABLES = [derive_map(KEY, SALT, entry).tables() for entry in STAMP.maps]
TABLE, SHORT, SIGNS = TABLES[0]['permutation'], TABLES[1]['permutation'], TABLES[1]['signs']
ROTATION = TABLES[2]['rotation']


@pytest.fixture(scope='module')
def needles():
    return Needles(KEY, [STAMP])


PLANTS = {
    'raw key': lambda: b'xx' + RAW + b'yy',
    'raw key, backwards': lambda: RAW[::-1],
    'hex key': lambda: RAW.hex().encode(),
    'upper hex': lambda: b'key=' + RAW.hex().upper().encode(),
    'spaced hex': lambda: RAW.hex(' ', 2).encode(),
    'hex with colons, in two lines': lambda: (RAW[:16].hex(':') + ':\n    ' + RAW[16:].hex(':')).encode(),
    'hex of C': lambda: ', '.join(f'0x{n:02X}' for n in RAW).encode(),
    'one number': lambda: str(int.from_bytes(RAW, 'little')).encode(),
    'text': lambda: KEY.to_text().encode(),
    'text without its prefix': lambda: KEY.to_text()[20:].encode(),
    'text in lower case with dashes': lambda: KEY.to_text().lower().encode(),
    'text with spaces': lambda: KEY.to_text().replace('-', ' ').encode(),
    'UTF-16': lambda: KEY.to_text().encode('utf-16'),
    'UTF-32, big end first': lambda: RAW.hex().encode('utf-32-be'),
    'base32': lambda: base64.b32encode(RAW),
    'base32 inside more': lambda: base64.b32encode(b'ab' + RAW + b'c'),
    'base64': lambda: base64.b64encode(RAW),
    'base64 for a URL': lambda: base64.urlsafe_b64encode(RAW),
    'base64 in lines': lambda: b'\n'.join(re.findall(b'.{1,10}', base64.b64encode(RAW))),
    'base64 inside more': lambda: base64.b64encode(b'a longer text ' + RAW + b' and on'),
    'base64 at another offset': lambda: base64.b64encode(b'ab' + RAW),
    'base85': lambda: base64.b85encode(RAW),
    'repr': lambda: repr({'key': RAW}).encode(),
    'repr in JSON': lambda: json.dumps({'said': repr(RAW)}).encode(),
    'JSON of characters': lambda: json.dumps(RAW.decode('latin-1')).encode(),
    'saved by torch': lambda: pickle.dumps({'a': RAW}, protocol=2),
    'list': lambda: str(list(RAW)).encode(),
    'printed bytes': lambda: str(torch.tensor(list(RAW), dtype=torch.uint8)).encode(),
    'bytes as int64': lambda: np.array(list(RAW)).tobytes(),
    'subkey': lambda: subkey(),
    'subkey, repr': lambda: repr(subkey()).encode(),
    'secret of the model': lambda: KEY.features(SALT).material.hex(' ').encode(),
    'int64 table': lambda: TABLE.tobytes(),
    'int32 table': lambda: TABLE.astype('<i4').tobytes(),
    'int32 table, big end first': lambda: TABLE.astype('>i4').tobytes(),
    'uint8 table': lambda: SHORT.astype('u1').tobytes(),
    'float table': lambda: TABLE.astype('f4').tobytes(),
    'half of a table': lambda: TABLE[140:][:64].tobytes(),
    'inverse table': lambda: np.argsort(TABLE).tobytes(),
    'JSON table': lambda: json.dumps(TABLE.tolist()).encode(),
    'indented JSON table': lambda: json.dumps({'a': TABLE.tolist()}, indent=8).encode(),
    'YAML table': lambda: '\n'.join(f'- {n}' for n in TABLE).encode(),
    'printed list': lambda: str(TABLE.tolist()).encode(),
    'printed array': lambda: str(TABLE).encode(),
    'printed array of floats': lambda: str(TABLE.astype(float)).encode(),
    'printed tensor': lambda: str(torch.from_numpy(TABLE)).encode(),
    'printed tensor of floats': lambda: str(torch.from_numpy(TABLE).float()).encode(),
    'printed dict': lambda: str(dict(enumerate(TABLE.tolist()))).encode(),
    'CSV with places': lambda: '\n'.join(f'{i};{n}' for i, n in enumerate(TABLE)).encode(),
    'pickled table': lambda: pickle.dumps({'perm': TABLE.tolist()}, protocol=2),
    'pickled in text': lambda: pickle.dumps(TABLE.tolist(), protocol=0),
    'signs': lambda: SIGNS.tobytes(),
    'signs as floats, big end first': lambda: SIGNS.astype('>f4').tobytes(),
    'printed signs': lambda: str(SIGNS).encode(),
    'printed tensor of signs': lambda: str(torch.from_numpy(SIGNS).float()).encode(),
    'rotation': lambda: ROTATION.astype('f4').tobytes(),
    'printed rotation': lambda: str(torch.from_numpy(ROTATION)).encode(),
    'rotation in JSON': lambda: json.dumps(ROTATION.tolist()).encode(),
    'gzip': lambda: gzip.compress(TEXT),
    'bz2': lambda: bz2.compress(TEXT),
    'xz': lambda: lzma.compress(TEXT),
    'zip': lambda: zipped(TEXT, zipfile.ZIP_DEFLATED),
    'zip in a zip': lambda: zipped(zipped(TEXT, zipfile.ZIP_DEFLATED), zipfile.ZIP_STORED),
    'tar.gz': lambda: gzip.compress(tarred(TEXT)),
    'gzip in a tar': lambda: tarred(gzip.compress(TEXT)),
}
PACKED = ('gzip', 'bz2', 'xz', 'zip', 'tar')


def subkey():
    return map_subkey(KEY, SALT, STAMP.maps[0])


def zipped(content, how):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', how) as archive:
        archive.writestr('inner.bin', content)
    return file.getvalue()


def tarred(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        member = tarfile.TarInfo('inner.bin')
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


CLEAN = (
    np.random.default_rng(0).bytes(300_000)
    + str(list(range(500))).encode()
    + np.arange(5000).tobytes()
    + np.ones(5000, 'f4').tobytes()
    + str(np.random.default_rng(0).integers(0, 320, 20_000).tolist()).encode()
)


def test_a_clean_haystack_is_clean(needles):
    assert needles.search('here', CLEAN) == []


@pytest.mark.parametrize('plant', PLANTS)
def test_planted_secrets_are_found(plant, needles, tmp_path):
    planted = PLANTS[plant]()
    if plant.startswith(PACKED):
        assert TEXT not in planted
    else:
        planted = CLEAN[:7777] + b'before ' + planted + b' after' + CLEAN[7777:9999]
    (tmp_path / 'leak.bin').write_bytes(planted)
    search = Search()
    search_file(tmp_path / 'leak.bin', needles.pile, search)
    assert search.leaks and all('leak.bin' in leak.where for leak in search.leaks) and not search.unread
    assert not any(KEY.to_text()[20:28] in str(leak) or RAW.hex()[:8] in str(leak) for leak in search.leaks)


def test_a_secret_is_found_wherever_it_lies(needles):
    """At each offset modulo the word that is hashed, and across the pieces in which a file is read."""
    for start in (*range(16), *range(2**20 - 40, 2**20 + 8), 2**21 + 5):
        assert needles.search('here', bytes(start) + RAW + b'1'), start
        assert needles.search('here', b'7' * start + RAW + b'1'), start


def test_what_is_left_of_the_needles_is_not_the_secrets(needles):
    assert repr(needles) == f'<Needles of {KEY.id}>'
    with pytest.raises(SecretExposedError):
        pickle.dumps(needles)
    with pytest.raises(TypeError):
        vars(needles)


def test_objects_are_searched_throughout(needles):
    clean = {'a': torch.randn(50_000), 'b': [1, 2, 3], 'c': {'d': 'text', 'e': np.arange(1000)}, 'f': None}
    assert search_object('x', clean, needles) == []
    big = torch.randn(500_000)
    big.view(torch.uint8)[100:132] = torch.tensor(list(RAW), dtype=torch.uint8)

    class Thing:
        kept = None

    thing = Thing()
    thing.kept = [TABLE.tolist()]
    for leak in (big, [[torch.from_numpy(TABLE)]], TABLE.tolist(), {'k': KEY.to_text()}, {KEY.to_text(): 1}, thing):
        assert search_object('x', {**clean, 'leak': leak}, needles)[0].where.startswith('x.leak')
    spread = dict(enumerate(TABLE.tolist()))
    assert search_object('x', {**clean, 'leak': spread}, needles)


def test_links_and_pipes_are_not_followed(tmp_path):
    (tmp_path / 'outside').write_bytes(RAW)
    folder = tmp_path / 'folder'
    folder.mkdir()
    (folder / 'link').symlink_to(tmp_path / 'outside')
    (folder / 'loop').symlink_to(folder)
    os.mkfifo(folder / 'pipe')
    search = Search()
    assert haystack.files_in(folder, search) == [] and len(search.others) == 3
    assert find_leaks(folder, KEY) == []
    assert find_leaks(folder / 'link', KEY), 'a link that is named is meant'
    (folder / RAW.hex()).write_bytes(b'')
    assert 'the name of' in str(find_leaks(folder, KEY)[0])


def bomb(content=bytes(2**22)):
    return gzip.compress(content)


def broken_zip():
    content = bytearray(zipped(bytes(range(256)) * 9, zipfile.ZIP_DEFLATED))
    content[50] ^= 255
    return bytes(content)


def encrypted_zip():
    content = zipped(b'anything', zipfile.ZIP_STORED)
    return content.replace(b'PK\x01\x02\x14\x03\x14\x00\x00', b'PK\x01\x02\x14\x03\x14\x00\x01')


UNREAD = {
    'a bomb': (bomb, 'too large'),
    'a bomb in a zip': (lambda: zipped(bomb(), zipfile.ZIP_STORED), 'too large'),
    'a cut gzip': (lambda: gzip.compress(np.random.default_rng(0).bytes(5000))[:-900], 'could not be unpacked'),
    'a broken zip': (broken_zip, 'could not be unpacked'),
    'an encrypted zip': (encrypted_zip, 'is encrypted'),
    'another format': (lambda: b'7z\xbc\xaf\x27\x1c' + bytes(30), '7z was not unpacked'),
    'russian dolls': (lambda: gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(b'x'))))), 'deep'),
}


@pytest.mark.parametrize('what', UNREAD)
def test_what_could_not_be_read_is_told(what, tmp_path, monkeypatch):
    monkeypatch.setattr(haystack, '_ROOM', 2**20)
    content, words = UNREAD[what]
    (tmp_path / 'file').write_bytes(content())
    with pytest.raises(KeysegError, match=words):
        find_leaks(tmp_path, KEY)
