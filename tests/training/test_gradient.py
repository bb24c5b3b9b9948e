"""The gradient trainer against a plain torch loop, and its loss against its formula."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from featprop_sklearn.networks import build_chain
from featprop_sklearn.output_targets import Head, OutputTargets
from featprop_sklearn.training import Component, GradientTrainer, Labelled
from featprop_sklearn.training.component import SplitNetwork
from featprop_sklearn.training.losses import TargetLoss, task_losses
from featprop_sklearn.training.row_batches import RowBatches, RowDataset


def component(n_samples=24, split=2, validation=False, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4), nn.BatchNorm1d(4)
    ).double()
    x = torch.randn(n_samples, 5, dtype=torch.float64)
    chain = build_chain(net.eval(), x)
    data = Labelled(
        x,
        torch.randint(0, 4, (n_samples,)),
        torch.rand(n_samples, dtype=torch.float64) + 0.5,
    )
    targets = torch.randn(n_samples, 6, dtype=torch.float64)
    return Component(
        "2",
        chain[: split + 1],
        chain[split + 1 :],
        data,
        targets,
        OutputTargets("multiclass"),
        data if validation else None,
    )


def test_it_takes_the_steps_of_a_plain_torch_loop():
    part = component()
    trainer = GradientTrainer(alpha=0.3, max_epochs=5, lr=1e-2, weight_decay=0.1)
    result = trainer.train(part, batch_size=-1, seed=0)

    own = part.private()
    network = SplitNetwork(own.stages, own.after).train()
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    w, y, target = part.data.weights, part.data.y, part.targets
    averages = None
    for epoch in range(5):
        output, feature = network(part.data.inputs)
        task = (w * nn.functional.cross_entropy(output, y, reduction="none")).sum() / w.sum()
        distance = (w * ((feature - target) ** 2).mean(dim=1)).sum() / w.sum()
        now = np.array([task.item(), distance.item()])
        averages = now if averages is None else 0.9 * averages + 0.1 * now
        factor = np.clip(0.3 * averages[0] / averages[1], 1e-5, 10)
        optimizer.zero_grad()
        (task + factor * distance).backward()
        optimizer.step()
        entry = result.history[epoch]
        assert entry["task_loss"] == pytest.approx(task.item(), rel=1e-12)
        assert entry["feature_loss"] == pytest.approx(distance.item(), rel=1e-12)
        assert entry["feature_weight"] == pytest.approx(factor, rel=1e-12)
    for mine, theirs in zip(result.state, network.states(), strict=True):
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-9, atol=1e-10)


def test_the_frozen_part_and_the_component_itself_stay():
    part = component()
    before = [p.clone() for p in (*part.stages.parameters(), *part.after.parameters())]
    statistics = part.after[1].module.running_mean.clone()
    own_statistics = part.stages[1].module.running_mean.clone()
    result = GradientTrainer(max_epochs=3, lr=0.1).train(part, batch_size=8, seed=0)
    after = (*part.stages.parameters(), *part.after.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(part.after[1].module.running_mean, statistics)
    # the trained BatchNorm follows the data, as in any fine-tuning
    assert not torch.equal(result.state[1]["running_mean"], own_statistics)


def test_a_parameter_on_both_sides_of_the_split_is_frozen():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(nn.Linear(3, 3), shared, nn.ReLU(), shared).eval()
    chain = build_chain(net, torch.randn(4, 3))
    network = SplitNetwork(chain[:3], chain[3:])
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trainable == {"upstream.0.weight", "upstream.0.bias"}
    with pytest.raises(ValueError, match="No parameter up to split '1' can be trained"):
        SplitNetwork(chain[1:2], chain[2:])


def test_alpha_zero_is_plain_fine_tuning_and_feature_only_ignores_the_labels():
    part = component()
    plain = GradientTrainer(alpha=0, max_epochs=3, lr=1e-2).train(part, batch_size=8, seed=1)
    without = GradientTrainer(alpha=0.5, max_epochs=3, lr=1e-2).train(
        Component(part.split, part.stages, part.after, part.data, None, part.output_targets),
        batch_size=8,
        seed=1,
    )
    assert torch.equal(plain.state[0]["weight"], without.state[0]["weight"])
    assert {entry["feature_weight"] for entry in plain.history} == {0.0}

    relabelled = Labelled(part.data.inputs, (part.data.y + 1) % 4, part.data.weights)
    other = Component(
        part.split, part.stages, part.after, relabelled, part.targets, part.output_targets
    )
    trainer = GradientTrainer(feature_only=True, max_epochs=20, lr=1e-2)
    results = [trainer.train(c, batch_size=-1, seed=1) for c in (part, other)]
    assert torch.equal(results[0].state[0]["weight"], results[1].state[0]["weight"])
    losses = [entry["feature_loss"] for entry in results[0].history]
    assert losses[-1] < losses[0]


def test_the_weight_of_the_feature_term_is_clamped():
    targets = OutputTargets("regression")
    output = torch.tensor([[1e4]], dtype=torch.float64)
    truth = {
        "y": torch.zeros(1, 1, dtype=torch.float64),
        "weight": torch.ones(1, dtype=torch.float64),
        "target": torch.full((1, 2), 1e-6, dtype=torch.float64),
    }
    loss = TargetLoss(targets, alpha=1.0, feature_only=False, decay=0.9)
    loss((output, torch.zeros(1, 2, dtype=torch.float64)), truth)
    assert loss.terms["feature_weight"] == 10
    loss = TargetLoss(targets, alpha=1e-12, feature_only=False, decay=0.9)
    loss((output * 1e-4, torch.full((1, 2), 1e3, dtype=torch.float64)), truth)
    assert loss.terms["feature_weight"] == 1e-5


def test_held_out_data_choose_the_epoch_the_start_included():
    part = component(validation=True)
    harmful = GradientTrainer(alpha=0, max_epochs=4, lr=50.0)
    result = harmful.train(part, batch_size=-1, seed=0)
    start = part.stages[0].module.weight
    losses = [entry["valid_loss"] for entry in result.history]
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2, 3, 4]
    assert min(losses[1:]) > losses[0]
    assert torch.equal(result.state[0]["weight"], start)

    gentle = GradientTrainer(alpha=0, max_epochs=30, lr=3e-2, weight_decay=0)
    result = gentle.train(part, batch_size=8, seed=0)
    best = part.private()
    result.load_into(best.stages)
    network = SplitNetwork(best.stages, best.after).eval()
    with torch.no_grad():
        loss = task_losses(network(part.data.inputs)[0], part.data.y, part.output_targets)
    weighted = float(torch.dot(loss, part.data.weights) / part.data.weights.sum())
    assert weighted == pytest.approx(min(e["valid_loss"] for e in result.history), rel=0.05)


def test_seeds_repeat_and_differ():
    part = component()
    trainer = GradientTrainer(max_epochs=2, lr=1e-2)
    first, again, other = (trainer.train(part, batch_size=8, seed=s).state for s in (1, 1, 2))
    assert torch.equal(first[0]["weight"], again[0]["weight"])
    assert not torch.equal(first[0]["weight"], other[0]["weight"])


@pytest.mark.parametrize(
    ("targets", "output", "y", "expected"),
    [
        (OutputTargets("regression"), [[1.0, 3.0]], [[0.0, 1.0]], 2.5),
        (OutputTargets("binary"), [[0.0]], [1], np.log(2)),
        (OutputTargets("binary"), [0.0], [1], np.log(2)),
        (OutputTargets("multilabel"), [[0.0, 100.0]], [[1, 1]], np.log(2) / 2),
        (OutputTargets("multiclass"), [[0.0, 0.0]], [1], np.log(2)),
        (OutputTargets("multiclass", head=Head("probabilities")), [[0.2, 0.8]], [0], -np.log(0.2)),
        (
            OutputTargets("multiclass", head=Head("log_probabilities")),
            [[np.log(0.2), np.log(0.8)]],
            [1],
            -np.log(0.8),
        ),
    ],
)
def test_task_losses(targets, output, y, expected):
    losses = task_losses(torch.tensor(output, dtype=torch.float64), torch.tensor(y), targets)
    assert losses.shape == (1,)
    assert float(losses) == pytest.approx(expected)


def test_batches_cover_every_row_once_in_a_new_order_each_epoch():
    rows = torch.arange(10)
    batches = RowBatches(RowDataset(rows, {"y": rows}), 4, torch.Generator().manual_seed(0))
    assert len(batches) == 3
    epochs = [torch.cat([x for x, _ in batches]) for _ in range(2)]
    assert not torch.equal(*epochs)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, rows)
    assert all(torch.equal(x, truth["y"]) for x, truth in batches)
    full = RowBatches(RowDataset(rows, {}), 10, torch.Generator().manual_seed(0))
    assert torch.equal(next(iter(full))[0], rows)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_of_one_row_is_refused_where_batchnorm_is_trained(batch_size):
    part = component(n_samples=3)  # three rows in batches of two: one of them is alone
    with pytest.raises(ValueError, match=f"batches of one row: batch_size is {batch_size} for 3"):
        GradientTrainer().train(part, batch_size=batch_size, seed=0)


def test_divergence_is_said_with_held_out_data_too():
    part = component(validation=True)
    with pytest.warns(ConvergenceWarning, match="diverged: the loss or the weights"):
        result = GradientTrainer(lr=1e200).train(part, batch_size=8, seed=0)
    assert torch.equal(result.state[0]["weight"], part.stages[0].module.weight)


class Skipping(nn.Module):
    """Leaves a block out by chance, in training; torch.fx cannot follow it."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 6), nn.Linear(6, 4)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())

    def forward(self, x):
        h = self.embed(x).tanh()
        if x.isnan().any():
            raise ValueError("NaN")
        skips = torch.rand(()) < 0.3, np.random.random() < 0.3
        if not (self.training and any(skips)):
            h = self.block(h)
        return self.head(h)


