"""The published protocol: its networks, its steps, what is picked on which data, its report."""

import sys
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
from featprop_sklearn.training import Component


@pytest.fixture(scope="module")
def protocol(scripts):
    return scripts("published_protocol")


@pytest.fixture(scope="module")
def data(protocol):
    return sys.modules["protocol_data"]


@pytest.fixture(scope="module")
def prepared(protocol, data):
    """Some digits, and a network trained on them for two epochs."""
    X, y = data.load_images("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(protocol.PRETRAINING_EPOCHS, "digits", 2)
        rows = protocol.labelled(X, y, np.arange(300))
        network, chain = protocol.pretrained("digits", rows, seed=0)
    return X, y, rows, network, chain


@pytest.mark.parametrize(
    ("name", "splits", "widths"),
    [
        ("mnist", 8, {"conv1": (3, 24, 24), "conv2": (3, 8, 8), "flatten": (48,)}),
        (
            "cifar10",
            12,
            {"conv1": (10, 28, 28), "conv2": (10, 12, 12), "flatten": (160,), "hidden": (128,)},
        ),
    ],
)
def test_networks_are_the_published_ones(protocol, name, splits, widths):
    _, chain = protocol.network_chain(name)
    shapes = {stage.name: tuple(stage.out_shape) for stage in chain}
    assert len(shapes) == splits
    assert {split: shapes[split] for split in widths} == widths
    assert shapes["output"] == (10,)


def test_targets_are_those_of_the_estimator(protocol, prepared):
    X, y, rows, network, chain = prepared
    found = protocol.layerwise_targets(chain, rows, ["conv1", "pool1", "output"])
    estimator = FeatureBackpropClassifier(
        network,
        split="pool1",
        propagation="layerwise",
        margin=0.0,
        validation_fraction=0.0,
        trainer=GradientTrainer(max_epochs=0),
    ).fit(X[:300], y[:300])
    expected = estimator.feature_targets(X[:300], y[:300])
    np.testing.assert_allclose(found.targets["pool1"].numpy(), expected, atol=1e-5)
    assert np.abs(found.targets["pool1"].numpy()).max() > 0.1


@pytest.mark.parametrize("alpha", [0.0, 0.001])  # the weight is clamped at larger ones
def test_steps_are_those_of_the_trainer(protocol, prepared, monkeypatch, alpha):
    monkeypatch.setattr(protocol, "LR", 1e-2)  # large steps, and many, tell more
    monkeypatch.setattr(protocol, "BATCH_SIZE", 32)
    X, y, rows, _, chain = prepared
    targets = protocol.layerwise_targets(chain, rows, ["conv2"]).targets["conv2"]
    component = Component("conv2", chain[:4], chain[4:], rows, targets, protocol.TARGETS)
    unseen = protocol.labelled(X, y, np.arange(300, 500))
    epochs = protocol.epoch_by_epoch(component, alpha, 3, 7, unseen, rows)
    for epoch, valid_accuracy, valid_loss, test_accuracy in epochs.iloc[:, :4].itertuples(False):
        own = component.private()
        trainer = GradientTrainer(alpha=alpha, lr=1e-2, max_epochs=int(epoch))
        trainer.train(component, batch_size=32, seed=7).load_into(own.stages)
        with torch.no_grad():
            outputs = own.after(own.stages(unseen.inputs))
            seen = own.after(own.stages(rows.inputs))
        loss = torch.nn.functional.cross_entropy(outputs, unseen.y)
        assert valid_loss == pytest.approx(float(loss), rel=1e-5)
        assert valid_accuracy == pytest.approx(np.mean((outputs.argmax(1) == unseen.y).numpy()))
        assert test_accuracy == pytest.approx(np.mean((seen.argmax(1) == rows.y).numpy()))
    assert epochs["valid_loss"].nunique() == 3


@pytest.fixture
def epochs():
    """One seed, whose validation and test data disagree about everything."""
    columns = ["alpha", "epoch", "valid_accuracy", "valid_loss", "test_accuracy"]
    rows = [
        (0.0, 1, 0.80, 0.5, 0.70),
        (0.0, 2, 0.70, 0.4, 0.90),
        (0.1, 1, 0.60, 0.3, 0.95),
        (0.1, 2, 0.85, 0.9, 0.60),
        (0.3, 1, 0.85, 0.8, 0.84),
        (0.3, 2, 0.10, 0.1, 0.85),
    ]
    return pd.DataFrame(rows, columns=columns).assign(seed=4, seconds=1.0)


def test_published_metrics_pick_on_test_data(protocol, epochs):
    accuracy, alpha = protocol.picked_on_test(epochs, "max")
    assert (accuracy.loc[4, 0.0], accuracy.loc[4, alpha], alpha) == (0.90, 0.95, 0.1)
    accuracy, alpha = protocol.picked_on_test(epochs, "mean")
    assert accuracy.loc[4, 0.0] == pytest.approx(0.80)
    assert (accuracy.loc[4, alpha], alpha) == (pytest.approx(0.845), 0.3)


def test_alpha_0_is_the_baseline_and_never_the_best(protocol, epochs):
    _, alpha = protocol.picked_on_test(epochs.assign(test_accuracy=1 - epochs["alpha"]), "max")
    assert alpha == 0.1


def test_honest_metrics_pick_on_validation_data(protocol, epochs):
    shuffled = epochs.sample(frac=1, random_state=0)
    assert protocol.picked_on_validation(shuffled)["test_accuracy"].to_dict() == {4: 0.84}
    plain = protocol.picked_on_validation(shuffled[shuffled["alpha"] == 0])
    assert plain["test_accuracy"].to_dict() == {4: 0.70}


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2 / 32),  # one of 32 signs is as extreme, on each side
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0, 1e-14], 2 / 32),  # no difference counts for nothing
        ([-0.1, 0.2, 0.3, 0.4, 0.5], 4 / 32),
        ([0, 0, 0], 1),
    ],
)
def test_p_is_that_of_the_signed_rank_test(protocol, differences, p):
    assert protocol.paired_p(pd.Series(differences, dtype=float)) == pytest.approx(p)


