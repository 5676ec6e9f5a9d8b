"""Where golden cases are looked for: ``--golden DIR``, or the folder that TRIPTYCH_GOLDEN names."""

import os
from pathlib import Path

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    place = metafunc.config.getoption("--golden") or os.environ.get("TRIPTYCH_GOLDEN")
    if not place:
        metafunc.parametrize("case", [pytest.param(None, marks=pytest.mark.skip(reason="TRIPTYCH_GOLDEN is not set"))])
        return
    folder = Path(place)
    cases = sorted(path.parent for path in folder.rglob("meta.json"))
    if not cases:
        raise pytest.UsageError(f"{folder} holds no golden case (no meta.json below it)")
    metafunc.parametrize("case", cases, ids=[str(case.relative_to(folder)) for case in cases])
