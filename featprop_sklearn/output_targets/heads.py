"""What a network's outputs are: logits, probabilities or log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["HEADS", "Head", "resolve_head"]

HEADS = ("logits", "probabilities", "log_probabilities")

# last layer -> (what it puts out, whether each output is a probability of its own)
_LAST_LAYERS: dict[type, tuple[str, bool]] = {
    nn.Softmax: ("probabilities", False),
    nn.LogSoftmax: ("log_probabilities", False),
    nn.Sigmoid: ("probabilities", True),
    nn.LogSigmoid: ("log_probabilities", True),
}


@dataclass(frozen=True)
class Head:
    """Conversion between the outputs of a network and logits, in both directions.

    Parameters
    ----------
    name : {"logits", "probabilities", "log_probabilities"}, default="logits"
        What the network puts out.
    sigmoid : bool, default=False
        Whether each output is a probability of its own (sigmoid) rather than one share of a
        distribution (softmax). Without meaning for logits.

    Raises
    ------
    ValueError
        If the name is unknown.
    """

    name: str = "logits"
    sigmoid: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.name not in HEADS:
            raise ValueError(f"head must be one of {list(HEADS)}, got {self.name!r}")

    def to_logits(self, output: Tensor) -> Tensor:
        """Logits that give this output; differentiable.

        log p for a softmax, log p − log(1 − p) for a sigmoid. Probabilities are first clipped to
        what their dtype can tell from 0 and 1, so that the logits and the derivatives are finite.

        Parameters
        ----------
        output : Tensor of shape (n_samples, n_outputs)
            Output of the network.

        Returns
        -------
        Tensor of shape (n_samples, n_outputs)
        """
        if self.name == "logits":
            return output
        precision = torch.finfo(output.dtype)
        if self.name == "probabilities":
            if self.sigmoid:
                return torch.logit(output.clamp(precision.tiny, 1 - precision.eps / 2))
            return output.clamp_min(precision.tiny).log()
        if self.sigmoid:
            output = output.clamp_max(-precision.eps / 2)
            return output - torch.log(-torch.expm1(output))
        return output

    def to_output(self, logits: Tensor) -> Tensor:
        """Output of the network for these logits: the inverse of :meth:`to_logits`.

        Parameters
        ----------
        logits : Tensor of shape (n_samples, n_outputs)
            Logits; those of a softmax may be shifted by any constant a sample.

        Returns
        -------
        Tensor of shape (n_samples, n_outputs)
        """
        if self.name == "logits":
            return logits
        if self.sigmoid:
            log_p = nn.functional.logsigmoid(logits)
            return log_p if self.name == "log_probabilities" else logits.sigmoid()
        if self.name == "log_probabilities":
            return logits.log_softmax(-1)
        return logits.softmax(-1)


def resolve_head(head: str, last_layer_type: type | None, outputs: Tensor, per_logit: bool) -> Head:
    """Find out, or check, what the outputs of a network are.

    ``"auto"`` goes by the type of the last layer: softmax, log-softmax, sigmoid or log-sigmoid.
    Where that says nothing, several outputs that compete are probabilities if they are
    non-negative and sum to one in every row, log-probabilities if their exponentials do, and
    logits otherwise. Outputs that do not compete are then taken for logits, unless the last
    layer is unknown and all of them lie in [0, 1], which is refused.

    Parameters
    ----------
    head : {"auto", "logits", "probabilities", "log_probabilities"}
        The user's word on it.
    last_layer_type : type or None
        Type of the last layer, where it is known.
    outputs : Tensor of shape (n_samples, n_outputs) or (n_samples,)
        Some outputs of the network.
    per_logit : bool
        Whether each output is a decision of its own: one output, or multi-label.

    Returns
    -------
    Head

    Raises
    ------
    ValueError
        If the name is unknown, the outputs cannot be what ``head`` says, or a softmax is to
        decide about outputs that do not compete.
    """
    if head != "auto" and head not in HEADS:
        raise ValueError(f"head must be one of {['auto', *HEADS]}, got {head!r}")
    outputs = outputs.detach()
    if outputs.ndim == 1:
        outputs = outputs[:, None]
    told, sigmoid = _by_type(last_layer_type, per_logit)
    name = head
    if head == "auto":
        name = told or ("logits" if per_logit else _by_values(outputs))
        if per_logit and last_layer_type is None and _may_be_sigmoids(outputs):
            raise ValueError(
                "head='auto' cannot tell whether the outputs are logits or probabilities: all lie "
                "between 0 and 1, and the last layer is not known. Pass head='probabilities' or "
                "head='logits'"
            )
    resolved = Head(name, sigmoid and name != "logits")
    if name != "logits" and per_logit and not sigmoid:
        raise ValueError(
            "the network ends in a softmax, which makes the outputs of a sample compete, but each "
            "output here is a decision of its own (one output, or multi-label y); end the network "
            "in a sigmoid or in plain logits; if y is one-hot, pass y.argmax(axis=1)"
        )
    if head != "auto":
        _check_values(resolved, outputs)
    return resolved


def _by_type(last_layer_type: type | None, per_logit: bool) -> tuple[str | None, bool]:
    for layer_type, found in _LAST_LAYERS.items():
        if last_layer_type is not None and issubclass(last_layer_type, layer_type):
            return found
    return None, per_logit


def _may_be_sigmoids(outputs: Tensor) -> bool:
    return len(outputs) > 0 and bool(((outputs >= 0) & (outputs <= 1)).all())


def _by_values(outputs: Tensor) -> str:
    if len(outputs) and (outputs >= 0).all() and _sum_to_one(outputs):
        return "probabilities"
    if len(outputs) and _sum_to_one(outputs.exp()):
        return "log_probabilities"
    return "logits"


def _sum_to_one(probabilities: Tensor) -> bool:
    # half precision cannot keep 1e-5
    tolerance = max(1e-5, 4 * torch.finfo(probabilities.dtype).eps)
    return bool(((probabilities.double().sum(1) - 1).abs() <= tolerance).all())


def _check_values(head: Head, outputs: Tensor) -> None:
    if head.name == "logits" or not len(outputs):
        return
    logarithmic = head.name == "log_probabilities"
    probabilities = outputs.exp() if logarithmic else outputs
    lowest, highest = outputs.min().item(), outputs.max().item()
    came = f"got outputs from {lowest:.4g} to {highest:.4g}"
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():
        allowed = "<= 0" if logarithmic else "in [0, 1]"
        raise ValueError(
            f"head={head.name!r} needs outputs {allowed}, {came}; pass head='logits' or head='auto'"
        )
    if not head.sigmoid and not _sum_to_one(probabilities):
        what = "exponentials" if logarithmic else "outputs"
        raise ValueError(
            f"head={head.name!r} needs {what} that sum to one in every row, {came}, with sums from "
            f"{probabilities.sum(1).min().item():.4g} to {probabilities.sum(1).max().item():.4g}; "
            "pass head='logits' or head='auto'"
        )
