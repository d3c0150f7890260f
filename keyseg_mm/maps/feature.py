"""What every transform of a feature map is: invertible, secret, and exactly undone by its inverse going back.

``T.inverse()(T(x)) == x``. All transforms here are orthogonal, so the gradient goes back through the inverse: an exact,
deterministic gather instead of the scatter that autograd would use for a permutation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.errors import TransformError
from keyseg_mm.keys.derive import KeyStream
from keyseg_mm.keys.secret import Secret


class FeatureTransform(Secret):
    """An orthogonal transform T of a feature map, ``y = T(x)``.

    Tensors of the tables are made once per device and dtype, at the first call there, and kept.
    """

    __slots__ = ('_inverse', '_placed')

    #: Whether T only moves and negates values, so that T and its inverse change no bit of a magnitude.
    exact: ClassVar[bool] = True
    channels: int

    def __init__(self) -> None:
        self._inverse: Any = None
        self._placed: dict[Any, Any] = {}

    @classmethod
    def derive(cls, stream: KeyStream, channels: int, **params: Any) -> FeatureTransform:
        """The transform that a keystream gives for this number of channels."""
        raise NotImplementedError

    @classmethod
    def check(cls, **params: Any) -> None:
        """Refuse parameters that this transform does not take.

        Raises:
            TransformError: an unknown parameter or a bad value.
        """
        if params:
            raise TransformError(f'{cls.__name__} takes no {", ".join(map(repr, params))}')

    @classmethod
    def why_not(cls, dim: int, dims: int) -> str:
        """Why a map of ``dims`` dimensions with its channels in ``dim`` does not suit; empty where it does."""
        return ''

    @property
    def public_id(self) -> str:
        return f'of {self.channels} channels'

    def inverse(self) -> Any:
        """The transform that undoes this one; the inverse of the inverse is this object."""
        if self._inverse is None:
            self._inverse = self._invert()
            self._inverse._inverse = self
        return self._inverse

    def __call__(self, x: Tensor, dim: int = 1) -> Tensor:
        """Apply the transform.

        Args:
            x: floating-point tensor of any layout; its dtype, shape and memory format are kept.
            dim: channel dimension.

        Raises:
            TransformError: the dimension has another size than the transform, or the map does not suit it.
        """
        problem = self.why_not(dim, x.dim())
        if problem:
            raise TransformError(problem)
        if x.shape[dim] != self.channels:
            raise TransformError(
                f'a map of {self.channels} channels met {x.shape[dim]} of them, shape {tuple(x.shape)}'
            )
        if x.requires_grad and torch.is_grad_enabled():
            result: Tensor = _Apply.apply(x, self, dim)  # type: ignore[no-untyped-call]
            return result
        return self._keep_layout(x, dim)

    def tables(self) -> dict[str, NDArray[Any]]:
        """The secret tables, for :mod:`keyseg_mm.runtime.leaks` only."""
        raise NotImplementedError

    def _keep_layout(self, x: Tensor, dim: int) -> Tensor:
        """The transformed map, in the order of memory of ``x``; never a view of it."""
        raise NotImplementedError

    def _invert(self) -> FeatureTransform:
        raise NotImplementedError

    def _place(self, name: str, table: NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
        key = (name, device, dtype)
        if key not in self._placed:
            self._placed[key] = torch.from_numpy(np.ascontiguousarray(table)).to(device=device, dtype=dtype)
        placed: Tensor = self._placed[key]
        return placed


class _Apply(torch.autograd.Function):
    """Forward by the transform, backward by its inverse; differentiable again, since backward applies one too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transform: FeatureTransform, dim: int) -> Tensor:
        ctx.transform, ctx.dim = transform, dim
        # detached from the view that a kept layout is: autograd refuses in-place operations on a Function's views
        return transform._keep_layout(x, dim).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transform.inverse()(grads[0], ctx.dim), None, None
