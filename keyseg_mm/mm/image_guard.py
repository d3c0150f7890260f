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

from keyseg_mm.bind import stamp_tensor
from keyseg_mm.entries import ImageEntry
from keyseg_mm.envelope import SEALED
from keyseg_mm.errors import KeyMismatchError, NotFiredError, PlainCheckpointError, PlanMismatchError
from keyseg_mm.keys.identity import Key
from keyseg_mm.maps.pixels import PATCH
from keyseg_mm.mm.embeddings import misaligned
from keyseg_mm.mm.pipeline import EncryptImage, chains
from keyseg_mm.runtime.attach import protections
from keyseg_mm.seal.sections import Sealing, sealed_stamp, trusted_stamp, unseal_section
from keyseg_mm.stamp import Stamp, fresh_salt, stamp_names, stamps_of
from keyseg_mm.wrapping import memory_stamp, open_envelope

logger = logging.getLogger('keyseg_mm')

_LOOPS = ('train', 'val', 'test')
# What may follow the encryption for a patch embedding in a pipeline: all of it leaves the image as it is.
_HARMLESS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadDepthAnnotation', 'PackSegInputs')
_CHANGES = 'train on them anew, or give the key and options that the checkpoint was trained with'
_Said = tuple[str, tuple[ImageEntry, ...]]  # what a stamp would say of images: the key's id, and its entries


