"""What a comparison was asked for, and what is known of each method: a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

RIGHT, NONE = 'right', 'none'
DONE, NOT_APPLICABLE, FAILED = 'done', 'not applicable', 'failed'


@dataclass
class Row:
    """What is known of a method.

    Attributes:
        name, title: of the method.
        status: done, not applicable or failed; ``why`` says why.
        miou: in percent, by who tested: ``right``, ``none``, ``wrong-1`` and so on.
        key_space: log2 of the number of its tables; None where they cannot be counted, or are none.
        seconds: of the host's test with the right key, for each photo.
        advantage, audit: what the audit found, in mIoU points and in words; in words alone where it refused.
    """

    name: str
    title: str
    status: str = DONE
    why: str = ''
    miou: dict[str, float] = field(default_factory=dict)
    key_space: float | None = None
    seconds: float | None = None
    advantage: float | None = None
    audit: str = ''

    def fail(self, why: str, status: str = FAILED) -> None:
        """Note why the row ends here."""
        self.status, self.why = status, why

    @property
    def right(self) -> float | None:
        """mIoU with the right key, as far as it was tested."""
        return self.miou.get(RIGHT)

    @property
    def worst(self) -> float | None:
        """The most that a wrong key gives."""
        return max((value for who, value in self.miou.items() if who not in (RIGHT, NONE)), default=None)


@dataclass(frozen=True)
class Options:
    """What all results of a comparison depend on, besides what its config says.

    Attributes:
        config: path of the plain config.
        cfg_options: put into it.
        plain: path of a trained plain checkpoint, if there is one.
        key: locator of the comparison's own key.
        seed: of training and audit.
        suite: of the audit, or ``none``.
        wrong_keys: how many.
    """

    config: str
    cfg_options: Sequence[str]
    plain: str | None
    key: str
    seed: int
    suite: str
    wrong_keys: int
