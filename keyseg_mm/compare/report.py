"""What a comparison writes in the end: compare.json and compare.html, one page without network."""

from __future__ import annotations

import time
from pathlib import Path

from keyseg_mm import __version__
from keyseg_mm.atomic import write_json, write_new
from keyseg_mm.audit.engine.results import to_json
from keyseg_mm.audit.report.page import figure, page
from keyseg_mm.compare.methods import PLAIN
from keyseg_mm.compare.rows import NONE, Row
from keyseg_mm.compare.run import Comparison
from keyseg_mm.maps.keyspace import KEY_BITS

FIGURES, PAGE = 'compare.json', 'compare.html'
HEAD = (
    'method', 'right key', 'drop', 'no key', 'a wrong key', 'floor', 'seconds', 'key space, bits', 'audit advantage',
)  # fmt: skip
_NOTHING = '–'


def write(out: Path, found: Comparison) -> Path:
    """Write what was found, all of it public; returns the page's path."""
    header = {'format': 'keyseg_mm compare', 'version': 1, 'made_by': __version__, 'when': time.strftime('%Y-%m-%d')}
    write_json(out / FIGURES, {**header, **to_json(found)})
    text = as_page(found, header['when'])
    write_new(out / PAGE, lambda file: file.write(text.encode('utf-8')), overwrite=True)
    return out / PAGE


def as_page(found: Comparison, when: object) -> str:
    """The page."""
    words = {'head': HEAD, 'cells': cells, 'key_bits': KEY_BITS, 'made_by': __version__}
    return page('compare.html.j2', Path(__file__).parent, found=found, when=when, **words)


def cells(found: Comparison, row: Row) -> list[str]:
    """A row of the table, in the order of :data:`HEAD`."""
    plain, bits = found.rows[0].right, row.key_space
    drop = None if row.right is None or plain is None or row.name == PLAIN else plain - row.right
    mious = [figure(value, 2) for value in (row.right, drop, row.miou.get(NONE), row.worst, found.floor)]
    return [
        row.title,
        *mious,
        figure(row.seconds, 3),
        f'{bits:,.0f}' if bits is not None else _NOTHING if row.name == PLAIN else 'not countable',
        row.audit or _NOTHING,
    ]
