"""Closed-form training against models fitted by scikit-learn, and its own promises."""

import copy
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from featprop_sklearn import (
    ClosedFormTrainer,
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
)
from featprop_sklearn.networks import build_chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training import Component, Labelled, layer_sums, sweeper
from featprop_sklearn.training.design_rows import add_to_weights
from tests.estimators.snapshot import assert_unchanged, snapshot

IRIS, KINDS = load_iris(return_X_y=True)


def component(net, X, y, task="multiclass", *, split=None, held_out=None, weights=None, **options):
    """The stages of a network up to a split, with data."""
    x = torch.tensor(X)
    chain = build_chain(net.eval(), x[:4])
    stop = len(chain) if split is None else chain.names.index(split) + 1
    labels = torch.tensor(y).reshape(len(y), -1) if task == "regression" else torch.tensor(y)
    weights = torch.ones(len(x)) if weights is None else torch.tensor(weights)
    data = Labelled(x, labels, weights.to(x.dtype))
    return Component(
        chain.names[stop - 1],
        chain[:stop],
        chain[stop:],
        data,
        None,
        OutputTargets(task, **options),
        held_out,
    )


def trained_network(part, result):
    """The component's whole network with the trained weights."""
    own = part.private()
    result.load_into(own.stages)
    return nn.Sequential(*[stage.module for stage in (*own.stages, *own.after)])


def losses(result):
    return [entry.get("train_loss", entry.get("valid_loss")) for entry in result.history]


def assert_same_states(one, other, **tolerance):
    for mine, theirs in zip(one.state, other.state, strict=True):
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], **tolerance)


@pytest.fixture(scope="module")
def digits():
    """Tables whose columns are in another order than the network knows: train and test."""
    X, y = load_digits(return_X_y=True)
    X = X[:, np.random.default_rng(0).permutation(64)] / 16
    return X[400:700], X[1000:], y[400:700], y[1000:]


