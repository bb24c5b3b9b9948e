"""Everything about a network that the estimators promise to leave alone."""

import torch


def snapshot(module):
    """State, mode, gradient flags, gradients and hooks of every part, comparable with ==."""
    parts = []
    for name, part in module.named_modules():
        hooks = sum(
            len(getattr(part, attribute))
            for attribute in vars(part)
            if attribute.endswith("_hooks") and getattr(part, attribute) is not None
        )
        parts.append((name, part.training, hooks, getattr(part, "inplace", None), id(part)))
    state = [(name, value.clone()) for name, value in module.state_dict().items()]
    flags = [(p.requires_grad, p.grad is None) for p in module.parameters()]
    return parts, flags, state


def assert_unchanged(module, before):
    parts, flags, state = snapshot(module)
    assert parts == before[0]
    assert flags == before[1]
    for (name, now), (_, then) in zip(state, before[2], strict=True):
        assert torch.equal(now, then), name
