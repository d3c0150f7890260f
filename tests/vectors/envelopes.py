"""Envelopes for each kind of recipient, and such that must be refused; ``make.py`` writes them to envelope.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from keyseg_mm.envelope import Wrapped
from keyseg_mm.keys.identity import HYBRID, X25519, Identity
from keyseg_mm.keys.key import ContentKey, FeatureSecret, SecretKey
from keyseg_mm.stamp import Stamp
from keyseg_mm.wrapping import Secrets, close_envelope
from tests.vectors.stamps import GOOD

KEYS = {
    'key': SecretKey(bytes(range(32))),
    'x25519': Identity(bytes(range(1, 33)), X25519),
    'hybrid': Identity(bytes(range(2, 34)), HYBRID),
}
FEATURES, CONTENT = bytes(range(64, 96)), bytes(range(96, 128))
_ENTRIES, _SEAL = GOOD['a locked model'].entries, GOOD['a sealed file'].seal


def good() -> dict[str, dict[str, Any]]:
    """Fresh ones: wrapping draws nonces and keys, so that those of a file cannot be made again."""
    found = {}
    for name, content in (('of a file', ContentKey(CONTENT)), ('in memory', None)):
        secrets = Secrets(FeatureSecret(FEATURES), content)
        stamp = close_envelope(Stamp('', bytes(range(16)), _ENTRIES), secrets, KEYS.values())
        stamp = stamp if content is None else replace(stamp, seal=_SEAL)
        for kind, key in KEYS.items():
            shown = {'key': key.to_text(), 'stamp': stamp.to_json(), 'features': FEATURES.hex()}
            found[f'{name}, for {kind}'] = {**shown, 'content': '' if content is None else CONTENT.hex()}
    return found


def bad(cases: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Each differs from a good one in one thing."""
    found = []
    for name, case in cases.items():
        stamp = Stamp.from_bytes(case['stamp'].encode())
        lines = stamp.recipients
        moved = tuple(replace(line, data=lines[i - 1].data) for i, line in enumerate(lines))
        flipped = tuple(Wrapped(x.id, x.kind, bytes([x.data[0] ^ 1]) + x.data[1:]) for x in lines)
        for why, other in {
            'another salt': replace(stamp, salt=bytes(16)),
            'an entry less': replace(stamp, entries=stamp.entries[1:]),
            'another commitment': replace(stamp, commitment='00' * 32),
            'the lines of others': replace(stamp, recipients=moved),
            'a bit of a line': replace(stamp, recipients=flipped),
            'a line cut short': replace(stamp, recipients=tuple(replace(x, data=x.data[:-1]) for x in lines)),
        }.items():
            found.append((f'{why}, {name}', {**case, 'stamp': other.to_json()}))
    return found
