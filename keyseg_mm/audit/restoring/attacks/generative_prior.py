"""Photos from a generator that, encrypted, would look as the images do."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from keyseg_mm.audit.attack import Progress
from keyseg_mm.audit.restoring.attack import Restored, Restoring, register
from keyseg_mm.audit.restoring.attacks._generator import Fit, by_place, fitted, trained_generator
from keyseg_mm.audit.restoring.attacks._network import as_images
from keyseg_mm.audit.restoring.attacks._order import MOST_VALUES
from keyseg_mm.audit.restoring.attacks._signs import half_of
from keyseg_mm.audit.restoring.attacks._statistics import enlarged
from keyseg_mm.audit.restoring.case import ImageCase
from keyseg_mm.audit.restoring.scheme import COLOURS, BlockMap, Images, Scheme, cut, join

_SMOOTH = 1.5  # a decryption is taken for a photo up to this many times as rough as photos are


@register
class GenerativePrior(Restoring):
    """A small generator is trained on the attacker's photos; then each image's latent is sought by gradient.

    The generated photo shall agree with the encrypted image in what no key changes: the sorted values of each block
    where values are moved (folded, where they are negated too). Where values stay in their places, which of them are
    untouched is learnt together with the latents, from all images at once.

    From the generated photos the cipher is guessed: which place of theirs goes best with which encrypted place
    (Hungarian), or which places are untouched. If what this cipher decrypts is as smooth as photos are, that is handed
    back, otherwise what was generated; of FFX the untouched places, and generated ones between them.
    """

    name, title = 'generative-prior', 'a generator of photos, fitted to what the key leaves'
    needs = frozenset({'public'})
    source = 'after MaungMaung and Kiya 2023, and MaungMaung, Echizen and Kiya 2024; with a small generator'
    cost = 'a training of a small generator, and a search for one latent an image'

    def run(self, case: ImageCase, progress: Progress) -> Restored:
        """Train, search, guess."""
        photos, scheme = case.public, case.scheme
        assert photos is not None
        clock = case.budget.clock()
        net = trained_generator(photos, scheme.block, clock, case.seed, progress)
        fit = fitted(net, case.encrypted, _first(case, photos), scheme, clock, progress)
        made = as_images(fit.images)
        late = clock.steps < case.budget.steps
        if scheme.changes == 'half mapped':
            kept = half_of(by_place(fit.kept, scheme).astype(np.float64), scheme.values - scheme.values // 2)
            mask = join(np.broadcast_to(kept, cut(made, scheme.block).shape), scheme.block)
            return Restored(np.where(mask, case.encrypted, made), exhausted=late, notes='Untouched places kept.')
        if scheme.moves != 'none' and scheme.values > MOST_VALUES:
            return Restored(made, exhausted=late, notes='The generated photos; blocks are too large for more.')
        guess = _guess(scheme, fit, made, case.encrypted)
        decrypted = guess.decrypt(case.encrypted)
        if roughness(decrypted) <= _SMOOTH * roughness(photos):
            return Restored(decrypted, guess, late, 'Decrypted with the cipher that the generated photos suggest.')
        return Restored(made, exhausted=late, notes='The generated photos.')


def _first(case: ImageCase, photos: Images) -> Images:
    """What the search starts from: enlarged means of blocks where these are plain ones, else the mean photo."""
    if case.scheme.changes == 'none':
        return enlarged(cut(case.encrypted, case.scheme.block).mean(-1), case.encrypted.shape[1:3])
    mean = photos.mean(0).round().astype(np.uint8)
    return np.broadcast_to(mean, case.encrypted.shape).copy()


def _guess(scheme: Scheme, fit: Fit, made: Images, encrypted: Images) -> BlockMap:
    """The map of blocks by which generated photos come nearest to the encrypted images."""
    if scheme.moves == 'none':
        return BlockMap(scheme.block, changed=by_place(fit.kept, scheme) < 0.5)
    own, theirs = (_details(images, scheme.block) for images in (made, encrypted))
    likeness = theirs.T @ own
    changed = None
    if scheme.changes != 'none':
        likeness, signed = np.abs(likeness), likeness
    if scheme.moves == 'channel':
        colours = np.arange(scheme.values) % COLOURS
        likeness = np.where(colours[:, None] == colours[None], likeness, -1e9)
    rows, order = linear_sum_assignment(-likeness)
    if scheme.changes != 'none':
        changed = signed[rows, order] < 0
    return BlockMap(scheme.block, order, changed)


def _details(images: Images, block: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """All blocks' values less their block's mean, (number of blocks, 3 M M), each place of length 1."""
    blocks = cut(images, block).astype(np.float32)
    flat = (blocks - blocks.mean(-1, keepdims=True)).reshape(-1, blocks.shape[-1])
    return np.asarray(flat / (np.linalg.norm(flat, axis=0) + 1e-6), dtype=np.float32)


def roughness(images: Images) -> float:
    """Mean absolute difference of neighbouring pixels."""
    values = images.astype(np.float32)
    return float(np.abs(np.diff(values, axis=1)).mean() + np.abs(np.diff(values, axis=2)).mean())
