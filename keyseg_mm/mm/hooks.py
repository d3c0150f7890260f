"""``GuardHook``: watches a run of a protected model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from keyseg_mm.envelope import SEALED, SIGNED
from keyseg_mm.errors import LeakError, NotFiredError, PlanMismatchError
from keyseg_mm.mm.advice import warn_of_few_maps
from keyseg_mm.mm.beginning import Beginning, names_from_files
from keyseg_mm.mm.image_guard import ImageGuard
from keyseg_mm.mm.proving import prove_file, prove_points
from keyseg_mm.mm.registry import HOOKS
from keyseg_mm.runtime.attach import protected_modules
from keyseg_mm.runtime.encryptor import Encryptor
from keyseg_mm.runtime.export import CAN_COMPILE
from keyseg_mm.runtime.haystack import Leak
from keyseg_mm.runtime.leaks import Needles, search_object
from keyseg_mm.runtime.protection import Protection, State
from keyseg_mm.runtime.written import RUNTIME, check_runtime, lock_opened, runtime_of
from keyseg_mm.seal.sections import seal_checkpoint
from keyseg_mm.stamp import is_stamp, stamp_names


@HOOKS.register_module()
class GuardHook(Hook):
    """Stops a run whose protection is not what its config says, or that would write a secret down.

    It checks that the model is protected at all and is what its stamp says, before and after each loop; that in the
    first iteration, which torch.compile has no part in, every encryptor fires; that the config holds no secret, and
    that every checkpoint carries the stamp and nothing secret. A training begins with the proof that each point does
    something to what the model predicts, and with a warning where its maps are few; it ends with the proof that its
    last file is right with the key and wrong without, and, where it began with weights out of a plain file, tells how
    much is still close to these. In a config:
    ``custom_hooks=[dict(type='keyseg_mm.GuardHook')]``.

    Where images are encrypted (``keyseg_mm.EncryptImage``), it checks that every pipeline does so, and all alike; puts
    into each checkpoint's stamp how, and checks what is loaded for it; and hands the stamp of a locked patch embedding
    to the pipelines.

    Args:
        allow_plain: accept checkpoints that were trained on plain images, to fine-tune them on encrypted ones.
        seal: of a model that is not protected itself and learns from encrypted images: seal its checkpoints with their
            key. By default they are signed, so that ``init_model`` and inferencers, which know no key, read them. A
            protected model says it itself (``protection.seal``).
        strangers: at each validation, validate a protected model without its key and with a wrong one too, for curves
            and pictures in the visualizer; see :class:`keyseg_mm.mm.strangers.StrangersHook`. That takes three times as
            long.

    Raises:
        NotFiredError: no protection, encryptors that were not called, or a pipeline that does not encrypt.
        KeyMismatchError, PlanMismatchError: pipelines that differ, or a checkpoint of other images; an average (EMA) of
            weights behind other tables.
        PlainCheckpointError: a checkpoint of plain images.
        IntegrityError: a checkpoint that was altered.
        LeakError: secret material in the config or in a checkpoint about to be saved. Nothing is written then.
    """

    priority = 'LOWEST'  # after the hooks that add to the checkpoint, EMA's for one

    def __init__(self, allow_plain: bool = False, seal: bool = False, strangers: bool = False) -> None:
        self.strangers = strangers
        self._images = ImageGuard(allow_plain, SEALED if seal else SIGNED)
        self._run = ''
        self._calls: dict[Encryptor, int] = {}
        self._needles: list[tuple[Any, Needles]] = []
        self._loaded: set[str] | None = None  # plain weights that were; None where nothing was loaded
        self._beginning: Beginning | None = None

    def before_run(self, runner: Any) -> None:
        found = self._protections(runner)
        self._images.before_run(runner)
        if not found and not self._images.is_at_work(runner):
            raise NotFiredError(
                "GuardHook found no protection in the model; give it type='keyseg_mm.Keyed', of=<its old type> and a "
                'protection, or encrypt its images by keyseg_mm.EncryptImage, or take the hook out'
            )
        text = repr(runner.cfg.to_dict())  # pretty_text would say the same and format for a second
        _stop(leak for needles in self._all_needles(found) for leak in needles.search('the config', text.encode()))

    def before_train(self, runner: Any) -> None:
        for protection in self._protections(runner):
            if protection.key is None or protection.rules.deliberate:
                raise NotFiredError(
                    'training without the key, or with one that anybody can make (none, random:SEED), would write '
                    'models that are called protected and are not; give a real key'
                )
            self._say(runner, warn_of_few_maps(protection.encryptors))
        self._note_calls(runner, 'train')
        self._say(runner, prove_points(_model(runner)))
        if not runner._resume:  # what a resumed training began with is not known any more
            names = names_from_files(_model(runner)) if self._loaded is None else self._loaded
            self._beginning = Beginning(_model(runner), names)

    def after_train(self, runner: Any) -> None:
        if self._beginning is not None:
            self._say(runner, self._beginning.words(_model(runner)))
        last = [hook.last_ckpt for hook in runner.hooks if getattr(hook, 'last_ckpt', None)]
        if is_main_process() and self._protections(runner) and last and Path(last[-1]).is_file():
            self._say(runner, prove_file(_model(runner), last[-1], runner.iter))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._images.after_load_checkpoint(runner, checkpoint)
        names = {name.removeprefix('module.') for name in checkpoint.get('state_dict', checkpoint)}
        self._loaded = set() if any(map(is_stamp, names)) else names
        if runner._resume:
            check_runtime(_model(runner), checkpoint)

    def before_val_epoch(self, runner: Any) -> None:
        self._images.check_blocks(runner, 'val')
        self._note_calls(runner, 'test')

    def before_test_epoch(self, runner: Any) -> None:
        self._images.check_blocks(runner, 'test')
        self._note_calls(runner, 'test')

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._keep_compiler_out(runner.model, 'train_step')

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._keep_compiler_out(runner.model, 'val_step')

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._keep_compiler_out(runner.model, 'test_step')

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._check_calls()

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._check_calls()

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._check_calls()

    def after_train_epoch(self, runner: Any) -> None:
        self._check_modules(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._check_modules(runner)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self._check_modules(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._check_calls()  # the host saves the first iteration before it asks this hook about it
        self._check_modules(runner)
        found = self._protections(runner)
        checkpoint.update(lock_opened(_model(runner), checkpoint))
        checkpoint['meta'] = {**checkpoint['meta'], RUNTIME: runtime_of(_model(runner))}
        stamps = {name.rpartition('.')[2] for name in checkpoint.get('state_dict', {})}
        for protection in found:
            is_mapped = protection.state in (State.KEYED, State.PLAIN) and protection.stamp.maps
            if is_mapped and not stamp_names(stamps & {protection.stamp.name}):
                raise LeakError(
                    f'the checkpoint about to be saved lacks the stamp of key {protection.stamp.key_id}: a hook or '
                    'wrapper dropped it; without the stamp nobody can tell which key the model needs'
                )
        self._images.before_save_checkpoint(checkpoint)
        _stop(leak for needles in self._all_needles(found) for leak in search_object('checkpoint', checkpoint, needles))
        how = found[0].sealing if found else self._images.sealing
        if how is not None:
            checkpoint.update(seal_checkpoint(checkpoint, how))

    @staticmethod
    def is_needed(model: Any) -> bool:
        """Whether a runner's model, or the config of one, is protected."""
        if isinstance(model, dict):
            return model.get('type') == 'keyseg_mm.Keyed' or any(map(GuardHook.is_needed, model.values()))
        return isinstance(model, nn.Module) and bool(protected_modules(model))

    @staticmethod
    def shows_strangers(runner: Any) -> bool:
        """Whether a runner's guard asks for the validations of strangers."""
        return any(isinstance(hook, GuardHook) and hook.strangers for hook in runner.hooks)

    @staticmethod
    def _protected(runner: Any) -> list[tuple[nn.Module, Protection]]:
        return protected_modules(_model(runner))

    @staticmethod
    def _say(runner: Any, words: str) -> None:
        if words:
            runner.logger.warning(words)

    def _protections(self, runner: Any) -> list[Protection]:
        return [protection for _, protection in self._protected(runner)]

    def _all_needles(self, found: list[Protection]) -> list[Needles]:
        """Needles of all protections; made again only where a loaded stamp brought another salt."""
        pairs = [(p.key, p.stamp) for p in found if p.key is not None] + list(self._images.stamps())
        if [stamp for stamp, _ in self._needles] != [stamp for _, stamp in pairs]:
            self._needles = [(stamp, Needles(key, [stamp])) for key, stamp in pairs]
        return [needles for _, needles in self._needles]

    def _note_calls(self, runner: Any, run: str) -> None:
        self._run = run
        self._check_modules(runner)
        self._calls = {e: e.calls for p in self._protections(runner) for e in p.encryptors}

    def _keep_compiler_out(self, model: Any, name: str) -> None:
        """Once per loop: the next call of a step does without torch.compile, whose code does not count its calls."""
        if not self._calls or not CAN_COMPILE or 'torch._dynamo' not in sys.modules:
            return
        step, own = getattr(model, name), model.__dict__.get(name)  # the host keeps a compiled one in the model

        def once(*args: Any, **kwargs: Any) -> Any:
            del model.__dict__[name]
            if own is not None:
                model.__dict__[name] = own
            with torch.compiler.set_stance('force_eager'):
                return step(*args, **kwargs)

        model.__dict__[name] = once

    def _check_modules(self, runner: Any) -> None:
        for module, protection in self._protected(runner):
            protection.check(module)
        own = [protection.stamp for protection in self._protections(runner)]
        for hook in runner.hooks:
            average = getattr(hook, 'ema_model', None)
            if average is not None and [protection.stamp for _, protection in protected_modules(average)] != own:
                raise PlanMismatchError(
                    f'the copy whose weights {type(hook).__name__} averages has other tables than the model, and what '
                    'it computes would be wrong: make it after a checkpoint is loaded, or load that into it too'
                )

    def _check_calls(self) -> None:
        """Once per loop: every encryptor that fires in this kind of pass has fired."""
        run = self._run
        idle = [str(e.site.point) for e, before in self._calls.items() if run in e.site.runs and e.calls == before]
        self._calls = {}
        if idle:
            raise NotFiredError(
                f'the {run} loop ran without these encryptors: {", ".join(idle)}; something replaced or bypassed '
                'their modules after the model was built, and what it computed is not protected'
            )


def _model(runner: Any) -> nn.Module:
    """The model itself, without the wrapper of a distributed run."""
    found: nn.Module = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return found


def _stop(leaks: Any) -> None:
    found: list[Leak] = list(leaks)
    if found:
        raise LeakError('secret material found, and nothing was written: ' + '; '.join(map(str, found)))
