"""Every row of the case table keeps the promises of an inversion; every layer has a row."""

import pytest

from featprop_sklearn.inversion import keeps_bounds, registered_layers
from featprop_sklearn.testing import check_inverter
from tests.inversion.cases import CASES

ROWS = [row.values[0] for row in CASES]
REGISTERED = registered_layers()  # on import: later tests may register layers of their own


@pytest.mark.parametrize("case", CASES)
def test_promises(case):
    check_inverter(
        case.layer(),
        case.in_shape,
        meets_reachable=case.meets_reachable,
        nearest=case.nearest,
        least_residual=case.least_residual,
        tolerance=case.tolerance,
    )


@pytest.mark.parametrize("case", [row for row in CASES if keeps_bounds(row.values[0].layer())])
def test_promises_within_a_range(case):
    check_inverter(
        case.layer(),
        case.in_shape,
        meets_reachable=case.meets_reachable,
        nearest=case.nearest,
        tolerance=max(case.tolerance, 1e-7),
        bounds=(0.0, 1.0),
    )


@pytest.mark.parametrize("layer_type", REGISTERED, ids=lambda kind: kind.__name__)
def test_every_registered_layer_has_a_row(layer_type):
    assert layer_type in {type(case.layer()) for case in ROWS}


def test_composite_rows_have_no_inversion_of_their_own():
    composite = [case for case in ROWS if case.tolerance == 1e-6]
    assert len(composite) >= 5
    assert not [case.id for case in composite if type(case.layer()) in REGISTERED]