@pytest.fixture(scope="module")
def mlp():
    """Trained on digits with their columns in order."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X[:400] / 16), torch.tensor(y[:400])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    net = net.append(nn.Linear(16, 10)).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    return net.eval()


# What scikit-learn would have fitted ----------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_one_layer_of_a_regression_becomes_least_squares(bias, n_outputs):
    X = StandardScaler().fit_transform(load_diabetes().data)
    y = StandardScaler().fit_transform(load_diabetes().data[:, :1] ** 2 + X[:, 1:] @ np.eye(9, 3))
    y = y[:, :n_outputs]
    net = nn.Linear(10, n_outputs, bias=bias).double()
    result = ClosedFormTrainer(ridge=0.0).train(component(net, X, y, "regression"), batch_size=100)
    theirs = LinearRegression(fit_intercept=bias).fit(X, y)
    found = result.state[0]
    np.testing.assert_allclose(found["weight"], theirs.coef_, atol=1e-4)
    if bias:
        np.testing.assert_allclose(found["bias"], theirs.intercept_, atol=1e-4)


def test_the_ridge_pulls_towards_the_present_weights():
    X = StandardScaler().fit_transform(load_diabetes().data)
    y = StandardScaler().fit_transform(load_diabetes().target[:, None])
    net = nn.Linear(10, 1, bias=False).double()
    part = component(net, X, y, "regression")
    result = ClosedFormTrainer(ridge=0.1, sweeps=1).train(part, batch_size=100)
    before = net.weight.detach().numpy()
    strength = 0.1 * np.linalg.norm(X, 2) ** 2
    change = Ridge(alpha=strength, fit_intercept=False).fit(X, y - X @ before.T).coef_
    np.testing.assert_allclose(result.state[0]["weight"], before + change, atol=1e-4)


def test_one_layer_of_a_classifier_becomes_logistic_regression():
    net = nn.Linear(4, 3).double()
    result = ClosedFormTrainer(C=0.5).train(component(net, IRIS, KINDS), batch_size=100)
    network = trained_network(component(net, IRIS, KINDS), result)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, tol=1e-10, max_iter=1000))
    found = torch.softmax(network(torch.tensor(IRIS)), dim=1).detach()
    np.testing.assert_allclose(found, model.fit(IRIS, KINDS).predict_proba(IRIS), atol=1e-4)


# Every network and task -------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.act1, self.act2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act2(x + self.b(self.act1(self.a(x))))


def residual_cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2),
        nn.ReLU(inplace=True),
        Block(4),
        nn.ConvTranspose2d(4, 4, 2, groups=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).double()


def images(n_samples=80):
    X, y = load_digits(return_X_y=True)
    return X[:n_samples].reshape(-1, 1, 8, 8) / 16, y[:n_samples]


def test_layers_in_residual_blocks_grouped_and_transposed_ones_are_trained():
    X, y = images()
    net = residual_cnn()
    part = component(net, X, y, margin=3.0)
    result = ClosedFormTrainer(sweeps=2).train(part, batch_size=30)
    assert set(result.history[1]["ridge"]) == {"0", "2.a", "2.b", "3"}
    assert losses(result)[1] < losses(result)[0]
    trained = trained_network(part, result)
    for before, after in zip(net.parameters(), trained.parameters(), strict=True):
        assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("task", "width", "y"),
    [
        ("multiclass", 3, KINDS),
        ("multiclass", 5, KINDS),
        ("multiclass", 2, KINDS // 2),
        ("binary", 1, (KINDS == 1).astype(int)),
        ("multilabel", 2, np.column_stack([KINDS == 1, KINDS > 0]).astype(int)),
        ("regression", 1, IRIS[:, 0] * IRIS[:, 1]),
        ("regression", 2, IRIS[:, :2] ** 2),
    ],
)
@pytest.mark.parametrize("split", [None, "0"])
def test_every_task_at_the_output_and_before(task, width, y, split):
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, width)).double()
    margin = 0.0 if task == "regression" else 3.0
    part = component(net, IRIS, y, task, split=split, margin=margin)
    result = ClosedFormTrainer().train(part, batch_size=64)
    found = losses(result)
    assert min(found) < (0.97 if split else 0.7) * found[0]
    kept = trained_network(part, result)
    if split:
        assert torch.equal(kept[2].weight, net[2].weight)
    assert not torch.equal(kept[0].weight, net[0].weight)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_sweeps_of_a_regression_explain_more(n_outputs):
    X, y = load_diabetes(return_X_y=True)
    X, y = StandardScaler().fit_transform(X), StandardScaler().fit_transform(y[:, None])
    y = np.hstack([y, X[:, :1] * X[:, 2:3]])[:, :n_outputs]
    net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, n_outputs)).double()
    before = r2_score(y[300:], net(torch.tensor(X[300:])).detach().numpy())
    regressor = FeatureBackpropRegressor(net, trainer="closed_form", random_state=0)
    regressor.fit(X[:300], y[:300] if n_outputs > 1 else y[:300, 0])
    after = r2_score(y[300:], regressor.predict(X[300:]))
    assert after > max(before, 0) + 0.2


class Opaque(nn.Module):
    """It has no place to be cut at, so the head lies inside of its one stage."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + 0.0 * x.sum(dim=1, keepdim=True) if x.sum() > -1e9 else x


def test_the_head_of_a_closed_network_becomes_logistic_regression(mlp, digits):
    part = component(Opaque(mlp), digits[0], digits[2], margin=2.0)
    result = ClosedFormTrainer(sweeps=2, C=0.5).train(part, batch_size=64)
    names = ["net.0", "net.2", "net.4"]
    assert result.history[1]["refitted"] == names
    assert set(result.history[1]["ridge"]) == set(names[:2])
    assert losses(result)[2] < losses(result)[1] < 0.5 * losses(result)[0]
    net = trained_network(part, result)[0].net
    X = torch.tensor(digits[0])
    features, found = net[:4](X).detach(), torch.softmax(net(X), dim=1).detach()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, tol=1e-10, max_iter=1000))
    theirs = model.fit(features, digits[2]).predict_proba(features)
    np.testing.assert_allclose(found, theirs, atol=2e-3)  # as near as scikit-learn's own tol


