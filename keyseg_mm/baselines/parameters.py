"""Parameter encryption: the values of a model's tensors are put into another, secret order.

As AdvParams (Xue et al. 2021, arXiv 2105.13697), selective encryption (Tian, Zhou, Duan, CVPR 2021, arXiv 2105.12344)
and Duan et al. (2025, doi 10.32604/cmc.2025.064620), in a form that can be undone: what matters most is encrypted so
that the weights keep their distribution. An order keeps it exactly, and every bit.

Unlike a feature map it needs no point in the model, and no encryptor runs beside it: the model runs once its weights
are opened. Which tensors and how many of their values is public; their order is secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from keyseg_mm.bind import Bound
from keyseg_mm.entries import Entry, TensorEntry
from keyseg_mm.errors import LockError, PointError, TransformError
from keyseg_mm.keys.identity import Key
from keyseg_mm.locking.plan import Plan
from keyseg_mm.locking.proof import BROKEN, Bench, Proof, agreement
from keyseg_mm.locking.scheme import Scheme, change_maps, register
from keyseg_mm.maps.keyspace import bits_of_permutation
from keyseg_mm.maps.order import fitting, raw, why_not
from keyseg_mm.model.passes import Passes, copied
from keyseg_mm.stamp import Stamp

NOT_SENSITIVE = 'none of its values is among the most sensitive'
DEFAULT_SHARE = 0.01
SCENES = 4  # painted, that sensitivities are found on


class Parameters(Scheme):
    """The values of tensors are moved, those of the largest magnitude where not all are."""

    entry = TensorEntry
    is_exact = True

    def carry(
        self, tensors: dict[str, Any], prefix: str, before: Bound | None, after: Bound | None, own: bool = False
    ) -> None:
        old, new = (bound.value_orders() if bound else {} for bound in (before, after))
        change_maps(tensors, prefix, old, new, own)

    def fitted(self, stamp: Stamp, tensors: Mapping[str, Any], prefix: str) -> Stamp:
        counts = {entry: fitting(tensors[prefix + entry.names[0]], entry.count) for entry in stamp.tensors}
        kept = tuple(replace(entry, count=count) for entry, count in counts.items() if count > 1)
        if not kept:
            raise LockError('none of its values can be told from all others any more, and none could be moved')
        return replace(stamp, entries=kept)

    def prove(
        self, bench: Bench, model: nn.Module, weights: Mapping[str, Any], plan: Plan, key: Key, salt: bytes
    ) -> Proof:
        """With the key the weights come back bit for bit; without it the model is run as it is."""
        model = copied(model)  # the weights may be its own
        model.load_state_dict(weights, strict=False)
        plain = bench.run(model)
        bound, tensors = Bound(key, plan.to_stamp(key.id, salt)), dict(weights)
        self.carry(tensors, '', None, bound)
        back = dict(tensors)
        self.carry(back, '', bound, None)
        changed = [name for name, value in weights.items() if not _same_bits(value, back.get(name))]
        if changed:
            raise LockError(f'weights did not come back as they were: {", ".join(changed[:5])}. Nothing was written')
        model.load_state_dict(tensors, strict=False)
        try:
            found = agreement(plain, bench.run(model))
        except PointError:  # it does not even run
            found = BROKEN
        if found.is_the_same:
            raise LockError(
                f'the model gives the same with these values in a secret order (relative change {found.error:.1e}): '
                'nothing would be protected. Take a larger --share. Nothing was written'
            )
        return Proof(plan, None, {'without it': found})

    def key_space(self, entry: Entry) -> float:
        if not isinstance(entry, TensorEntry):
            raise TypeError
        return bits_of_permutation(entry.count)

    def _plan(
        self,
        model: nn.Module,
        weights: Mapping[str, Any],
        transform: dict[str, Any],
        counts: Callable[[list[tuple[str, ...]]], Mapping[str, int]],
    ) -> Plan:
        """A plan for the tensors whose values can be moved: as many of each as ``counts`` gives, by its first name."""
        left_out = {name: why for name, value in weights.items() if (why := why_not(value))}
        groups = _groups(model, [name for name in weights if name not in left_out])
        wanted = counts(groups)
        entries = []
        for names in groups:
            count = fitting(weights[names[0]], wanted.get(names[0], 0))
            if count > 1:
                entries.append(TensorEntry(names, count, transform))
            else:
                left_out.update(dict.fromkeys(names, NOT_SENSITIVE))
        if not entries:
            raise LockError(f'with {transform} no value of this model would be moved; take a larger share')
        return Plan(self.name, tuple(entries), left_out)


@register
class TensorPermutation(Parameters):
    """All values of all tensors, biases, norms and their statistics too: nothing is left that could be aligned."""

    name = 'tensors'

    def plan(self, model: nn.Module, weights: Mapping[str, Any], **options: Any) -> Plan:
        """Takes no options."""
        if options:
            raise TransformError(f'scheme tensors takes no {", ".join(map(repr, options))}')
        return self._plan(
            model, weights, {'type': 'TensorPermutation'}, lambda groups: {n[0]: weights[n[0]].numel() for n in groups}
        )


@register
class SelectiveEncryption(Parameters):
    """The most sensitive values only, a share of the whole model; the rest of it stays plain.

    How many of each tensor, says the sensitivity: as many as it has among the highest scores of the whole model. Which
    ones, says their magnitude, since that can be seen as well when they have been moved: no positions are written down.
    """

    name = 'selective'

    def plan(self, model: nn.Module, weights: Mapping[str, Any], **options: Any) -> Plan:
        """Options: ``share`` of the weights (0.01), and ``scores`` of their values by name, not negative, of the same
        shapes; by default :func:`sensitivity`."""
        given, scores = options.pop('share', None), options.pop('scores', None)
        share = DEFAULT_SHARE if given is None else given
        if options:
            raise TransformError(f'scheme selective takes no {", ".join(map(repr, options))}')
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise TransformError(f'share {share!r}: a share of the weights is above 0 and at most 1, as 0.01')
        known: Mapping[str, Tensor] = sensitivity(model, weights) if scores is None else scores

        def counts(groups: list[tuple[str, ...]]) -> Mapping[str, int]:
            size = int(share * sum(weights[names[0]].numel() for names in groups))
            return _most_sensitive({n[0]: known[name] for n in groups for name in n if name in known}, size)

        spec = {'type': 'SelectiveEncryption', **({} if given is None else {'share': given})}
        return self._plan(model, weights, spec, counts)


def _same_bits(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor):
        return a is b
    return isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(raw(a), raw(b))


def _most_sensitive(scores: Mapping[str, Tensor], wanted: int) -> dict[str, int]:
    """How many of each tensor's values are among the ``wanted`` highest scores of all."""
    flat = {name: score.flatten().float().nan_to_num(0.0) for name, score in scores.items()}
    if not flat or wanted < 1:
        return {}
    together = torch.cat(list(flat.values()))
    limit = together.topk(min(wanted, len(together))).values[-1]
    return {name: int(((score >= limit) & (score > 0)).sum()) for name, score in flat.items()}


