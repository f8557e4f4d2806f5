"""Laws of the house: what a transfer function may look at, and how large files, folders and functions are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CODE = sorted(path for folder in ("tracer", "rules", "adapters") for path in (ROOT / folder).rglob("*.py"))
LIBRARY = [path for path in CODE if not path.is_relative_to(ROOT / "tracer" / "cli")]
"""Without the command line: a command spells its options out."""
FOLDERS = sorted({path.parent for path in CODE})
LARGE = {"Captured", "Prediction", "RuleSet"}
"""Records that are larger than the law allows: none may be added, and those that are mended leave."""
AROUND = {"users", "nodes", "all_input_nodes", "module_path", "nn_module_stack"}
"""Ways from a node to its neighbours, and to the names of modules."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))


def lines(function: ast.FunctionDef) -> int:
    """Lines of a function's code: without its docstring, which may hold an example."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    assert function.end_lineno is not None
    assert first.end_lineno is not None
    whole = function.end_lineno - function.lineno + 1
    return whole - (first.end_lineno - first.lineno + 1 if documented else 0)


def public() -> set[str]:
    """The names that a user imports from ``fxplain``."""
    package = tree(ROOT / "tracer" / "__init__.py")
    homes = next(node for node in package.body if isinstance(node, ast.Assign) and "_HOMES" in ast.dump(node))
    return set(ast.literal_eval(homes.value))


PUBLIC = public()


def fields(record: ast.ClassDef) -> int:
    """How many fields a dataclass has; 0 for other classes."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in record.decorator_list):
        return 0
    own = (each for each in record.body if isinstance(each, ast.AnnAssign))
    return sum("ClassVar" not in ast.unparse(each.annotation) for each in own)


def arguments(function: ast.FunctionDef) -> int:
    """How many arguments a reader has to keep apart: options of a public function that have a default, and so
    are given by name, do not count."""
    given = function.args
    named = [*given.posonlyargs, *given.args]
    private = function.name.startswith("_") and not function.name.startswith("__")
    options = 0 if private else len(given.defaults)
    bound = bool(named) and named[0].arg in ("self", "cls")
    return len(named) - options - bound + (len(given.kwonlyargs) if private else 0)


OPS = [path for path in CODE if path.is_relative_to(ROOT / "tracer" / "ops")]


@pytest.mark.parametrize("path", OPS, ids=name)
def test_a_transfer_function_looks_at_its_operands_alone(path: Path) -> None:
    """Neighbours and names are for `recognise/`, so nothing hangs on one model."""
    seen = {used.attr for used in ast.walk(tree(path)) if isinstance(used, ast.Attribute)}
    imports = (used for used in ast.walk(tree(path)) if isinstance(used, ast.ImportFrom))
    seen |= {alias.name for used in imports for alias in used.names}
    assert not seen & AROUND


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_folder_is_seen_at_a_glance(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 20


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_functions_are_short(path: Path) -> None:
    long = {function.name: lines(function) for function in functions(path) if lines(function) > 40}
    assert not long


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_functions_have_few_arguments(path: Path) -> None:
    many = {function.name: arguments(function) for function in functions(path) if arguments(function) > 6}
    assert not many


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_records_are_small(path: Path) -> None:
    """What a user reads of a result is flat; records inside have parts."""
    classes = (node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef))
    large = {each.name for each in classes if each.name not in PUBLIC and fields(each) > 10}
    assert large <= LARGE


def test_the_list_of_large_records_only_shrinks() -> None:
    records = (node for path in CODE for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef))
    assert {each.name for each in records if each.name in LARGE and fields(each) > 10} == LARGE


def module(path: Path) -> str:
    """The name that a file is imported by."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    packages = ["fxplain"] if folder == "tracer" else ["fxplain", folder]
    return ".".join([*packages, *rest]).removesuffix(".__init__")


MODULES = {module(path): path for path in CODE}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, also lazily and for types alone."""
    imports = (used for used in ast.walk(tree(path)) if isinstance(used, ast.ImportFrom))
    names = {f"{used.module}.{alias.name}": used.module for used in imports for alias in used.names}
    found = {name if name in MODULES else str(home) for name, home in names.items()}
    return (found & set(MODULES)) - {"fxplain", module(path)}


def test_no_imports_run_in_a_circle() -> None:
    """The public names of ``fxplain`` itself aside, which are looked up when they are used."""
    graph = {name: imported(path) for name, path in MODULES.items() if name != "fxplain"}
    TopologicalSorter(graph).prepare()
