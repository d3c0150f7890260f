"""Encryption points: public places in a model where a feature map can be encrypted.

``out:NAME`` is the feature map that leaves module NAME, ``out:NAME:INDEX`` the INDEX-th tensor where it returns several
(nested tuples and lists are counted through, depth first), ``in:NAME`` the feature map that enters a Conv2d or Linear.
NAME is the dotted name in the model, ``.`` the model itself. Presets name sets: ``stages``, ``neck``, ``linear``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from keyseg_mm.errors import PointError

ROOT = '.'
PRESETS = {
    'stages': 'every feature map that the backbone hands on',
    'neck': 'every feature map that the neck hands on',
    'linear': 'the input of every ungrouped convolution and Linear that is really called',
}


@dataclass(frozen=True)
class Point:
    """A parsed point; ``str()`` gives its text back."""

    side: Literal['out', 'in']
    name: str
    index: int | None = None

    def __str__(self) -> str:
        return f'{self.side}:{self.name}' + ('' if self.index is None else f':{self.index}')

    @classmethod
    def parse(cls, text: str) -> Point:
        """Parse ``out:NAME``, ``out:NAME:INDEX`` or ``in:NAME``.

        Raises:
            PointError: the text has another form.
        """
        parts = text.split(':') if isinstance(text, str) else []
        if len(parts) == 2 and parts[0] in ('out', 'in') and parts[1]:
            return cls(parts[0], parts[1])  # type: ignore[arg-type]
        if len(parts) == 3 and parts[0] == 'out' and parts[1] and re.fullmatch('[0-9]{1,9}', parts[2]):
            return cls('out', parts[1], int(parts[2]))
        raise PointError(
            f'{text!r} is no encryption point; write out:NAME, out:NAME:INDEX, in:NAME, '
            f'or a preset: {", ".join(PRESETS)}'
        )
