"""What the audits found that an owner should hear in time: when a model is trained or locked."""

from __future__ import annotations

from collections.abc import Sized

#: For plain weights behind encrypted maps: what read the plain maps goes on doing so beside what is learnt. Measured in
#: docs/results.md: after 300 iterations 31.7 of 34.5 mIoU were left without the key, and all of a Fast-SCNN's.
PLAIN_START = (
    'plain weights loaded behind encrypted maps, as allow_plain allows. What has read the plain maps is still in them, '
    'and a model that is trained on from here may go on working WITHOUT its key: test it with key=none before you hand '
    "it out. Better: keyseg lock the plain checkpoint, and train that on by load_from and points='checkpoint'"
)

#: Audited models that were encrypted at this many maps or fewer fell to a few labelled photos, whatever the transform;
#: those encrypted at the input of every layer did not. In between nothing was measured.
FEW_MAPS = 5


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
        "with transform='SignedChannelPermutation', from random weights on or by keyseg lock after training"
    )
