"""What a comparison was asked for, and what it tells on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from keyseg_mm.compare.methods import PLAIN, Method

RIGHT, NONE = 'right', 'none'


@dataclass(frozen=True)
class Choices:
    """What all results of a comparison depend on.

    Attributes:
        key: locator.
        suite: of the audit, or ``none``.
        seed: of training and audit.
        wrong_keys: how many.
        options: mmseg's ``--cfg-options``.
    """

    key: str
    suite: str
    seed: int
    wrong_keys: int
    options: Mapping[str, Any]

    @property
    def testers(self) -> dict[str, str]:
        """Who tests, and with which key, by its locator."""
        wrong = {f'wrong-{i}': f'random:{i}' for i in range(1, self.wrong_keys + 1)}
        return {RIGHT: self.key, NONE: 'none', **wrong}

    def steps(self, method: Method) -> int:
        """How many steps a method takes."""
        return 2 if method.name == PLAIN else 2 + len(self.testers) + (self.suite != 'none')


class Progress:
    """Told what is going on; a command draws it.

    Args:
        say: takes a line.
        step: called for each step that is finished.
        detail: takes how far a step is, in words.
    """

    def __init__(
        self,
        say: Callable[[str], object] = lambda text: None,
        step: Callable[[int], object] = lambda count: None,
        detail: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.say, self.step, self.detail = say, step, detail
        self.where = ''

    def begin(self, doing: str) -> None:
        """A step begins."""
        self.detail('')
        self.say(f'{self.where}: {doing}')
