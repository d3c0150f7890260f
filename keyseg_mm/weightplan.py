"""What encrypting a model's weights would do: which tensors, how many of their values, and what stays plain, and why.

Public throughout: no key is needed to make a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from keyseg_mm.errors import LockError
from keyseg_mm.maps.order import fitting, why_not
from keyseg_mm.stamp import Plan, TensorEntry
from keyseg_mm.weights import WEIGHT_TRANSFORMS, weight_form

NOT_SENSITIVE = 'none of its values is among the most sensitive'


@dataclass(frozen=True)
class WeightPlan:
    """What encrypting a model's weights would do.

    Attributes:
        tensors: with how many of their values are moved.
        left_out: other entries of the state_dict, which stay plain, each with the reason.
        values: how many floating-point values the model has.
    """

    tensors: tuple[TensorEntry, ...]
    left_out: dict[str, str]
    values: int

    def to_plan(self, key_id: str, salt: bytes) -> Plan:
        """The plan for a key and a salt, without a MAC."""
        return Plan(key_id, salt, (), self.tensors)


def plan_weights(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    transform: str | dict[str, Any] = 'TensorPermutation',
    scores: Mapping[str, Tensor] | None = None,
) -> WeightPlan:
    """Find out which values are to be moved.

    Args:
        model: the plain model, with any weights; it says which names are of one tensor.
        state_dict: plain weights that fit it, see :func:`keyseg_mm.lockplan.fit`.
        transform: name or dict of a weight transform.
        scores: how sensitive each parameter's values are, by name: not negative, of the same shapes. By default
            :func:`keyseg_mm.mm.sensitivity.sensitivity`, where the transform asks for it.

    Raises:
        LockError: there is nothing to move.
        TransformError: no weight transform, or bad parameters.
    """
    spec = weight_form(transform)
    params = {name: value for name, value in spec.items() if name != 'type'}
    kind = WEIGHT_TRANSFORMS[spec['type']]
    if kind.needs_scores and scores is None:
        scores = _sensitivity(model, state_dict)
    left_out = {name: why for name, value in state_dict.items() if (why := why_not(value))}
    groups = _groups(model, [name for name in state_dict if name not in left_out])
    weights = {names[0]: state_dict[names[0]] for names in groups}
    known = {names[0]: s for names in groups for name in names if (s := (scores or {}).get(name)) is not None}
    counts = kind.counts(weights, known, **params)
    tensors = []
    for names in groups:
        count = fitting(weights[names[0]], counts.get(names[0], 0))
        if count > 1:
            tensors.append(TensorEntry(names, count, spec))
        else:
            left_out.update(dict.fromkeys(names, NOT_SENSITIVE))
    if not tensors:
        raise LockError(f'with {spec} no value of this model would be moved; take a larger share')
    return WeightPlan(tuple(tensors), left_out, sum(weight.numel() for weight in weights.values()))


def _groups(model: nn.Module, names: list[str]) -> list[tuple[str, ...]]:
    """Names of the same tensor of a model together: a file may hold one tensor twice, and the model has it once."""
    own = model.state_dict()
    groups: dict[Any, list[str]] = {}
    for name in names:
        value = own.get(name)
        identity = (value.data_ptr(), value.shape, value.dtype) if isinstance(value, Tensor) else name
        groups.setdefault(identity, []).append(name)
    return [tuple(group) for group in groups.values()]


def _sensitivity(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    from keyseg_mm.mm.sensitivity import sensitivity

    return sensitivity(model, state_dict)
