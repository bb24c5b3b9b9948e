"""Random convolutions, and numpy's answer, for the solvers that are made for them."""

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

LAYERS = {
    False: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    True: (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}


@st.composite
def convolutions(draw, longest, most_dilated):
    """A layer without bias, and the shape of its input, at most ``longest[dims]`` long."""
    dims = draw(st.sampled_from((1, 2, 2, 3)))
    groups = draw(st.integers(1, 2))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(2)]
    transposed = draw(st.booleans())
    kernel = [draw(st.integers(1, 4 if dims < 3 else 3)) for _ in range(dims)]
    stride = [draw(st.integers(1, 3)) for _ in range(dims)]
    padding = [draw(st.integers(0, 2)) for _ in range(dims)]
    dilation = [draw(st.integers(1, most_dilated)) for _ in range(dims)]
    size = [draw(st.integers(4, longest[dims])) for _ in range(dims)]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    for n, p, r, s in zip(size, padding, reach, stride, strict=True):
        assume(n + 2 * p > r if not transposed else (n - 1) * s - 2 * p + r + 1 >= 1)
    torch.manual_seed(draw(st.integers(0, 1000)))
    layer = LAYERS[transposed][dims - 1](
        *channels, kernel, stride, padding, dilation=dilation, groups=groups, bias=False
    )
    return layer.double().requires_grad_(False), (channels[0], *size)


def lstsq(matrix, rhs, damping):
    """Solve the stacked system [A; λI] d = [r; 0] for each row of ``rhs``."""
    n = matrix.shape[1]
    stacked = np.vstack([matrix, damping * np.eye(n)])
    padded = np.hstack([rhs, np.zeros((len(rhs), n))])
    return np.linalg.lstsq(stacked, padded.T, rcond=1e-12)[0].T
