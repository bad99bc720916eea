"""The map of the package is a law: who may import whom, without cycles, public JAX only."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scalify_cli

PACKAGE = Path(scalify_cli.__file__).parent
LEAVES = {"errors", "shipped"}
MAY_IMPORT: dict[str, set[str]] = {
    "jaxprs": set(),
    "scales": {"jaxprs"},
    "core": {"jaxprs", "scales"},
    "formats": set(),
    "precision": {"core", "formats", "jaxprs"},
    "numerics": {"core", "formats", "jaxprs", "scales"},
    "models": set(),
    "data": set(),
    "training": {"core", "formats", "precision", "numerics"},
    "tracking": set(),
    "launch": set(),
    "report": {"numerics"},
    "config": set(),
}
EVERYTHING = {*MAY_IMPORT, *LEAVES}
RULES = {
    **{folder: allowed | LEAVES | {folder} for folder, allowed in MAY_IMPORT.items()},
    "cli": EVERYTHING | {"cli", "experiment"},
    "experiment": EVERYTHING,
    "__main__": {"cli"},
    "__init__": {"core", "numerics", "precision"},
    "errors": set(),
    "shipped": set(),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    """``scalify_cli.core.rules`` for ``core/rules/__init__.py``."""
    parts = (PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(file) for file in FILES}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what a module imports anywhere in it, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def own(names: Iterator[str]) -> set[str]:
    """The part of them that is in this package, cut down to modules."""
    ours = {name for name in names if name.split(".")[0] == PACKAGE.name}
    return {name if name in MODULES else name.rpartition(".")[0] for name in ours}


def unit(module: str) -> str:
    """The folder, or the module at the root, that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def at_import(file: Path) -> set[str]:
    """Our modules that importing this one imports: not those inside functions, or for checkers."""
    body = [node for node in parsed(file).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return own(imported(ast.Module(body, []))) - {name_of(file)}


def test_every_folder_has_a_rule():
    assert {unit(module) for module in MODULES} == set(RULES)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_are_those_the_map_allows(file):
    units = {unit(module) for module in own(imported(parsed(file)))}
    assert units <= RULES[unit(name_of(file))]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_jax_is_used_through_its_public_names(file):
    assert not [name for name in imported(parsed(file)) if name.startswith("jax._src")]
    assert "jax._src" not in file.read_text("utf-8")


def test_modules_do_not_import_each_other_in_circles():
    assert list(
        TopologicalSorter({name_of(file): at_import(file) for file in FILES}).static_order()
    )


def test_folders_do_not_import_each_other_in_circles():
    graph: dict[str, set[str]] = {}
    for file in FILES:
        here = unit(name_of(file))
        units = {unit(module) for module in own(imported(parsed(file)))}
        graph.setdefault(here, set()).update(units - {here})
    assert list(TopologicalSorter(graph).static_order())


def test_the_report_reads_no_numbers_but_the_bins():
    files = [file for file in FILES if unit(name_of(file)) == "report"]
    names = {name for file in files for name in own(imported(parsed(file)))}
    assert {name for name in names if unit(name) == "numerics"} <= {
        "scalify_cli.numerics",
        "scalify_cli.numerics.bins",
    }
