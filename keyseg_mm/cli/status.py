"""The exit statuses of all commands."""

from __future__ import annotations

ERROR, FOUND, HELPS, UNREAD, INTERRUPTED = 1, 3, 4, 5, 130
NOT_TRACED, FORGED = FOUND, HELPS
STATUS = {
    0: 'done; of audit: no attack has an advantage; of scan: nothing found; of trace: traced to a licensee',
    ERROR: 'an error, which says what to do; nothing was written',
    2: 'the command line is not understood',
    FOUND: 'scan: something secret was found; trace: nobody on the list',
    HELPS: 'audit: the file helps an attacker, or it could not tell; trace: the stamp was altered or forged',
    UNREAD: 'scan: nothing found, and something could not be read',
    INTERRUPTED: 'stopped with Ctrl-C; audit and compare go on where they stopped; 128 + N: ended by signal N',
}
