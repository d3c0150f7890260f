"""What a live protected model is to strangers: who has its weights and no key, or a wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from keyseg_mm.bind import Bound, derive_map
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.locking.scheme import turn_weights
from keyseg_mm.maps import Map
from keyseg_mm.maps.base import Tables
from keyseg_mm.runtime.attach import protected_modules
from keyseg_mm.runtime.protection import Protection, State


@contextmanager
def seen_by(model: nn.Module, key: SecretKey | None) -> Iterator[None]:
    """Let a protected model give, for a while, what it gives to a stranger; then it is as it was, bit for bit.

    Args:
        model: keyed, or opened in memory.
        key: of the stranger; None for none.
    """
    with ExitStack() as stack:
        for module, protection in protected_modules(model):
            if protection.state is State.KEYED:
                stack.enter_context(_with_other_maps(protection, key))
            elif protection.state is State.PLAIN:
                stack.enter_context(_with_other_weights(module, protection, key))
        yield


@contextmanager
def _with_other_maps(protection: Protection, key: SecretKey | None) -> Iterator[None]:
    own = [(encryptor, encryptor.map) for encryptor in protection.encryptors]
    salt = protection.stamp.salt
    try:
        for (encryptor, _), entry in zip(own, protection.stamp.maps):
            encryptor.use(_Nothing(entry.channels) if key is None else derive_map(key, salt, entry))
        yield
    finally:
        for encryptor, secret in own:
            encryptor.use(secret)


@contextmanager
def _with_other_weights(module: nn.Module, protection: Protection, key: SecretKey | None) -> Iterator[None]:
    """An opened model's weights as its file has them; a wrong key's maps are taken off these, in place of the right."""
    if protection.features is None:
        yield
        return
    maps = Bound(protection.features, protection.stamp).weight_maps()
    own = [(p, p.detach().clone()) for name, p in module.named_parameters() if name in maps]
    try:
        turn_weights(module, {}, maps)
        if key is not None:
            turn_weights(module, Bound(key, protection.stamp).weight_maps(), {})
        yield
    finally:
        with torch.no_grad():
            for parameter, plain in own:
                parameter.copy_(plain)


class _Nothing(Map):
    """Hands on what it is given."""

    __slots__ = ('_count',)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._count = channels

    @property
    def channels(self) -> int:
        return self._count

    @classmethod
    def apply(cls, x: Tensor, dim: int, tables: Tables) -> Tensor:
        return x.clone()

    def _invert(self) -> Map:
        return self