def _groups(model: nn.Module, names: list[str]) -> list[tuple[str, ...]]:
    """Names of the same tensor of a model together: a file may hold one tensor twice, and the model has it once."""
    own = model.state_dict()
    groups: dict[Any, list[str]] = {}
    for name in names:
        value = own.get(name)
        identity = (value.data_ptr(), value.shape, value.dtype) if isinstance(value, Tensor) else name
        groups.setdefault(identity, []).append(name)
    return [tuple(group) for group in groups.values()]


def sensitivity(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """How much a model's output depends on each of its weights, found without anybody's data.

    The first-order effect of taking a weight out, ``|w dL/dw|`` (Molchanov et al. 2017, arXiv 1611.06440, equation 8,
    used there to prune). L is the cross-entropy of what the model says of painted street scenes against its own
    decisions; docs/results.md compares it with photos and labels.

    Args:
        model: the plain model of the host, with any weights; it stays as it is.
        state_dict: plain weights that fit it.

    Returns:
        By name, of the parameters that the test pass's output depends on, the shape of each: not negative, float32.

    Raises:
        PointError: it could not be run, or its output does not depend on its weights.
    """
    from keyseg_mm.mm.bench import SIDE, pictures
    from keyseg_mm.mm.dryrun import watch_module  # which need the host

    model = copied(model)  # state_dict may be its own
    model.load_state_dict(state_dict, strict=False)
    image = lambda double, _, size: pictures(double, SCENES, size)  # noqa: E731
    return watch_module(model, _scores, image=image, smallest=SIDE, real=True)


def _scores(double: nn.Module, passes: Passes) -> dict[str, Tensor]:
    from keyseg_mm.mm.bench import tensors_of

    parameters = {name: p for name, p in double.named_parameters() if p.is_floating_point()}
    with torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_(True)  # those of frozen stages too
        outputs = [tensor for _, tensor in tensors_of(passes['test']()) if tensor.requires_grad]
        if not outputs:
            raise LockError(f'the output of this {type(double).__name__} does not depend on its weights')
        loss = torch.stack([_against_itself(tensor) for tensor in outputs]).sum()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: (parameter * gradient).detach().abs().float()
        for (name, parameter), gradient in zip(parameters.items(), found)
        if gradient is not None
    }


def _against_itself(output: Tensor) -> Tensor:
    """Cross-entropy of class maps (C, H, W) against their own decisions; of other outputs their mean square."""
    is_classes = output.dim() == 3 and output.shape[0] > 1
    return nn.functional.cross_entropy(output[None], output.argmax(0)[None]) if is_classes else output.square().mean()
