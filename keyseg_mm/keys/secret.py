"""The base of everything that holds secret material, and what keeps it out of tracebacks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from keyseg_mm.errors import SecretExposedError

_P = ParamSpec('_P')
_R = TypeVar('_R')


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


class Text(Secret):
    """A secret text, such as a passphrase.

    Args:
        text: the text.
        name: public; what it is.
    """

    __slots__ = ('_text', '_name')

    def __init__(self, text: str, name: str) -> None:
        self._text, self._name = text, name

    @property
    def public_id(self) -> str:
        return self._name

    def reveal(self) -> str:
        """The secret itself."""
        return self._text


def unseen(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let errors leave a function without its frame and those below, whose variables hold secrets.

    What prints tracebacks with their local variables (rich, cgitb, pytest -l, crash reporters) finds none there.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            found = error
        args, kwargs = (), {}  # type: ignore[assignment]  # of this frame, which the traceback begins with
        found.__context__ = found.__cause__ = None
        raise found.with_traceback(None)

    return call
