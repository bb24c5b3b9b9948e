"""Results on disk: one JSON file a setting and seed, one entry a method."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from settings import SETTINGS, Setting

COLUMNS = ["setting", "group", "seed", "method", "score", "seconds", "pace"]


def result_file(folder: Path, setting: Setting, seed: int) -> Path:
    return folder / setting.name / f"seed_{seed}.json"


def load_entries(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def save_entries(path: Path, entries: dict[str, Any]) -> None:
    """Replace the file in one step, so that an interrupted run leaves none half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(entries, indent=1) + "\n")
    os.replace(unfinished, path)


def read_scores(folder: Path) -> pd.DataFrame:
    """Return one row a setting, seed and method."""
    rows = [
        {**entry, "setting": setting.name, "group": setting.group, "seed": seed, "method": method}
        for setting, seed, method, entry in _entries(folder)
        if "score" in entry
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def read_targets(folder: Path) -> pd.DataFrame:
    """Return one row a setting, seed, propagation rule and split."""
    rows = [
        {"setting": setting.name, "seed": seed, "rule": method, "split": split, **quality}
        for setting, seed, method, entry in _entries(folder)
        for split, quality in entry.get("splits", {}).items()
    ]
    return pd.DataFrame(rows)


def read_memory(folder: Path) -> pd.DataFrame:
    """Return one row a setting, seed and propagation rule: seconds without and with memory."""
    rows = [
        {"setting": setting.name, "seed": seed, "rule": rule, **seconds}
        for setting, seed, _, entry in _entries(folder)
        for rule, seconds in entry.get("grid_seconds", {}).items()
    ]
    return pd.DataFrame(rows)


def _entries(folder: Path) -> list[tuple[Setting, int, str, dict[str, Any]]]:
    """In the order of the settings, then of the seeds."""
    return [
        (setting, seed, method, entry)
        for setting in SETTINGS
        for seed in sorted(
            int(path.stem.removeprefix("seed_"))
            for path in (folder / setting.name).glob("seed_*.json")
        )
        for method, entry in load_entries(result_file(folder, setting, seed)).items()
    ]
