"""Encryption points: public places in a model where a feature map can be encrypted.

``out:NAME`` is the feature map that leaves module NAME, ``out:NAME:INDEX`` the INDEX-th tensor where it returns several
(nested tuples and lists are counted through, depth first), ``in:NAME`` the feature map that enters a layer, and
``back:NAME`` the one that a layer's weights give in secret order, and that is put back into its own as it leaves. NAME
is the dotted name in the model, ``.`` the model itself. Presets name sets: ``stages``, ``neck``, ``linear``.
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
    'linear': 'the input of every convolution (but depthwise ones), Linear and attention that is called, and what '
    'leaves an attention',
}


@dataclass(frozen=True)
class Point:
    """A parsed point; ``str()`` gives its text back."""

    side: Literal['out', 'in', 'back']
    name: str
    index: int | None = None

    def __str__(self) -> str:
        return f'{self.side}:{self.name}' + ('' if self.index is None else f':{self.index}')

    @classmethod
    def parse(cls, text: str) -> Point:
        """Parse ``out:NAME``, ``out:NAME:INDEX``, ``in:NAME`` or ``back:NAME``.

        Raises:
            PointError: the text has another form.
        """
        parts = text.split(':') if isinstance(text, str) else []
        if len(parts) == 2 and parts[0] in ('out', 'in', 'back') and parts[1]:
            return cls(parts[0], parts[1])  # type: ignore[arg-type]
        if len(parts) == 3 and parts[0] == 'out' and parts[1] and re.fullmatch('[0-9]{1,9}', parts[2]):
            return cls('out', parts[1], int(parts[2]))
        raise PointError(
            f'{text!r} is no encryption point; write out:NAME, out:NAME:INDEX, in:NAME, '
            f'back:NAME, or a preset: {", ".join(PRESETS)}'
        )