class ImageGuard:
    """Watches the encryption of images in a run.

    Args:
        allow_plain: accept checkpoints that were trained on plain images, to fine-tune them on encrypted ones.
        mode: how the checkpoints are sealed.
    """

    def __init__(self, allow_plain: bool = False, mode: str = SEALED) -> None:
        self.allow_plain, self.mode = allow_plain, mode
        self._learnt: list[tuple[str, list[EncryptImage]]] = []  # loops, and the steps of their pipelines
        self._embedded = False  # whether the checkpoint's patch embedding is locked
        self._salt = fresh_salt()

    def is_at_work(self, runner: Any) -> bool:
        """Whether any pipeline of the run encrypts images."""
        return any(steps for _, steps in _encryptions(runner))

    def before_run(self, runner: Any) -> None:
        """Take over the pipelines' steps, and compare them."""
        found = list(_encryptions(runner))
        self._learnt = found if any(s.method != PATCH for _, steps in found for s in steps) else []
        for loop, steps in self._learnt:
            if not steps:
                raise NotFiredError(
                    f'the {loop} data set has a pipeline without keyseg_mm.EncryptImage; put it right before '
                    "PackSegInputs (with key='none' to leave images plain on purpose)"
                )
        meant = self._meant()
        for loop, said in meant[1:]:
            _compare(meant[0][1], said, f'the {meant[0][0]} pipeline', f'the {loop} pipeline')
        # a model with one key is not trained on images of another: a checkpoint is opened by one key
        for protection in protections(runner.model):
            for step in self._training():
                if step.key is not None and protection.key is not None:
                    _refuse_other_key(step.key, protection.key.id)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Compare a checkpoint with the pipelines; a stamp that the model has no use for is taken out."""
        tensors = checkpoint.get('state_dict', checkpoint)
        stamp = stamps_of(tensors).get('')
        self._embedded = stamp is not None and bool(stamp.embeddings)
        for step in {step for loop, steps in _encryptions(runner) if loop != 'train' for step in steps}:
            if stamp is not None and self._embedded:
                step.follow(stamp, tensors)
            elif step.method == PATCH and step.key is not None:
                raise PlainCheckpointError(
                    'this checkpoint takes plain images (it carries no stamp of a locked patch embedding), and the '
                    "pipeline encrypts them; lock it with `keyseg lock --scheme patches`, or say key='none'"
                )
        self._check(('', ()) if stamp is None else (stamp.key_id, stamp.images))
        key = next((s.key for _, steps in self._learnt for s in steps if s.key and not s.deliberate), None)
        if stamp is not None and stamp.images and key is not None:
            trusted_stamp(key, tensors)
            if stamp.seal is not None and not stamp.maps:  # the model has no key: who encrypts its images opens it
                tensors = checkpoint['state_dict'] = unseal_section(key, tensors)
        if self._embedded or (stamp is not None and stamp.images and not stamp.maps and sealed_stamp(tensors) is None):
            for name in stamp_names(tensors):
                del tensors[name]

    def before_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put into the stamp what the training images were encrypted with, and sign it."""
        entries = tuple(step.learnt for step in self._training() if step.learnt is not None)
        key = next((step.key for step in self._training() if step.key is not None), None)
        if not entries or key is None:
            return
        tensors = checkpoint['state_dict']
        stamp = stamps_of(tensors).get('') or Stamp(key.id, self._salt, ())
        _refuse_other_key(key, stamp.key_id)
        features = key.features(stamp.salt)
        if stamp.entries:
            features = open_envelope(key, stamp).features
            del tensors[stamp.name]
        stamp = memory_stamp(key, replace(stamp, entries=(*stamp.maps, *entries)), features)
        tensors[stamp.name] = stamp_tensor(stamp)

    @property
    def sealing(self) -> Sealing | None:
        """How files are written of a model that learns from encrypted images; None where there are none."""
        key = next((step.key for step in self._training() if step.key is not None and not step.deliberate), None)
        return None if key is None else Sealing(key, (key,), self.mode)

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
                if chain[place].cipher is not None:
                    blocks.add(chain[place].cipher.block)
        model = next((m for m in runner.model.modules() if isinstance(m, BaseSegmentor)), runner.model)
        problems += [problem for block in blocks for problem in misaligned(model, block)]
        if problems:
            raise PlanMismatchError('; '.join(dict.fromkeys(problems)))

    def stamps(self) -> Iterator[tuple[Key, Stamp]]:
        """Keys and stamps of all encryptions of images, whose tables must not be written down."""
        for key, entry in {(step.key, step.learnt) for _, steps in self._learnt for step in steps}:
            if key is not None and entry is not None:
                yield key, Stamp(key.id, self._salt, (entry,))

    def _training(self) -> list[EncryptImage]:
        """The steps of one of the training's pipelines, which are all alike."""
        return next((steps for loop, steps in self._learnt if loop == 'train'), [])

    def _meant(self) -> list[tuple[str, _Said]]:
        """What the pipelines say that are not wrong on purpose."""
        honest = [(loop, steps) for loop, steps in self._learnt if not any(step.deliberate for step in steps)]
        return [(loop, _said(steps)) for loop, steps in honest]

    def _check(self, loaded: _Said) -> None:
        """Compare what a checkpoint says with the pipelines."""
        meant = self._meant()
        if self._learnt and not meant:
            wanted = _words(loaded) if loaded[1] else 'plain ones'
            logger.warning('this checkpoint was trained on other images than these, on purpose; it wants: %s', wanted)
        elif meant and loaded[1]:
            _compare(loaded, meant[0][1], 'the images of this checkpoint', 'those of this run')
        elif meant and not self.allow_plain:
            raise PlainCheckpointError(
                'this checkpoint does not say that its images were encrypted, and this run encrypts them '
                f'({_words(meant[0][1])}); to fine-tune a model of plain images, give GuardHook allow_plain=True'
            )


def _encryptions(runner: Any) -> Iterator[tuple[str, list[EncryptImage]]]:
    """Every pipeline's steps that encrypt images, with its loop."""
    for loop in _LOOPS:
        for chain in chains(runner, loop):
            yield loop, [step for step in chain if isinstance(step, EncryptImage)]


def _refuse_other_key(key: Key, key_id: str) -> None:
    if key.id != key_id:
        raise KeyMismatchError(
            f'images are encrypted with key {key.id}, and the model with {key_id}: take one key for both'
        )


def _said(steps: list[EncryptImage]) -> _Said:
    ids = {step.key.id for step in steps if step.key is not None}
    return ', '.join(sorted(ids)), tuple(step.learnt for step in steps if step.learnt is not None)


def _words(said: _Said) -> str:
    return f'{"; ".join(map(str, said[1]))}, key id {said[0]}'


def _compare(a: _Said, b: _Said, name_a: str, name_b: str) -> None:
    if a == b:
        return
    words = f'{name_a}: {_words(a)}; {name_b}: {_words(b)}; {_CHANGES}'
    if a[0] != b[0]:
        raise KeyMismatchError(f'images encrypted with different keys. {words}, or key=none to run it on purpose')
    raise PlanMismatchError(f'images encrypted in different ways. {words}')
