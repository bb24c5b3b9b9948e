"""The attribution benchmark: a small run of it, and the page that it writes."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("captum")
FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("attribution")


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
