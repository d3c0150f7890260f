"""Outlines from the mean of each block."""

from __future__ import annotations

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.restoring.attack import Restored, Restoring, register
from keyseg_mm.audit.restoring.attacks._statistics import TOP, enlarged, folded
from keyseg_mm.audit.restoring.case import ImageCase
from keyseg_mm.audit.restoring.scheme import COLOURS, Scheme, cut


@register
class BlockMeans(Restoring):
    """A permutation leaves the mean of a block as it is, so an image shrunk by the block's side shows through.

    Enlarged again it is a blurred grey photo; where values stay in their colour, a blurred colour photo. Where values
    are negated, the mean of min(p, 255 - p) is taken instead.
    """

    name, title = 'block-means', 'outlines from the means of blocks'
    source = 'after the feature reconstruction attack, Sirichotedumrong and Kiya, arXiv 2010.06198'
    cost = 'nothing'

    @classmethod
    def fits(cls, scheme: Scheme) -> bool:
        """A byte table leaves no mean."""
        return scheme.changes != 'half mapped'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Shrink, and enlarge."""
        scheme, size = case.scheme, case.encrypted.shape[1:3]
        blocks = cut(case.encrypted, scheme.block)
        values = 2 * folded(blocks).astype(int).clip(0, TOP // 2) if 'negated' in scheme.changes else blocks
        images = enlarged(values.mean(-1), size)
        if scheme.moves == 'channel':
            for colour in range(COLOURS):
                images[..., colour] = enlarged(values[..., colour::COLOURS].mean(-1), size)[..., 0]
        return Restored(images, notes='' if scheme.moves != 'none' else 'Nothing is moved, so finer attacks do better.')
