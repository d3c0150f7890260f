"""Tracebacks with local variables, as whoever prints them has them."""

from __future__ import annotations

import io
import traceback
from importlib.util import find_spec


def by_cgitb(error):
    import cgitb  # not in Python 3.13

    return cgitb.text((type(error), error, error.__traceback__))


def by_rich(error):
    from rich.console import Console
    from rich.traceback import Traceback

    console = Console(file=io.StringIO(), width=200)
    console.print(Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True))
    return console.file.getvalue()


PRINTERS = [printed for name, printed in (('cgitb', by_cgitb), ('rich', by_rich)) if find_spec(name)]


def shown(function):
    """What a traceback with local variables says of the error that a call raises."""
    try:
        function()
    except BaseException as error:
        found = [printed(error) for printed in PRINTERS]
        while error is not None:  # suppressed ones too
            found += traceback.TracebackException.from_exception(error, capture_locals=True).format()
            error = error.__context__
        return ''.join(found)
    raise AssertionError('no error')
