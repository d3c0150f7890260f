"""The figures of a comparison as a table, for the terminal, Markdown and the page, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keyseg_mm.audit.model.advantage import LITTLE, NOISE
from keyseg_mm.compare.choices import NONE, RIGHT
from keyseg_mm.compare.methods import PLAIN
from keyseg_mm.compare.run import DONE, FAILED, NOT_APPLICABLE, UNCOUNTABLE
from keyseg_mm.maps.keyspace import KEY_BITS
from keyseg_mm.mm.floor import PROMISE

HEAD = (
    'method', 'right key', 'drop', 'no key', 'wrong keys, most', 'floor', 'time', 'key space, bits', 'audit advantage',
)  # fmt: skip
NOTHING = '–'
#: Words of the audit's levels where its advantage says nothing by itself.
_LEVELS = {'void': 'void', 'idle': 'nothing to steal'}

Row = Mapping[str, Any]
Subject = Mapping[str, Any]


def figure(value: float | None, digits: int = 2) -> str:
    """A number for a table; no negative zero."""
    return NOTHING if value is None else f'{round(value, digits) + 0.0:.{digits}f}'


def worst(row: Row) -> float | None:
    """The most that a wrong key gives."""
    return max((value for who, value in row['miou'].items() if who not in (RIGHT, NONE)), default=None)


def plain_of(subject: Subject) -> float | None:
    """mIoU of the plain model; None where it failed."""
    found: float | None = next((r['miou'].get(RIGHT) for r in subject['rows'] if r['name'] == PLAIN), None)
    return found


def cells(subject: Subject, row: Row) -> list[str]:
    """A row of the table, in the order of :data:`HEAD`."""
    right, plain = row['miou'].get(RIGHT), plain_of(subject)
    drop = None if right is None or plain is None or row['name'] == PLAIN else plain - right
    found = [row['title'], figure(right), figure(drop), figure(row['miou'].get(NONE)), figure(worst(row))]
    return [*found, figure(subject['floor']), time_of(row), key_space_of(row), audit_of(row)]


def time_of(row: Row) -> str:
    """Protected over plain inference, with quartiles."""
    found = row.get('overhead')
    return NOTHING if found is None else '{median:.3f} [{q1:.3f}, {q3:.3f}]'.format(**found)


def key_space_of(row: Row) -> str:
    """log2 of the number of keys."""
    found = row.get('key_space')
    return NOTHING if found is None else 'not countable' if found == UNCOUNTABLE else f'{found:,.0f}'


def audit_of(row: Row) -> str:
    """The advantage, the best attack and what it reached; or why there is none."""
    found = row.get('audit')
    if found is None:
        return NOTHING
    if 'why' in found:
        return f'none: {found["why"]}'
    level = _LEVELS.get(found['level'])
    said = f'{found["advantage"]:+.1f} ({found["attack"]["title"]}, {found["attack"]["miou"]:.1f})'
    return f'{level}: {said}' if level else said


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a comparison, and what the columns are."""
    parts = ['# Methods compared', report['verdict']]
    for subject in report['subjects']:
        parts.append(f'## {subject["name"]}')
        rows = [HEAD, ['---'] * len(HEAD), *(cells(subject, row) for row in subject['rows'])]
        parts.append('\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows))
        reasons = [f'- {row["title"]}: {row["status"]}: {row["why"]}' for row in subject['rows'] if row['why']]
        if reasons:
            parts.append('\n'.join(reasons))
    return '\n\n'.join([*parts, *columns(report), *method_notes(report)]) + '\n'


def columns(report: Mapping[str, Any]) -> list[str]:
    """What the figures are, in sentences."""
    suite = report['suite']
    audit = (
        'No audit was asked for.'
        if suite == 'none'
        else f'Audit advantage: best attack of suite {suite} less best control at the same data, in mIoU points; in '
        'brackets the attack and what it reached.'
    )
    return [
        'mIoU in percent, by the test tool of the host. The floor is what the best constant guess scores. Drop: plain '
        f'less right key. Wrong keys tried: {report["wrong_keys"]}; the table has the one that leaves most. {audit}',
        'Time: a protected inference over a plain one, median and quartiles of pairs in turn, at the size of the first '
        'test photo; where images are encrypted, with their encryption; where weights are, after they were unlocked in '
        'memory. Locked models run at 1.0 too where they are unlocked in memory.',
        f'Key space: log2 of the number of tables that the method has for this model. A key has {KEY_BITS} bits and '
        'picks one of them, so more cannot be used up; rotations cannot be counted. It says when guessing is hopeless, '
        'and nothing of other attacks.',
    ]


def method_notes(report: Mapping[str, Any]) -> list[str]:
    """What each method does and does not do, as a list."""
    notes = [f'- **{m["title"]}** ({m["source"]}). {m["does"]} {m["lacks"]}' for m in report['methods']]
    return ['\n'.join(notes)]


def verdict(subjects: Sequence[Subject], suite: str) -> str:
    """What the figures come to, in a sentence or a few for each config."""
    return ' '.join(_verdict(subject, suite) for subject in subjects)


def _verdict(subject: Subject, suite: str) -> str:
    plain, floor, name = plain_of(subject), subject['floor'], subject['name']
    rows = [row for row in subject['rows'] if row['name'] != PLAIN]
    done = [row for row in rows if row['status'] == DONE]
    if plain is None:
        return f'{name}: the plain model failed, and without it nothing can be compared.'
    base = f'{name}: plain {plain:.1f} mIoU, a constant guess {floor:.1f}.'
    if plain - floor < LITTLE:
        return f'{base} The plain model has learnt too little for its protection to be compared: train it for longer.'
    if not done:
        return f'{base} No method came to its end.'
    kept = [row for row in done if plain - row['miou'][RIGHT] <= NOISE]
    shut = [row for row in done if max(row['miou'][NONE], worst(row) or 0.0) <= PROMISE * floor]
    said = (
        f'{base} With the right key {len(kept)} of {len(done)} stay within {NOISE:g} point of that; without it '
        f'{len(shut)} of {len(done)} leave at most {PROMISE:g} times the constant guess.'
    )
    missing = [f'{n} {what}' for what in (NOT_APPLICABLE, FAILED) if (n := sum(r['status'] == what for r in rows))]
    return ' '.join([said, _audited(done, suite), f'({", ".join(missing)}.)' if missing else '']).strip()


def _audited(done: Sequence[Row], suite: str) -> str:
    audited = [row for row in done if 'advantage' in (row.get('audit') or {}) and row['audit']['level'] != 'void']
    if suite == 'none' or not audited:
        return 'What attackers make of the files was not audited.'
    audited.sort(key=lambda row: row['audit']['advantage'])
    words = [f'{row["title"]} ({row["audit"]["advantage"]:+.1f})' for row in (audited[0], audited[-1])]
    if len(audited) == 1:
        return f'Audited was {words[0]}.'
    return f'Of {len(audited)} audited files, that of {words[0]} helps an attacker least, that of {words[1]} most.'
