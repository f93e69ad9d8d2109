"""What is installed: every package once and under one name, from a checkout, a wheel and outside of both."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fxfuse
from fxfuse import _version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_under(folder: str, name: str) -> set[str]:
    """Name the folders that hold modules; os.walk leaves the symlink out."""
    found = set()
    for place, _, names in os.walk(ROOT / folder):
        if any(file.endswith(".py") for file in names):
            found.add(".".join([name, *Path(place).relative_to(ROOT / folder).parts]))
    return found


def run_outside(code: str, folder: Path) -> str:
    """Run Python in a folder that is not the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"is fxfuse installed (make test does it)?\n{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build a wheel from a copy, where no earlier build leaves files, and list it."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("fxfuse", "passes", "models", "tests", "tools"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, copy]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    assert path.name == f"fxfuse-{_version.__version__}-py3-none-any.whl"
    return set(zipfile.ZipFile(path).namelist())


def test_every_folder_of_modules_is_listed():
    found = packages_under("fxfuse", "fxfuse") | packages_under("passes", "fxfuse.passes")
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_package_has_an_init():
    for folder in ("fxfuse", "passes"):
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks __init__.py"


def test_the_symlink_points_beside():
    link = ROOT / "fxfuse" / "passes"
    assert link.is_symlink()
    assert os.readlink(link) == os.path.join("..", "passes")


def test_the_version_is_written_once():
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert importlib.metadata.version("fxfuse") == _version.__version__


def test_a_wheel_holds_fxfuse_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert tops == {"fxfuse", f"fxfuse-{_version.__version__}.dist-info"}


def test_a_wheel_holds_every_module(wheel):
    modules = {f"fxfuse/{path.relative_to(ROOT / 'fxfuse').as_posix()}" for path in files_of("fxfuse")}
    modules |= {f"fxfuse/{path.relative_to(ROOT).as_posix()}" for path in files_of("passes")}
    held = {name for name in wheel if name.startswith("fxfuse/")}
    assert held == modules | {"fxfuse/py.typed"}


def files_of(folder: str) -> list[Path]:
    return [
        Path(place) / name
        for place, _, names in os.walk(ROOT / folder)
        for name in names
        if name.endswith(".py")
    ]


def test_a_wheel_carries_the_licence(wheel):
    assert any(name.endswith("LICENSE") for name in wheel)


@pytest.mark.parametrize(
    ("group", "target"),
    [("console_scripts", "fxfuse.cli:main"), ("torch_dynamo_backends", "fxfuse.backend:backend")],
)
def test_entry_points_resolve(group, target):
    (point,) = importlib.metadata.entry_points(group=group, name="fxfuse")
    assert point.value == target
    assert callable(point.load())


def test_passes_are_found_from_outside_the_checkout(tmp_path):
    code = "import os, fxfuse.passes as p; print(os.path.realpath(p.__path__[0]))"
    assert run_outside(code, tmp_path) == str(ROOT / "passes")


LOAD_ALL = """
import importlib, os, pkgutil, sys
import fxfuse
names = [m.name for m in pkgutil.walk_packages(fxfuse.__path__, "fxfuse.") if not m.name.endswith("__main__")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # kernels come with torch's CUDA builds
        assert (name, error.name) == ("fxfuse.passes.fx.gemv", "triton"), name
assert any(name.startswith("fxfuse.passes.") for name in names), names
places = {}
for name, module in list(sys.modules.items()):
    path = os.path.realpath(getattr(module, "__file__", None) or "")
    if path.startswith(ROOT):
        places.setdefault(path, set()).add(module.__name__)
print([sorted(names) for names in places.values() if len(names) > 1])
print("passes" in sys.modules)
"""


@pytest.mark.parametrize("inside", [True, False])
def test_no_module_is_loaded_under_two_names(tmp_path, inside):
    code = f"ROOT = {str(ROOT / 'passes')!r}\n{LOAD_ALL}"
    assert run_outside(code, ROOT if inside else tmp_path).splitlines() == ["[]", "False"]


def test_importing_fxfuse_reads_the_checkout():
    assert Path(fxfuse.__file__).resolve().parent == ROOT / "fxfuse"
