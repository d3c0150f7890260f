"""The methods that a comparison compares: one entry each, from published papers and from this package."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from keyseg_mm.errors import KeysegError

if TYPE_CHECKING:
    from mmengine.config import Config

PLAIN = 'plain'
BLOCKS = (4, 16)
FEATURE_BLOCK = 2

Alter = Callable[[Any, str], None]


@dataclass(frozen=True)
class Method:
    """One way of protecting a model.

    Attributes:
        name: for the command line and for folders.
        title: for tables.
        does: what it does.
        lacks: what it does not do.
        source: where it was published.
        alter: turns the plain config into the method's, given the key's locator.
        lock: arguments of the command that makes it from the plain checkpoint; empty where it is trained.
        timed: what its overhead is: ``nothing``, the encryption of ``images``, that of the ``encryptors``, or that of a
            model ``unlocked`` in memory.
        points, transform: what it encrypts inside the model, to find out whether it can.
    """

    name: str
    title: str
    does: str
    lacks: str
    source: str
    alter: Alter
    lock: tuple[str, ...] = ()
    timed: str = 'nothing'
    points: str = ''
    transform: dict[str, Any] | None = None

    @property
    def is_trained(self) -> bool:
        """Whether it needs a training of its own."""
        return not self.lock


def _as_it_is(cfg: Config, key: str) -> None:
    """Leave the config as it is."""


def _images(method: str, block: int) -> Alter:
    """Train and test on encrypted images."""

    def alter(cfg: Config, key: str) -> None:
        from keyseg_mm.compare.configs import LOADERS, before_packing, change_pipelines

        step = dict(type='keyseg_mm.EncryptImage', method=method, block=block, key=key)
        change_pipelines(cfg, LOADERS, before_packing(step))
        hook: dict[str, Any] = dict(type='keyseg_mm.GuardHook')
        if cfg.get('load_from'):  # all methods start from the same weights
            hook['allow_plain'] = True
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]

    return alter


def _keyed(**protection: Any) -> Alter:
    """Put a protection around the model."""

    def alter(cfg: Config, key: str) -> None:
        options = dict(key=key, **protection)
        if cfg.get('load_from') and protection.get('points') == 'stages':
            options['allow_plain'] = True
        cfg.model.update(of=cfg.model.type, type='keyseg_mm.Keyed', protection=options)
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='keyseg_mm.GuardHook')]

    return alter


def _patches(cfg: Config, key: str) -> None:
    """Test on images that the client encrypts."""
    from keyseg_mm.baselines.patches import patch_of
    from keyseg_mm.compare.configs import behind_resizing, change_pipelines
    from keyseg_mm.mm.config import build_plain_model

    patch = patch_of(build_plain_model(cfg))
    step = dict(type='keyseg_mm.EncryptImage', key=key, method='PATCH')
    change_pipelines(cfg, ('val_dataloader', 'test_dataloader'), behind_resizing([step], patch))
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='keyseg_mm.GuardHook')]


_ENCRYPTED_IMAGES = (
    'Every block of every image is encrypted alike, and one image with its encryption gives the tables away; pictures '
    'are scrambled, not enciphered. Needs a training of its own for each key.'
)
_IN_TRAINING = 'Needs a training of its own for each key, and cannot be given another one without training again.'
_LOCKED = (
    'Biases, norms and grouped convolutions stay as they were, and locked weights keep their values in another order, '
    'so that whoever has the weights that the model was fine-tuned from can line it up with them.'
)
_MAPS = 'arXiv 2206.05422 (Ito et al., 2022)'


def _of_images(name: str, title: str, does: str, source: str) -> Method:
    return Method(f'image-{name.lower()}', title, does, _ENCRYPTED_IMAGES, source, _as_it_is, timed='images')


def _of_maps(name: str, title: str, does: str, lacks: str, source: str, **transform: Any) -> Method:
    alter = _keyed(points='stages', transform=transform)
    parts: dict[str, Any] = dict(timed='encryptors', points='stages', transform=transform)
    return Method(name, title, does, lacks, source, alter, **parts)


def _locked(name: str, title: str, does: str, transform: str) -> Method:
    lock = ('lock', '--points', 'linear', '--transform', transform)
    parts: dict[str, Any] = dict(timed='encryptors', points='linear', transform=dict(type=transform))
    source = f'this package, after {_MAPS}'
    return Method(name, title, does, _LOCKED, source, _keyed(points='checkpoint'), lock, **parts)


#: Image methods stand here once, and are compared at each block size.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            PLAIN,
            'plain',
            'The model as it is, without protection: what the others are measured by.',
            'Protects nothing.',
            'the host',
            _as_it_is,
        ),
        _of_images(
            'SHF',
            'image SHF',
            'Images are encrypted before training and testing: the values of each block change places, across colours '
            'too.',
            'arXiv 2105.14756 (MaungMaung and Kiya, 2021), for segmentation 2107.09362 (Ito et al., 2021)',
        ),
        _of_images(
            'NP',
            'image NP',
            'Images are encrypted before training and testing: a secret half of the places of each block holds 255 - p '
            'for p.',
            'arXiv 2105.14756 (MaungMaung and Kiya, 2021), for segmentation 2107.09362 (Ito et al., 2021)',
        ),
        _of_images(
            'FFX',
            'image FFX',
            'Images are encrypted before training and testing: a secret half of the places of each block holds the '
            'format-preserving encryption of p.',
            'arXiv 2105.14756 (MaungMaung and Kiya, 2021)',
        ),
        _of_maps(
            'feature-shf',
            'feature SHF',
            f'Trained with the key: the maps that the backbone hands on are shuffled in blocks of {FEATURE_BLOCK} by '
            f'{FEATURE_BLOCK} positions and all channels.',
            f'{_IN_TRAINING} Cannot be locked afterwards or unlocked.',
            'arXiv 2109.00224 (MaungMaung and Kiya, 2021)',
            type='BlockShuffle',
            block=FEATURE_BLOCK,
        ),
        _of_maps(
            'feature-np',
            'feature NP',
            f'Trained with the key: half of the values in each block of {FEATURE_BLOCK} by {FEATURE_BLOCK} positions '
            'of the maps that the backbone hands on are negated.',
            f'{_IN_TRAINING} Cannot be locked afterwards or unlocked.',
            'arXiv 2109.00224 (MaungMaung and Kiya, 2021)',
            type='NegativePositive',
            block=FEATURE_BLOCK,
        ),
        _of_maps(
            'feature-permutation',
            'feature permutation',
            "Trained with the key: the channels of the maps that the backbone hands on are permuted, the paper's way.",
            f'{_IN_TRAINING} Hides which channel is which, and leaves the values of each as they were.',
            _MAPS,
            type='ChannelPermutation',
        ),
        _locked(
            'lock-permutation',
            'locked, permutation',
            'Locked after training: the inputs of all convolutions and linear layers are permuted, and their weights '
            'with them. Loses nothing.',
            'ChannelPermutation',
        ),
        _locked(
            'lock-signed',
            'locked, signs',
            'Locked after training: the inputs of all convolutions and linear layers are permuted and their signs '
            'changed, and their weights with them. Loses nothing. The default of keyseg lock.',
            'SignedChannelPermutation',
        ),
        _locked(
            'lock-rotation',
            'locked, rotation',
            'Locked after training: the inputs of all convolutions and linear layers are turned, 8 channels at a time, '
            'and their weights with them. Exact to rounding.',
            'ChannelRotation',
        ),
        Method(
            'patches',
            'encrypted patches',
            'Locked after training: the patch embedding of a vision transformer takes images that the client '
            'encrypts; the server needs no key.',
            'For models whose patches do not overlap. Scrambled pictures still show even areas, and all weights but '
            'the embedding are plain.',
            'arXiv 2208.13135 (Nagamori, Iijima and Kiya, 2022), 2308.07612 (Kiya et al., 2023)',
            _patches,
            ('lock', '--scheme', 'patches'),
            'images',
        ),
        Method(
            'weights-all',
            'encrypted weights, all',
            'Locked after training: the values of every tensor are put into a secret order. Recovered bit for bit.',
            "Runs only unlocked. Every tensor keeps its values' distribution, a better start for training than none.",
            'this package; for comparison with encrypted model files',
            _keyed(unlock=True),
            ('lock', '--scheme', 'tensors'),
            'unlocked',
        ),
        Method(
            'weights-selective',
            'encrypted weights, 1 %',
            'Locked after training: the 1 % most sensitive weights are put into a secret order. Recovered bit for bit.',
            'Runs only unlocked. The other 99 % of the weights are plain, for anybody to fine-tune.',
            'arXiv 2511.18772 (ADALOC) and others encrypt a share of the weights',
            _keyed(unlock=True),
            ('lock', '--scheme', 'selective'),
            'unlocked',
        ),
    )
}


def expanded(blocks: Sequence[int] = BLOCKS) -> dict[str, Method]:
    """All methods by name, those of images once for each block size."""
    found: dict[str, Method] = {}
    for name, method in METHODS.items():
        if not name.startswith('image-'):
            found[name] = method
            continue
        for block in blocks:
            title = f'{method.title}, block {block}'
            alter = _images(name.removeprefix('image-').upper(), block)
            found[f'{name}-{block}'] = replace(method, name=f'{name}-{block}', title=title, alter=alter)
    return found


def pick(wanted: Sequence[str] | None, blocks: Sequence[int] = BLOCKS) -> list[Method]:
    """The methods that a user asks for, in the table's order; the plain model, by which all are measured, always.

    Args:
        wanted: names, also those of image methods without a block, and patterns as ``'lock-*'``; None for all.
        blocks: block sizes of the image methods.

    Raises:
        KeysegError: one that matches nothing.
    """
    table = expanded(blocks)
    chosen = {PLAIN}
    for text in wanted if wanted is not None else list(table):
        found = [name for name in table if fnmatch.fnmatchcase(name, text) or name.rpartition('-')[0] == text]
        found = [text] if text in table else found
        if not found:
            raise KeysegError(f'no method {text!r}; there are {", ".join(table)}')
        chosen.update(found)
    return [method for name, method in table.items() if name in chosen]
