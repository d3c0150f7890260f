"""What an attacker holds, and nothing else.

A :class:`Case` follows Kerckhoffs: code, config, stamp and protected checkpoint are public; whatever else an attacker
may have (photos, public weights, a second checkpoint, part of the key) is a field of its own, None where the case does
not grant it. A case that holds a secret refuses to be built, so an attack can not win by accident.

All tensors of a case lie on one device, and ``build`` makes models on that device.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from keyseg_mm.audit.engine.secrecy import refuse_secrets
from keyseg_mm.audit.engine.targets import BLOCKS, IMAGES, MAPS, WEIGHTS
from keyseg_mm.audit.model.input_cipher import Code
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps import CHANNEL_MAPS
from keyseg_mm.maps.base import ChannelMap, Map
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site, module_of
from keyseg_mm.runtime.encryptor import replace_tensor
from keyseg_mm.stamp import Stamp


@dataclass(frozen=True)
class Photos:
    """Images as the model wants them, with or without labels.

    Attributes:
        images: (N, 3, H, W) float32, after the data preprocessor (normalised, channels in the model's order).
        labels: (N, H, W) int64, or None.
        ignore_index: label of pixels that do not count.
    """

    images: Tensor
    labels: Tensor | None = None
    ignore_index: int = 255

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Any) -> Photos:
        """Some of them: an index tensor, list or slice."""
        labels = None if self.labels is None else self.labels[index]
        return dataclasses.replace(self, images=self.images[index], labels=labels)

    def unlabelled(self) -> Photos:
        """The same images without their labels."""
        return dataclasses.replace(self, labels=None)


@dataclass(frozen=True)
class Budget:
    """What an attack may spend: optimisation steps (or queries, or tries) and seconds of wall time."""

    steps: int
    seconds: float

    def clock(self) -> Clock:
        """A clock that starts now."""
        return Clock(self)


class Clock:
    """Counts an attack's steps and seconds against its budget.

    Attributes:
        steps: steps taken.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.steps, self._start = budget, 0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def share(self) -> float:
        """How much of the budget is gone, 0 to 1, by whichever of steps and seconds is further."""
        return min(1.0, max(self.steps / max(self.budget.steps, 1), self.seconds / max(self.budget.seconds, 1e-9)))

    @property
    def out_of_time(self) -> bool:
        """The seconds are used up."""
        return self.seconds >= self.budget.seconds

    def tick(self, steps: int = 1) -> bool:
        """Take steps; False, with nothing taken, if the budget has none left."""
        if self.steps + steps > self.budget.steps or self.out_of_time:
            return False
        self.steps += steps
        return True


class MatrixMap(ChannelMap):
    """Any c x c matrix as a guess: ``y = M x`` at every position; differentiable in x and in M.

    Args:
        matrix: (c, c), a tensor (may require grad) or an array.
    """

    __slots__ = ('_matrix', 'channels')
    exact = False

    def __init__(self, matrix: Tensor | NDArray[Any]) -> None:
        super().__init__()
        self._matrix = torch.as_tensor(matrix)
        if self._matrix.dim() != 2 or self._matrix.shape[0] != self._matrix.shape[1]:
            raise KeysegError(f'a guess is a square matrix, not {tuple(self._matrix.shape)}')
        self.channels = len(self._matrix)

    def __call__(self, x: Tensor, dim: int = 1) -> Tensor:
        return self._apply(x, dim)

    def tables(self) -> dict[str, NDArray[Any]]:
        return {'matrix': self._matrix.detach().cpu().double().numpy()}

    def matrix(self) -> Tensor:
        return self._matrix.detach().cpu().double()

    def _apply(self, x: Tensor, dim: int) -> Tensor:
        matrix = self._matrix.to(device=x.device, dtype=x.dtype)
        return torch.tensordot(matrix, x, dims=([1], [dim])).movedim(0, dim)  # type: ignore[no-any-return]

    def _invert(self) -> ChannelMap:
        return MatrixMap(torch.linalg.pinv(self._matrix.detach()))


class GuessHook:
    """Applies a guess at one point, as the true encryptor would: the attacker's own stand-in for it.

    Args:
        point: where.
        guess: the map; anything that takes ``(x, dim)``, so a learnable stand-in will do too.
        site: what a dry run showed of the point. Needed only where a module returns other maps in training.
    """

    def __init__(self, point: Point, guess: Callable[[Tensor, int], Tensor], site: Site | None = None) -> None:
        self.point, self.guess, self.site = point, guess, site

    def attach(self, model: nn.Module) -> Any:
        """Hook it to a model; returns the handle that takes it off."""
        module = module_of(model, self.point.name)
        if self.point.side == 'out':
            return module.register_forward_hook(self.on_output)
        return module.register_forward_pre_hook(self.on_input)

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of an ``out:`` point."""
        index = self.site.index_in(output) if self.site else self.point.index or 0
        if index is None:
            return output
        return replace_tensor(output, index, lambda x: self.guess(x, self.dim(module, x)))

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of an ``in:`` point."""
        return (self.guess(args[0], self.dim(module, args[0])), *args[1:])

    def dim(self, module: nn.Module, x: Tensor) -> int:
        """The channel dimension there, by the rule of :mod:`keyseg_mm.model.points`."""
        if self.site:
            return self.site.dim
        tokens = isinstance(module, (nn.Linear, nn.LayerNorm)) or (x.dim() < 4 and not isinstance(module, _ConvNd))
        return -1 if tokens else 1


@dataclass(frozen=True, eq=False)
class Case:
    """Everything that an attacker holds.

    Attributes:
        plan: the public stamp: points (by their names in the whole model), channels, transforms, salt, key id.
        weights: the protected state_dict, without the stamp. Not to be changed: attacks share it.
        build: makes the plain architecture with fresh, seeded initial weights, in eval mode.
        num_classes: number of classes.
        labelled: labelled images.
        unlabelled: images without labels.
        public: public plain weights of the same architecture. Names may be missing (other heads).
        second: another customer's checkpoint, or another release: its plan and weights.
        recorded: by point, what entered and what left the encryptor in one hooked authorised run.
        oracle: images (B, 3, H, W) to logits (B, classes, H, W) of an authorised model. A black box.
        known: by point, boolean mask (c,) of the rows of the key's matrix that leaked.
        known_tables: by point, the key's matrix (c, c) with ``T(x) = M @ x``: the leaked rows right, the others zero.
            For a permutation, row i has its 1 at ``table[i]``.
        seed: of all that an attack draws.
        budget: what it may spend.
        sites: by point, what a dry run of the public model shows. None where nobody looked.
        images: where the model takes encrypted images, what is public of these.
        classifier: where the attacker's classes are not those of the file, the names of the weights that belong to
            classes: they always learn. None where the classes are the file's own.

    Raises:
        SecretExposedError: a field holds a key, a map, or a model with a protection attached.
    """

    plan: Stamp
    weights: Mapping[str, Tensor]
    build: Callable[[], nn.Module]
    num_classes: int
    labelled: Photos | None = None
    unlabelled: Photos | None = None
    public: Mapping[str, Tensor] | None = None
    second: tuple[Stamp, Mapping[str, Tensor]] | None = None
    recorded: Mapping[str, tuple[Tensor, Tensor]] | None = None
    oracle: Callable[[Tensor], Tensor] | None = None
    known: Mapping[str, NDArray[np.bool_]] | None = None
    known_tables: Mapping[str, NDArray[np.float64]] | None = None
    seed: int = 0
    budget: Budget = field(default_factory=lambda: Budget(200, 300.0))
    sites: Mapping[str, Site] | None = None
    images: Code | None = None
    classifier: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            # an oracle answers for an authorised model: what is behind it is out of the attacker's reach by definition
            refuse_secrets(getattr(self, item.name), item.name, inside_calls=item.name != 'oracle')

    @property
    def kind(self) -> str:
        """What is encrypted, see :mod:`keyseg_mm.audit.engine.targets`."""
        if self.images is not None:
            return IMAGES
        if self.plan.tensors:
            return WEIGHTS
        mapped = all(entry.transform['type'] in CHANNEL_MAPS for entry in self.plan.maps)
        return MAPS if mapped else BLOCKS

    def model(self, guesses: Mapping[str, Map] | None = None) -> nn.Module:
        """The protected weights in the plain architecture, with guesses applied at their points, in eval mode.

        Args:
            guesses: by point; points without a guess run as without a key.

        Raises:
            KeysegError: a guess for a point that the plan does not have, or weights that do not fit the architecture.
        """
        model = self.build()
        load_weights(model, self.weights)
        points = {entry.point for entry in self.plan.maps}
        for text, guess in (guesses or {}).items():
            if text not in points:
                raise KeysegError(f'{text}: a guess for a point that this plan does not have')
            site = (self.sites or {}).get(text)
            GuessHook(Point.parse(text), guess, site).attach(model)
        return model.eval()

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """See :func:`logits`."""
        return logits(model, images)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a whole state_dict.

    Raises:
        KeysegError: names or shapes differ.
    """
    try:
        nn.Module.load_state_dict(model, dict(weights), strict=True)
    except RuntimeError as error:
        raise KeysegError(f'these weights do not fit this {type(model).__name__}: {error}') from None


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The model's scores at the size of the images, which is that of the labels; gradients flow.

    Args:
        model: a segmentor of the host, or any module from images to scores.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, classes, H, W).
    """
    host: Any = model
    size = tuple(images.shape[2:])
    if hasattr(model, 'inference') and hasattr(model, 'test_cfg'):
        meta = {'ori_shape': size, 'img_shape': size, 'pad_shape': size, 'padding_size': [0, 0, 0, 0], 'flip': False}
        scores: Tensor = host.inference(images, [dict(meta) for _ in images])
    else:
        scores = host(images)
    if tuple(scores.shape[2:]) != size:
        scores = F.interpolate(scores, size, mode='bilinear', align_corners=False)
    return scores
