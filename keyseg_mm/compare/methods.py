"""The methods that a comparison compares: one entry each, from published papers and from this package."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keyseg_mm.errors import KeysegError

PLAIN = 'plain'
_BLOCKS = (4, 16)  # of the image methods, where none is asked for
_FEATURE_BLOCK = 2


@dataclass(frozen=True)
class Method:
    """One way of protecting a model.

    Attributes:
        name: for the command line and for folders.
        title: for tables.
        does: what it does.
        lacks: what it does not do.
        source: where it was published.
        protects: ``nothing``, ``images``, ``features``, ``patches`` or ``weights``.
        lock: the command that makes it from the plain checkpoint, and its options; empty where it is trained.
        points, transform: which feature maps it encrypts, and how.
        cipher, block: how it encrypts images.
    """

    name: str
    title: str
    does: str
    lacks: str
    source: str
    protects: str = 'nothing'
    lock: tuple[str, ...] = ()
    points: str = ''
    transform: Mapping[str, Any] = field(default_factory=dict)
    cipher: str = ''
    block: int = 0


_MAPS = 'arXiv 2206.05422 (Ito et al., 2022)'
_BLOCK_MAPS = 'arXiv 2109.00224 (MaungMaung and Kiya, 2021)'
_IMAGES = 'arXiv 2105.14756 (MaungMaung and Kiya, 2021)'
_SEGMENTED = f'{_IMAGES}, for segmentation 2107.09362 (Ito et al., 2021)'
_IN_BLOCKS = f'in blocks of {_FEATURE_BLOCK} by {_FEATURE_BLOCK} positions'


def _of_images(cipher: str, block: int) -> Method:
    what, source = {
        'SHF': ('the values of each block change places, across colours too', _SEGMENTED),
        'NP': ('a secret half of the places of each block holds 255 - p for p', _SEGMENTED),
        'FFX': ('a secret half of the places of each block holds the format-preserving encryption of p', _IMAGES),
    }[cipher]
    name, title = f'image-{cipher.lower()}-{block}', f'image {cipher}, block {block}'
    does = f'Images are encrypted before training and testing: {what}.'
    lacks = (
        'Every block of every image is encrypted alike, and one image with its encryption gives the tables away; '
        'pictures are scrambled, not enciphered. Needs a training of its own for each key.'
    )
    return Method(name, title, does, lacks, source, 'images', cipher=cipher, block=block)


def _of_maps(title: str, what: str, lacks: str, source: str, **transform: Any) -> Method:
    does = f'Trained with the key: the maps that the backbone hands on are {what}.'
    lacks = f'Needs a training of its own for each key, and cannot be given another one without training again. {lacks}'
    name = title.lower().replace(' ', '-')
    return Method(name, title, does, lacks, source, 'features', points='stages', transform=transform)


def _locked(name: str, title: str, transform: str, what: str) -> Method:
    does = f'Locked after training: the inputs of all convolutions and linear layers are {what}'
    lacks = (
        'Biases, norms and grouped convolutions stay as they were, and locked weights keep their values in another '
        'order, so that whoever has the weights that the model was fine-tuned from can line it up with them.'
    )
    lock = ('lock', '--points', 'linear', '--transform', transform)
    source = f'this package, after {_MAPS}'
    return Method(name, title, does, lacks, source, 'features', lock, points='linear', transform=dict(type=transform))


def _of_weights(name: str, share: str, scheme: str, which: str, lacks: str, source: str) -> Method:
    does = f'Locked after training: {which} put into a secret order. Recovered bit for bit.'
    lacks, lock = f'Runs only unlocked. {lacks}', ('lock', '--scheme', scheme)
    return Method(name, f'encrypted weights, {share}', does, lacks, source, 'weights', lock)


_TABLE = (
    Method(PLAIN, 'plain', 'The model as it is, without protection: what the others are measured by.',
           'Protects nothing.', 'the host'),
    *(_of_images(cipher, block) for cipher in ('SHF', 'NP', 'FFX') for block in _BLOCKS),
    _of_maps('feature SHF', f'shuffled {_IN_BLOCKS} and all channels', 'Cannot be locked afterwards or unlocked.',
             _BLOCK_MAPS, type='BlockShuffle', block=_FEATURE_BLOCK),
    _of_maps('feature NP', f'negated at half of the values {_IN_BLOCKS}', 'Cannot be locked afterwards or unlocked.',
             _BLOCK_MAPS, type='NegativePositive', block=_FEATURE_BLOCK),
    _of_maps('feature permutation', "permuted channel by channel, the paper's way",
             'Hides which channel is which, and leaves the values of each as they were.',
             _MAPS, type='ChannelPermutation'),
    _locked('lock-permutation', 'locked, permutation', 'ChannelPermutation',
            'permuted, and their weights with them. Loses nothing.'),
    _locked('lock-signed', 'locked, signs', 'SignedChannelPermutation',
            'permuted and their signs changed, and their weights with them. Loses nothing. '
            'The default of keyseg lock.'),
    _locked('lock-rotation', 'locked, rotation', 'ChannelRotation',
            'turned, 8 channels at a time, and their weights with them. Exact to rounding.'),
    Method('patches', 'encrypted patches',
           'Locked after training: the patch embedding of a vision transformer takes images that the client encrypts; '
           'the server needs no key.',
           'For models whose patches do not overlap. Scrambled pictures still show even areas, and all weights but the '
           'embedding are plain.',
           'arXiv 2208.13135 (Nagamori, Iijima and Kiya, 2022), 2308.07612 (Kiya et al., 2023)',
           'patches', ('lock', '--scheme', 'patches')),
    _of_weights('weights-all', 'all', 'tensors', 'the values of every tensor are',
                "Every tensor keeps its values' distribution, a better start for training than none.",
                'this package; for comparison with encrypted model files'),
    _of_weights('weights-selective', '1 %', 'selective', 'the 1 % most sensitive weights are',
                'The other 99 % of the weights are plain, for anybody to fine-tune.',
                'arXiv 2511.18772 (ADALOC) and others encrypt a share of the weights'),
)  # fmt: skip
METHODS: dict[str, Method] = {method.name: method for method in _TABLE}


def pick(wanted: Sequence[str] | None = None) -> list[Method]:
    """The methods that a user asks for; the plain model, by which all are measured, comes first, asked for or not.

    Args:
        wanted: names, and patterns as ``'lock-*'``; image methods are known at any block size, as ``image-shf-8``.
            None for all.

    Raises:
        KeysegError: one that matches nothing.
    """
    chosen = {PLAIN: METHODS[PLAIN]}
    for text in METHODS if wanted is None else wanted:
        sized = re.fullmatch(r'image-(shf|np|ffx)-([1-9]\d*)', text)
        found = [method for name, method in METHODS.items() if fnmatch.fnmatchcase(name, text)]
        if sized and not found:
            found = [_of_images(sized[1].upper(), int(sized[2]))]
        if not found:
            raise KeysegError(f'no method {text!r}; there are {", ".join(METHODS)}')
        chosen.update({method.name: method for method in found})
    return list(chosen.values())
