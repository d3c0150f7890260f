"""Which order of a layer's columns meets what is known of it: a search by exchanges at falling temperature.

The state says which column of the protected weight each channel of the map feeds, and with which sign. A sweep visits
every channel and draws a partner to exchange columns with from the Boltzmann distribution over all partners (heat
bath), staying put being one of them; the temperature falls from sweep to sweep. Two kinds of terms make the energy:
:class:`NormTerm` and :class:`GramTerm`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from keyseg_mm.audit.attacks._moments import Reading

Array = NDArray[np.float64]
Signs = tuple[float, float]
HOT = 0.3  # of the spread of the energy changes that exchanges offer in a random state


class Term:
    """A part of the energy. Its state is the columns in the order of the map's channels."""

    def set(self, order: NDArray[np.int64], signs: Array) -> None:
        """Put column ``order[j]`` times ``signs[j]`` at channel j."""
        raise NotImplementedError

    def energy(self) -> float:
        """Of the state."""
        raise NotImplementedError

    def offers(self, i: int, signs: Signs) -> Array:
        """By j, the change if channels i and j exchange columns, that which comes to i times signs[0], to j signs[1].

        At j = i: the change if its column is multiplied by ``signs[0]``.
        """
        raise NotImplementedError

    def exchange(self, i: int, j: int, signs: Signs) -> None:
        """Do it."""
        raise NotImplementedError


class NormTerm(Term):
    """Mean and variance of each output of a layer against the running statistics of the norm behind it.

    The squared difference of means in units of the standard deviation, and that of log variances, over the noise that
    statistics of other photos have.
    """

    MEAN_NOISE, VARIANCE_NOISE = 0.04, 0.05

    def __init__(self, reading: Reading) -> None:
        assert reading.target_mean is not None and reading.target_variance is not None
        self.weight = reading.weight
        self.mean, self.covariance = reading.mean, reading.covariance
        self.wanted, self.variance = reading.target_mean, reading.target_variance
        self.blocks = np.einsum('ikil->ikl', self.covariance).copy()

    def set(self, order: NDArray[np.int64], signs: Array) -> None:
        self.u = self.weight[order] * signs[:, None, None]
        c, o, k = self.u.shape
        flat = self.u.transpose(0, 2, 1).reshape(c * k, o)
        self.cu = (self.covariance.reshape(c * k, c * k) @ flat).reshape(c, k, o).transpose(0, 2, 1).copy()
        self.spread = (self.cu * self.u).sum((0, 2))
        self.level = np.einsum('cok,ck->o', self.u, self.mean)

    def energy(self) -> float:
        return float(self._cost(self.level, self.spread))

    def _cost(self, level: Array, spread: Array) -> Array:
        means = (level - self.wanted) ** 2 / (self.variance * 2 * self.MEAN_NOISE**2)
        logs = np.log(np.maximum(spread, 1e-12) / self.variance) ** 2 / (2 * self.VARIANCE_NOISE**2)
        return np.asarray((means + logs).sum(-1))

    def offers(self, i: int, signs: Signs) -> Array:
        level, spread = self._after(i, signs)
        return self._cost(level, spread) - self._cost(self.level, self.spread)

    def _after(self, i: int, signs: Signs) -> tuple[Array, Array]:
        """Level and spread, (c, O), after each exchange of i."""
        u, mine = self.u, self.u[i]
        here, there = signs[0] * u - mine, signs[1] * mine - u  # what channel i gains, and channel j
        there[i] = 0.0
        here[i] = (signs[0] - 1) * mine
        level = self.level + (here * self.mean[i]).sum(-1) + (there * self.mean[:, None]).sum(-1)
        spread = 2 * ((here * self.cu[i]).sum(-1) + (there * self.cu).sum(-1))
        spread += (_times(here, self.blocks[i]) * here).sum(-1) + (_times(there, self.blocks) * there).sum(-1)
        spread += 2 * (_times(here, self.covariance[i].transpose(1, 0, 2)) * there).sum(-1)
        return level, self.spread + spread

    def exchange(self, i: int, j: int, signs: Signs) -> None:
        level, spread = self._after(i, signs)
        self.level, self.spread = level[j].copy(), spread[j].copy()
        old = self.u[i].copy(), self.u[j].copy()
        self.u[i] = signs[0] * old[1]
        if i != j:
            self.u[j] = signs[1] * old[0]
        for at, before in {i: old[0], j: old[1]}.items():
            change = self.u[at] - before
            self.cu += _times(change[None], self.covariance[at].transpose(1, 0, 2))


