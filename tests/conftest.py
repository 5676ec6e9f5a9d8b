"""Shape checks for the whole package, and where the real data and the golden cases are."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.checker  # noqa: F401  (the hook finds it by name)

# Compiled code is tested in a process of its own, which sets this.
if "TRIPTYCH_NO_SHAPE_CHECKS" not in os.environ:
    install_import_hook("triptych", "tests.checker.check")


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable} names {folder}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real clips."""
    return _folder("TRIPTYCH_DATA")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the golden cases."""
    return _folder("TRIPTYCH_GOLDEN")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, help="folder below which golden cases are looked for")
