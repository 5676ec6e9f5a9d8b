"""Every golden case found: built entirely from the case, every output matched."""

import importlib
import json
from pathlib import Path

import pytest

from tests.golden.table import KNOWN


def test_golden(case: Path) -> None:
    meta = json.loads((case / "meta.json").read_text())
    kind = (meta["slug"], meta["part"])
    assert kind in KNOWN, f"{case} is of a kind that is not known: {kind}; add it to tests/golden/table.py"
    module = KNOWN[kind]
    if module is None:
        pytest.skip(f"{'/'.join(kind)} is not built yet")
    importlib.import_module(f"tests.golden.{module}").check(case)
