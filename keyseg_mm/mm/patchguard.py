"""``PatchGuardHook``: watches a test run on images that are encrypted for a locked patch embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmseg.models.segmentors.base import BaseSegmentor

from keyseg_mm.errors import PlainCheckpointError, PlanMismatchError
from keyseg_mm.mm.embeddings import misaligned
from keyseg_mm.mm.patchdata import EncryptPatches
from keyseg_mm.mm.registry import HOOKS
from keyseg_mm.patchplan import patch_plan_of

# What may follow the encryption in a pipeline: all of it leaves the image as it is.
_HARMLESS = ('LoadAnnotations', 'LoadPanopticAnnotations', 'LoadDepthAnnotation', 'PackSegInputs')


@HOOKS.register_module()
class PatchGuardHook(Hook):
    """Hands the loaded checkpoint's stamp to ``EncryptPatches``, and stops runs that would cut encrypted blocks.

    In a config: ``custom_hooks=[dict(type='keyseg_mm.PatchGuardHook')]``.

    Raises:
        PlainCheckpointError: the checkpoint takes plain images.
        KeyMismatchError: it takes images encrypted with another key.
        IntegrityError: it was altered.
        PlanMismatchError: no ``EncryptPatches`` in the pipeline, something behind it changes the image, or windows or
            padding that do not keep to its blocks.
    """

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state_dict = checkpoint.get('state_dict', checkpoint)
        plan = patch_plan_of(state_dict)
        found = [t for name in ('val', 'test') for chain in _chains(runner, name) for t in chain]
        transforms = {id(t): t for t in found if isinstance(t, EncryptPatches)}
        if plan is None:
            if any(t.key is not None for t in transforms.values()):
                raise PlainCheckpointError(
                    'this checkpoint takes plain images (it carries no stamp of a locked patch embedding), and the '
                    "pipeline encrypts them; lock it with `keyseg lock-patches`, or say key='none'"
                )
            return
        for transform in transforms.values():
            transform.follow(plan, state_dict)
        del state_dict[plan.stamp_name]  # the model has no such entry, and the host would say so

    def before_val_epoch(self, runner: Any) -> None:
        _check(runner, 'val')

    def before_test_epoch(self, runner: Any) -> None:
        _check(runner, 'test')


def _check(runner: Any, loop: str) -> None:
    problems, patches = [], set()
    for chain in _chains(runner, loop):
        places = [index for index, t in enumerate(chain) if isinstance(t, EncryptPatches)]
        if len(places) != 1:
            problems.append(f'the {loop} pipeline has EncryptPatches {len(places)} times, and should have it once')
            continue
        behind = [type(t).__name__ for t in chain[places[0] + 1 :]]
        moving = [name for name in behind if name not in _HARMLESS]
        if moving:
            problems.append(f'{", ".join(moving)} would change encrypted images; put EncryptPatches behind it')
        if chain[places[0]].key is not None:
            patches.add(chain[places[0]].patch)
    model = next((m for m in runner.model.modules() if isinstance(m, BaseSegmentor)), runner.model)
    for patch in patches - {None}:
        problems += misaligned(model, patch)
    if problems:
        raise PlanMismatchError('; '.join(dict.fromkeys(problems)))


def _chains(runner: Any, loop: str) -> Iterator[list[Any]]:
    """Every sequence of transforms that an image of a loop's data may go through."""
    built = getattr(runner, f'_{loop}_loop', None)
    for dataset in _datasets(getattr(getattr(built, 'dataloader', None), 'dataset', None)):
        yield from _unrolled(list(getattr(dataset.pipeline, 'transforms', [])))


def _datasets(dataset: Any) -> Iterator[Any]:
    """A data set, or those that it wraps."""
    inner = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    for part in inner:
        yield from _datasets(part)
    if not inner and hasattr(dataset, 'pipeline'):
        yield dataset


def _unrolled(transforms: list[Any]) -> Iterator[list[Any]]:
    """Test-time augmentation holds several pipelines: each of them with what comes before."""
    for index, transform in enumerate(transforms):
        if hasattr(transform, 'subroutines'):
            for routine in transform.subroutines:
                yield from _unrolled([*transforms[:index], *routine.transforms, *transforms[index + 1 :]])
            return
    yield transforms
