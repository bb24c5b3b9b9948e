"""The frozen layers whose nearest preimages are wanted: a grid, not its full product.

Every size, number of samples, pair of channels, kernel, condition and damping appears, and
every bar of ``inversion_bars.py`` has its cases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: side of the square input on which a kernel's condition is measured, and given
REFERENCE_ENTRIES = 1100


@dataclass(frozen=True)
class Case:
    """One layer, one damping, one number of samples.

    Attributes
    ----------
    inputs, outputs : int
        Channels of a convolution (stride 1, padding ``kernel // 2``), features of a linear layer.
    n_samples : int
        Right-hand sides.
    size : int
        Side of the square image; 0 for a linear layer.
    kernel : int
        Its side.
    condition : float, optional
        Of the matrix (a convolution's: at ``reference_size``); by default whatever torch's own
        initialisation gives.
    damping : float or "auto"
        λ as a share of σ_max, or the package's own choice.
    batch : int, optional
        Samples that are held in memory at a time; times are for all of them.
    """

    inputs: int
    outputs: int
    n_samples: int
    size: int = 0
    kernel: int = 5
    condition: float | None = None
    damping: float | str = 0.0
    batch: int | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a linear one."""
        return self.size == 0

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.inputs,) if self.is_linear else (self.inputs, self.size, self.size)

    @property
    def reference_size(self) -> int:
        """Side of the image on which the condition of the convolution is measured."""
        channels = max(self.inputs, self.outputs)
        sides = (side for side in (16, 8, 4) if channels * side**2 <= REFERENCE_ENTRIES)
        return next(sides, self.kernel)

    @property
    def layer_name(self) -> str:
        """What is inverted, in words."""
        if self.is_linear:
            return f"Linear {self.outputs}×{self.inputs}"
        return f"{self.inputs}→{self.outputs}, {self.kernel}×{self.kernel}"

    @property
    def name(self) -> str:
        """For files."""
        shape = f"s{self.size}_k{self.kernel}" if self.size else "linear"
        condition = "" if self.condition is None else f"_c{self.condition:g}"
        damping = self.damping if isinstance(self.damping, str) else f"{self.damping:g}"
        return f"{self.inputs}to{self.outputs}_{shape}_n{self.n_samples}{condition}_d{damping}"


def every_case() -> list[Case]:
    """The benchmark."""
    return [*_few_channels(), *_conditions(), *_many_channels(), *_linear()]


def quick_cases() -> list[Case]:
    """A run of seconds, which proves nothing but that everything runs."""
    return [
        Case(2, 4, 3, size=6, kernel=3, condition=50.0, damping=1e-3),
        Case(12, 8, 40, damping="auto"),
    ]


def _few_channels() -> list[Case]:
    """2→1 and 2→4 at every size, as torch initialises them."""
    cases = []
    for outputs in (1, 4):
        base = Case(2, outputs, 64)
        sizes = [replace(base, size=size) for size in (16, 32, 64, 128, 256)]
        cases += sizes
        cases += [replace(case, n_samples=2) for case in sizes]
        cases += [replace(case, n_samples=256) for case in sizes[1:4]]
        cases += [replace(base, size=64, kernel=3)]
        cases += [replace(base, size=size, damping=1e-3) for size in (16, 64, 256)]
    return cases


def _conditions() -> list[Case]:
    """What a bad condition does, without damping and with it."""
    cases = []
    for outputs in (1, 4):
        base = Case(2, outputs, 64, size=32)
        cases += [replace(base, condition=condition) for condition in (1.0, 1e2, 1e3, 1e5)]
        damped = replace(base, damping=1e-3)
        cases += [replace(damped, condition=condition) for condition in (1e3, 1e5, 1e8)]
        cases += [replace(base, condition=condition, damping="auto") for condition in (1e2, 1e5)]
    square = Case(8, 8, 64, size=16)
    cases += [replace(square, condition=condition) for condition in (1.0, 1e3, 1e5)]
    cases += [replace(square, condition=c, damping=1e-3) for c in (1e5, 1e8)]
    cases += [replace(square, condition=1e5, damping="auto")]
    return cases


def _many_channels() -> list[Case]:
    """8 to 32 channels."""
    square, half, wide = (
        Case(8, 8, 64, size=32, kernel=3),
        Case(16, 32, 64, size=16, kernel=3),
        Case(32, 64, 64, size=16, kernel=3),
    )
    return [
        replace(square, size=16),
        square,
        replace(square, n_samples=2),
        replace(square, size=16, n_samples=256),
        replace(square, size=16, kernel=5),
        replace(square, damping=1e-3),
        replace(square, damping="auto"),
        replace(square, size=64, damping=1e-2),
        half,
        replace(half, size=32),
        replace(half, size=32, n_samples=2),
        replace(half, size=32, damping=1e-3),
        replace(half, kernel=5),
        wide,
        replace(wide, n_samples=2),
        replace(wide, damping=1e-3),
        replace(wide, size=32),
    ]


def _linear() -> list[Case]:
    """Fully connected layers, for a training set of the size of MNIST's."""
    wide, tall = Case(512, 128, 60_000), Case(128, 512, 60_000)
    large = Case(4096, 1000, 60_000, batch=3000)
    return [
        wide,
        replace(wide, damping=1e-3),
        replace(wide, condition=1e5),
        replace(wide, condition=1e8, damping=1e-3),
        tall,
        replace(tall, damping=1e-3),
        replace(tall, damping="auto"),
        large,
        replace(large, damping="auto"),
    ]
