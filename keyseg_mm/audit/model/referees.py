"""Referees for what is no map at a point: encrypted weights, and encrypted images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.audit.engine.attack import Attempt
from keyseg_mm.audit.engine.targets import IMAGES, WEIGHTS
from keyseg_mm.audit.model.case import Case, Photos, logits
from keyseg_mm.audit.model.input_cipher import Code, Fronted
from keyseg_mm.audit.model.referee import Referee, told_apart
from keyseg_mm.bind import Bound, derive_cipher
from keyseg_mm.keys.key import SecretKey, wrong_key
from keyseg_mm.locking.scheme import carry_maps
from keyseg_mm.stamp import Stamp


class WholeReferee(Referee):
    """A referee who has no maps to compare guesses with: he compares what the models say.

    The positive control puts the true key's model through the path of attempts; the negative one a random key's.
    """

    __slots__ = ()

    def positive_control(self) -> dict[str, Any]:
        found = self.judge(Attempt(model=self._model(self._key))).score
        return {**found.as_dict(), 'recovery': None, 'passed': found.agreement == 100.0}

    def negative_control(self, seed: int) -> dict[str, Any]:
        return told_apart(self.judge(Attempt(model=self._model(wrong_key(str(seed))))))

    def oracle(self) -> Callable[[Tensor], Tensor]:
        model = self._model(self._key)

        def answer(images: Tensor) -> Tensor:
            with torch.no_grad():
                return logits(model, images)

        return answer

    def _authorised_model(self) -> nn.Module:
        return self._model(self._key)

    def _model(self, key: SecretKey) -> nn.Module:
        """The model as a key's holder runs it."""
        raise NotImplementedError


class WeightReferee(WholeReferee):
    """For encrypted weights: they are unlocked with the key."""

    __slots__ = ()

    def _model(self, key: SecretKey) -> nn.Module:
        weights: dict[str, Any] = dict(self.case.weights)
        maps = {name: order.inverse() for name, order in Bound(key, self._stamp).value_orders().items()}
        carry_maps(weights, maps, f'{self._prefix}.' if self._prefix else '')
        model = self.case.build()
        model.load_state_dict(weights)
        return model.eval()


class ImageReferee(WholeReferee):
    """For encrypted images: the model is run on images encrypted with the key, whatever the attacker's are."""

    __slots__ = ()

    def _model(self, key: SecretKey) -> nn.Module:
        assert self.case.images is not None
        return Fronted(self.case.model(), encryption(key, self.case.images)).eval()


REFEREES: Mapping[str, type[Referee]] = {WEIGHTS: WeightReferee, IMAGES: ImageReferee}


def referee_for(key: SecretKey, stamp: Stamp, case: Case, held_out: Photos, prefix: str = '') -> Referee:
    """The referee for what is encrypted in a case; arguments and errors as of :class:`Referee`."""
    return REFEREES.get(case.kind, Referee)(key, stamp, case, held_out, prefix)


def encryption(key: SecretKey, code: Code) -> Callable[[Tensor], Tensor]:
    """The true encryption of images, on normalised ones, rounded to bytes as files and cameras have them."""
    stamp = code.stamp
    if stamp.embeddings:
        cipher = derive_cipher(key, stamp.salt, stamp.embeddings[0])

        def encrypt(image: Any) -> Any:
            return cipher.encrypt(image[..., ::-1])[..., ::-1]  # its images have red first, those of the host blue
    else:
        encrypt = derive_cipher(key, stamp.salt, stamp.images[0]).encrypt

    def run(images: Tensor) -> Tensor:
        values = code.pixels.values(images).round().clamp(0, 255).byte()
        done = [torch.from_numpy(encrypt(v.permute(1, 2, 0).cpu().numpy()).copy()).permute(2, 0, 1) for v in values]
        return code.pixels.normalised(torch.stack(done).to(images))

    return run
