"""A case made concrete: weights of the wanted condition, references, wanted outputs, λ."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from inversion_cases import Case
from scipy import sparse
from torch import Tensor
from torch.nn import Conv2d, Linear
from torch.nn.functional import conv2d, conv_transpose2d, linear

from featprop_sklearn.inversion.affine import convolution_map
from featprop_sklearn.least_squares import LinearMap, MatrixMap, resolve_damping

NOISE = 0.1
BISECTIONS = 20
POWER_ITERATIONS = 30


@dataclass(frozen=True)
class Problem:
    """x = reference + argmin_d ‖A d − r‖² + λ²‖d‖², r = wanted − A reference.

    Attributes
    ----------
    weight : Tensor, float64
        (outputs, inputs, kernel, kernel), or (outputs, inputs).
    reference, wanted : Tensor of shape (batch, *shape), float64
        x0 and y: the output of another input, and a tenth of its spread of noise.
    remainder : Tensor
        The right-hand sides r.
    damping : float
        λ.
    condition : float
        As measured: of the matrix, of a convolution's at its reference size.
    """

    case: Case
    weight: Tensor
    reference: Tensor
    wanted: Tensor
    remainder: Tensor
    damping: float
    condition: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of A."""
        return self.wanted[0].numel(), self.reference[0].numel()

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply by A, by torch's own operator."""
        return forward(self.weight, inputs)

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by A'."""
        return adjoint(self.weight, outputs)

    def linear_map(self) -> LinearMap:
        """A as the package sees it, with nothing computed yet."""
        return linear_map(self.case, self.weight)

    def dense(self) -> Tensor:
        """Return A as a matrix, from a batch of unit inputs."""
        return dense(self.weight, self.case.in_shape)

    def csr(self) -> sparse.csr_matrix:
        """A as SciPy's sparse matrix: a Kronecker product of shifts for every kernel entry."""
        if self.case.is_linear:
            return sparse.csr_matrix(self.weight.numpy())
        size, reach = self.case.size, self.case.kernel // 2
        shifts = [sparse.eye(size, k=k) for k in range(-reach, reach + 1)]
        taps = self.weight.numpy().transpose(2, 3, 0, 1)
        products = (
            sparse.kron(taps[i, j], sparse.kron(rows, columns, format="csr"), format="csr")
            for i, rows in enumerate(shifts)
            for j, columns in enumerate(shifts)
        )
        return sum(products, start=sparse.csr_matrix(self.shape))


def build(case: Case) -> Problem:
    """Make the problem; always the same one for a case."""
    torch.manual_seed(0)
    weight = _weight(case)
    reference, other = torch.randn(2, case.batch or case.n_samples, *case.in_shape).double()
    wanted = forward(weight, other)
    wanted = wanted + NOISE * wanted.std() * torch.randn_like(wanted)
    if case.damping == "auto":
        damping = resolve_damping(linear_map(case, weight), "auto")
    else:
        damping = case.damping * largest_singular_value(weight, reference[:1])
    remainder = wanted - forward(weight, reference)
    condition = _condition(case, weight)
    return Problem(case, weight, reference, wanted, remainder, damping, condition)


def forward(weight: Tensor, inputs: Tensor) -> Tensor:
    """Apply a layer's weights."""
    if weight.ndim == 2:
        return linear(inputs, weight)
    return conv2d(inputs, weight, padding=weight.shape[-1] // 2)


def adjoint(weight: Tensor, outputs: Tensor) -> Tensor:
    """Apply the adjoint of a layer's weights."""
    if weight.ndim == 2:
        return outputs @ weight
    return conv_transpose2d(outputs, weight, padding=weight.shape[-1] // 2)


def linear_map(case: Case, weight: Tensor) -> LinearMap:
    """Return the package's own map."""
    if case.is_linear:
        return MatrixMap(weight)
    layer = Conv2d(
        case.inputs, case.outputs, case.kernel, padding=case.kernel // 2, bias=False
    ).double()
    layer.requires_grad_(False)
    layer.weight.copy_(weight)
    return convolution_map(layer, torch.Size(case.in_shape))


def dense(weight: Tensor, in_shape: tuple[int, ...]) -> Tensor:
    """Return the matrix (m, n)."""
    count = int(np.prod(in_shape))
    units = torch.eye(count, dtype=weight.dtype).reshape(count, *in_shape)
    return forward(weight, units).flatten(1).T.contiguous()


def largest_singular_value(weight: Tensor, start: Tensor) -> float:
    """Estimate σ_max by power iteration."""
    vector = start / start.norm()
    norm = torch.ones(())
    for _ in range(POWER_ITERATIONS):
        vector = adjoint(weight, forward(weight, vector))
        norm = vector.norm()
        vector = vector / norm
    return float(norm.sqrt())


# Weights ------------------------------------------------------------------------------


def _weight(case: Case) -> Tensor:
    if case.is_linear:
        return _linear_weight(case)
    if case.condition is None:
        return Conv2d(case.inputs, case.outputs, case.kernel).double().weight.detach()
    return _kernel_of_condition(case, case.condition)


def _linear_weight(case: Case) -> Tensor:
    """As torch draws it, or with singular values from 1 down to 1 / condition, evenly in log."""
    weight = Linear(case.inputs, case.outputs).double().weight.detach()
    if case.condition is None:
        return weight
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    values = torch.logspace(0, -float(np.log10(case.condition)), len(values), dtype=torch.float64)
    return (left * values) @ right


def _kernel_of_condition(case: Case, wanted: float) -> Tensor:
    """Blend a kernel of condition 1 with one that blurs, until the condition is the wanted one.

    The first is a single entry, which mixes the channels orthonormally; the second mixes
    them at random and blurs binomially, so that it all but loses the finest pattern (5×5:
    condition 1e7 at size 16). A condition out of reach becomes that of the blur alone.
    """
    mixing = torch.linalg.qr(torch.randn(*sorted((case.outputs, case.inputs))[::-1]).double())[0]
    if case.outputs < case.inputs:
        mixing = mixing.T
    random = torch.randn(case.outputs, case.inputs).double() / case.inputs**0.5
    row = np.polynomial.polynomial.polypow([0.5, 0.5], case.kernel - 1)
    blur = torch.as_tensor(np.outer(row, row))
    peak = torch.zeros_like(blur)
    peak[case.kernel // 2, case.kernel // 2] = 1.0

    def blend(share: float) -> Tensor:
        sharp, soft = mixing[..., None, None] * peak, random[..., None, None] * blur
        return (1 - share) * sharp + share * soft

    low, high = 0.0, 1.0
    if wanted <= 1.0 or _condition(case, blend(1.0)) <= wanted:
        return blend(float(wanted > 1.0))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _condition(case, blend(middle)) < wanted:
            low = middle
        else:
            high = middle
    return blend(high)


def _condition(case: Case, weight: Tensor) -> float:
    side = case.reference_size
    shape = case.in_shape if case.is_linear else (case.inputs, side, side)
    matrix = weight if case.is_linear else dense(weight, shape)
    values = torch.linalg.svdvals(matrix)
    return float(values[0] / values[-1]) if values[-1] > 0 else inf
