"""Maps carried into a model's weights and back, on state_dicts: one engine, and a registry of schemes."""

import keyseg_mm.locking.features  # noqa: F401 - its scheme
from keyseg_mm.locking.engine import lock, lock_in_place, proved, rekey, rekey_in_place, unlock, unlock_in_place
from keyseg_mm.locking.fitting import fit, unwrap
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.planning import plan_lock
from keyseg_mm.locking.scheme import SCHEMES, Scheme, register

__all__ = [
    'SCHEMES',
    'Plan',
    'Scheme',
    'fit',
    'lock',
    'lock_in_place',
    'plan_lock',
    'proved',
    'register',
    'rekey',
    'rekey_in_place',
    'unlock',
    'unlock_in_place',
    'unwrap',
]
