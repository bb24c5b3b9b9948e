"""The benchmark of nearest preimages: problems, rivals, oracle, bars, page."""

import json
import sys

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(scripts):
    return scripts("inversion")


@pytest.fixture(scope="module")
def part(benchmark):
    """Return a module of the benchmark by name."""
    return sys.modules.__getitem__


@pytest.fixture(scope="module")
def build(part):
    def make(*args, **kwargs):
        return part("inversion_problem").build(part("inversion_cases").Case(*args, **kwargs))

    return make


def exact(problem):
    """The answer by NumPy's singular value decomposition."""
    left, values, right = np.linalg.svd(problem.dense().numpy(), full_matrices=False)
    filters = values / (values**2 + problem.damping**2)
    found = ((problem.remainder.flatten(1).numpy() @ left) * filters) @ right
    return torch.from_numpy(found).reshape(problem.reference.shape)


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


# Cases and problems --------------------------------------------------------------------


def test_the_grid_covers_every_value_once(part):
    cases = part("inversion_cases").every_case()
    assert len({case.name for case in cases}) == len(cases)
    convolutions = [case for case in cases if not case.is_linear]
    channels = {(case.inputs, case.outputs) for case in convolutions}
    assert channels == {(2, 1), (2, 4), (8, 8), (16, 32), (32, 64)}
    assert {case.size for case in convolutions} == {16, 32, 64, 128, 256}
    assert {case.n_samples for case in convolutions} == {2, 64, 256}
    assert {case.kernel for case in convolutions} == {3, 5}
    assert {case.damping for case in convolutions} == {0.0, 1e-3, 1e-2, "auto"}
    assert {case.condition for case in convolutions} >= {None, 1.0, 1e2, 1e3, 1e5, 1e8}
    linear = {(case.outputs, case.inputs) for case in cases if case.is_linear}
    assert linear == {(128, 512), (512, 128), (1000, 4096)}
    assert {case.n_samples for case in cases if case.is_linear} == {60_000}


def test_the_sparse_matrix_is_the_convolution(build):
    problem = build(2, 3, 2, size=5, kernel=3)
    assert np.allclose(problem.csr().toarray(), problem.dense().numpy())
    by_hand = problem.reference.flatten(1) @ problem.dense().T
    assert torch.allclose(problem.forward(problem.reference).flatten(1), by_hand)


@pytest.mark.parametrize("wanted", [1.0, 30.0, 1e4])
def test_a_kernel_has_the_condition_that_it_was_given(build, wanted):
    problem = build(2, 1, 1, size=8, condition=wanted)
    assert problem.condition == pytest.approx(wanted, rel=0.01)


def test_damping_is_a_share_of_the_largest_singular_value(build):
    problem = build(8, 12, 4, damping=0.01)
    largest = np.linalg.svd(problem.weight.numpy(), compute_uv=False)[0]
    assert problem.damping == pytest.approx(0.01 * largest, rel=1e-3)


# Rivals and oracle ---------------------------------------------------------------------

PROBLEMS = [
    {"inputs": 2, "outputs": 1, "size": 6},
    {"inputs": 1, "outputs": 2, "size": 6, "kernel": 3},
    {"inputs": 2, "outputs": 4, "size": 5, "kernel": 3, "damping": 0.05},
    {"inputs": 2, "outputs": 1, "size": 5, "kernel": 3, "damping": 0.05},
    {"inputs": 5, "outputs": 9},
    {"inputs": 9, "outputs": 5, "damping": 0.1},
]


@pytest.mark.parametrize("given", PROBLEMS)
def test_exact_rivals_agree_with_the_decomposition(part, build, given):
    problem = build(n_samples=3, **given)
    rivals = part("inversion_rivals")
    tried = 0
    for name, prepare in rivals.RIVALS.items():
        if name == "fft_pad":
            continue
        try:
            solve = prepare(problem)
        except rivals.NotApplicable:
            continue
        tried += 1
        assert relative(solve(problem.remainder), exact(problem)) < 1e-6, name
    assert tried == (5 if problem.case.is_linear else 3)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_fft_pad_is_exact_on_a_torus(part, build, outputs):
    problem = build(2, outputs, 2, size=6, kernel=1)  # nothing wraps around
    found = part("inversion_rivals").fft_pad(problem)(problem.remainder)
    assert relative(found, exact(problem)) < 1e-12


