"""The house stands: layers, packaging, doctests, a command line that answers at once, links that lead on."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import importlib.resources
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import ebbtide

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = ("shared", "domains", "pipelines", "data_cards")
HEAVY = (
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "monai",
    "lightning",
    "matplotlib",
    "pyarrow",
    "nibabel",
)

# What a module of `shared` may import besides torch and the standard library.
BEYOND_TORCH = {
    "training": {"lightning"},
    "curves": {"matplotlib"},
    "artifacts": {"safetensors"},
    "latent": {"monai"},
    "private": {"opacus"},
}
ALLOWED_LAYERS = {
    "data_cards": {"data_cards"},
    "shared": {"shared"},
    "domains": {"shared", "domains", "data_cards"},
    "pipelines": {"shared", "domains", "pipelines", "data_cards"},
}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def import_name(path: Path) -> str:
    """The dotted name under which the wheel knows this file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[:2] == ("pipelines", "_face"):
        return "ebbtide"
    return ".".join(("ebbtide", *(part for part in parts if part != "__init__")))


def imports(name: str, source: str, *, package: bool = False) -> Iterator[str]:
    """Absolute dotted names of all that the module `name` imports, at its top or inside a function."""
    home = name.split(".") if package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            yield target
            yield from (f"{target}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> Iterator[str]:
    source = path.read_text(encoding="utf-8")
    return imports(import_name(path), source, package=path.name == "__init__.py")


def is_domain(name: str) -> bool:
    return (ROOT / "domains" / name / "__init__.py").exists()


def forbidden(name: str, imported: Iterable[str]) -> list[str]:
    """Which of `imported` point the wrong way from the module `name`."""
    here = name.split(".")
    layer = here[1] if len(here) > 1 else "pipelines"
    return [target for target in imported if _points_wrong(layer, here, target.split("."))]


def _points_wrong(layer: str, here: list[str], target: list[str]) -> bool:
    if target[0] in FOLDERS:  # works from the repository's root, and makes a second copy of every class
        return True
    if target[0] != "ebbtide" or len(target) < 2 or target[1] not in FOLDERS:
        return False
    if target[1] not in ALLOWED_LAYERS[layer]:
        return True
    between_domains = layer == target[1] == "domains" and len(here) > 2 and len(target) > 2
    return between_domains and is_domain(target[2]) and target[2] != here[2]


EVERY_SOURCE = [path for folder in FOLDERS for path in sources(folder)]


@pytest.mark.parametrize("path", EVERY_SOURCE, ids=import_name)
def test_imports_point_one_way(path: Path) -> None:
    assert forbidden(import_name(path), imports_of(path)) == []


@pytest.mark.parametrize(
    "name, source",
    [
        ("ebbtide.shared.noise", "from ..domains import tabular"),
        ("ebbtide.shared.noise", "def late():\n    from ebbtide.pipelines.cli import main"),
        ("ebbtide.domains.tabular.codec", "from ...pipelines import cli"),
        ("ebbtide.domains.mri.codec", "from ..tabular.codec import TableCodec"),
        ("ebbtide.pipelines.cli", "import shared.errors"),
    ],
)
def test_imports_the_wrong_way_are_seen(name: str, source: str) -> None:
    assert forbidden(name, imports(name, source))


@pytest.mark.parametrize("path", sources("shared"), ids=import_name)
def test_the_core_needs_torch_alone(path: Path) -> None:
    allowed = {"torch", "ebbtide", *sys.stdlib_module_names, *BEYOND_TORCH.get(path.stem, ())}
    assert {name.split(".")[0] for name in imports_of(path)} <= allowed


def test_every_package_is_in_the_wheel() -> None:
    found = {import_name(path) for path in EVERY_SOURCE if path.name == "__init__.py"}
    assert found == set(PACKAGES)
    assert set(PROJECT["tool"]["setuptools"]["package-dir"]) >= {
        "ebbtide",
        *(f"ebbtide.{f}" for f in FOLDERS),
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_announced(package: str) -> None:
    assert (importlib.resources.files(package) / "py.typed").is_file()


@pytest.mark.parametrize("folder", ["data_cards", "pipelines/templates"])
def test_data_files_are_installed(folder: str) -> None:
    installed = importlib.resources.files("ebbtide." + folder.split("/")[0])
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in {".yaml", ".csv", ".json", ".safetensors", ".html"}:
            inside = path.relative_to(ROOT / folder.split("/")[0])
            assert installed.joinpath(*inside.parts).is_file(), path.name


def modules() -> list[str]:
    """Every module, package by package: an editable install has no one folder that holds them all."""
    names = list(PACKAGES)
    for package in PACKAGES:
        paths = importlib.import_module(package).__path__
        names += [f"{package}.{found.name}" for found in pkgutil.iter_modules(paths) if not found.ispkg]
    return sorted(names)


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


HELP = "from ebbtide.pipelines.cli import main; code = main(['--help']); "


@pytest.mark.parametrize("code", ["import ebbtide; dir(ebbtide); ebbtide.__version__; ", HELP])
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    done = python(code + f"import sys; print('heavy', *({set(HEAVY)!r} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy"


def test_help_answers_at_once() -> None:
    resource = pytest.importorskip("resource", reason="POSIX")

    def seconds() -> float:
        """Of computing, interpreter and all: on an idle machine the same as by the clock."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(HELP + "raise SystemExit(code)").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(seconds() for _ in range(5)) < 0.5


def test_the_face_shows_what_it_promises() -> None:
    assert set(ebbtide.__all__) <= set(dir(ebbtide))
    for name in ebbtide.__all__:
        assert getattr(ebbtide, name) is getattr(ebbtide, name)
    with pytest.raises(AttributeError, match="imputate"):
        ebbtide.imputate  # noqa: B018
    assert ebbtide.__version__ == importlib.metadata.version("ebbtide")


def written() -> list[Path]:
    """Every text that the repository carries, wherever it was checked out to."""
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".cfg", ".html", ".txt", ".j2", ""}
    folders = (*FOLDERS, "tests", "benchmarks", "docs", ".ci")
    top = [path for path in ROOT.iterdir() if path.is_file()]
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in top + inside if path.suffix in suffixes and "__pycache__" not in path.parts]


def test_no_path_of_some_machine() -> None:
    places = "|".join(["work", "opt", "root", "home", "Users", "mnt"])
    pattern = re.compile(rf"(?<![\w.>*)\]}}]){chr(47)}({places}){chr(47)}\w")
    found = [
        path.name for path in written() if pattern.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found


@pytest.mark.parametrize(
    "page", [p for p in written() if p.suffix == ".md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_can_be_found_from_the_index() -> None:
    docs = ROOT / "docs"
    linked = set(re.findall(r"\]\(([^)#\s]+\.md)", (docs / "index.md").read_text(encoding="utf-8")))
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - {"index.md"}
    assert pages <= linked
