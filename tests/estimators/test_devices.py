"""On an accelerator, estimators give what they give on the processor."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from featprop_sklearn import (
    AutoTrainer,
    ClosedFormTrainer,
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
    feature_gap,
)
from tests.accelerator.pairs import (
    AS_IT_IS,
    TOLERANCES,
    assert_near,
    network,
    on_both,
    place,
    rows,
)
from tests.networks.zoo import ZOO, ViT, digits

TRAINERS = {
    "closed_form": ClosedFormTrainer(sweeps=1),
    "gradient": GradientTrainer(max_epochs=2, lr=1e-3),
    "auto": AutoTrainer(
        closed_form=ClosedFormTrainer(sweeps=1),
        polish=GradientTrainer(alpha=0.0, max_epochs=2, lr=1e-3),
        trial_epochs=1,
    ),
}
RULES = [*((name, "joint") for name in TRAINERS), ("gradient", "layerwise")]


def regression_network():
    return nn.Sequential(
        *(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6), nn.LeakyReLU(), nn.Linear(6, 2))
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("propagation", ["joint", "layerwise", "layerwise_in_range"])
@pytest.mark.parametrize("split", ["1", "4", "auto"])
def test_targets(dtype, propagation, split, accelerator):
    X, y = rows(dtype)
    parameters = {"propagation": propagation, "split": split, "trainer": AS_IT_IS}
    here, there = on_both(accelerator, lambda: network().to(dtype), X, y, **parameters)
    assert_near(there.feature_targets(X, y), here.feature_targets(X, y), dtype)


def test_targets_within_attention(accelerator):
    X, y = rows()
    here, there = on_both(
        accelerator, lambda: ViT().double(), X, y, split="blocks.0", trainer=AS_IT_IS
    )
    np.testing.assert_allclose(
        feature_gap(there, X, y)["reached"], feature_gap(here, X, y)["reached"]
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("trainer", "propagation"), RULES)
def test_classifier(dtype, trainer, propagation, accelerator):
    X, y = rows(dtype)
    here, there = on_both(
        *(accelerator, lambda: network().to(dtype), X, y),
        **{"split": "4", "propagation": propagation, "trainer": TRAINERS[trainer]},
    )
    assert_near(there.decision_function(X), here.decision_function(X), dtype)
    np.testing.assert_array_equal(there.predict(X), here.predict(X))
    assert there.score(X, y) == here.score(X, y)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("trainer", "propagation"), RULES)
def test_regressor(dtype, trainer, propagation, accelerator):
    X = np.random.default_rng(0).normal(size=(40, 5)).astype(str(dtype).removeprefix("torch."))
    y = 0.1 * X[:, :2]
    here, there = on_both(
        *(accelerator, lambda: regression_network().to(dtype), X, y),
        kind=FeatureBackpropRegressor,
        **{"split": "1", "propagation": propagation, "trainer": TRAINERS[trainer]},
    )
    assert_near(there.predict(X), here.predict(X), dtype)
    assert there.score(X, y) == pytest.approx(here.score(X, y), abs=1e-5)


@pytest.mark.parametrize("trainer", ["auto", "closed_form", "gradient"])
def test_what_is_learnt(trainer, digits, accelerator):
    X, labels = digits[0], digits[2]
    here, there = on_both(accelerator, network, X[:400], labels[:400], trainer=trainer)
    assert abs(here.score(X[400:], labels[400:]) - there.score(X[400:], labels[400:])) < 0.03


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_any_network(case, accelerator):
    if case.package:
        pytest.importorskip(case.package, reason=f"{case.name} needs {case.package}")
    x, y = digits(slice(0, 60), parity=case.parity)
    X = case.view(x)
    here, there = on_both(accelerator, case.make, X, y, margin=1.0, trainer="closed_form")
    expected = here.decision_function(X)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(there.decision_function(X) / scale, expected / scale, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_network_of_16_bit(dtype, accelerator):
    X, y = rows(torch.float32)
    here, there = on_both(
        accelerator, lambda: network().to(dtype), X, y, split="4", trainer="closed_form"
    )
    assert next(there.module_.parameters()).dtype == torch.float32
    assert_near(there.decision_function(X), here.decision_function(X), torch.float32)


def test_by_chunks(accelerator):
    X, y = rows()
    found = []
    for device in ("cpu", accelerator):
        torch.manual_seed(0)
        estimator = FeatureBackpropClassifier(network().double(), device=device, random_state=0)
        for part in (slice(0, 15), slice(15, 30)):
            estimator.partial_fit(X[part], y[part], classes=np.arange(10))
        found.append(estimator.decision_function(X))
    assert_near(found[1], found[0], torch.float64)


def test_several_splits_and_weights(accelerator, tmp_path):
    X, y = rows()
    here, there = on_both(
        *(accelerator, lambda: network().double(), X, y),
        **{"split": ["1", "4"], "class_weight": {3: 2.0}, "memory": str(tmp_path)},
        trainer=TRAINERS["gradient"],
    )
    assert_near(there.decision_function(X), here.decision_function(X), torch.float64)
    for name, expected in here.feature_targets(X, y).items():
        assert_near(there.feature_targets(X, y)[name], expected, torch.float64)


def test_going_on_from_what_was_learnt(accelerator):
    X, y = rows()
    here, there = on_both(
        *(accelerator, lambda: network().double(), X, y),
        **{"split": "4", "warm_start": True, "trainer": TRAINERS["gradient"]},
    )
    assert_near(
        there.fit(X, y).decision_function(X), here.fit(X, y).decision_function(X), torch.float64
    )


def test_rows_that_lie_in_a_file(tmp_path, digits, accelerator):
    X, labels = digits[0], digits[2]
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    torch.manual_seed(0)
    estimator = FeatureBackpropClassifier(network(), device=accelerator, random_state=0)
    predicted = estimator.fit(X[:300], labels[:300]).predict(X)
    np.testing.assert_array_equal(estimator.predict(mapped), predicted)


@pytest.mark.parametrize("trainer", ["auto", "closed_form", "gradient"])
def test_a_table(trainer, accelerator):
    X = np.random.default_rng(0).normal(size=(100, 5))
    estimators = [
        FeatureBackpropRegressor(device=device, trainer=trainer, random_state=0).fit(X, X[:, 0])
        for device in ("cpu", accelerator)
    ]
    expected, found = (estimator.predict(pd.DataFrame(X)) for estimator in estimators)
    assert estimators[1].score(X, X[:, 0]) > 0.9
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_accelerator_is_found_by_itself(accelerator):
    X, y = rows()
    estimator = FeatureBackpropClassifier(network().double(), trainer=AS_IT_IS).fit(X, y)
    assert place(estimator) == accelerator


def test_wherever_the_user_has_the_network(accelerator):
    X, y = rows()
    elsewhere = network().double().to(accelerator)
    estimator = FeatureBackpropClassifier(elsewhere, device="cpu", trainer=AS_IT_IS).fit(X, y)
    assert place(estimator) == "cpu"
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {accelerator}


def test_pickled_and_copied(accelerator):
    X, y = rows()
    _, there = on_both(accelerator, lambda: network().double(), X, y, trainer="closed_form")
    twin = copy.deepcopy(there)
    assert place(twin) == accelerator
    np.testing.assert_array_equal(twin.predict_proba(X), there.predict_proba(X))
    # a pickle can be loaded where there is no accelerator
    loaded = pickle.loads(pickle.dumps(there))
    assert place(loaded) == "cpu"
    assert place(there) == accelerator
    parameters = zip(loaded.module_.parameters(), there.module_.parameters(), strict=True)
    assert all(own.requires_grad == other.requires_grad for own, other in parameters)
    np.testing.assert_allclose(loaded.predict_proba(X), there.predict_proba(X), atol=1e-9)
    np.testing.assert_allclose(loaded.feature_targets(X, y), there.feature_targets(X, y), atol=1e-8)
    assert place(loaded.set_params(device=accelerator).fit(X, y)) == accelerator


def test_saved_here_and_loaded_where_auto_is_elsewhere(accelerator):
    X, y = rows()
    here = FeatureBackpropClassifier(network().double(), device="cpu", trainer=AS_IT_IS).fit(X, y)
    here.set_params(device="auto")
    assert here.predict_proba(X).shape[0] == len(X)
    assert here.feature_targets(X, y).shape[0] == len(X)


def test_what_is_switched_on_around_it_changes_nothing(accelerator):
    X, y = rows(torch.float32)

    def everything():
        torch.manual_seed(0)
        estimator = FeatureBackpropClassifier(
            network(), split="4", device=accelerator, random_state=0
        ).fit(X, y)
        return estimator.predict_proba(X), estimator.feature_targets(X, y)

    plain = everything()
    with torch.autocast(accelerator, dtype=torch.bfloat16), torch.inference_mode():
        inside = everything()
    for one, other in zip(plain, inside, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("place", ["cpu", "accelerator"])
@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.Linear(5, 6), nn.Dropout(), nn.Linear(6, 3)), None]
)
def test_random_numbers_are_drawn_from_the_seed_alone(module, place, accelerator):
    X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    device = accelerator if place == "accelerator" else place
    parameters = {"device": device, "random_state": 0, "trainer": TRAINERS["gradient"]}
    random = torch.get_device_module(accelerator)
    before = torch.get_rng_state(), random.get_rng_state()
    first, second = (
        FeatureBackpropClassifier(module, **parameters).fit(X, np.arange(40) % 3) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(random.get_rng_state(), before[1])
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))


def test_network_on_a_device_without_float64(without_double):
    X, y = rows(torch.float32)
    there = network().to(without_double)
    estimator = FeatureBackpropClassifier(there, split="4", random_state=0).fit(X, y)
    assert place(estimator) == "cpu"
    assert estimator.predict(X).shape == (30,)


@pytest.mark.parametrize("place", ["cpu", "accelerator"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_where_new_tensors_go_changes_nothing(trainer, place, accelerator):
    X, y = rows()
    torch.manual_seed(0)
    parameters = {"split": "4", "trainer": TRAINERS[trainer], "random_state": 0}
    parameters["device"] = accelerator if place == "accelerator" else place
    estimator = FeatureBackpropClassifier(network().double(), **parameters)

    def learnt():
        estimator.fit(X, y)
        return estimator.predict_proba(X), estimator.feature_targets(X, y)

    plain = learnt()
    with torch.device(accelerator):
        inside = learnt()
    for one, other in zip(plain, inside, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("chunks", [False, True])
def test_data_of_the_user_that_lie_there(chunks, accelerator):
    X, y = rows()
    weights = np.linspace(0.1, 1.0, len(y))

    def fitted(*data, **weights):
        torch.manual_seed(0)
        estimator = FeatureBackpropClassifier(network().double(), random_state=0)
        return (estimator.partial_fit if chunks else estimator.fit)(*data, **weights)

    there = [torch.from_numpy(values).to(accelerator) for values in (X, y, weights)]
    expected = fitted(X, y, sample_weight=weights)
    found = fitted(*there[:2], sample_weight=there[2])
    np.testing.assert_array_equal(found.predict_proba(there[0]), expected.predict_proba(X))
    np.testing.assert_array_equal(found.feature_targets(*there[:2]), expected.feature_targets(X, y))


def test_values_of_the_user_that_lie_there(accelerator):
    X = np.random.default_rng(0).normal(size=(40, 5))
    there = torch.from_numpy(X).to(accelerator)
    here, found = (
        FeatureBackpropRegressor(random_state=0).fit(*data)
        for data in ((X, X[:, 0]), (there, there[:, 0]))
    )
    np.testing.assert_allclose(found.predict(there), here.predict(X), rtol=1e-9)