def test_fft_pad_is_not_exact_where_it_wraps(part, build):
    problem = build(2, 1, 2, size=6, kernel=3)
    found = part("inversion_rivals").fft_pad(problem)(problem.remainder)
    assert relative(found, exact(problem)) > 0.01


@pytest.mark.parametrize("given", PROBLEMS)
def test_the_oracle_agrees_with_the_decomposition(part, build, given):
    problem = build(n_samples=3, **given)
    assert relative(part("inversion_oracle").oracle(problem), exact(problem)) < 1e-12


@pytest.mark.parametrize("way", ["_sparse", "_iterated"])
@pytest.mark.parametrize("given", PROBLEMS[:4])
def test_the_oracles_for_large_problems_agree_with_it_too(part, build, given, way):
    problem = build(n_samples=3, **given)
    rhs = problem.remainder.flatten(1).numpy()
    found = getattr(part("inversion_oracle"), way)(problem, problem.csr(), rhs)
    assert relative(torch.from_numpy(found), exact(problem).flatten(1)) < 1e-11


def test_an_oracle_that_did_not_converge_is_refused(part, build, monkeypatch):
    problem = build(2, 1, 2, size=6)
    wrong = torch.zeros(2, 72).numpy()
    monkeypatch.setattr(part("inversion_oracle"), "_dense", lambda *_: wrong)
    with pytest.raises(RuntimeError, match="2to1_s6_k5_n2_d0: the oracle's own residual is"):
        part("inversion_oracle").oracle(problem)


# Workers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda *_: iter(int, 1).__length_hint__(), "failed (AttributeError)"),
        (lambda *_: torch.empty(2**40), "out of memory"),
        (lambda *_: [None for _ in iter(int, 1)], "out of time"),
    ],
)
def test_a_worker_tells_why_it_has_no_result(part, build, monkeypatch, prepare, why):
    worker_module = part("inversion_worker")
    monkeypatch.setattr(worker_module, "prepare", prepare)
    problem = build(5, 3, 4)
    limits = worker_module.Limits(seconds=0.5, n_bytes=2**28)
    worker = worker_module.Worker("any", problem, exact(problem), limits)
    worker.start()
    worker.stop()
    assert worker.outcome == {"failed": why}
    assert not worker.alive


def test_long_calls_are_made_with_fewer_samples(part, build, monkeypatch):
    # half a second, and 0.01 for each sample
    seconds = [0.51, 0.52, 0.58, 0.82, 1.78]
    now = iter(np.cumsum([step for taken in seconds for step in (0.0, taken)]))
    worker = part("inversion_worker")
    monkeypatch.setattr(worker.time, "process_time", lambda: next(now))
    asked = []
    limits = worker.Limits(call_seconds=0.6)
    count, fixed, each, _ = worker._growing(asked.append, build(5, 3, 1000), limits)
    assert (count, asked) == (128, [1, 1, 2, 8, 32, 128])
    assert (fixed, each) == (pytest.approx(0.5), pytest.approx(0.01))


# Bars and page -------------------------------------------------------------------------


def outcome(seconds, error=1e-12, solver="torus", **changes):
    figures = {"set_up": 0.1, "seconds": seconds, "mib": 50.0, "error": error, "solver": solver}
    return figures | {"converged": True, "extrapolated": False, "calls": 5} | changes


def entry(part, **changes):
    methods = {name: {"failed": "–"} for name in part("inversion_methods").METHODS}
    methods |= {
        "pass": outcome(1.0, None),
        "float32 pass": outcome(0.5, None),
        "cg": outcome(80.0),
        "lsqr loop": outcome(60.0),
        "fft_pad": outcome(1.0),
        "torus": outcome(0.8),
        "torch": outcome(0.1, converged=False),
        "auto": outcome(0.8),
    }
    return {"condition": 8.0, "damping": 0.0, "methods": methods | changes}