def test_the_history_says_what_is_refitted_and_what_is_not(mlp, digits):
    net = copy.deepcopy(mlp)
    net[2].bias.requires_grad_(False)
    net.insert(4, nn.LayerNorm(16).double())
    part = component(net, digits[0], digits[2], margin=2.0)
    history = ClosedFormTrainer(sweeps=1).train(part, batch_size=256).history
    assert history[0]["refitted"] == []
    assert history[0]["not_refitted"] == {
        "2": "it is frozen in part",
        "4": "LayerNorm is none of torch's affine layers",
    }
    assert history[1]["refitted"] == ["0", "5"]
    chunk = ClosedFormTrainer().train_chunk(part, {}, batch_size=256).history
    assert chunk[0]["refitted"] == ["0", "5"]
    classifier = FeatureBackpropClassifier(net, split="2", trainer=ClosedFormTrainer(sweeps=1))
    classifier.fit(digits[0], digits[2])
    assert classifier.history_[1]["refitted"] == ["0"]


class Experts(nn.Module):
    """A sample goes to one of three: the first few all to the same."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(64, 16)
        self.experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        features = self.embed(x).relu()
        found = torch.zeros_like(features)
        for number, expert in enumerate(self.experts):
            rows = torch.nonzero(x[:, 0] == number)[:, 0]
            if len(rows):
                found[rows] = expert(features[rows])
        return self.head(features + found.relu())


def test_layers_that_do_not_get_every_sample_are_no_obstacle(digits):
    X, X_test, y, y_test = digits
    X, X_test = X.copy(), X_test.copy()
    X[:, 0], X_test[:, 0] = np.arange(300) // 100, np.arange(len(X_test)) % 3
    torch.manual_seed(0)
    net = Experts().double()
    history = ClosedFormTrainer(sweeps=1).train(component(net, X, y), batch_size=64).history
    assert history[1]["refitted"] == ["embed", "head"]
    reason = "not every sample gets to it, or not just once"
    assert history[0]["not_refitted"]["experts.0"] == reason
    classifier = FeatureBackpropClassifier(net, random_state=0).fit(X, y)
    assert classifier.score(X_test, y_test) > 0.85
    stream = FeatureBackpropClassifier(net, trainer="closed_form", margin=5.0)
    for rows in (slice(0, 150), slice(150, 300)):
        stream.partial_fit(X[rows], y[rows])
    assert stream.score(X, y) > 0.8


def test_data_that_a_refit_leads_elsewhere_are_no_obstacle(digits, monkeypatch):
    X, _, y, _ = digits
    torch.manual_seed(0)
    found = iter([{"the first"}, set(), {"the second"}])

    def led(chain, sites, inputs, batch_size):
        where = next(found, set())
        places = {"the first": 1, "the second": 0}
        return {sites[places[name]].layer for name in where}

    monkeypatch.setattr(sweeper, "routed_layers", led)
    net = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU()).double()
    net.extend([nn.Linear(20, 16).double(), nn.ReLU(), nn.Linear(16, 10).double()])
    history = ClosedFormTrainer(sweeps=1).train(component(net, X, y), batch_size=64).history
    assert set(history[1]["ridge"]) == {"0"}
    assert history[0]["not_refitted"] == {"2": "not every sample gets to it, or not just once"}


def test_a_classifier_is_repaired_for_other_data(mlp, digits):
    X, X_test, y, y_test = digits
    before = snapshot(mlp)
    classifier = FeatureBackpropClassifier(mlp, trainer=ClosedFormTrainer(), random_state=0)
    classifier.fit(X, y)
    assert_unchanged(mlp, before)
    as_it_is = np.mean(mlp(torch.tensor(X_test)).argmax(dim=1).numpy() == y_test)
    assert as_it_is < 0.3
    assert classifier.score(X_test, y_test) > 0.75
    assert classifier.n_iter_ == len(classifier.history_) - 1


# Its promises -----------------------------------------------------------------------------


def test_it_repeats_itself_and_leaves_the_component_alone(mlp, digits):
    part = component(mlp, digits[0], digits[2], margin=2.0)
    before = snapshot(mlp)
    results = [
        ClosedFormTrainer().train(part, batch_size=size, seed=seed)
        for size, seed in ((256, 0), (256, 1), (37, 0))
    ]
    assert_same_states(results[0], results[1], rtol=0, atol=0)
    assert losses(results[0]) == losses(results[1])
    assert_same_states(results[0], results[2], rtol=1e-6, atol=1e-8)  # batches do not matter
    assert_unchanged(mlp, before)


def test_sums_in_parallel_are_the_serial_ones(mlp, digits, monkeypatch):
    monkeypatch.setattr(layer_sums, "TASK_ROWS", 64)
    part = component(mlp, digits[0], digits[2], margin=2.0)
    trainer = ClosedFormTrainer(sweeps=1)
    serial, parallel = {}, {}
    trainer.train_chunk(part, serial, batch_size=64)
    trainer.train_chunk(part, parallel, batch_size=64, n_jobs=2)
    assert set(serial) == set(parallel) == {"0", "2", "4"}
    for name, (base, sums) in serial.items():
        torch.testing.assert_close(parallel[name][0], base, rtol=0, atol=0)
        for one, other in zip(vars(sums).values(), vars(parallel[name][1]).values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    results = [trainer.train(part, batch_size=64, n_jobs=n_jobs) for n_jobs in (None, 2)]
    assert_same_states(*results, rtol=1e-10, atol=1e-10)


def test_threads_may_share_a_network(monkeypatch):
    monkeypatch.setattr(layer_sums, "TASK_ROWS", 64)
    X, y = images()
    part = component(residual_cnn(), X, y, margin=1.0)
    trainer = ClosedFormTrainer(sweeps=1)
    serial = trainer.train(part, batch_size=5)
    with joblib.parallel_config(backend="threading"):
        threads = trainer.train(part, batch_size=5, n_jobs=4)
    assert_same_states(serial, threads, rtol=1e-10, atol=1e-10)


def test_a_sweep_that_worsens_the_held_out_loss_is_taken_back(mlp, digits):
    known, labels = load_digits(return_X_y=True)  # with the columns in order, unlike the rest
    held_out = Labelled(torch.tensor(known / 16), torch.tensor(labels), torch.ones(len(labels)))
    part = component(mlp, digits[0], digits[2], held_out=held_out, margin=2.0)
    result = ClosedFormTrainer().train(part, batch_size=256)
    assert len(result.history) == 2
    assert losses(result)[1] > losses(result)[0]
    for before, after in zip(
        mlp.parameters(), trained_network(part, result).parameters(), strict=True
    ):
        assert torch.equal(before, after)


@pytest.mark.parametrize("at", [1, 2])
def test_a_sweep_that_worsens_the_training_loss_is_taken_back(mlp, digits, monkeypatch, at):
    part = component(mlp, digits[0], digits[2], split="2", margin=2.0)
    refits = []

    def overshooting(layer, change, loss):
        refits.append(layer)
        add_to_weights(layer, -5 * change if len(refits) > 2 * (at - 1) else change)

    monkeypatch.setattr(sweeper, "move_weights", overshooting)
    good = ClosedFormTrainer(sweeps=at - 1).train(part, batch_size=256)
    refits.clear()
    result = ClosedFormTrainer(tol=0.0).train(part, batch_size=256)
    assert [entry["sweep"] for entry in result.history] == [*range(at + 1)]
    assert losses(result)[-1] > losses(result)[-2]
    assert_same_states(result, good, rtol=0, atol=0)


def test_the_history_is_that_of_the_network(mlp, digits):
    X, X_test, y, y_test = digits
    held_out = Labelled(torch.tensor(X_test), torch.tensor(y_test), torch.ones(len(X_test)))
    part = component(mlp, X, y, held_out=held_out, margin=2.0)
    result = ClosedFormTrainer(sweeps=2).train(part, batch_size=256)
    found = losses(result)
    assert [entry["sweep"] for entry in result.history] == [0, 1, 2]
    assert found[2] < found[1] < found[0]
    for network, loss in ((mlp, found[0]), (trained_network(part, result), found[2])):
        outputs = network(torch.tensor(X_test))
        wanted = nn.functional.cross_entropy(outputs, torch.tensor(y_test))
        assert loss == pytest.approx(wanted.item())


def test_no_sweeps_change_nothing(mlp, digits):
    part = component(mlp, digits[0], digits[2])
    result = ClosedFormTrainer(sweeps=0).train(part, batch_size=256)
    assert [entry["sweep"] for entry in result.history] == [0]
    for stage, state in zip(part.stages, result.state, strict=True):
        for name, value in stage.module.state_dict().items():
            assert torch.equal(state[name], value)


def test_a_large_tolerance_ends_after_one_sweep(mlp, digits):
    part = component(mlp, digits[0], digits[2], margin=2.0)
    result = ClosedFormTrainer(tol=1e6).train(part, batch_size=256)
    assert [entry["sweep"] for entry in result.history] == [0, 1]


def test_held_out_data_choose_the_margin(mlp, digits):
    X, X_test, y, y_test = digits
    held_out = Labelled(torch.tensor(X_test), torch.tensor(y_test), torch.ones(len(X_test)))
    part = component(mlp, X, y, held_out=held_out, margin=1.0, multiple=1.0)
    single = {
        multiple: ClosedFormTrainer(multiples=(multiple,)).train(part, batch_size=256)
        for multiple in (0.1, 3.0, 20.0)
    }
    several = ClosedFormTrainer(multiples=tuple(single)).train(part, batch_size=256)
    best = min(single.values(), key=lambda result: min(losses(result)))
    assert_same_states(several, best, rtol=0, atol=0)
    assert losses(several) == losses(best)
    assert len({min(losses(result)) for result in single.values()}) == 3

    alone = replace(part, validation=None)
    unguided = ClosedFormTrainer(multiples=tuple(single)).train(alone, batch_size=256)
    fixed = ClosedFormTrainer(multiples=(3.0,)).train(alone, batch_size=256)
    assert_same_states(unguided, fixed, rtol=0, atol=0)


@pytest.mark.parametrize("split", ["auto", "2"])
def test_a_weight_is_a_repetition_without_a_hold_out(mlp, digits, split):
    X, X_test, y = digits[0][:100], digits[1], digits[2][:100]
    weights = np.random.default_rng(0).integers(0, 4, len(y))
    options = {"split": split, "trainer": ClosedFormTrainer(), "validation_fraction": 0}
    weighted = FeatureBackpropClassifier(mlp, **options).fit(X, y, sample_weight=weights)
    repeated = FeatureBackpropClassifier(mlp, **options)
    repeated.fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    plain = FeatureBackpropClassifier(mlp, **options).fit(X, y)
    expected = repeated.predict_proba(X_test)
    np.testing.assert_allclose(weighted.predict_proba(X_test), expected, atol=1e-5)
    assert np.abs(plain.predict_proba(X_test) - expected).max() > 1e-2


def test_dead_units_are_woken(mlp, digits):
    X, y = torch.tensor(digits[0]), digits[2]
    net = copy.deepcopy(mlp)
    net[2].bias.data[:] = -1e3  # nothing comes through any more
    part = component(net, digits[0], y, margin=2.0)
    result = ClosedFormTrainer().train(part, batch_size=256)
    predicted = trained_network(part, result)(X).argmax(dim=1).numpy()
    assert np.mean(predicted == y) > 0.9


def test_an_untrained_head_is_no_obstacle(mlp, digits):
    """Through weights of zero nothing would be asked of the layers before."""
    net = copy.deepcopy(mlp)
    net[4].weight.data.zero_()
    part = component(net, digits[0], digits[2], margin=2.0)
    result = ClosedFormTrainer(sweeps=1).train(part, batch_size=256)
    assert losses(result)[1] < losses(result)[0]
    assert all(ridge > 0 for ridge in result.history[1]["ridge"].values())  # there was a fit


def test_frozen_layers_stay(mlp, digits):
    net = copy.deepcopy(mlp)
    net[0].requires_grad_(False)
    part = component(net, digits[0], digits[2], margin=2.0)
    result = ClosedFormTrainer().train(part, batch_size=256)
    assert torch.equal(result.state[0]["weight"], mlp[0].weight)
    assert not torch.equal(result.state[2]["weight"], mlp[2].weight)


# Ctrl-C -----------------------------------------------------------------------------------


def test_ctrl_c_in_the_second_sweep_keeps_the_first(mlp, digits, monkeypatch):
    X, X_test, y, _ = digits
    one = FeatureBackpropClassifier(mlp, margin=2.0, trainer=ClosedFormTrainer(sweeps=1))
    one.set_params(random_state=0).fit(X, y)
    solve_ridge, refits = sweeper.solve_ridge, []

    def interrupted(sums, ridge):
        refits.append(ridge)
        if len(refits) == 4:  # two layers a sweep, besides the head
            raise KeyboardInterrupt
        return solve_ridge(sums, ridge)

    monkeypatch.setattr(sweeper, "solve_ridge", interrupted)
    classifier = clone(one).set_params(trainer__sweeps=5)
    before = snapshot(mlp)
    with pytest.warns(ConvergenceWarning, match="interrupted; the estimator is usable"):
        classifier.fit(X, y)
    assert len(refits) == 4
    assert_unchanged(mlp, before)
    assert classifier.n_iter_ == 1
    np.testing.assert_array_equal(classifier.predict_proba(X_test), one.predict_proba(X_test))


def test_ctrl_c_ends_the_choice_of_the_margin_too(mlp, digits, monkeypatch):
    calls = []

    def interrupted(sums, ridge):
        calls.append(ridge)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeper, "solve_ridge", interrupted)
    X, X_test, y, y_test = digits
    held_out = Labelled(torch.tensor(X_test), torch.tensor(y_test), torch.ones(len(X_test)))
    part = component(mlp, X, y, held_out=held_out, multiple=1.0)
    result = ClosedFormTrainer().train(part, batch_size=256)
    assert result.interrupted
    assert len(calls) == 1
    assert torch.equal(result.state[0]["weight"], mlp[0].weight)
    assert torch.equal(result.state[4]["weight"], mlp[4].weight)


# Chunks -----------------------------------------------------------------------------------


def in_chunks(trainer, part, slices):
    """Show a component's data piece by piece; return what was remembered and the last result."""
    seen, data = {}, part.data
    for rows in slices:
        result = trainer.train_chunk(replace(part, data=data[rows]), seen, batch_size=64)
        part = part.private()
        result.load_into(part.stages)
    return seen, result


