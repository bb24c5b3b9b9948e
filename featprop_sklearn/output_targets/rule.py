"""The wanted network output for a label, and whether an output is good enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor

from . import per_logit
from .conditions import Conditions
from .heads import Head
from .margin import auto_margin, check_margin
from .margin_set import margin_violation
from .max_assign import max_assign_target
from .nearest import nearest_target
from .one_hot import one_hot_target
from .regression import regression_target, relative_residual

__all__ = ["RULES", "TASKS", "OutputTargets"]

TASKS = ("multiclass", "binary", "multilabel", "regression")
REACHED_TOLERANCE = 1e-3

Rule = Callable[[Tensor, Tensor, float], Tensor]

# rule -> (where the logits compete, where each logit decides on its own)
_RULES: dict[str, tuple[Rule, Rule]] = {
    "nearest": (nearest_target, per_logit.nearest),
    "max_assign": (max_assign_target, per_logit.max_assign),
    "one_hot": (one_hot_target, per_logit.one_hot),
}
RULES = tuple(_RULES)


@dataclass(frozen=True)
class OutputTargets:
    """How a label becomes a wanted output, for one task, rule and kind of network output.

    T(y), the acceptable outputs, are for the rules "nearest" and "max_assign" the logits that
    keep the margin, for "one_hot" the one-hot logits alone, for regression y alone.

    All methods take ``output``, a Tensor of shape (n_samples, n_outputs) or (n_samples,), and
    ``y``: int64 indices of shape (n_samples,) for multiclass; 0/1 values of the output's shape
    for binary (one output) and multilabel; values of the output's shape for regression. A column
    stands for a flat y or output, and the other way round.

    Parameters
    ----------
    task : {"multiclass", "binary", "multilabel", "regression"}
        What y is.
    rule : {"nearest", "max_assign", "one_hot"}, default="nearest"
        How a target is set; regression has no choice.
    margin : float, default=0.0
        Lead of the label over its competitors, >= 0, on the scale of the logits.
    step : float, default=1.0
        Share in (0, 1] of the way from the present logits to the wanted ones.
    head : Head, optional
        What the network puts out; logits by default.
    multiple : float, optional
        Where given, the margin is this multiple of the logits' spread, and follows it: see
        :meth:`rescaled`.
    scale : float, default=0.0
        Of regression: the spread of y, which distances of a smaller y are relative to.

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the head does not suit the task.
    """

    task: str
    rule: str = "nearest"
    margin: float = 0.0
    step: float = 1.0
    head: Head = field(default_factory=Head)
    multiple: float | None = None
    scale: float = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters outside their range."""
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {list(TASKS)}, got {self.task!r}")
        if self.rule not in RULES:
            raise ValueError(f"output_target must be one of {list(RULES)}, got {self.rule!r}")
        check_margin(self.margin)
        if not isinstance(self.step, Real) or not 0 < self.step <= 1:
            raise ValueError(
                f"target_step must be a number in (0, 1], got {self.step!r}; "
                "1 sets the wanted output itself"
            )
        if self.task == "regression" and self.head.name != "logits":
            raise ValueError(f"a regression task cannot have {self.head}; use Head('logits')")
        if self.per_logit and self.head.name != "logits" and not self.head.sigmoid:
            raise ValueError(
                f"a {self.task} task cannot have {self.head}, whose outputs compete; use "
                f"Head('logits') or Head({self.head.name!r}, sigmoid=True)"
            )

    def rescaled(
        self, output: Tensor, weights: Tensor, multiple: float | None = None
    ) -> OutputTargets:
        """Return these targets with the margin on the scale of other outputs.

        Parameters
        ----------
        output : Tensor of shape (n_samples, n_outputs) or (n_samples,)
            Outputs whose logits give the scale, see :func:`auto_margin`.
        weights : Tensor of shape (n_samples,)
            Sample weights.
        multiple : float, optional
            Another multiple.

        Returns
        -------
        OutputTargets
            Itself, where the margin is a number of its own.
        """
        if self.multiple is None or self.task == "regression":
            return self
        multiple = self.multiple if multiple is None else multiple
        logits = self.head.to_logits(output.reshape(len(output), -1))
        margin = auto_margin(logits, weights, multiple, per_logit=self.per_logit)
        return replace(self, margin=margin, multiple=multiple)

    @property
    def per_logit(self) -> bool:
        """Whether each logit is a decision of its own."""
        return self.task in ("binary", "multilabel")

    @torch.no_grad()
    def wanted(self, output: Tensor, y: Tensor) -> Tensor:
        """Wanted network outputs: t = o + step·(t* − o) on the logits o, as network outputs.

        Parameters
        ----------
        output : Tensor of shape (n_samples, n_outputs) or (n_samples,)
            Outputs of the network, finite.
        y : Tensor
            Labels or values, as above.

        Returns
        -------
        Tensor of the shape and dtype of output
            Outputs already in T(y) are returned bit-identical, under any head. A head can keep
            less than the margin where its probabilities saturate.

        Raises
        ------
        ValueError
            If the outputs are not finite, or their shape does not suit the task or y.
        """
        columns, y = self._align(output, y)
        logits = self.head.to_logits(columns)
        broken = ~torch.isfinite(logits).all(1)
        if broken.any():
            raise ValueError(
                f"{int(broken.sum())} of {len(logits)} samples have NaN or infinite network "
                "outputs, for which no target exists; check the network's weights and the scale of "
                "X"
            )
        target = torch.lerp(logits, self._logit_target(logits, y), float(self.step))
        unchanged = (target == logits).all(1, keepdim=True)
        return torch.where(unchanged, columns, self.head.to_output(target)).reshape(output.shape)

    @torch.no_grad()
    def correct(self, output: Tensor, y: Tensor) -> Tensor:
        """Whether each output is classified as its label.

        The label of multiclass outputs is the (first) greatest logit, a logit above 0 says yes,
        and a multi-label sample is correct when all its labels are. Regression: as
        :meth:`reached`.

        Parameters
        ----------
        output, y
            As for :meth:`wanted`; NaN is never correct.

        Returns
        -------
        Tensor of shape (n_samples,), bool
        """
        if self.task == "regression":
            return self.reached(output, y)
        columns, y = self._align(output, y)
        logits = self.head.to_logits(columns)
        right = ((logits > 0) == (y > 0)).all(1) if self.per_logit else logits.argmax(1) == y
        return right & ~torch.isnan(logits).any(1)

    @torch.no_grad()
    def reached(self, output: Tensor, y: Tensor) -> Tensor:
        """Whether each output lies in T(y), within 1e-3 of the scale of its own logits.

        The scale is the sample's largest absolute logit, so that the answer does not depend on
        the other samples. Regression: ‖o − y‖ <= 1e-3 max(‖y‖, scale).

        Parameters
        ----------
        output, y
            As for :meth:`wanted`; outputs that are not finite reach nothing.

        Returns
        -------
        Tensor of shape (n_samples,), bool
        """
        columns, y = self._align(output, y)
        if self.task == "regression":
            return relative_residual(columns, y, self.scale) <= REACHED_TOLERANCE
        logits = self.head.to_logits(columns)
        near = self._violation(logits, y) <= REACHED_TOLERANCE * logits.abs().amax(1)
        return near & torch.isfinite(logits).all(1)

    @torch.no_grad()
    def conditions(self, output: Tensor, y: Tensor) -> Conditions:
        """T(y) as conditions on the logits, with ``step`` taken from the present outputs.

        With ``step`` below 1 each unmet condition asks for that share of the way alone.

        Parameters
        ----------
        output, y
            As for :meth:`wanted`.

        Returns
        -------
        Conditions
            One a competitor, or one a logit.
        """
        columns, y = self._align(output, y)
        logits = self.head.to_logits(columns)
        if self.task == "regression" or self.rule == "one_hot":
            wanted = torch.lerp(logits, self._logit_target(logits, y), float(self.step))
            return Conditions("equal", y, wanted, self.head.to_logits)
        if self.per_logit:
            kind, sides, required = "sign", y.to(logits) * 2 - 1, self.margin / 2
        else:
            kind, sides, required = "lead", y, self.margin
        now = Conditions(kind, sides, torch.zeros_like(logits), self.head.to_logits).slack(columns)
        # where more is kept than required, the way would lead down
        bounds = torch.lerp(now, torch.full_like(now, required), float(self.step))
        bounds = bounds.clamp_max(required)
        if kind == "lead":
            bounds = bounds.scatter(1, y[:, None], -math.inf)
        return Conditions(kind, sides, bounds, self.head.to_logits)

    def _logit_target(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.task == "regression":
            return regression_target(logits, y)
        target = _RULES[self.rule][self.per_logit](logits, y, self.margin)
        if self.rule == "one_hot":
            # a softmax keeps logits up to a constant: compare with what comes back through it
            return self.head.to_logits(self.head.to_output(target))
        return target

    def _violation(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.rule == "one_hot":
            return (self._logit_target(logits, y) - logits).abs().amax(1)
        violation = per_logit.violation if self.per_logit else margin_violation
        return violation(logits, y, self.margin)

    def _align(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Bring outputs to (n_samples, n_outputs) and y to the shape that the rules take."""
        columns = output[:, None] if output.ndim == 1 else output
        width_fits = {"multiclass": columns.shape[1] >= 2, "binary": columns.shape[1] == 1}
        if columns.ndim != 2 or not width_fits.get(self.task, True):
            needed = {"multiclass": "two or more outputs", "binary": "one output"}
            raise ValueError(
                f"a {self.task} task needs {needed.get(self.task, 'a row of outputs')} a sample, "
                f"got network outputs of shape {tuple(output.shape)}"
            )
        y = y.to(columns.device)
        shape = columns.shape[:1] if self.task == "multiclass" else columns.shape
        if y.shape[:1] != shape[:1] or y.numel() != shape.numel():
            raise ValueError(
                f"y must have shape {tuple(shape)} for a {self.task} task and network outputs of "
                f"shape {tuple(output.shape)}, got {tuple(y.shape)}"
            )
        return columns, y.reshape(shape)
