"""The promises of the packaging: version, pins, documented public names, optional extras."""

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from numpydoc.validate import validate
from packaging.requirements import Requirement

import featprop_sklearn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED_BY_SETUP = ("test", "lint", "docs", "plots", "progress")

PARTS = [
    f"featprop_sklearn.{part.name}"
    for part in pkgutil.iter_modules(featprop_sklearn.__path__)
    if part.ispkg
]
PUBLIC = [f"featprop_sklearn.{name}" for name in featprop_sklearn.__all__ if name != "__version__"]
UNDOCUMENTED = {"PR01", "PR02", "PR03", "PR04", "PR07", "RT01", "RT03", "GL08", "SS01"}


def _pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names_and_versions = (line.split("==") for line in lines if not line.startswith("#"))
    return {name.lower().replace("_", "-"): pinned for name, pinned in names_and_versions}


def test_one_version():
    assert featprop_sklearn.__version__ == version("featprop_sklearn")


@pytest.mark.parametrize(
    "requirement",
    PROJECT["dependencies"] + [one for extra in INSTALLED_BY_SETUP for one in EXTRAS[extra]],
)
def test_what_setup_installs_is_pinned_within_its_range(requirement):
    needed = Requirement(requirement)
    assert needed.specifier.contains(_pins()[needed.name])


def test_constraints_install_anywhere():
    assert not [pin for pin in _pins().values() if "+" in pin]  # local labels, as in 2.13.0+cpu


@pytest.mark.parametrize("part", PARTS)
def test_every_listed_name_exists(part):
    module = importlib.import_module(part)
    assert not [name for name in module.__all__ if not hasattr(module, name)]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_document_parameters_and_results(name):
    problems = validate(name)["errors"]
    assert not [problem for problem in problems if problem[0] in UNDOCUMENTED]


def test_the_package_imports_without_its_extras():
    features = EXTRAS.keys() - {"test", "lint", "docs"}
    missing = {Requirement(one).name: None for extra in features for one in EXTRAS[extra]}
    code = f"import sys; sys.modules.update({missing}); import {', '.join(PARTS)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_public_names_are_in_the_api_page():
    page = (ROOT / "docs" / "api.rst").read_text().split()
    listed = {entry.rpartition(".")[2] for entry in page}
    assert not [name for name in PUBLIC if name.rpartition(".")[2] not in listed]
