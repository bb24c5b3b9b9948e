"""Propagation with a memory: the same targets bit by bit, each computed once."""

import copy
import itertools
import os
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from joblib import Memory, Parallel, delayed
from torch import nn

from featprop_sklearn import LayerInverter, register_inverter
from featprop_sklearn.data.memory import open_store
from featprop_sklearn.inversion import registry
from featprop_sklearn.networks import build_chain, layers
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation import JointRule, LayerwiseRule, propagate
from featprop_sklearn.propagation.cached import cached_propagate

TARGETS = OutputTargets("multiclass", margin=0.5)
SPLITS = ["0", "1", "3", "4"]
ROWS, BATCHES = 21, 3


def problem(dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)
    )
    net = net.to(dtype).eval()
    x = torch.randn(ROWS, 1, 4, 4, dtype=dtype)
    return net, x, torch.randint(0, 4, (ROWS,))


def run(memory, splits, rule=None, net=None, x=None, y=None, targets=TARGETS, rows=7, **options):
    same_net, same_x, same_y = problem()
    net, x, y = net or same_net, same_x if x is None else x, same_y if y is None else y
    chain = build_chain(net, x[:8])
    rule = rule or LayerwiseRule()
    if memory is None:
        return propagate(rule, chain, x, y, targets, splits, rows, **options)
    return cached_propagate(memory, rule, chain, x, y, targets, splits, rows, **options)


def assert_same(found, expected):
    assert found.targets.keys() == expected.targets.keys()
    assert found.quality.keys() == expected.quality.keys()
    for split, target in expected.targets.items():
        assert found.targets[split].dtype == target.dtype
        assert torch.equal(found.targets[split], target)
    for split, quality in expected.quality.items():
        for name, values in vars(quality).items():
            np.testing.assert_array_equal(getattr(found.quality[split], name), values)


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path, verbose=0)


@pytest.fixture
def inversions(monkeypatch):
    """The layers inverted, one entry for each batch."""
    names = []
    run_step = LayerInverter._nearest

    def counted(self, *args):
        names.append(type(self.layer).__name__)
        return run_step(self, *args)

    monkeypatch.setattr(LayerInverter, "_nearest", counted)
    return names


class Alone(LayerwiseRule):
    """A rule that finds each split's targets by themselves, and whose work can be counted."""

    sweeps = False


# the same results -----------------------------------------------------------------------


@pytest.mark.parametrize("rule", [LayerwiseRule, Alone])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("keep_targets", [True, False])
def test_the_same_as_without_memory(memory, rule, dtype, keep_targets):
    net, x, y = problem(dtype)
    given = {"net": net, "x": x, "y": y}
    expected = run(None, SPLITS, rule(), keep_targets=keep_targets, **given)
    for _ in range(2):
        assert_same(run(memory, SPLITS, rule(), keep_targets=keep_targets, **given), expected)
    assert_same(run(memory, ["3"], rule(), **given), run(None, ["3"], rule(), **given))


def test_the_joint_rule(memory):
    expected = run(None, ["3", "5"], JointRule(), rows=ROWS)
    for _ in range(2):
        assert_same(run(memory, ["3", "5"], JointRule(), rows=ROWS), expected)
    kept = len(list(Path(memory.location).rglob("output.pkl")))
    assert kept == 4  # targets and quality of two splits
    run(memory, ["3", "5"], LayerwiseRule(), rows=ROWS)
    assert len(list(Path(memory.location).rglob("output.pkl"))) > kept


def test_memory_as_in_a_pipeline(tmp_path, inversions):
    expected = run(None, ["3"])
    inversions.clear()
    folder = str(tmp_path)
    for memory in (folder, Memory(folder, verbose=0), Memory(folder, mmap_mode="r", verbose=0)):
        assert_same(run(memory, ["3"]), expected)
        assert len(inversions) == 2 * BATCHES
    assert_same(run(Memory(None), ["3"]), expected)
    assert len(inversions) == 4 * BATCHES
    assert open_store(None) is None
    with pytest.raises(ValueError, match="'memory' should be None, a string"):
        run(7, ["3"])


def test_results_are_kept_as_arrays(memory):
    run(memory, ["3", "5"])
    kept = [joblib.load(file) for file in Path(memory.location).rglob("output.pkl")]
    targets = [result for result in kept if isinstance(result, np.ndarray)]
    assert len(targets) == 3 * BATCHES  # of the stages that the sweep passed: 5, 4, 3
    assert all(target.dtype == np.float64 for target in targets)
    quality = [result for result in kept if isinstance(result, dict)]
    assert len(quality) == 2 * BATCHES == len(kept) - len(targets)
    assert all(type(values) is np.ndarray for result in quality for values in result.values())


# each computed once -----------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(SPLITS)))
def test_all_splits_cost_one_sweep_in_any_order(tmp_path_factory, inversions, order):
    memory = Memory(tmp_path_factory.mktemp("memory"), verbose=0)
    expected = run(None, SPLITS)
    one_sweep = sorted(inversions)
    inversions.clear()
    for split in order:
        found = run(memory, [split])
        assert torch.equal(found.targets[split], expected.targets[split])
    assert sorted(inversions) == one_sweep


