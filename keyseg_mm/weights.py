"""Encrypting a model's weights themselves: the values of a tensor are put into another, secret order.

This is parameter encryption that can be undone, as in AdvParams (Xue et al. 2021, arXiv 2105.13697), selective
encryption (Tian, Zhou, Duan, CVPR 2021, arXiv 2105.12344) and Duan et al. (2025, doi 10.32604/cmc.2025.064620): what
matters most is encrypted so that the weights keep their distribution. An order keeps it exactly, and every bit.

Unlike a feature transform it needs no point in the model, and no encryptor runs beside it: the model runs once its
weights are unlocked. Public throughout: which tensors and how many of their values are no secret, their order is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from keyseg_mm.errors import TransformError
from keyseg_mm.maps import normal_form


class WeightTransform:
    """How many values of each tensor are moved. Those of the largest magnitude are, see :func:`places`."""

    #: What ``keyseg lock --mode`` calls it.
    mode: ClassVar[str]
    #: Whether :meth:`counts` takes the weights' sensitivity.
    needs_scores: ClassVar[bool] = False

    @classmethod
    def check(cls, **params: Any) -> None:
        """Refuse parameters that this transform does not take.

        Raises:
            TransformError: an unknown parameter or a bad value.
        """
        if params:
            raise TransformError(f'{cls.__name__} takes no {", ".join(map(repr, params))}')

    @classmethod
    def counts(cls, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], **params: Any) -> dict[str, int]:
        """How many values to move, by name.

        Args:
            weights: floating-point tensors of more than one value, each under one name.
            scores: sensitivities of their values, not negative, of the same shapes; a tensor may lack them.
            params: of the transform.
        """
        raise NotImplementedError


class TensorPermutation(WeightTransform):
    """All values of all tensors, biases, norms and their statistics too: nothing is left that could be aligned."""

    mode = 'tensors'

    @classmethod
    def counts(cls, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], **params: Any) -> dict[str, int]:
        return {name: weight.numel() for name, weight in weights.items()}


class SelectiveEncryption(WeightTransform):
    """The most sensitive values only, a share of the whole model; the rest of it stays plain.

    How many of each tensor, says the sensitivity: as many as it has among the highest scores of the whole model. Which
    ones, says their magnitude, since that can be seen as well when they have been moved: no positions are written down.
    """

    mode = 'selective'
    needs_scores = True
    _SHARE = 0.01

    @classmethod
    def check(cls, share: float = _SHARE, **params: Any) -> None:
        super().check(**params)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise TransformError(f'share {share!r}: a share of the weights is above 0 and at most 1, as 0.01')

    @classmethod
    def counts(cls, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], **params: Any) -> dict[str, int]:
        wanted = int(params.get('share', cls._SHARE) * sum(weight.numel() for weight in weights.values()))
        known = {name: scores[name].flatten().float().nan_to_num(0.0) for name in weights if name in scores}
        if not known or wanted < 1:
            return {}
        together = torch.cat(list(known.values()))
        limit = together.topk(min(wanted, len(together))).values[-1]
        return {name: int(((score >= limit) & (score > 0)).sum()) for name, score in known.items()}


WEIGHT_TRANSFORMS: dict[str, type[WeightTransform]] = {
    cls.__name__: cls for cls in (TensorPermutation, SelectiveEncryption)
}


def is_weight_transform(transform: str | Mapping[str, Any]) -> bool:
    """Whether a transform as configs write it is of this family."""
    return (transform if isinstance(transform, str) else transform.get('type')) in WEIGHT_TRANSFORMS


def weight_form(transform: str | dict[str, Any]) -> dict[str, Any]:
    """:func:`keyseg_mm.maps.normal_form` of a weight transform."""
    return normal_form(transform, WEIGHT_TRANSFORMS)
