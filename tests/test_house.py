"""Rules of the house: who imports whom, what is public, what a method must bring."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import triptych
from triptych import catalog

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "triptych"

# A room imports only from floors below its own, or from itself.
FLOORS = [
    {"errors", "files", "batch", "distributed", "catalog"},
    {"layers", "losses", "decoding", "clustering", "media", "recipe"},
    {"encoders", "data", "toyworld"},
    {"method"},
    {"methods", "embedding", "model"},
    {"training", "search", "weights"},
    {"evaluation"},
    {"report"},
    {"api", "demo"},
    {"cli"},
    {"__main__", "__init__"},
]
# Rooms of one floor that lean on each other, in this direction only.
NEIGHBOURS = {
    ("files", "errors"), ("catalog", "errors"), ("distributed", "batch"),
    ("model", "embedding"), ("demo", "api"),
}  # fmt: skip
WORDS = ("utils", "common", "core", "base", "misc", "helpers", "configs")


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _imports() -> list[tuple[str, str, str]]:
    """Return (file, importing room, imported module) of every import of the package in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        room = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [
                    f"{node.module}.{alias.name}" if node.module == "triptych" else node.module for alias in node.names
                ]
            else:
                assert not (isinstance(node, ast.ImportFrom) and node.level), f"{relative}: relative import"
                continue
            found += [(str(relative), room, name) for name in names]
    return found


def _floor(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"the room '{room}' stands on no floor: add it to FLOORS")


def test_rooms_import_only_from_floors_below() -> None:
    wrong = []
    for file, room, module in _imports():
        if not module.startswith("triptych"):
            continue
        other = _room(module)
        if other == room or room == "__init__" or (room, other) in NEIGHBOURS:
            continue
        if _floor(other) >= _floor(room):
            wrong.append(f"{file} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_a_method_imports_no_other_method_and_no_room_of_the_run() -> None:
    for file, _, module in _imports():
        if file.startswith("methods/") and module.startswith("triptych."):
            if module == "triptych.methods.supervised":  # the base of its kin
                continue
            allowed = (
                "method", "encoders", "layers", "losses", "decoding", "clustering", "distributed", "recipe", "batch",
                "errors", "catalog",
            )  # fmt: skip
            assert _room(module) in allowed, f"{file} imports {module}"


def test_av_is_imported_only_in_media() -> None:
    for file, room, module in _imports():
        if module.split(".")[0] == "av":
            assert room == "media", file


def test_the_command_line_imports_only_the_api() -> None:
    for file, room, module in _imports():
        if room == "cli" and module.startswith("triptych."):
            assert _room(module) in ("api", "demo", "errors"), f"{file} imports {module}"


def test_no_room_is_a_drawer() -> None:
    for path in PACKAGE.rglob("*"):
        assert path.stem not in WORDS, path


def test_importing_the_package_and_help_do_not_import_torch() -> None:
    for code in ("import triptych", "import triptych.cli"):
        script = f"{code}; import sys; assert 'torch' not in sys.modules and 'av' not in sys.modules"
        subprocess.run([sys.executable, "-c", script], check=True)


def test_public_names_are_sorted_complete_and_lead_somewhere() -> None:
    assert list(triptych.__all__) == sorted(triptych.__all__)
    for name in triptych.__all__:
        assert getattr(triptych, name).__doc__, name


def test_no_public_name_equals_a_room() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir()}
    assert not rooms & set(triptych.__all__)


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_every_method_has_its_page_and_its_recipes(name: str) -> None:
    entry = catalog.CATALOG[name]
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()
    module = importlib.import_module(entry.target.split(":")[0])
    assert module.__doc__
    assert module.small().method == name
    if entry.golden is not None:
        assert (ROOT / "tests" / "golden" / f"{entry.golden.replace('-', '_')}.py").is_file()


def test_the_text_of_the_project_speaks_of_itself_alone() -> None:
    machine = ("/" + "work/", "/" + "root/")
    for path in ROOT.rglob("*"):
        if path.suffix in {".py", ".md", ".toml", ".txt", ".sh", ".yaml", ".yml"} and ".venv" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in machine), path
