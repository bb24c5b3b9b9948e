"""Whether held-out data is against a change of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.data import batches
from featprop_sklearn.networks import Chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.component import Labelled
from featprop_sklearn.training.losses import task_losses

__all__ = ["Judge"]

#: standard errors by which data must be against a state to refuse it: few rows are noisy
LENIENCY = 3.0


class Judge:
    """Errors of the best state of a network so far, sample by sample.

    Parameters
    ----------
    network : Chain
        Whose weights change between one question and the next.
    output_targets : OutputTargets
        Task and head.
    data : Labelled
        Samples at its input.
    batch_size : int
        Rows at a time; -1 takes all.
    """

    def __init__(
        self, network: Chain, output_targets: OutputTargets, data: Labelled, batch_size: int
    ) -> None:
        self.network = network
        self.output_targets = output_targets
        self.data = data
        self.weights = data.weights.double() / data.weights.double().sum()
        self.batch_size = len(data) if batch_size == -1 else batch_size
        self.best = self._errors()

    def accepts(self, *, clearly: bool = False) -> bool:
        """Return whether the state is no worse than the best so far, and remember it if so.

        Worse is a mean error greater by more than three standard errors of the difference,
        ``clearly`` better one less by more than one.
        """
        return self._accepts(self._errors(), clearly=clearly)

    def _accepts(self, errors: Tensor, *, clearly: bool = False) -> bool:
        mean, deviation = self._difference(errors, self.best)
        accepted = mean < -deviation if clearly else mean <= LENIENCY * deviation  # NaN is not
        if accepted:
            self.best = errors
        return accepted

    def calls_ruined(self) -> bool:
        """Return whether the state is worse than the best, and tells no samples apart.

        It then is not clearly better than one answer to all: even for data that a network was
        trained on, that is no matter of noise.
        """
        errors = self._errors()
        if self._accepts(errors):
            return False
        mean, deviation = self._difference(errors, self._errors_of_one_answer())
        return not mean < -deviation

    def _difference(self, errors: Tensor, others: Tensor) -> tuple[float, float]:
        """Return the mean difference, and its standard error."""
        more = errors - others
        mean = self.weights @ more
        return float(mean), float((self.weights.square() @ (more - mean).square()).sqrt())

    def _errors_of_one_answer(self) -> Tensor:
        """Error of each sample where the mean, or the most frequent label, answers all."""
        y = self.data.y
        if self.output_targets.task == "regression":
            values = y.reshape(len(y), -1).double()
            return (values - self.weights @ values).square().mean(dim=1)
        kinds = torch.unique(y, dim=0, return_inverse=True)[1]
        shares = torch.bincount(kinds, self.weights)
        return (kinds != shares.argmax()).double()

    @torch.no_grad()
    def _errors(self) -> Tensor:
        """Error of each sample: 0 or 1 of a class, squared of a value."""
        targets, parts = self.output_targets, []
        for stage in self.network:
            stage.module.eval()
        for rows in batches(len(self.data), self.batch_size):
            output, y = self.network(self.data.inputs[rows]), self.data.y[rows]
            if targets.task == "regression":
                parts.append(task_losses(output, y, targets).double())
            else:
                parts.append((~targets.correct(output, y)).double())
        return torch.cat(parts).nan_to_num(nan=torch.inf)
