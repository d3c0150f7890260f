"""Keeps encrypted images and checkpoints together, for :class:`keyseg_mm.mm.hooks.GuardHook`.

A checkpoint says in its stamp how its images were encrypted, and what is loaded is checked for it. Only a Runner calls
hooks: ``init_model`` and the inferencers load a checkpoint without asking, and name the key it needs in a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mmseg.models.segmentors.base import BaseSegmentor

from keyseg_mm.bind import check_key, sign, stamp_tensor, verify
from keyseg_mm.entries import ImageEntry
from keyseg_mm.errors import KeyMismatchError, NotFiredError, PlainCheckpointError, PlanMismatchError
from keyseg_mm.keys.key import SecretKey
from keyseg_mm.maps.pixels import PATCH
from keyseg_mm.mm.embeddings import misaligned
from keyseg_mm.mm.pipeline import EncryptImage, chains
from keyseg_mm.runtime.attach import protections
from keyseg_mm.stamp import Stamp, fresh_salt, stamps_of

logger = logging.getLogger('keyseg_mm')

# What may follow the encryption for a patch embedding in a pipeline: all of it leaves the image as it is.
_HARMLESS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadDepthAnnotation', 'PackSegInputs')
_CHANGES = 'train on them anew, or give the key and options that the checkpoint was trained with'
_Steps = tuple[EncryptImage, ...]


class ImageGuard:
    """Watches the encryption of images in a run.

    Args:
        allow_plain: accept checkpoints that were trained on plain images, to fine-tune them on encrypted ones.
    """

    def __init__(self, allow_plain: bool = False) -> None:
        self.allow_plain = allow_plain
        self._steps: dict[str, _Steps] = {}  # by loop; those that a model learns from
        self._loaded: tuple[str, tuple[ImageEntry, ...]] | None = None  # key id and entries of the checkpoint
        self._embedded = False  # whether its patch embedding is locked
        self._salt = fresh_salt()

    def is_at_work(self, runner: Any) -> bool:
        """Whether any pipeline of the run encrypts images."""
        return any(True for loop in ('train', 'val', 'test') for _ in _encryptions(runner, loop))

    def before_run(self, runner: Any) -> None:
        """Take over the pipelines' steps, and compare them."""
        learnt = any(s.method != PATCH for loop in ('train', 'val', 'test') for s in _encryptions(runner, loop))
        for loop in ('train', 'val', 'test') if learnt else ():
            for chain in chains(runner, loop):
                steps = tuple(step for step in chain if isinstance(step, EncryptImage))
                if not steps:
                    raise NotFiredError(
                        f'the {loop} data set has a pipeline without keyseg_mm.EncryptImage; put it right before '
                        "PackSegInputs (with key='none' to leave images plain on purpose)"
                    )
                self._agree(loop, steps)
        self._one_key(runner)
        self._check()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Compare a checkpoint with the pipelines; a stamp that the model has no use for is taken out."""
        tensors = checkpoint.get('state_dict', checkpoint)
        stamp = stamps_of(tensors).get('')
        patches = list(dict.fromkeys(s for loop in ('val', 'test') for s in _encryptions(runner, loop)))
        if stamp is not None and stamp.embeddings:
            for step in patches:
                step.follow(stamp, tensors)
        elif any(step.method == PATCH and step.key is not None for step in patches):
            raise PlainCheckpointError(
                'this checkpoint takes plain images (it carries no stamp of a locked patch embedding), and the '
                "pipeline encrypts them; lock it with `keyseg lock --scheme patches`, or say key='none'"
            )
        self._embedded = stamp is not None and bool(stamp.embeddings)
        self._loaded = ('', ()) if stamp is None else (stamp.key_id, stamp.images)
        self._check()
        key = next((s.key for steps in self._steps.values() for s in steps if s.key and not s.deliberate), None)
        if stamp is not None and stamp.images and key is not None:
            check_key(key, stamp)
            verify(key, stamp, tensors)
        if stamp is not None and not stamp.maps and not stamp.tensors:
            del tensors[stamp.name]

    def before_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put into the stamp what the training images were encrypted with, and sign it."""
        steps = self._steps.get('train', ())
        entries = tuple(step.entry for step in steps if step.entry is not None)
        key = next((step.key for step in steps if step.key is not None), None)
        if not entries or key is None:
            return
        tensors = checkpoint['state_dict']
        stamp = stamps_of(tensors).get('') or Stamp(key.id, self._salt, ())
        _refuse_other_key(key, stamp.key_id)
        if stamp.entries:
            del tensors[stamp.name]
        stamp = sign(key, replace(stamp, entries=(*stamp.maps, *entries), mac=''), tensors)
        tensors[stamp.name] = stamp_tensor(stamp)

    def check_blocks(self, runner: Any, loop: str) -> None:
        """Before a loop of tests: nothing cuts or pads images inside the blocks of a patch embedding.

        Raises:
            PlanMismatchError: all that does, in one message.
        """
        problems, blocks = [], set()
        for chain in chains(runner, loop):
            places = [i for i, step in enumerate(chain) if isinstance(step, EncryptImage) and step.method == PATCH]
            if len(places) > 1 or (self._embedded and not places):
                problems.append(f'the {loop} pipeline has EncryptImage {len(places)} times, and should have it once')
            for place in places[:1]:
                moving = [type(s).__name__ for s in chain[place + 1 :] if type(s).__name__ not in _HARMLESS]
                if moving:
                    problems.append(f'{", ".join(moving)} would change encrypted images; put EncryptImage behind it')
                if chain[place].key is not None:
                    blocks.add(chain[place].block)
        for block in blocks - {None}:
            problems += misaligned(_segmentor(runner), block)
        if problems:
            raise PlanMismatchError('; '.join(dict.fromkeys(problems)))

    def stamps(self) -> Iterator[tuple[SecretKey, Stamp]]:
        """Keys and stamps of all encryptions of images, whose tables must not be written down."""
        found = {(s.key, s.entry) for steps in self._steps.values() for s in steps}
        for key, entry in found:
            if key is not None and entry is not None:
                yield key, Stamp(key.id, self._salt, (entry,))

    def _agree(self, loop: str, steps: _Steps) -> None:
        """Take over a pipeline's steps, and compare them with those of the others that are not wrong on purpose."""
        for other, theirs in self._steps.items():
            if not _deliberate(steps) and not _deliberate(theirs):
                _compare(_said(theirs), _said(steps), f'the {other} pipeline', f'the {loop} pipeline')
        self._steps[loop] = steps

    def _one_key(self, runner: Any) -> None:
        """Refuse to train a model with one key on images of another: a checkpoint is opened by one key."""
        ids = [protection.key.id for protection in protections(runner.model) if protection.key is not None]
        for step in self._steps.get('train', ()):
            if step.key is not None:
                for key_id in ids:
                    _refuse_other_key(step.key, key_id)

    def _check(self) -> None:
        """Once a checkpoint and the pipelines are both there."""
        if self._loaded is None or not self._steps:
            return
        honest = [steps for steps in self._steps.values() if not _deliberate(steps)]
        if not honest:
            wanted = _words(self._loaded) if self._loaded[1] else 'plain ones'
            logger.warning('this checkpoint was trained on other images than these, on purpose; it wants: %s', wanted)
        elif self._loaded[1]:
            _compare(self._loaded, _said(honest[0]), 'the images of this checkpoint', 'those of this run')
        elif not self.allow_plain:
            raise PlainCheckpointError(
                'this checkpoint does not say that its images were encrypted, and this run encrypts them '
                f'({_words(_said(honest[0]))}); to fine-tune a model of plain images, give GuardHook allow_plain=True'
            )


