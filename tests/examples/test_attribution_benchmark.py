"""The attribution benchmark: a small run of it, and the page that it writes."""

import json
import sys

import pytest
from torch import nn

from featprop_sklearn.inspection.relevance import registry

pytest.importorskip("captum")


@pytest.fixture(scope="module")
def benchmark(scripts):
    return scripts("attribution")


@pytest.fixture(scope="module")
def activations(scripts):
    return scripts("activation_relevance")


def test_a_small_run(benchmark, monkeypatch, tmp_path):
    methods = {name: benchmark.METHODS[name] for name in ("rsp", "rsp, no hostile", "lrp")}
    monkeypatch.setattr(benchmark, "METHODS", methods)
    networks = sys.modules["attribution_networks"]
    monkeypatch.setattr(networks, "PATIENCE", 5)
    monkeypatch.setattr(networks, "SCENES", 100)
    monkeypatch.setattr(benchmark, "CHECKED", 3)
    found = benchmark.measure("ResNet 1", 200, steps=30)
    assert set(found["methods"]) == {"rsp", "rsp, no hostile"}  # no LRP through additions
    assert found["images"] == pytest.approx(400 * found["accuracy"])
    (tmp_path / "one.json").write_text(json.dumps({"network": "ResNet 1", **found}))
    page = tmp_path / "page.md"
    benchmark.write_page(tmp_path, page)
    text = page.read_text()
    scores = found["methods"]["rsp"]["scores"]
    assert f"| `rsp` | 1 | {scores['pointing_game']:.3f} ± 0.000 |" in text
    assert f"{scores['negative_inside']:.3f} ± 0.000" in text
    permuted = found["methods"]["rsp"]["sanity"]["data"]["permuted labels"]["spearman"]
    assert f"{permuted:.2f}" in text.partition("### Permuted labels")[2]


def test_no_results_no_page(benchmark, tmp_path):
    benchmark.write_page(tmp_path, tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_one_network_of_another_activation(activations, monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    networks = sys.modules["attribution_networks"]
    monkeypatch.setattr(networks, "SCENES", 100)
    layers = networks.cnn(activations.ACTIVATIONS["gelu"])
    assert sum(isinstance(layer, nn.GELU) for layer in layers) == 3
    found = activations.measure("gelu", 0, 200, steps=30)
    assert found.keys() == activations.COLUMNS.keys()
    assert all(0 <= value <= 1 for value in found.values())
    assert found["pointing_game"] <= found["pointing_near"]
    assert registry.find_rule("gelu") is not None


def test_each_script_writes_its_part_of_the_page(benchmark, activations, tmp_path):
    entries = [
        {"activation": name, "seed": seed, **dict.fromkeys(activations.COLUMNS, value + seed / 10)}
        for name, value in {"gelu": 0.2, "relu": 0.4}.items()
        for seed in range(3)
    ]
    for number, entry in enumerate(entries):
        (tmp_path / f"{number}.json").write_text(json.dumps(entry))
    page = tmp_path / "page.md"
    sys.modules["page"].write_part(page, "attribution", "what methods do")
    activations.write_section(tmp_path, page)
    lines = page.read_text().splitlines()
    assert lines[0] == "# Benchmark of attribution methods"
    assert "what methods do" in lines
    assert "over 3 networks each" in page.read_text()
    rows = [line.split(" | ")[:2] for line in lines if "0.082" in line]
    # 0.1 · √(2/3)
    assert rows == [["| ReLU", "0.500 ± 0.082"], ["| GELU", "0.300 ± 0.082"]]


def test_no_activations_no_section(activations, tmp_path):
    activations.write_section(tmp_path, tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()
