"""What a protected model is, and what it accepts as it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import nn

from keyseg_mm.envelope import SEALED
from keyseg_mm.keys.identity import Recipient
from keyseg_mm.model.sites import Site
from keyseg_mm.stamp import Stamp


class State(Enum):
    """What a protected model is.

    A stamp that is loaded and accepted leads from WAITING to KEYED or PLAIN, as was asked; any other state stays.
    """

    WAITING = 'waiting for a checkpoint'  # which tells its points; refuses to run, to be trained and to be saved
    KEYED = 'keyed'  # runs encrypted and saves its stamp
    PLAIN = 'opened in memory'  # runs plain weights; its files get maps and stamp as they are written
    WITHOUT = 'without a key'  # on purpose: runs degraded, and is neither trained nor written


@dataclass(frozen=True)
class Rules:
    """What a protected model accepts as it is loaded, and what it does with it. Copies of a model share them.

    Attributes:
        deliberate: an unauthorised run on purpose: stamps of other keys are no error.
        takes_plain: weights without a stamp are welcome; the model's maps are carried into them as they are loaded.
        fixed_salt: refuse checkpoints of another salt.
        verify: refuse weights that are only signed and were altered; sealed ones are always checked.
        find_sites: where the points of a stamp are in a model. Given, the points are those of the checkpoint.
        unlock: turn the weights into the plain ones as they are loaded.
        plan: with ``unlock``, what is going to be encrypted in the files of a model that begins without a checkpoint.
        recipients: who else can open the files that are written of the model.
        mode: whether these are sealed, or only signed; see :class:`keyseg_mm.seal.sections.Sealing`.
        named: the points that were asked for by name, and not by a preset.
    """

    deliberate: bool = False
    takes_plain: bool = False
    fixed_salt: bool = False
    verify: bool = True
    find_sites: Callable[[nn.Module, Stamp], list[Site]] | None = None
    unlock: bool = False
    plan: Callable[[nn.Module], Stamp] | None = None
    recipients: tuple[Recipient, ...] = ()
    mode: str = SEALED
    named: tuple[str, ...] = ()
