"""Everything that can go wrong, each error saying where, what, and what to do next.

Errors about public things quote the input. Errors about secrets never do: not the key, not the text that was given for
one, not the content of the file that should have held one.
"""


def shown(text: str) -> str:
    """A text as it can be printed: what steers a terminal, and came from a file, is written as Python writes it."""
    if text.isprintable():
        return text
    signs = (sign if sign.isprintable() or sign in '\n\t' else ascii(sign)[1:-1] for sign in text)
    return ''.join(signs)


class KeysegError(RuntimeError):
    """Base of all errors of this package."""

    def __str__(self) -> str:
        return shown(super().__str__())


class KeyFileError(KeysegError):
    """A key is missing, unreadable, malformed or given in a form that is not understood."""


class SecretExposedError(KeysegError):
    """A secret was about to go, or has gone, where secrets must not be: a config, a command line, a pickle, a graph."""


class PointError(KeysegError):
    """An encryption point is malformed, matches nothing, or never fires."""


class TransformError(KeysegError):
    """A transform is unknown, or cannot be made or applied as asked."""


class StampError(KeysegError):
    """A checkpoint's stamp is damaged, or of a version that this release does not read."""


class KeyMismatchError(KeysegError):
    """A checkpoint is protected with another key than the one given."""


class PlanMismatchError(KeysegError):
    """A checkpoint is protected at other points, or with other transforms, than the model it is loaded into."""


class IntegrityError(KeysegError):
    """A protected checkpoint is not what its key's holder wrote: its envelope or its seal does not fit."""


class PlainCheckpointError(KeysegError):
    """A plain checkpoint was loaded into a keyed model."""


class LockError(KeysegError):
    """A model cannot be locked or unlocked as asked, or would not come out right. Nothing was changed or written."""


class NotFiredError(KeysegError):
    """An attached encryptor was never called: the model ran with less protection than its config promises."""


class LeakError(KeysegError):
    """Something that was written, or was about to be written, holds secret material."""