def test_sums_of_chunks_add_up(mlp, digits):
    part = component(mlp, digits[0], digits[2], margin=2.0)
    trainer = ClosedFormTrainer(ridge=1e30)  # which keeps the network, and so the targets
    halves, result = in_chunks(trainer, part, (slice(0, 120), slice(120, None)))
    whole, _ = in_chunks(trainer, part, (slice(None),))
    torch.testing.assert_close(result.state[0]["weight"], mlp[0].weight.detach())
    assert set(halves) == {"0", "2", "4"}
    for name, (base, sums) in halves.items():
        torch.testing.assert_close(base, whole[name][0])
        for one, other in zip(vars(sums).values(), vars(whole[name][1]).values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert whole["0"][1].n_rows == len(digits[2])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_regression_in_chunks_is_the_regression_on_all(bias, weighted):
    X, y = load_diabetes(return_X_y=True)
    X, y = StandardScaler().fit_transform(X), StandardScaler().fit_transform(y[:, None])
    weights = np.random.default_rng(0).integers(1, 4, len(y)) if weighted else np.ones(len(y))
    net = nn.Linear(10, 1, bias=bias).double()
    part = component(net, X, y, "regression", weights=weights)
    slices = (slice(0, 50), slice(50, 300), slice(300, None))
    _, result = in_chunks(ClosedFormTrainer(ridge=0.0), part, slices)
    theirs = LinearRegression(fit_intercept=bias).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(result.state[0]["weight"], theirs.coef_, atol=1e-4)


def test_partial_fit_learns_from_chunk_after_chunk(mlp, digits):
    X, X_test, y, y_test = digits
    classifier = FeatureBackpropClassifier(mlp, trainer=ClosedFormTrainer(), random_state=0)
    scores = []
    for rows in (slice(0, 100), slice(100, 200), slice(200, 300)):
        classifier.partial_fit(X[rows], y[rows])
        scores.append(classifier.score(X_test, y_test))
    assert scores[0] < scores[1] < scores[2]
    assert classifier.n_iter_ == 3

    forgetful = clone(classifier).partial_fit(X[200:], y[200:])
    assert scores[2] > forgetful.score(X_test, y_test)  # it remembers the earlier chunks


# In the estimators ------------------------------------------------------------------------


def test_several_splits_are_trained_independently(mlp, digits):
    X, y = digits[0][:80], digits[2][:80]
    # small steps, for parts that are trained apart from each other have to fit together
    trainer = ClosedFormTrainer(ridge=0.1)
    options = {"trainer": trainer, "margin": 2.0, "validation_fraction": 0}
    several = FeatureBackpropClassifier(mlp, split=["0", "2", "4"], **options).fit(X, y)
    first = FeatureBackpropClassifier(mlp, split="0", **options).fit(X, y)
    assert torch.equal(several.module_[0].weight, first.module_[0].weight)
    assert torch.equal(first.module_[2].weight, mlp[2].weight)
    assert not torch.equal(several.module_[2].weight, mlp[2].weight)
    assert {entry["split"] for entry in several.history_} == {"0", "2", "4"}
    with joblib.parallel_config(backend="threading"):
        parallel = clone(several).set_params(n_jobs=2).fit(X, y)
    for one, other in zip(several.module_.parameters(), parallel.module_.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_its_parameters_are_reached_by_a_grid(mlp, digits):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(mlp, trainer=ClosedFormTrainer(sweeps=1), margin=2.0)
    search = GridSearchCV(classifier, {"trainer__ridge": [1e-3, 1e30]}, cv=2).fit(X[:200], y[:200])
    scores = search.cv_results_["mean_test_score"]
    assert search.best_estimator_.trainer.ridge == [1e-3, 1e30][int(scores.argmax())]
    assert scores[0] != scores[1]


def test_layerwise_targets_are_refused(mlp, digits):
    classifier = FeatureBackpropClassifier(
        mlp, propagation="layerwise", trainer=ClosedFormTrainer()
    )
    with pytest.raises(ValueError, match="cannot be used with ClosedFormTrainer"):
        classifier.fit(digits[0], digits[2])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sweeps": -1}, "sweeps must be an integer >= 0; got -1"),
        ({"sweeps": 1.5}, "sweeps must be an integer >= 0; got 1.5"),
        ({"ridge": -1e-3}, "ridge must be 'auto' or a number >= 0; got -0.001"),
        ({"ridge": "gcv"}, "ridge must be 'auto' or a number >= 0; got 'gcv'"),
        ({"ridge": float("nan")}, "ridge must be 'auto' or a number >= 0; got nan"),
        ({"C": 0}, "C must be a number > 0; got 0"),
        ({"C": True}, "C must be a number > 0; got True"),
        ({"multiples": 3.0}, "multiples must be a sequence of numbers > 0; got 3.0"),
        (
            {"multiples": (1.0, 0.0)},
            r"multiples must be a sequence of numbers > 0; got \(1.0, 0.0\)",
        ),
        ({"multiples": ()}, "multiples must hold at least one number"),
        ({"tol": -1}, "tol must be a number >= 0; got -1"),
    ],
)
def test_parameters_outside_their_range_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        ClosedFormTrainer(**parameters).check()
    with pytest.raises(ValueError, match=message):
        FeatureBackpropClassifier(trainer=ClosedFormTrainer(**parameters)).fit(IRIS, KINDS)


