"""Runs something in a process that has little time and memory."""

from __future__ import annotations

import os
import resource
import sys
import traceback
from collections.abc import Callable

SECONDS, ROOM = 5, 512 * 2**20


def bounded(act: Callable[[], object], size: int, expected: type[BaseException]) -> str:
    """What an error says that has to come within five seconds, and 512 MB beside what is there and the file's size.

    Anything else, a crash too, is what is given in its place.
    """
    here, there = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(there, _said(act, size, expected).encode('utf-8', 'replace')[:60_000])
        finally:
            os._exit(0)
    os.close(there)
    with open(here, 'rb') as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if status == 0 else f'NOT: it ended by signal {-status}'


def _said(act: Callable[[], object], size: int, expected: type[BaseException]) -> str:
    pages = int(open('/proc/self/statm').read().split()[0])  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size * 2 + ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))  # its own: this machine may be busy
    sys.stderr = open(os.devnull, 'w')  # noqa: SIM115
    try:
        act()
    except expected as error:
        return str(error)
    except BaseException:
        return f'NOT: {traceback.format_exc()}'
    return 'NOT: no error'
