"""The ablation: its variants differ from the default in what they say, and its page adds up."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from featprop_sklearn import AutoTrainer

WINE, DIABETES = "wine-rotated-mlp", "diabetes-rotated-mlp"


@pytest.fixture(scope="module")
def ablation(scripts):
    return scripts("ablation")


@pytest.fixture(scope="module")
def prepared(ablation):
    def prepare(name):
        settings = sys.modules["settings"]
        setting = next(setting for setting in settings.SETTINGS if setting.name == name)
        return settings.prepare(setting, seed=0)

    return prepare


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_what_is_spelled_out_is_the_default(ablation, task):
    trainer = AutoTrainer()
    sweeps = ablation.ClosedFormTrainer(**ablation.SWEEPS)
    assert sweeps.get_params() == trainer._closed_form().get_params()
    spelled_out = [polish.get_params() for polish in ablation.polishes(task == "regression")]
    assert spelled_out == [polish.get_params() for polish in trainer._polishes(task)]


def test_a_change_of_the_polish_changes_that_alone(ablation):
    [changed], [unchanged] = ablation.polishes(False, lr=0.5), ablation.polishes(False)
    assert changed.get_params() == unchanged.get_params() | {"lr": 0.5}
    decays = [polish.weight_decay for polish in ablation.polishes(True, weight_decay=0.01)]
    assert decays == [0.01]  # of two that have become the same, one


def test_the_settings_are_of_the_benchmark(ablation):
    assert set(ablation.SHOWN) < {setting.name for setting in sys.modules["settings"].SETTINGS}
    assert set(ablation.NOT_FOR_VALUES) < set(ablation.VARIANTS)


@pytest.mark.parametrize("name", [WINE, DIABETES])
def test_the_head_refit_leaves_the_layers_that_a_sweep_refits(ablation, prepared, name):
    problem = prepared(name)
    estimator = sys.modules["feature_backpropagation"].estimator
    before = problem.network.state_dict()

    def moved(kind):
        trainer = AutoTrainer(closed_form=kind(**ablation.SWEEPS), polish=[])
        after = estimator(problem, trainer=trainer).fit(*problem.train).module_.state_dict()
        return {key for key in before if not torch.equal(after[key], before[key])}

    assert moved(ablation.HeadRefit) == {"output.weight", "output.bias"}
    assert moved(ablation.ClosedFormTrainer) == set(before)
    assert all(parameter.requires_grad for parameter in problem.network.parameters())


def test_a_run_writes_the_page(ablation, tmp_path, monkeypatch):
    few = (ablation.DEFAULT, "no polish", "margin 1")
    monkeypatch.setattr(ablation, "VARIANTS", {name: ablation.VARIANTS[name] for name in few})
    output = tmp_path / "page.md"
    options = ["--seeds", "1", "--jobs", "1", "--output", str(output)]
    assert ablation.main([*options, "--settings", WINE, DIABETES]) == 0
    text = output.read_text()
    assert "from 2 settings" in text
    assert "seeds: 1 (200 to 200)" in text
    assert "these are others" in text
    assert f"| variant | {WINE} | {DIABETES} |" in text
    [row] = [line for line in text.splitlines() if line.startswith("| margin 1 |")][1:]
    assert row.endswith("(p 1.000) | – |")


@pytest.fixture
def results(ablation):
    """Eight seeds: without a polish a point is lost on wine and three are won on diabetes."""
    change = {ablation.DEFAULT: (0.0, 0.0), "no polish": (-0.01, 0.03), "C 1": (0.0, np.nan)}
    rows = [
        (setting, group, seed, name, 0.9 + 0.002 * seed + by, 2.0 if name == "C 1" else 4.0)
        for name, changes in change.items()
        for (setting, group), by in zip(
            ((WINE, "tables"), (DIABETES, "regression")), changes, strict=True
        )
        if not np.isnan(by)
        for seed in range(8)
    ]
    return pd.DataFrame(rows, columns=ablation.COLUMNS)


def test_the_page_adds_up(ablation, results):
    lines = ablation.page(results).splitlines()
    # a point on the setting with classes; each time all signs agree: p = 2 · 2/2⁸, then 2/2⁸
    assert "| no polish | -1.00 | 2 | 1 | 1 | 1.00 |" in lines
    assert "| C 1 | +0.00 | 1 | 0 | 0 | 0.50 |" in lines
    assert "| default | 0.907 ± 0.005 | 0.907 ± 0.005 |" in lines
    assert "| no polish | -1.00 ± 0.00 (p 0.016) | +3.00 ± 0.00 (p 0.008) |" in lines
    assert "| C 1 | +0.00 ± 0.00 (p 1.000) | – |" in lines


def test_the_page_warns_of_seeds_that_were_looked_at(ablation, results):
    assert "**some of these are among them.**" in ablation.page(results)
    later = results.assign(seed=results["seed"] + ablation.FIRST_SEED)
    assert "these are others." in ablation.page(later)