# BatchNorm --------------------------------------------------------------------------------


def normalised_net(offset):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(torch.tensor(IRIS)), torch.tensor(KINDS)).backward()
        optimiser.step()
    with torch.no_grad():
        net[1].running_mean += offset
    return net.eval()


def test_statistics_of_batch_norm_follow_the_data_where_that_helps():
    net = normalised_net(offset=5.0)
    result = ClosedFormTrainer(sweeps=0).train(component(net, IRIS, KINDS), batch_size=64)
    with torch.no_grad():
        expected = net[0](torch.tensor(IRIS)).mean(dim=0)
    torch.testing.assert_close(result.state[1]["running_mean"], expected)


def test_statistics_of_batch_norm_stay_where_new_ones_do_harm():
    net = normalised_net(offset=0.0)
    few = KINDS == 0  # one class alone, whose own statistics hide what it is
    part = component(net, IRIS[few], KINDS[few])
    before = net[1].running_mean.clone()
    result = ClosedFormTrainer(sweeps=0).train(part, batch_size=64)
    assert torch.equal(result.state[1]["running_mean"], before)


class OwnProduct(nn.Module):
    """An affine layer that is none of torch's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 16) / 8)

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_nothing_to_refit_is_told(method, digits):
    X, _, y, _ = digits
    torch.manual_seed(0)
    network = nn.Sequential(OwnProduct(), nn.ReLU(), nn.Linear(16, 10))
    classifier = FeatureBackpropClassifier(network, split="1", trainer="closed_form")
    reason = "; 0: OwnProduct is none of torch's affine layers" if method == "fit" else ""
    with pytest.warns(UserWarning, match=rf"'1' could be refitted in closed form{reason}\. Choose"):
        getattr(classifier, method)(X[:100], y[:100])
    automatic = classifier.set_params(trainer="auto")
    automatic.fit(X[:100], y[:100])