def test_bars_are_met_or_missed_by_their_figures(part):
    case = part("inversion_cases").Case(2, 1, 64, size=64)
    checks = part("inversion_bars").checks(case, entry(part))
    missed = [check for check in checks if not check.met]
    assert [check.bar for check in missed] == ["a: times faster than lsqr loop"]
    assert missed[0].value == pytest.approx(75.0)
    assert {check.bar.split(":")[0] for check in checks} == {"a", "f"}


def test_a_slower_choice_and_a_failed_one_are_missed(part):
    case = part("inversion_cases").Case(2, 1, 64, size=64)
    slow = entry(part, auto=outcome(0.8), direct=outcome(0.4))
    found = {check.bar: check for check in part("inversion_bars").checks(case, slow)}
    assert found["f: auto / best of ours, per call"].value == pytest.approx(2.0)
    assert not found["f: auto / best of ours, per call"].met
    failed = part("inversion_bars").checks(case, entry(part, auto={"failed": "out of time"}))
    assert not any(check.met for check in failed)


def test_the_page_holds_bars_figures_and_the_picture(part, tmp_path):
    cases = [part("inversion_cases").Case(2, c, 64, size=s) for c in (1, 4) for s in (32, 64)]
    page = tmp_path / "docs" / "benchmarks.md"
    results = [(case, entry(part)) for case in cases]
    part("inversion_report").write_report(results, page, part("inversion_worker").Limits())
    text = page.read_text()
    assert "| a: times faster than lsqr loop | ≥ 100 | **no** | 0 of 4 | 75 (2→" in text
    assert "| a: passes, 2→1 | ≤ 1 | yes | 2 of 2 | 0.8 (2→1, 5×5, size 32, N 64) |" in text
    assert "| 2→1, 5×5, size 32, N 64 | torus | 1 | 1 |" in text
    assert "1e-12 (not converged)" in text
    picture = page.with_name("benchmarks_inversion.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_each_script_replaces_its_own_part_of_the_page(part, tmp_path):
    write_part, page = part("page").write_part, tmp_path / "page.md"
    write_part(page, "inversion", "## Second\n")
    write_part(page, "post_training", "## First")
    write_part(page, "inversion", "## Third")
    headings = [line for line in page.read_text().splitlines() if line.startswith("#")]
    assert headings == ["# Benchmarks", "## First", "## Third"]


def test_a_page_without_the_part_is_refused(part, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Mine\n")
    with pytest.raises(ValueError, match="must hold <!-- inversion --> and, after it, <!-- /inv"):
        part("page").write_part(page, "inversion", "text")
    assert page.read_text() == "# Mine\n"


# The whole -----------------------------------------------------------------------------


def test_a_quick_run_measures_stores_and_resumes(benchmark, part, tmp_path, capsys):
    page, results = tmp_path / "page.md", tmp_path / "results"
    arguments = ["--quick", "--results", str(results), "--page", str(page)]
    assert benchmark.main(arguments) == 0
    for case in part("inversion_cases").quick_cases():
        methods = json.loads((results / f"{case.name}.json").read_text())["methods"]
        assert sorted(methods) == sorted(part("inversion_methods").METHODS)
        assert methods["auto"]["converged"]
        assert methods["auto"]["error"] < 1e-10
        assert methods["exact_matrix"]["error"] < 1e-10
    capsys.readouterr()
    assert benchmark.main(arguments) == 0
    assert capsys.readouterr().out == f"Wrote {page} from 2 of 2 cases.\n"


def test_no_results_are_said_so(benchmark, tmp_path, capsys):
    arguments = ["--report-only", "--results", str(tmp_path), "--page", str(tmp_path / "page.md")]
    assert benchmark.main(arguments) == 1
    assert f"There are no results in {tmp_path}." in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()