class GramTerm(Term):
    """Angles between a layer's columns against correlations between the map's channels.

    Columns that read correlated channels come to point alike in training, since the gradient of a weight is a sum of
    what it read; so the matrix of the columns' cosines resembles that of the channels' correlations, in the same order.
    Both are standardised; ``strength`` is the weight of a pair.
    """

    def __init__(self, reading: Reading, strength: float) -> None:
        c = len(reading.weight)
        flat = reading.weight.reshape(c, -1)
        flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        # channels are compared at equal positions of the kernel
        together = np.einsum('ikjk->ij', reading.covariance)
        size = np.sqrt(np.maximum(np.diag(together), 1e-12))
        self.cosines = _standardised(flat @ flat.T)
        self.correlations = _standardised(together / size[:, None] / size[None])
        self.strength = strength

    def set(self, order: NDArray[np.int64], signs: Array) -> None:
        self.g = self.cosines[np.ix_(order, order)] * signs[:, None] * signs[None]
        self.own = (self.g * self.correlations).sum(1)

    def energy(self) -> float:
        return float(-self.strength * self.own.sum() / 2)

    def offers(self, i: int, signs: Signs) -> Array:
        a, b = signs
        g, r = self.g[i], self.correlations[i]
        gain = a * (self.g @ r) + b * (self.correlations @ g) - self.own[i] - self.own + (1 + a * b) * g * r
        gain[i] = (a - 1) * self.own[i]
        return np.asarray(-self.strength * gain)

    def exchange(self, i: int, j: int, signs: Signs) -> None:
        if i == j:
            self.g[i] *= signs[0]
            self.g[:, i] *= signs[0]
        else:
            self.g[[i, j]] = self.g[[j, i]]
            self.g[:, [i, j]] = self.g[:, [j, i]]
            for at, sign in zip((i, j), signs):
                self.g[at] *= sign
                self.g[:, at] *= sign
        self.own = (self.g * self.correlations).sum(1)


def _times(x: Array, matrices: Array) -> Array:
    """(c, O, K) by one (K, K) or c of them; K is 1 for most layers, and a product then."""
    if x.shape[-1] == 1:
        return x * (matrices if matrices.ndim == 2 else matrices.reshape(len(matrices), 1, 1))
    return np.asarray(x @ matrices)


def _standardised(square: Array) -> Array:
    """Off-diagonal entries of mean 0 and variance 1; zeros on the diagonal."""
    off = ~np.eye(len(square), dtype=bool)
    if not off.any():
        return np.zeros_like(square)
    made = (square - square[off].mean()) / (square[off].std() + 1e-12)
    np.fill_diagonal(made, 0.0)
    return np.asarray(made)


class Search:
    """The state of a search, its terms, and its moves.

    Args:
        terms: of the energy.
        channels: of the map.
        signed: whether columns may be negated.
        rng: of everything drawn.
    """

    def __init__(self, terms: Sequence[Term], channels: int, signed: bool, rng: np.random.Generator) -> None:
        self.terms, self.channels, self.rng = terms, channels, rng
        self.choices: list[Signs] = [(1.0, 1.0)] + ([(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0)] if signed else [])
        self.order = rng.permutation(channels)
        self.signs = rng.choice([-1.0, 1.0], channels) if signed else np.ones(channels)

    def place(self, matrix: Array) -> None:
        """Start from a guess M (c, c), ``T(x) = M @ x``."""
        table = np.abs(matrix).argmax(1)
        self.order = np.argsort(table)
        self.signs = np.sign(matrix[self.order, np.arange(self.channels)])

    def matrix(self) -> Array:
        """The state as a guess M."""
        made = np.zeros((self.channels, self.channels))
        made[self.order, np.arange(self.channels)] = self.signs
        return made

    def energy(self) -> float:
        """Of the state."""
        for term in self.terms:
            term.set(self.order, self.signs)
        return sum(term.energy() for term in self.terms)

    def hot(self) -> float:
        """A temperature at which about every tenth exchange of a random state is taken gladly."""
        self.energy()
        some = self.rng.permutation(self.channels)[:16].tolist()
        offers = np.concatenate([sum(t.offers(i, self.choices[0]) for t in self.terms) for i in some])  # type: ignore[arg-type]
        return float(HOT * offers[np.isfinite(offers)].std() + 1e-9)

    def cool(self, sweeps: int, until: float) -> bool:
        """Sweep at falling temperatures, and then at none until nothing moves; False if time ran out."""
        hot = self.hot()
        cold = min(1.0, hot / 10)
        for temperature in np.geomspace(hot, cold, sweeps):
            self._sweep(float(temperature), until)
            if time.monotonic() > until:
                return False
        return self.cool_down(until)

    def cool_down(self, until: float) -> bool:
        """Take the best exchange of every channel until none lowers the energy; False if time ran out."""
        while self._sweep(0.0, until):
            if time.monotonic() > until:
                return False
        return True

    def _sweep(self, temperature: float, until: float) -> int:
        self.energy()  # sets all terms anew, so that rounding does not add up
        moved = 0
        for i in self.rng.permutation(self.channels).tolist():
            offers = np.concatenate([sum(t.offers(i, s) for t in self.terms) for s in self.choices])  # type: ignore[arg-type]
            offers[~np.isfinite(offers)] = np.inf
            if temperature > 0:
                weight = np.exp(-np.clip((offers - offers.min()) / temperature, 0, 500))
                chosen = int(np.searchsorted(np.cumsum(weight), self.rng.random() * weight.sum()))
                chosen = min(chosen, len(offers) - 1)
            else:
                chosen = int(offers.argmin())
                if offers[chosen] > -1e-9:
                    continue
            kind, j = divmod(chosen, self.channels)
            if j != i or self.choices[kind][0] < 0:
                self._exchange(i, j, self.choices[kind])
                moved += 1
            if time.monotonic() > until:
                break
        return moved

    def _exchange(self, i: int, j: int, signs: Signs) -> None:
        self.order[[i, j]] = self.order[[j, i]]
        if i == j:
            self.signs[i] *= signs[0]
        else:
            self.signs[i], self.signs[j] = self.signs[j] * signs[0], self.signs[i] * signs[1]
        for term in self.terms:
            term.exchange(i, j, signs)