def test_networks_that_take_another_way_in_training():
    torch.manual_seed(0)
    net = Skipping().double().eval()
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 4
    chain = build_chain(net, x[:8])
    assert chain.names == ["tanh", "block.0", "block.1", "head"]
    data = Labelled(x, y, torch.ones(40, dtype=torch.float64))
    targets = OutputTargets("multiclass")
    part = Component("head", chain, chain[4:], data, None, targets, data)
    np.random.seed(3)
    state = np.random.get_state()[1]
    trainer = GradientTrainer(alpha=0.0, lr=1e-2, max_epochs=10)
    first, second = (trainer.train(part, batch_size=8, seed=1) for _ in range(2))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    losses = [entry["valid_loss"] for entry in first.history]
    assert losses[-1] < losses[0]
    assert losses == [entry["valid_loss"] for entry in second.history]


class CutOff(nn.Module):
    """No gradient gets to its first layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.embed(x).detach())


def test_parameters_that_no_gradient_reaches():
    x = torch.randn(20, 5)
    chain = build_chain(CutOff().eval(), x[:8])
    data = Labelled(x, torch.arange(20) % 4, torch.ones(20))
    part = Component("embed", chain[:1], chain[1:], data, None, OutputTargets("multiclass"))
    trainer = GradientTrainer(alpha=0.0, max_epochs=1)
    with pytest.raises(ValueError, match=r"Nothing up to split 'embed' .* cuts them off \(detach"):
        trainer.train(part, batch_size=8, seed=0)
    whole = Component("head", chain, chain[3:], data, None, OutputTargets("multiclass"))
    assert len(trainer.train(whole, batch_size=8, seed=0).history) == 1
