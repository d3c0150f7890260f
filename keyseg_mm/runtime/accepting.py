"""Which stamps a protected model accepts as it is loaded, and what it says of those that it does not."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, NoReturn

from torch import nn

from keyseg_mm.entries import describe
from keyseg_mm.errors import KeyMismatchError, PlainCheckpointError, PlanMismatchError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.key import FeatureSecret
from keyseg_mm.runtime.rules import Rules
from keyseg_mm.seal.sections import unseal_section
from keyseg_mm.stamp import Stamp, below
from keyseg_mm.wrapping import open_envelope

logger = logging.getLogger('keyseg_mm')


def is_own_key(key: Key, stamp: Stamp, rules: Rules) -> bool:
    """Whether a stamp is of this key.

    Raises:
        KeyMismatchError: it is not, and was not meant to be.
    """
    if key.id in stamp.key_ids:
        return True
    ids = ' or '.join(stamp.key_ids)
    if not rules.deliberate:
        raise KeyMismatchError(
            f'this checkpoint is protected with key {ids}, and the key given is {key.id}: '
            'give its own key, or key=none to run it unauthorised on purpose'
        )
    logger.warning('a wrong key, %s, on purpose: this checkpoint is protected with %s and runs degraded', key.id, ids)
    return False


def refuse_other_entries(own: Stamp, stamp: Stamp, rules: Rules) -> None:
    """Refuse a stamp of other points, transforms or salt than a model has.

    Args:
        own: of the model.
        stamp: of the checkpoint.
        rules: of the model.

    Raises:
        PlanMismatchError: with all differences, and the way out.
    """
    if rules.unlock:
        return
    if stamp.tensors:
        raise PlanMismatchError(
            f'the weights of this checkpoint are encrypted themselves ({describe(stamp.tensors[0].transform)}), '
            "and no encryptor makes up for that in a running model: set protection.runtime='plain', which opens "
            'them in memory, and take points and transform out'
        )
    if rules.find_sites is not None:
        return
    differences = own.differences(stamp)
    if differences:
        raise PlanMismatchError(
            'this checkpoint is protected otherwise than the model is (here: the model, there: the checkpoint; '
            "points='checkpoint' takes the checkpoint's): " + '; '.join(differences)
        )
    if rules.fixed_salt and stamp.salt != own.salt:
        raise PlanMismatchError(
            f'protection.salt is {own.salt.hex()}, and the checkpoint was made with {stamp.salt.hex()}: '
            'leave salt out to take it from the checkpoint'
        )


def opened(
    key: Key, stamp: Stamp, model: nn.Module, state_dict: dict[str, Any], prefix: str, rules: Rules
) -> FeatureSecret:
    """Take the seal off a state_dict, if it has one, straight into the model's own memory.

    Returns:
        What the model's tables are derived from.

    Raises:
        IntegrityError: it was altered; what was opened of it is zeros.
    """
    features = open_envelope(key, stamp, rules.verify).features
    if stamp.seal is not None:
        own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        sealed = below(state_dict, prefix)
        found = unseal_section(key, sealed, stamp.seal.section, into=own, verify=rules.verify)
        state_dict.update({prefix + name: value for name, value in found.items()})
    return features


def bare_stamp(stamp: Stamp, key: Key) -> Stamp:
    """What a stamp says, without what was wrapped and sealed, under the name of the key that opened it."""
    return replace(stamp, key_id=key.id, recipients=(), commitment='', seal=None)


def refuse_plain(key: Key) -> NoReturn:
    """Refuse a plain checkpoint for a model keyed with this key.

    Raises:
        PlainCheckpointError: with the way out.
    """
    raise PlainCheckpointError(
        f'this checkpoint is plain (it carries no stamp), and the model is keyed with {key.id}. To train it on with '
        "the key: protection.start='plain', which carries the maps into it. To protect it as it is: keyseg lock. If it "
        'should be protected already, it is the wrong file, or its stamp was stripped'
    )


TAKES_IMAGES = (
    'this checkpoint takes encrypted images (see `keyseg show`): it runs with its plain config, without a key, on '
    'images of `keyseg tool encrypt_images` or of keyseg_mm.EncryptImage in the pipeline; `keyseg unlock` makes a '
    'plain one'
)