def _encryptions(runner: Any, loop: str) -> Iterator[EncryptImage]:
    for chain in chains(runner, loop):
        yield from (step for step in chain if isinstance(step, EncryptImage))


def _segmentor(runner: Any) -> Any:
    """The run's model, without what wraps it."""
    return next((m for m in runner.model.modules() if isinstance(m, BaseSegmentor)), runner.model)


def _refuse_other_key(key: SecretKey, key_id: str) -> None:
    if key.id != key_id:
        raise KeyMismatchError(
            f'the images are encrypted with key {key.id}, and the model with {key_id}: take one key for both'
        )


def _deliberate(steps: _Steps) -> bool:
    return any(step.deliberate for step in steps)


def _said(steps: _Steps) -> tuple[str, tuple[ImageEntry, ...]]:
    """What a stamp would say of a pipeline: the key's id and its entries."""
    ids = {step.key.id for step in steps if step.key is not None}
    return ', '.join(sorted(ids)), tuple(step.entry for step in steps if step.entry is not None)


def _words(said: tuple[str, tuple[ImageEntry, ...]]) -> str:
    return f'{"; ".join(map(str, said[1]))}, key id {said[0]}'


def _compare(a: tuple[str, Any], b: tuple[str, Any], name_a: str, name_b: str) -> None:
    if a == b:
        return
    words = f'{name_a}: {_words(a)}; {name_b}: {_words(b)}; {_CHANGES}'
    if a[0] != b[0]:
        raise KeyMismatchError(f'images encrypted with different keys. {words}, or key=none to run it on purpose')
    raise PlanMismatchError(f'images encrypted in different ways. {words}')
