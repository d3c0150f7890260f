"""The figures of a comparison as a table, for the terminal, Markdown and the page, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence

from keyseg_mm.audit.model.summary import LITTLE, NOISE
from keyseg_mm.audit.report.page import figure
from keyseg_mm.compare.methods import PLAIN
from keyseg_mm.compare.rows import DONE, FAILED, NOT_APPLICABLE, Audited, Figures, Row
from keyseg_mm.maps.keyspace import KEY_BITS
from keyseg_mm.mm.floor import PROMISE

HEAD = (
    'method', 'right key', 'drop', 'no key', 'wrong keys, most', 'floor', 'time', 'key space, bits', 'audit advantage',
)  # fmt: skip
NOTHING = '–'
#: Words of the audit's levels where its advantage says nothing by itself.
_LEVELS = {'void': 'void: ', 'idle': 'nothing to steal: '}


def cells(figures: Figures, row: Row) -> list[str]:
    """A row of the table, in the order of :data:`HEAD`."""
    drop = None if row.right is None or figures.plain is None or row.name == PLAIN else figures.plain - row.right
    mious = [figure(value, 2) for value in (row.right, drop, row.without, row.worst, figures.floor)]
    time, bits = row.overhead, row.key_space
    return [
        row.title,
        *mious,
        NOTHING if time is None else f'{time.median:.3f} [{time.q1:.3f}, {time.q3:.3f}]',
        NOTHING if bits is None else 'not countable' if isinstance(bits, str) else f'{bits:,.0f}',
        NOTHING if row.audit is None else _audit(row.audit),
    ]


def _audit(found: Audited) -> str:
    """The advantage, the best attack and what it reached; or why there is none."""
    if found.why:
        return f'none: {found.why}'
    return f'{_LEVELS.get(found.level, "")}{found.advantage:+.1f} ({found.attack}, {found.attack_miou:.1f})'


def columns(suite: str, wrong_keys: int) -> list[str]:
    """What the figures are, in sentences."""
    audit = (
        'No audit was asked for.'
        if suite == 'none'
        else f'Audit advantage: best attack of suite {suite} less best control at the same data, in mIoU points; in '
        'brackets the attack and what it reached.'
    )
    return [
        'mIoU in percent, by the test tool of the host. The floor is what the best constant guess scores. Drop: plain '
        f'less right key. Wrong keys tried: {wrong_keys}; the table has the one that leaves most. {audit}',
        'Time: a protected inference over a plain one, median and quartiles of pairs in turn, at the size of the first '
        'test photo; where images are encrypted, with their encryption; where weights are, after they were unlocked in '
        'memory. Locked models run at 1.0 too where they are unlocked in memory.',
        f'Key space: log2 of the number of tables that the method has for this model. A key has {KEY_BITS} bits and '
        'picks one of them, so more cannot be used up; rotations cannot be counted. It says when guessing is hopeless, '
        'and nothing of other attacks.',
    ]


def verdict(figures: Figures, suite: str) -> str:
    """What the figures of a config come to, in a sentence or a few."""
    plain, floor = figures.plain, figures.floor
    rows = [row for row in figures.rows if row.name != PLAIN]
    if plain is None:
        return f'{figures.name}: the plain model failed, and without it nothing can be compared.'
    base = f'{figures.name}: plain {plain:.1f} mIoU, a constant guess {floor:.1f}.'
    if plain - floor < LITTLE:
        return f'{base} The plain model has learnt too little for its protection to be compared: train it for longer.'
    done = [row for row in rows if row.status == DONE]
    if not done:
        return f'{base} No method came to its end.'
    good = sum(plain - (row.right or 0.0) <= NOISE for row in done)
    shut = sum(max(row.without or 0.0, row.worst or 0.0) <= PROMISE * floor for row in done)
    said = (
        f'{base} With the right key {good} of {len(done)} stay within {NOISE:g} point of that; without it '
        f'{shut} of {len(done)} leave at most {PROMISE:g} times the constant guess.'
    )
    missing = [f'{n} {what}' for what in (NOT_APPLICABLE, FAILED) if (n := sum(r.status == what for r in rows))]
    return ' '.join([said, _audited(done, suite), f'({", ".join(missing)}.)' if missing else '']).strip()


def _audited(done: Sequence[Row], suite: str) -> str:
    found = [(r.audit.advantage, r.title) for r in done if r.audit and not r.audit.why and r.audit.level != 'void']
    if suite == 'none' or not found:
        return 'What attackers make of the files was not audited.'
    least, most = (f'{title} ({advantage:+.1f})' for advantage, title in (min(found), max(found)))
    if len(found) == 1:
        return f'Audited was {least}.'
    return f'Of {len(found)} audited files, that of {least} helps an attacker least, that of {most} most.'