def test_table_of_a_split(protocol, epochs):
    both = pd.concat([epochs, epochs.assign(seed=5)])
    whole = pd.DataFrame(
        {"ours": [0.8, 0.9], "ours_seconds": [3.0, 5.0], "sweep_seconds": [0.5, 0.5]}, index=[4, 5]
    )
    table = pd.DataFrame(protocol.split_table(both, whole))
    assert list(table["A"]) == ["0.9000", "0.8000", "0.7000", "0.7000", "0.8400"]
    assert list(table["B"]) == ["0.9500", "0.8450", "0.8400", "0.8500", "0.8500"]
    assert list(table["alpha of B"]) == ["0.1", "0.3", "0.3 (2×)", "", ""]
    assert list(table["B - A, points"])[-2:] == ["+15.00 ± 7.07", "+1.00 ± 7.07"]
    assert list(table["seconds A"]) == ["2.0", "2.0", "2.0", "2.0", "4.5"]
    assert list(table["seconds B"]) == ["4.5", "4.5", "4.5", "4.0", "4.0"]


def test_digits_are_enlarged(data):
    X, y = data.load_images("digits")
    assert X.shape == (1797, 1, 28, 28)
    assert X.dtype == np.float32
    assert X.min() == 0
    assert 0.9 < X.max() <= 1
    shrunk = torch.nn.functional.interpolate(torch.from_numpy(X), size=(8, 8), mode="area")
    small = load_digits()
    near = np.corrcoef(shrunk.numpy().ravel(), small.images.ravel())[0, 1]
    assert near > 0.95
    np.testing.assert_array_equal(y, small.target)


def test_rows_are_divided_once(data):
    y = np.arange(400) % 10
    parts = data.divide(y, 0)
    assert [len(part) for part in parts] == [240, 60, 100]
    assert sorted(np.concatenate(parts)) == list(range(400))
    assert all(np.bincount(y[part]).std() == 0 for part in parts)
    assert not np.array_equal(parts[0], data.divide(y, 1)[0])


def test_folder(data, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", X=pixels, y=list("cababc"))
    X, y = data.load_images("cifar10", str(tmp_path))
    assert X.shape == (6, 3, 32, 32)
    np.testing.assert_allclose(X[2, 1].ravel() * 255, pixels[2, 1024:2048], rtol=1e-6)
    assert list(y) == [2, 0, 1, 0, 1, 2]
    with pytest.raises(SystemExit, match=r"fashion.npz does not exist: write it with np.savez"):
        data.load_images("fashion", str(tmp_path))


def test_no_network_is_said_in_a_sentence(protocol, data, monkeypatch):
    def fails(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(data, "fetch_openml", fails)
    with pytest.raises(SystemExit) as stopped:
        protocol.main(["--data", "mnist"])
    message = stopped.value.code  # a text: printed to stderr, exit code 1
    assert message.startswith("mnist_784 could not be fetched from OpenML (<urlopen error Name")
    assert "--folder" in message
    assert "--data digits" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alphas", "0.1"], "must hold 0, the baseline"),
        (["--alphas", "0"], "at least one number above 0"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--splits", "conv3"], "split='conv3' is not a split point"),
        (["--output", "no/where.md"], "there is no folder no"),
    ],
)
def test_options_are_checked(protocol, capsys, arguments, message):
    with pytest.raises(SystemExit):
        protocol.parse(arguments)
    assert message in capsys.readouterr().err


def test_defaults_are_the_published_ones(protocol):
    assert (protocol.LR, protocol.WEIGHT_DECAY, protocol.BATCH_SIZE) == (5e-5, 5e-2, 256)
    options = protocol.parse([])
    assert options.alphas == [0, 0.02, 0.1, 0.3]
    assert options.seeds == list(range(10))
    assert options.splits == [stage.name for stage in protocol.network_chain("digits")[1]]
    assert (options.epochs, options.jobs, options.output) == (10, 1, None)


def test_whole_run(protocol, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(protocol.PRETRAINING_EPOCHS, "digits", 5)
    monkeypatch.setattr(protocol, "load_images", first_digits(protocol.load_images))
    tables = tmp_path / "tables.md"
    options = "--seeds 0 1 --alphas 0 0.1 --splits pool2 output --epochs 2"
    protocol.main([*options.split(), "--output", str(tables)])
    printed, written = capsys.readouterr().out, tables.read_text(encoding="utf-8")
    assert written in printed
    assert "This is a stand-in" in written
    assert "240 rows to train on, 60 to choose on, 100 to test on" in written
    assert [line for line in written.splitlines() if line.startswith("##")] == [
        "## Split `pool2`",
        "## Split `output`",
    ]
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 5)
    assert {row.count("|") for row in rows} == {len(protocol.COLUMNS) + 1}
    assert "nan" not in written


def first_digits(load):
    """Fewer rows, so that the whole run takes a second."""

    def loaded(name, folder):
        X, y = load(name, folder)
        rows = np.concatenate([np.flatnonzero(y == label)[:40] for label in range(10)])
        return X[rows], y[rows]

    return loaded
