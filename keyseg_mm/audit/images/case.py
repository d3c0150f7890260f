"""What an attacker of encrypted images holds, and nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keyseg_mm.audit.engine.secrecy import refuse_secrets
from keyseg_mm.audit.images.scheme import COLOURS, Images, Scheme
from keyseg_mm.audit.model.case import Budget
from keyseg_mm.errors import KeysegError


@dataclass(frozen=True, eq=False)
class ImageCase:
    """Everything that an attacker of encrypted images holds.

    Attributes:
        scheme: method, block and key id: public.
        encrypted: the images under attack, uint8 (N, H, W, 3), red first, all under one key.
        public: plain photos of the same size, none of them under attack: his own, or anybody's.
        pairs: plain photos and what the true key makes of them; none of them under attack.
        seed: of all that an attack draws.
        budget: what it may spend.

    Raises:
        SecretExposedError: a field holds a key or a cipher.
        KeysegError: images are not as they should be.
    """

    scheme: Scheme
    encrypted: Images
    public: Images | None = None
    pairs: tuple[Images, Images] | None = None
    seed: int = 0
    budget: Budget = field(default_factory=lambda: Budget(200, 60.0))

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            refuse_secrets(getattr(self, item.name), item.name)
        for name, images in (('encrypted', self.encrypted), ('public', self.public), *_named(self.pairs)):
            self._check(name, images)

    def _check(self, name: str, images: Any) -> None:
        if images is None:
            return
        shape: Any = getattr(images, 'shape', ())
        block = self.scheme.block
        good = isinstance(images, np.ndarray) and images.dtype == np.uint8 and len(shape) == 4 and shape[0]
        if not good or shape[3] != COLOURS or shape[1] % block or shape[2] % block:
            raise KeysegError(
                f'{name}: images under attack are uint8 (N, H, W, 3) of whole blocks of {block} x {block}, not {shape}'
            )

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator of the case's seed."""
        return np.random.default_rng(self.seed)


def _named(pairs: Any) -> list[tuple[str, Any]]:
    return [] if pairs is None else [('pairs, plain', pairs[0]), ('pairs, encrypted', pairs[1])]