def test_no_split_costs_a_sweep_further_than_itself(memory, inversions):
    run(memory, ["5"])
    assert not inversions
    run(memory, ["3"])
    assert sorted(inversions) == BATCHES * ["Linear"] + BATCHES * ["Tanh"]
    run(memory, ["4"])
    run(memory, ["3", "5"])
    assert len(inversions) == 2 * BATCHES
    run(memory, ["2"])
    assert len(inversions) == 3 * BATCHES


def test_a_rule_without_sweeps_keeps_each_split(memory, inversions):
    for splits, stages in [(["3"], 2), (["3"], 0), (["1", "3"], 4), (["3", "1"], 0), (["4"], 1)]:
        expected = run(None, splits)
        inversions.clear()
        assert_same(run(memory, splits, Alone()), expected)
        assert len(inversions) == stages * BATCHES


def test_an_interrupted_sweep_goes_on(memory, inversions, monkeypatch):
    expected = run(None, ["1"])
    inversions.clear()
    invert_stage = LayerwiseRule.invert_stage

    def interrupted(self, index, *args):
        if len(inversions) == 6:
            raise KeyboardInterrupt
        return invert_stage(self, index, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LayerwiseRule, "invert_stage", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(memory, ["1"])
    assert_same(run(memory, ["1"]), expected)
    assert len(inversions) == 4 * BATCHES


def test_the_order_of_rows_decides_not_the_object(memory, inversions):
    net, x, y = problem()
    run(memory, ["3"], net=net, x=x, y=y)
    inversions.clear()
    run(memory, ["3"], net=copy.deepcopy(net), x=x.clone(), y=y.clone(), rows=8)  # 7 + 7 + 7
    run(memory, ["3"], targets=OutputTargets("multiclass", margin=0.5))
    assert not inversions


# what is not the same ---------------------------------------------------------------------


def other_weight():
    net = problem()[0]
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1e-9
    return net


OTHERS = {
    "weight": lambda: {"net": other_weight()},
    "x": lambda: {"x": problem()[1] + 1e-9},
    "order of x": lambda: {"x": problem()[1].flip(0)},
    "y": lambda: {"y": (problem()[2] + 1) % 4},
    "margin": lambda: {"targets": OutputTargets("multiclass", margin=0.75)},
    "output target": lambda: {"targets": OutputTargets("multiclass", "max_assign", margin=0.5)},
    "range": lambda: {"rule": LayerwiseRule(in_range=True)},
    "solver": lambda: {"rule": LayerwiseRule(solver="torch")},
    "damping": lambda: {"rule": LayerwiseRule(damping=0.1)},
    "batches": lambda: {"rows": 20},
}


@pytest.mark.parametrize("kind", [None, Alone])
@pytest.mark.parametrize("name", OTHERS)
def test_other_problems_are_computed_anew(memory, inversions, name, kind):
    other = OTHERS[name]()
    plain = other.pop("rule", LayerwiseRule())
    rule = plain if kind is None else kind(**vars(plain))
    run(memory, ["1"], LayerwiseRule() if kind is None else kind())
    expected = run(None, ["1"], plain, **other)
    inversions.clear()
    assert_same(run(memory, ["1"], rule, **other), expected)
    assert len(inversions) == 4 * (2 if name == "batches" else BATCHES)


class Shift(nn.Module):
    def forward(self, x):
        return x + 1


def test_another_inversion_of_a_layer_is_computed_anew(memory, monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(layers, "_TREATED_AS_LAYERS", set(layers._TREATED_AS_LAYERS))
    net = nn.Sequential(problem()[0], Shift())
    for shift in (1, 2):
        register_inverter(Shift, lambda layer, wanted, reference, by=shift: wanted - by)
        found = run(memory, ["0.5"], net=net)
        assert_same(found, run(None, ["0.5"], net=net))


# a memory that others use, too --------------------------------------------------------------


def split_of_process(location, split):
    torch.set_num_threads(1)
    return run(location, [split])


def test_processes_share_a_memory(tmp_path, inversions):
    splits = ["1", "0", "1", "3", "0", "4"]
    found = Parallel(n_jobs=2, batch_size=1)(
        delayed(split_of_process)(str(tmp_path), split) for split in splits
    )
    for split, result in zip(splits, found, strict=True):
        assert_same(result, run(None, [split]))
    inversions.clear()
    run(str(tmp_path), ["0", "1", "3", "4"])
    assert not inversions


@pytest.mark.parametrize("harm", [os.remove, lambda file: Path(file).write_bytes(b"\x80broken")])
def test_a_result_that_is_lost_is_computed_again(memory, inversions, harm):
    expected = run(memory, ["3"])
    for file in Path(memory.location).rglob("output.pkl"):
        harm(file)
    inversions.clear()
    assert_same(run(memory, ["3"]), expected)
    assert len(inversions) == 2 * BATCHES
    assert_same(run(memory, ["3"]), expected)
    assert len(inversions) == 2 * BATCHES


def test_a_result_that_another_process_removes_meanwhile(memory, monkeypatch):
    store = open_store(memory)
    monkeypatch.setattr(store._keep, "check_call_in_cache", lambda *_: True)
    assert store.get("key") is None
    store.put(np.arange(3), "key")
    np.testing.assert_array_equal(store.get("key"), np.arange(3))
