"""The floors of the library: imports go down only, and never round in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import aloop

ROOT = Path(aloop.__file__).parent

FLOORS = {
    "aloop.callbacks": 1,
    "aloop.config": 1,
    "aloop.errors": 1,
    "aloop.faults": 1,
    "aloop.protocols": 1,
    "aloop.algorithms": 2,
    "aloop.background": 2,
    "aloop.checkpoints": 2,
    "aloop.disk": 2,
    "aloop.drivers": 2,
    "aloop.endings": 2,
    "aloop.exclusive": 2,
    "aloop.forks": 2,
    "aloop.handle": 2,
    "aloop.log.base": 2,
    "aloop.log.carried": 2,
    "aloop.log.following": 2,
    "aloop.log.times": 2,
    "aloop.log.frames": 2,
    "aloop.log.records": 2,
    "aloop.log.rows": 2,
    "aloop.log.series": 2,
    "aloop.log.values": 2,
    "aloop.models": 2,
    "aloop.offload": 2,
    "aloop.profile": 2,
    "aloop.signals": 2,
    "aloop.snapshots": 2,
    "aloop.stalls": 2,
    "aloop.states": 2,
    "aloop.stopping": 2,
    "aloop.streams": 2,
    "aloop.streams.fuel": 5,
    "aloop.streams.hdf5": 5,
    "aloop.streams.huggingface": 5,
    "aloop.streams.torch": 5,
    "aloop.tasks": 2,
    "aloop.supervision": 2,
    "aloop.turns": 2,
    "aloop.extensions": 3,
    "aloop.log": 3,
    "aloop.main_loop": 4,
    "aloop.restoring": 4,
    "aloop.saving": 4,
    "aloop.training": 4,
    "aloop.__main__": 6,
    "aloop.cli": 6,
    "aloop.testing": 6,
    "aloop": 6,
}
# What is optional, and the only modules that import it.
OPTIONAL = {
    "datasets": {"aloop.streams.huggingface"},
    "fuel": {"aloop.streams.fuel.compat"},
    "h5py": {"aloop.streams.hdf5"},
    "jax": set(),
    "matplotlib": set(),
    "pandas": set(),
    "pytest": {"aloop.testing.plugin"},
    "ray": set(),
    "sklearn": set(),
    "starlette": set(),
    "torch": {"aloop.streams.torch"},
    "torchdata": {"aloop.streams.torch"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, for typing included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"relative import in {path.name}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def floor(module: str) -> int:
    """The floor of the module, by the longest name it is under."""
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return FLOORS[module]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_from_a_floor_above(module: str) -> None:
    above = [
        name for name in imports(MODULES[module]) & set(MODULES) if floor(name) > floor(module)
    ]
    assert above == []


def test_every_top_level_module_has_a_floor() -> None:
    without = [
        name
        for name in MODULES
        if name.count(".") == 1 and not any(known.startswith(name) for known in FLOORS)
    ]
    assert without == []


def test_no_imports_go_round_in_a_circle() -> None:
    graph = {name: imports(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", MODULES)
def test_what_is_optional_is_imported_by_its_own_module_alone(module: str) -> None:
    used = {name.partition(".")[0] for name in imports(MODULES[module])}
    assert [name for name in used & set(OPTIONAL) if module not in OPTIONAL[name]] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_longer_than_400_lines(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", MODULES)
def test_a_module_exports_only_what_it_has(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree)
    namespace = __import__(module, fromlist=["*"])
    assert [name for name in namespace.__all__ if not hasattr(namespace, name)] == []


def public_definitions(module: str):
    """The classes and functions of a module, and the methods of its classes, by name."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            is_overload = any(
                isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list
            )
            if node.name.startswith("_") or is_overload:
                continue
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    is_setter = any(isinstance(d, ast.Attribute) for d in inner.decorator_list)
                    if not inner.name.startswith("_") and not is_setter:
                        yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("module", MODULES)
def test_every_public_symbol_is_documented(module: str) -> None:
    definitions = public_definitions(module)
    assert [name for name, node in definitions if ast.get_docstring(node) is None] == []
