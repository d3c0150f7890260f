"""What the audits found that an owner should hear in time: when a model is trained or locked."""

from __future__ import annotations

from collections.abc import Sized

#: Audited models that were encrypted at this many maps or fewer fell to a few labelled photos, whatever the transform;
#: those encrypted at the input of every layer did not. In between nothing was measured.
FEW_MAPS = 5
#: Relative difference up to which matching by direction finds the channels of a layer again, of random ones too.
CLOSE = 1.0


def warn_of_few_maps(entries: Sized) -> str:
    """What to know of a protection at only a few points, and what to do; empty where there are more.

    Args:
        entries: of the plan.
    """
    if not 0 < len(entries) <= FEW_MAPS:
        return ''
    maps = f'{len(entries)} feature maps are' if len(entries) > 1 else 'one feature map is'
    return (
        f'only {maps} encrypted. That keeps out who runs the file as it is; audited models fell to whoever has a few '
        "labelled photos too, and learns a layer at each map (docs/threat-model.md). More is kept by points='linear' "
        "with transform='SignedChannelPermutation', in training or by keyseg lock after it"
    )
