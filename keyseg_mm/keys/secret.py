"""The base of everything that holds secret material."""

from __future__ import annotations

from typing import Any, NoReturn

from keyseg_mm.errors import SecretExposedError


class Secret:
    """Prints as its public id, refuses pickling, and is shared, never copied, by ``copy`` and ``deepcopy``.

    Sharing is what an EMA copy of a model needs: the copy's hooks reach the same encryptor, and no second copy of the
    secret comes into being. Subclasses declare ``__slots__``, so that ``vars()`` has nothing to show.
    """

    __slots__ = ()

    @property
    def public_id(self) -> str:
        """What may be shown of this object."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.public_id}>'

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise SecretExposedError(
            f'refused to pickle a {type(self).__name__}: a pickle would carry the secret; '
            'save state_dict() instead of the whole model, or detach() the encryptors first'
        )

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: Any) -> Secret:
        return self
