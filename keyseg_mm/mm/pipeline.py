"""``EncryptImage``, a step of mmseg's data pipelines, and ``ImageKeyHook``, which checks it against checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook

from keyseg_mm.bind import derive_image_cipher
from keyseg_mm.errors import (
    KeyMismatchError,
    LeakError,
    NotFiredError,
    PlainCheckpointError,
    PlanMismatchError,
    SecretExposedError,
)
from keyseg_mm.images.cipher import Bytes, ImageCipher
from keyseg_mm.images.plan import META, ImagePlan, check_method, plans_in_meta, read_salt
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.keys.locator import locate
from keyseg_mm.mm.registry import HOOKS, TRANSFORMS
from keyseg_mm.runtime.leaks import Needles, search_object

logger = logging.getLogger('keyseg_mm')

_FIELDS = ('img', 'img2')  # change detection loads a second picture
_CHANGES = 'train on them anew, or give the key and options that the checkpoint was trained with'


@TRANSFORMS.register_module()
class EncryptImage(BaseTransform):
    """Encrypts images, in training and in testing: a model that learns them so works with that key only.

    After MaungMaung and Kiya, arXiv 2105.14756, and Ito et al., arXiv 2107.09362; see :mod:`keyseg_mm.images.cipher`.
    Put it right before ``PackSegInputs``, in every pipeline: what comes before works on plain images, and whatever
    moves or changes pixels after it breaks the blocks. In a config:
    ``dict(type='keyseg_mm.EncryptImage', method='SHF', block=8, key='file:keys/my.key')``.

    Pickling, as data loaders with spawned workers do, takes the locator along and not the key; it is followed again
    there.

    Args:
        key: key locator, see :mod:`keyseg_mm.keys.locator`. ``none`` leaves images plain, ``random:SEED`` encrypts them
            with a wrong key, both on purpose and with a warning.
        method: ``SHF``, ``NP`` or ``FFX``.
        block: side of a block in pixels, 1 to 64.
        salt: public, 32 hex digits, so that one key encrypts the images of another model otherwise; by default none.

    Required keys: img (img2 too, if it is there), uint8. Modified keys: the same.

    Raises:
        KeyFileError: no key there, before any image is loaded.
        TransformError: a bad option, or an image that is not uint8.
    """

    def __init__(self, key: Any, method: str = 'SHF', block: int = 8, salt: str | None = None) -> None:
        check_method(method, block)
        self.method, self.block, self.salt = method, block, read_salt(salt)
        self._locator = key
        self._locate()
        if self.plan is None:
            logger.warning("key='none': images stay PLAIN; a model that was trained on encrypted ones gives rubbish")
        elif self.deliberate:
            logger.warning('a wrong key, %s, on purpose: images are encrypted as by a stranger', self.plan.key_id)

    def _locate(self) -> None:
        located = locate(self._locator)
        self.key: SecretKey | None = located.key
        self.deliberate = located.deliberate
        self.plan = ImagePlan(self.method, self.block, self.key.id, self.salt) if self.key else None
        self.cipher: ImageCipher | None = derive_image_cipher(self.key, self.plan) if self.key and self.plan else None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Encrypt the images of a sample."""
        for field in _FIELDS:
            if field in results and self.cipher is not None:
                results[field] = self.cipher.encrypt(results[field])
        return results

    def decrypt(self, image: Bytes) -> Bytes:
        """Undo the encryption of one image, uint8 (H, W, C) or (H, W)."""
        return image if self.cipher is None else self.cipher.decrypt(image)

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._locator, SecretKey):
            raise SecretExposedError(
                'refused to pickle an EncryptImage that was given a key itself; give it a locator, as file:PATH, '
                'which another process can follow'
            )
        public = {name: getattr(self, name) for name in ('method', 'block', 'salt', '_locator')}
        return {**public, 'key_id': self.key.id if self.key else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        expected = state.pop('key_id')
        self.__dict__.update(state)
        self._locate()
        found = self.key.id if self.key else None
        if found != expected:
            raise KeyMismatchError(
                f'a data loader worker found key {found} where the run began with {expected}: the key was replaced '
                'meanwhile; start the run again'
            )

    def __deepcopy__(self, memo: Any) -> EncryptImage:
        return self  # nothing in it ever changes

    def __repr__(self) -> str:
        key_id = self.key.id if self.key else 'none'
        return (
            f'{type(self).__name__}(method={self.method!r}, block={self.block}, key_id={key_id!r}, '
            f'salt={self.salt.hex() or None!r})'
        )


@HOOKS.register_module()
class ImageKeyHook(Hook):
    """Keeps images and checkpoints together: a checkpoint says how its images were encrypted, and is checked for it.

    It checks that every pipeline of a run encrypts, and all alike; writes method, block, key id and salt into each
    checkpoint's ``meta``; compares them when one is loaded or resumed; and stops a run that would write a secret down.
    In a config: ``custom_hooks=[dict(type='keyseg_mm.ImageKeyHook')]``.

    Only a Runner calls hooks: ``init_model`` and the inferencers load a checkpoint without asking, and
    ``keyseg show CHECKPOINT`` tells what images it wants.

    Args:
        allow_plain: accept checkpoints that were trained on plain images, to fine-tune them on encrypted ones.

    Raises:
        NotFiredError: a pipeline that does not encrypt.
        KeyMismatchError, PlanMismatchError: pipelines that differ, or a checkpoint of other images.
        PlainCheckpointError: a checkpoint of plain images.
        LeakError: secret material in the config or in a checkpoint about to be saved.
    """

    priority = 'LOWEST'  # after the hooks that add to the checkpoint

    def __init__(self, allow_plain: bool = False) -> None:
        self.allow_plain = allow_plain
        self._loaded: tuple[ImagePlan, ...] | None = None
        self._steps: dict[str, tuple[EncryptImage, ...]] = {}

    def before_run(self, runner: Any) -> None:
        for name in ('train', 'val', 'test'):
            dataset = getattr(getattr(getattr(runner, f'_{name}_loop', None), 'dataloader', None), 'dataset', None)
            for steps in encryptions(dataset) if dataset is not None else []:
                if not steps:
                    raise NotFiredError(
                        f'ImageKeyHook: the {name} data set has a pipeline without keyseg_mm.EncryptImage; put it '
                        "right before PackSegInputs (with key='none' to leave images plain on purpose)"
                    )
                self._agree(name, steps)
        _stop_leaks(self._needles(), 'the config', repr(runner.cfg.to_dict()))
        self._check()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._loaded = plans_in_meta(checkpoint.get('meta'))
        self._check()

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        plans = _plans(self._steps.get('train', ()))
        if plans:
            checkpoint.setdefault('meta', {})[META] = [plan.to_meta() for plan in plans]
        _stop_leaks(self._needles(), 'checkpoint', checkpoint)

    def _agree(self, name: str, steps: tuple[EncryptImage, ...]) -> None:
        """Take over a pipeline's steps, and compare them with those of the others that are not wrong on purpose."""
        for other, theirs in self._steps.items():
            if not _deliberate(steps) and not _deliberate(theirs):
                _compare(_plans(theirs), _plans(steps), f'the {other} pipeline', f'the {name} pipeline')
        self._steps[name] = steps

    def _check(self) -> None:
        """Once a checkpoint and the pipelines are both there."""
        if self._loaded is None or not self._steps:
            return
        honest = [steps for steps in self._steps.values() if not _deliberate(steps)]
        if not honest:
            wanted = '; '.join(map(str, self._loaded)) or 'plain ones'
            logger.warning('this checkpoint was trained on other images than these, on purpose; it wants: %s', wanted)
        elif self._loaded:
            _compare(self._loaded, _plans(honest[0]), 'the images of this checkpoint', 'those of this run')
        elif not self.allow_plain:
            raise PlainCheckpointError(
                'this checkpoint does not say that its images were encrypted, and this run encrypts them '
                f'({"; ".join(map(str, _plans(honest[0])))}); to fine-tune a model of plain images, give ImageKeyHook '
                'allow_plain=True'
            )

    def _needles(self) -> Iterator[Needles]:
        steps = dict.fromkeys(step for found in self._steps.values() for step in found)
        for key, plan in dict.fromkeys((s.key, s.plan) for s in steps):
            if key is not None and plan is not None:
                yield Needles(key, images=[plan])


def encryptions(dataset: Any) -> list[tuple[EncryptImage, ...]]:
    """The encrypting steps of a data set, in order, for each of the data sets that it is made of."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    inner = [steps for part in parts if part is not None for steps in encryptions(part)] or [()]
    own = tuple(_in_pipeline(getattr(dataset, 'pipeline', None)))
    return [steps + own for steps in inner]


def _in_pipeline(value: Any) -> Iterator[EncryptImage]:
    """Steps of a pipeline; of the branches of a step that has several, all of which go on alike, the first."""
    if isinstance(value, EncryptImage):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _in_pipeline(item)
    elif getattr(value, 'subroutines', None):  # TestTimeAug
        yield from _in_pipeline(value.subroutines[0])
    elif isinstance(value, BaseTransform) or hasattr(value, 'transforms'):
        yield from _in_pipeline(getattr(value, 'transforms', None))


def _deliberate(steps: tuple[EncryptImage, ...]) -> bool:
    return any(step.deliberate for step in steps)


def _plans(steps: tuple[EncryptImage, ...]) -> tuple[ImagePlan, ...]:
    return tuple(step.plan for step in steps if step.plan is not None)


def _compare(a: tuple[ImagePlan, ...], b: tuple[ImagePlan, ...], name_a: str, name_b: str) -> None:
    if a == b:
        return
    words = f'{name_a}: {"; ".join(map(str, a))}; {name_b}: {"; ".join(map(str, b))}; {_CHANGES}'
    if {plan.key_id for plan in a} != {plan.key_id for plan in b}:
        raise KeyMismatchError(f'images encrypted with different keys. {words}, or key=none to run it on purpose')
    raise PlanMismatchError(f'images encrypted in different ways. {words}')


def _stop_leaks(needles: Iterator[Needles], where: str, value: Any) -> None:
    leaks = [leak for found in needles for leak in search_object(where, value, found)]
    if leaks:
        raise LeakError('secret material found, and nothing was written: ' + '; '.join(map(str, leaks)))
