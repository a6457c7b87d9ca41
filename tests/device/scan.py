"""A selective state space in float64, for tests of kernels; where its states are, tests/device/delta_net.py says.

Knows nothing about whose kernels they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tests.device import native
from tests.device.delta_net import Kept
from tests.device.native import random


@dataclass
class Space:
    """A layer's weights, and what float64 says that it computes. `shape`: groups, heads, K, C, taps.

    `bounds` of a step: None for none.
    """

    shape: tuple
    taps: native.Weight
    conv_bias: native.Weight
    a_log: native.Weight
    dt_bias: native.Weight
    skip: native.Weight
    norm: native.Weight
    bounds: tuple = (0.0, np.inf)

    @classmethod
    def make(cls, rng, shape, dtype, weight=native.weight, bounds=(0.0, np.inf)):
        _, heads, _, C, taps = shape
        channels = Kept.channels_of(shape)
        sizes = ((channels, taps), (channels,), (heads,), (heads,), (heads,), (heads * C,))
        return cls(shape, *(weight(rng, size, dtype, scale=0.5) for size in sizes), bounds)

    def convolve(self, x, past, position):
        past = np.zeros((self.shape[4] - 1, x.shape[-1])) if position == 0 else past
        window = np.concatenate([past, x[None]])
        return native.silu((window * self.taps.values.T).sum(axis=0) + self.conv_bias.values), window[1:]

    def step(self, x, dt, matrix, position):
        groups, heads, K, C, _ = self.shape
        matrix = np.zeros((heads, K, C)) if position == 0 else matrix
        own, write, read = np.split(x.astype(np.float64), [heads * C, heads * C + groups * K])
        write, read = (np.repeat(part.reshape(groups, K), heads // groups, axis=0) for part in (write, read))
        own = own.reshape(heads, C)
        step = np.clip(np.logaddexp(0, dt + self.dt_bias.values), *self.bounds)
        matrix = matrix * np.exp(-np.exp(self.a_log.values) * step)[:, None, None]
        matrix = matrix + write[:, :, None] * (own * step[:, None])[:, None]
        return np.einsum("hk,hkc->hc", read, matrix) + own * self.skip.values[:, None], matrix

    def norm_groups(self, y):
        """Of rows [T, H, C], the norm in groups."""
        groups = self.shape[0]
        rows = y.astype(np.float64).reshape(len(y), groups, -1)
        normed = rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + 1e-5)
        return (normed.reshape(len(y), -1) * self.norm.values).reshape(y.shape)


def inputs(rng, shape, T):
    """What goes into the convolution, the heads' steps, and their gates."""
    return random(rng, T, Kept.channels_of(shape)), random(rng, T, shape[1]), random(rng, T, shape[1], shape[3])
