"""Attribution methods on scenes of two digits, whose places are known.

Five networks learn which digits are in a scene. Each method explains the one digit in scenes of
digits that no network was trained on; scores tell if its map lies on that digit, if what it says
against the class lies on the other one, and if it depends on what the network has learnt.

    python examples/benchmarks/attribution.py                      # what is missing, and the page
    python examples/benchmarks/attribution.py --networks "CNN 0"   # one network
    python examples/benchmarks/attribution.py --report             # the page alone
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from attribution_networks import (
    NETWORKS,
    explained_scenes,
    trained,
    trained_on_permuted_labels,
)
from attribution_report import write_page
from numpy.typing import NDArray
from torch import nn

from featprop_sklearn.inspection import (
    attribute,
    box_masks,
    cascading_randomisation,
    class_mean,
    data_randomisation,
    independent_randomisation,
    make_attribution_report,
    pointing_game,
)

#: row of the tables -> method, and its hostile classes; True: it is told the other digit
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rsp": ("rsp", {"hostile": True}),
    "rsp, no hostile": ("rsp", {"hostile": None}),
    **{
        name: (name, {})
        for name in (
            *("grad_cam", "guided_backprop", "guided_grad_cam", "gradient"),
            *("integrated_gradients", "occlusion", "lrp"),
        )
    },
}
#: as much of a scene as the 15 pixels of the published pointing game are of a photograph
TOLERANCE = 1.0
IMAGES, STEPS, CHECKED = 500, 600, 100
CACHE, PAGE = Path(".cache/attribution"), Path("docs/attribution_benchmark.md")


def measure(name: str, n_images: int, steps: int) -> dict[str, Any]:
    """Train one network, and measure all methods on it."""
    network = trained(*NETWORKS[name], steps)
    scenes, accuracy = explained_scenes(network, n_images)
    permuted, memorised = trained_on_permuted_labels(name)
    results = {method: _measured(network, permuted, method, scenes) for method in METHODS}
    return {
        "accuracy": accuracy,
        "memorised": memorised,
        "images": len(scenes.images),
        "methods": {name: entry for name, entry in results.items() if entry is not None},
    }


def _measured(
    network: nn.Module, permuted: nn.Module, name: str, scenes: dict[str, NDArray]
) -> dict[str, Any] | None:
    """Localisation and faithfulness on all scenes, sanity checks on some; None if refused."""
    images, boxes = scenes["images"], box_masks(scenes["boxes"], scenes["images"].shape[2:])
    started = time.process_time()
    try:
        found = attribute(network, images, **_asked(name, scenes))
    except ValueError as error:
        print(f"  {name}: {error}")
        return None
    seconds = time.process_time() - started
    common = {"target": scenes["target"], "predict_proba": _sigmoid(network)}
    masks = {"masks": boxes[:, 0], "hostile_masks": boxes[:, 1]}
    in_boxes = make_attribution_report(network, images, {name: found}, **common, **masks)
    on_strokes = make_attribution_report(
        network, images, {name: found}, **common, masks=scenes["masks"][:, 0], steps=1
    )
    near = pointing_game(found.maps, boxes[:, 0], tolerance=TOLERANCE)
    row = in_boxes.iloc[0].to_dict() | {"pointing_near": class_mean(near, found.target)}
    row |= on_strokes[["mean_iou", "tuned_iou", "threshold"]].iloc[0].to_dict()
    print(f"  {name}: {seconds:.1f} s, pointing game {row['pointing_game']:.3f}", flush=True)
    return {"seconds": seconds, "scores": row, "sanity": _sanity(network, permuted, name, scenes)}


def _asked(name: str, scenes: dict[str, NDArray]) -> dict[str, Any]:
    """Arguments of a row of the tables, for these scenes."""
    method, options = METHODS[name]
    if options.get("hostile") is True:
        options = {"hostile": scenes["hostile"][:, None]}
    return {"method": method, "target": scenes["target"], **options}


def _sanity(
    network: nn.Module, permuted: nn.Module, name: str, scenes: dict[str, NDArray]
) -> dict[str, Any]:
    few = {key: values[:CHECKED] for key, values in scenes.items()}
    images, asked = few["images"], _asked(name, few)
    checks: dict[str, Callable[[], pd.DataFrame]] = {
        "cascading": lambda: cascading_randomisation(network, images, **asked, random_state=0),
        "independent": lambda: independent_randomisation(network, images, **asked, random_state=0),
        "data": lambda: data_randomisation(network, permuted, images, **asked),
    }
    return {name: check().to_dict("index") for name, check in checks.items()}


def _sigmoid(network: nn.Module) -> Callable[[NDArray], NDArray]:
    def predict_proba(X: NDArray) -> NDArray:
        with torch.no_grad():
            return torch.sigmoid(network(torch.as_tensor(X))).double().numpy()

    return predict_proba


def main() -> None:
    """Measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--results", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    for name in [] if options.report else options.networks:
        path = options.results / f"{name.lower().replace(' ', '_')}.json"
        if not path.exists():
            print(name, flush=True)
            found = measure(name, options.images, options.steps)
            path.write_text(json.dumps({"network": name, **found}, indent=1) + "\n")
    write_page(options.results, options.output)


if __name__ == "__main__":
    main()
