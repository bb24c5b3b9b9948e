"""The comparison over many networks: cases that fit together, runs that resume, honest sums."""

import json
import sys

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(scripts):
    return scripts("any_network")


@pytest.fixture
def case(benchmark):
    return next(case for case in benchmark.CASES if case.name == "two inputs")


def test_every_network_gives_one_logit_a_class(benchmark):
    data = sys.modules["any_network_data"]
    for case in benchmark.CASES:
        if case.name.startswith(("rtdl", "transformers", "monai")):
            pytest.importorskip(case.name.split()[0].replace("rtdl", "rtdl_revisiting_models"))
        X, _ = data.volumes() if case.volumes else data.digits()
        network = sys.modules["any_network_cases"].AsImages(case).eval()
        with torch.no_grad():
            logits = network(torch.from_numpy(X[:3]))
        assert logits.shape == (3, 2 if case.parity else 10), case.name
        assert torch.isfinite(logits).all(), case.name


def test_a_problem_is_divided_in_three_and_shifted(benchmark, case, monkeypatch):
    data = sys.modules["any_network_data"]
    monkeypatch.setattr(data, "PRETRAINING", {"lr": 3e-3, "lengths": (1,)})
    same, shifted = (data.prepare(case, 0, shifted=shifted) for shifted in (False, True))
    assert len(same.train.y) == len(same.test.y) == 599
    assert len(same.fitting.y) + len(same.held_out.y) == 599
    norms = (np.linalg.norm(part.train.X.reshape(599, -1), axis=1) for part in (same, shifted))
    np.testing.assert_allclose(*norms, rtol=1e-5)  # turned, all features at once
    assert not np.allclose(same.train.X, shifted.train.X)
    for mine, theirs in zip(same.network.parameters(), shifted.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_interrupted_run_goes_on_where_it_stopped(benchmark, case, tmp_path, monkeypatch):
    calls = []

    def ours(case, problem):
        calls.append("ours")
        return {"before": 0.1, "after": 0.9, "seconds": 1.0, "warnings": []}

    def rival(problem):
        calls.append("rival")
        if calls.count("rival") == 1:
            raise KeyboardInterrupt
        return {"after": 0.8, "seconds": 2.0, "chosen": {}}

    monkeypatch.setattr(benchmark, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(benchmark, "by_default", ours)
    monkeypatch.setattr(benchmark, "by_adamw", rival)
    with pytest.raises(KeyboardInterrupt):
        benchmark.visit(case, 300, benchmark.PARTS, tmp_path, redo=False)
    benchmark.visit(case, 300, benchmark.PARTS, tmp_path, redo=False)
    assert calls == ["ours", "ours", "rival", "rival"]
    benchmark.visit(case, 300, ["same"], tmp_path, redo=True)
    assert calls[-1] == "ours"


def test_the_page_says_what_misses_the_bar(benchmark, tmp_path):
    report = sys.modules["any_network_report"]
    for case, after in zip(benchmark.CASES[:2], (0.9, 0.87), strict=True):
        folder = tmp_path / case.file_name
        folder.mkdir()
        for seed in (300, 301):
            ours = {"before": 0.5, "after": after, "seconds": 1.0, "warnings": []}
            entries = {"same": ours, "shifted": ours, "rival": {"after": 0.9, "seconds": 2.0}}
            (folder / f"seed_{seed}.json").write_text(json.dumps(entries))
    report.write_report(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| networks | 2 |" in page
    assert "| within 2 points of AdamW's best, or above | 1 |" in page
    assert "| single runs behind AdamW's best | 2 of 4, by 3.0 points at most |" in page
    assert f"-3.0 ({benchmark.CASES[1].name})" in page
    assert "| time / AdamW's, median | 0.50 |" in page
