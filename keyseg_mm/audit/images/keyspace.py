"""How many ciphers there are, beside what an attack really has to find."""

from __future__ import annotations

import dataclasses
from typing import Any

from keyseg_mm.audit.images.scheme import Scheme
from keyseg_mm.maps.keyspace import KEY_BITS


def key_spaces(scheme: Scheme) -> list[dict[str, Any]]:
    """The encryption under attack first, then the others with the same block.

    Returns:
        For each: ``method``, ``ciphers`` (log2 of how many there are), ``guess`` (log2 of what guessing takes: no more
        than the key's own 256 bits), ``unknowns`` (what statistics and pairs have to find, in words) and ``own``
        (whether it is the one under attack).
    """
    others = [Scheme.of_method(method, scheme.block) for method in ('SHF', 'NP', 'FFX')]
    others.append(Scheme('patches', scheme.block, 'all', 'negated'))
    bare = dataclasses.replace(scheme, key_id='', salt='')
    schemes = [bare, *(other for other in others if other != bare)]
    return [
        {
            'method': found.method,
            'steps': steps(found),
            'ciphers': found.ciphers,
            'guess': min(found.ciphers, float(KEY_BITS)),
            'unknowns': found.unknowns,
            'own': found is bare,
        }
        for found in schemes
    ]


def steps(scheme: Scheme) -> str:
    """What a scheme does to a block, in words."""
    moves = {'all': 'values change places, across colours too', 'channel': 'values change places within their colour'}
    changes = {
        'half negated': 'half of the places hold 255 - p',
        'negated': 'secret places hold 255 - p',
        'half mapped': 'half of the places hold a secret byte for p',
    }
    return ', '.join([*filter(None, (moves.get(scheme.moves), changes.get(scheme.changes)))])
