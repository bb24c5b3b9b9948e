"""The benchmark of post-training methods: settings, rivals, statistics, stored results, report."""

import json
import sys
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata, wilcoxon
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from featprop_sklearn import GradientTrainer


@pytest.fixture(scope="module")
def benchmark(scripts):
    return scripts("post_training")


@pytest.fixture(scope="module")
def part(benchmark):
    """Return a module of the benchmark by name."""
    return sys.modules.__getitem__


@pytest.fixture(scope="module")
def prepared(part):
    def prepare(name, seed=0):
        if (name, seed) not in problems:
            problems[name, seed] = part("settings").prepare(setting_named(part, name), seed)
        return problems[name, seed]

    problems = {}
    return prepare


def setting_named(part, name):
    return next(setting for setting in part("settings").SETTINGS if setting.name == name)


# Settings ------------------------------------------------------------------------------


def test_there_are_ten_image_eight_table_and_two_regression_settings(part):
    settings = part("settings").SETTINGS
    groups = [setting.group for setting in settings]
    assert [groups.count(name) for name in ("images", "tables", "regression")] == [10, 8, 2]
    assert len({setting.name for setting in settings}) == 20


@pytest.mark.parametrize(
    ("name", "rows", "pretrained_on"),
    [
        ("digits-same-cnn", 898, 400),
        ("digits_vectors-rotated-mlp", 898, 400),
        ("classification-rotated-mlp", 10_000, 2000),
        ("wine-rotated-mlp", 89, 89),
        ("diabetes-rotated-mlp", 221, 221),
    ],
)
def test_half_of_the_rows_train_and_a_quarter_of_them_is_held_out(
    part, prepared, name, rows, pretrained_on
):
    problem = prepared(name)
    assert len(problem.train.y) == len(problem.train.X) == rows
    assert abs(len(problem.test.y) - rows) <= 1
    assert len(problem.held_out.y) == -(-rows // 4)
    assert len(problem.fitting.y) + len(problem.held_out.y) == rows
    assert problem.train.X.dtype == np.float32
    assert not problem.network.training
    seen = part("settings").pretraining_rows(
        setting_named(part, name), np.arange(rows), problem.train.y, 0
    )
    assert len(seen) == pretrained_on


def test_pretraining_works_and_shifts_hurt(part, prepared):
    def score(name):
        problem = prepared(name)
        predicted = part("networks").predict(problem.network, problem.test.X)
        return part("choosing").score(problem.test.y, predicted)

    assert score("digits-same-cnn") > 0.9
    assert score("digits-transposed-cnn") < 0.3
    assert 0.6 < score("digits-noisy-cnn") < 0.85


def test_images_are_shifted_as_named(prepared):
    same = prepared("digits-same-cnn")
    assert {tuple(image.ravel()) for image in same.train.X[:5].round(4)} <= {
        tuple(image.ravel()) for image in (load_digits().images / 16).astype("f4").round(4)
    }
    for name, shifted in (
        ("transposed", same.train.X.transpose(0, 1, 3, 2)),
        ("inverted", 1 - same.train.X),
        ("class_rare", same.train.X),
    ):
        problem = prepared(f"digits-{name}-cnn")
        np.testing.assert_allclose(problem.train.X, shifted, atol=1e-6)
        np.testing.assert_array_equal(problem.test.y, same.test.y)
    noise = prepared("digits-noisy-cnn").train.X - same.train.X
    assert noise.std() == pytest.approx(0.3, rel=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.01)


def test_tables_are_standardised_then_rotated_or_rescaled(prepared):
    rotated, rescaled = (
        prepared(f"breast_cancer-{shift}-mlp").train.X for shift in ("rotated", "rescaled")
    )
    scales = rescaled.std(axis=0)
    assert np.log(scales).std() == pytest.approx(1, abs=0.5)
    standardised = rescaled / scales
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(rotated @ rotated.T, standardised @ standardised.T, atol=1e-2)
    assert np.abs(rotated - standardised).max() > 1


@pytest.mark.parametrize(
    ("name", "seen_of_class"), [("wine-class_missing-mlp", 0), ("digits-class_rare-bn_cnn", 4)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_pretraining_misses_another_class_with_each_seed(part, prepared, name, seen_of_class, seed):
    setting, y = setting_named(part, name), prepared(name, seed).train.y
    seen = part("settings").pretraining_rows(setting, np.arange(len(y)), y, seed)
    counts = np.bincount(y[seen])
    assert counts[seed] == pytest.approx(seen_of_class, abs=0.5)
    assert np.delete(counts, seed).min() > 20
    assert np.bincount(y)[seed] > 20  # post-training sees it


def test_the_estimators_hold_out_the_same_rows(part, prepared):
    class Recording(GradientTrainer):
        held_out: list = []  # noqa: RUF012

        def train(self, component, **options):
            self.held_out.append(component.validation.inputs.numpy())
            return super().train(component, **options)

    problem = prepared("breast_cancer-rotated-mlp")
    part("feature_backpropagation").estimator(
        problem, propagation="layerwise", trainer=Recording(max_epochs=1)
    ).fit(*problem.train)
    np.testing.assert_array_equal(Recording.held_out[0], problem.held_out.X)


# Rivals --------------------------------------------------------------------------------


def test_a_short_run_is_the_beginning_of_a_long_one(part, prepared):
    problem, adamw = prepared("wine-rotated-mlp"), part("networks").adamw
    before = [parameter.clone() for parameter in problem.network.parameters()]
    both = dict(adamw(problem.network, *problem.train, lr=1e-2, lengths=(2, 5), seed=0))
    [(_, short)] = adamw(problem.network, *problem.train, lr=1e-2, lengths=(2,), seed=0)
    for a, b in zip(both[2].parameters(), short.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(both[2].output.weight, both[5].output.weight)
    for a, b in zip(problem.network.parameters(), before, strict=True):
        assert torch.equal(a, b)


def test_upstream_training_leaves_the_output_layer(part, prepared):
    problem = prepared("wine-rotated-mlp")
    run = part("networks").adamw(
        problem.network, *problem.train, lr=1e-2, lengths=(3,), seed=0, head_frozen=True
    )
    [(_, trained)] = run
    assert torch.equal(trained.output.weight, problem.network.output.weight)
    assert not torch.equal(trained.hidden1.weight, problem.network.hidden1.weight)


def test_batch_statistics_are_trained_too(part, prepared):
    problem = prepared("digits-class_rare-bn_cnn")
    [(_, trained)] = part("networks").adamw(
        problem.network, *problem.train, lr=0.0, lengths=(1,), seed=0
    )
    assert not torch.equal(trained.norm1.running_mean, problem.network.norm1.running_mean)
    assert not trained.training


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes"])
def test_the_probe_is_the_linear_model_written_into_the_network(part, prepared, name):
    problem = prepared(f"{name}-rotated-mlp")
    network = part("rivals")._probed(problem, problem.train, strength=0.5)
    predicted = part("networks").predict(network, problem.test.X)
    train, test = (
        part("networks").features(problem.network, samples.X, ["relu2"])["relu2"]
        for samples in (problem.train, problem.test)
    )
    scaler = StandardScaler().fit(train)
    linear = Ridge(alpha=2.0) if name == "diabetes" else LogisticRegression(C=0.5, max_iter=2000)
    linear.fit(scaler.transform(train), problem.train.y)
    wanted = getattr(linear, "predict_proba", linear.predict)(scaler.transform(test))
    np.testing.assert_allclose(predicted, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["wine-rotated-mlp", "diabetes-rotated-mlp"])
def test_every_rival_improves_on_the_network_as_it_is(part, prepared, name):
    methods, score = part("methods"), part("choosing").score
    problem = prepared(name)
    tunings = {key: tune(problem) for key, tune in methods.TUNED.items()}

    def reached(rival):
        fitted = methods.METHODS[rival].fit(problem, tunings)
        return score(problem.test.y, fitted.predict(problem.test.X))

    scores = {rival: reached(rival) for rival in methods.RIVALS}
    before = scores.pop("as_it_is")
    assert min(scores.values()) > before + 0.3


def test_choosing_is_by_score_then_by_log_loss(part):
    choosing, samples = part("choosing"), part("settings").Samples
    y = np.array([0, 1, 1])

    def sure(p, right):
        lead = np.where(right, p, 1 - p)
        return np.stack([np.where(y == 0, lead, 1 - lead), np.where(y == 1, lead, 1 - lead)], 1)

    candidates = {
        "wrong once": sure(0.99, [True, True, False]),
        "right, unsure": sure(0.6, [True, True, True]),
        "right, surer": sure(0.7, [True, True, True]),
        "diverged": np.full((3, 2), np.nan),
    }
    pairs = [({"name": n}, lambda _, p=p: p) for n, p in candidates.items()]
    assert choosing.choose(pairs, samples(y, y)) == {"name": "right, surer"}
    assert choosing.score(y, candidates["wrong once"]) == pytest.approx(2 / 3)


# Statistics ----------------------------------------------------------------------------


def test_p_is_scipys_exact_one_where_nothing_ties(part):
    rng = np.random.default_rng(0)
    for size in (5, 10):
        differences = rng.normal(0.7, 1, size)
        wanted = wilcoxon(differences, method="exact").pvalue
        assert part("comparison").paired_p(differences) == pytest.approx(wanted)


def test_p_with_ties_and_zeros_is_that_of_all_sign_changes(part):
    differences = np.array([0, 0, 1, -1, 1, 2, 3, -1, 1, 0.5])
    ranks = rankdata(np.abs(differences))
    signs = np.array(list(product([-1, 1], repeat=len(differences))))
    null = ((signs * differences > 0) * ranks).sum(axis=1)
    observed = (ranks * (differences > 0)).sum()
    tails = (null >= observed).mean(), (null <= observed).mean()
    assert part("comparison").paired_p(differences) == pytest.approx(2 * min(tails))


@pytest.mark.parametrize("differences", [[0.0, 0.0, 1e-14], [0.3]])
def test_p_is_one_where_there_is_nothing_to_tell(part, differences):
    assert part("comparison").paired_p(np.array(differences)) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closure_of_bonferroni(part, seed):
    p = np.random.default_rng(seed).uniform(0, 0.4, size=5)
    sets = [list(s) for size in range(1, 6) for s in combinations(range(5), size)]
    wanted = [max(min(1, len(s) * p[s].min()) for s in sets if i in s) for i in range(5)]
    np.testing.assert_allclose(part("comparison").holm(p), wanted)


def test_verdicts_say_who_is_better_and_who_is_not(part):
    seeds = np.arange(10)
    scores = pd.DataFrame(
        {
            "ours": 0.9 + 0.001 * seeds,
            "worse": 0.8 + 0.0013 * seeds,
            "close": 0.895 + 0.002 * seeds[::-1],
            "better": 0.95 + 0.0012 * seeds,
        }
    )
    compare = part("comparison").compare
    verdict = compare(scores, "ours", ["worse", "close", "better"])
    assert verdict.best_rival == "better"
    assert verdict.lead == pytest.approx(-5.09)
    assert verdict.beaten_by == ["better"]
    assert not verdict.beats_all
    assert verdict.p["worse"] == pytest.approx(3 * 2 / 2**10)
    assert compare(scores, "ours", ["worse"]).beats_all
    assert not compare(scores, "ours", ["worse", "close"]).beats_all


def test_seeds_that_not_all_have_run_on_are_left_out(part):
    scores = pd.DataFrame({"ours": [0.9, 0.9, 0.1], "rival": [0.8, 0.8, np.nan]})
    assert part("comparison").compare(scores, "ours", ["rival"]).lead == pytest.approx(10)


# Runs and reports ----------------------------------------------------------------------

WINE = "wine-rotated-mlp"


@pytest.fixture
def run(benchmark, tmp_path):
    def run(*options, methods=("as_it_is", "adamw")):
        paths = ["--results", str(tmp_path / "results"), "--page", str(tmp_path / "page.md")]
        chosen = [
            "--settings",
            WINE,
            "--seeds",
            "1",
            "--first-seed",
            "0",
            "--jobs",
            "1",
            "--methods",
            *methods,
        ]
        return benchmark.main([*paths, *chosen, *options])

    run.file = tmp_path / "results" / WINE / "seed_0.json"
    run.entries = lambda: json.loads(run.file.read_text())
    run.page = tmp_path / "page.md"
    return run


def test_a_run_is_stored_and_goes_on_where_it_stopped(run):
    assert run() == 0
    first = run.entries()
    assert list(first) == ["as_it_is", "adamw"]
    assert first["adamw"]["score"] > first["as_it_is"]["score"]
    assert first["adamw"]["seconds"] > first["as_it_is"]["seconds"] > 0
    assert run(methods=("as_it_is", "adamw", "targets_layerwise")) == 0
    second = run.entries()
    assert {name: second[name] for name in first} == first
    assert second["targets_layerwise"]["splits"]["output"]["repair_rate"] == 1
    table = pd.read_csv(run.file.parents[1] / "results.csv")
    assert table["method"].tolist() == ["as_it_is", "adamw"]
    assert f"| {WINE} | 1 |" in run.page.read_text()


def test_one_method_is_computed_anew_and_the_others_are_kept(run):
    run()
    first = run.entries()
    run("--redo", methods=["adamw"])
    second = run.entries()
    assert second["as_it_is"] == first["as_it_is"]
    assert second["adamw"]["seconds"] != first["adamw"]["seconds"]
    assert second["adamw"]["score"] == first["adamw"]["score"]


def test_a_failure_is_reported_and_the_rest_goes_on(run, part, monkeypatch, capsys):
    def fail(problem, tunings):
        raise ValueError("no way")

    methods = part("methods").METHODS
    run()
    monkeypatch.setitem(methods, "as_it_is", replace(methods["as_it_is"], fit=fail))
    assert run("--redo") == 1
    assert list(run.entries()) == ["adamw"]
    assert f"FAILED {WINE} seed 0 as_it_is: no way" in capsys.readouterr().err


def test_nothing_to_report_is_said(run, capsys):
    assert run("--report-only") == 1
    assert "There are no results in" in capsys.readouterr().err
    assert not run.page.exists()


def write_results(part, folder, seconds_of_auto):
    """Make up results in which auto wins by a point on images and loses by one on a table."""
    methods, store = part("methods"), part("store")
    rng = np.random.default_rng(0)
    for name, lead in (("digits-same-cnn", 0.01), ("digits-noisy-cnn", 0.01), (WINE, -0.01)):
        for seed in range(8):
            entries = {
                method: {
                    "score": 0.9 + 0.001 * seed + rng.uniform(-1e-4, 0),
                    "seconds": 2.0,
                    "pace": 1.0,
                    "chosen": {},
                }
                for method in methods.METHODS
            }
            entries["auto"]["score"] = 0.9 + 0.001 * seed + lead
            # a method computed anew, on a day when everything takes twice the time
            entries["auto"] |= {"seconds": 2 * seconds_of_auto, "pace": 2.0}
            rates = {"repair_rate": 0.25, "kept_rate": 0.75, "reached": float("nan")}
            entries["targets_layerwise"] = {"splits": {"conv1": rates}}
            setting = setting_named(part, name)
            store.save_entries(store.result_file(folder, setting, seed), entries)


@pytest.fixture
def page(part, tmp_path):
    write_results(part, tmp_path / "results", seconds_of_auto=1.0)
    page = tmp_path / "docs" / "benchmarks.md"
    part("report").write_report(tmp_path / "results", page, "auto")
    return page


def test_the_page_sums_up_by_group(page):
    text = page.read_text()
    assert "| Images | 2 | 2 | 2 | 0 | +1.0 (digits-" in text
    assert "| Tables | 1 | 0 | 0 | 1 | -1.0 (wine-rotated-mlp) | 0.50 (0.50) |" in text
    assert "seeds a setting: 8" in text


def test_the_page_tells_differences_and_times(page):
    lines = page.read_text().splitlines()
    verdict = next(line for line in lines if line.startswith("| digits-same-cnn | +1.0 (p "))
    # 8 seeds, 6 rivals, all signs equal: 6 · 2/2⁸
    assert verdict.count("+1.0 (p 0.047)") == 6
    assert verdict.endswith("| +1.0 | yes | – |")
    assert "| digits-same-cnn | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 0.50 |" in lines
    assert "| digits-same-cnn: conv1 | 0.25 | – | 0.75 | – | – | – |" in lines


def test_every_row_has_the_columns_of_its_table(page):
    blocks = page.read_text().split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 6
    for table in tables:
        assert set(table[1]) == set("| -")
        assert len({line.count("|") for line in table}) == 1


def test_the_picture_is_beside_the_page_and_shown_in_it(page):
    picture = page.with_name("benchmarks_post_training.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"({picture.name})" in page.read_text()


def test_results_without_ours_make_a_page_without_verdicts(part, tmp_path):
    write_results(part, tmp_path, seconds_of_auto=1.0)
    for file in tmp_path.rglob("*.json"):
        entries = json.loads(file.read_text())
        del entries["auto"]
        file.write_text(json.dumps(entries))
    page = tmp_path / "page.md"
    part("report").write_report(tmp_path, page, "auto")
    assert "## Scores" in page.read_text()
    assert "against each rival" not in page.read_text()
    assert not list(tmp_path.glob("*.png"))
