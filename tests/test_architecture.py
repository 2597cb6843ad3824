"""The house as docs/architecture.md draws it: imports run downwards, no circles, what must fit a page does."""

import ast
from functools import cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("errors", "quoting", "strict_config", "files", "arrays", "hardware", "extensions"),
    ("dydiff_kernels",),
    ("diffusion", "models", "ranks"),
    ("data",),
    ("evaluation",),
    ("autoencoders",),
    ("forecasting",),
    ("engine",),
    ("checkpoints",),
    ("training",),
    ("tasks",),
    ("planning", "doctor", "study", "benchmarks"),
    ("tools", "train"),
)
"""From the lowest up. A room imports rooms below its own floor; beside it, only where `BESIDE` says so."""
BESIDE = {("strict_config", "quoting"), ("errors", "quoting"), ("errors", "strict_config"), ("errors", "extensions")}
BESIDE |= {(room, lower) for room in ("files", "arrays") for lower in ("errors", "quoting")}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PRODUCT_LINES = 400, 50, 40_100


def product_files() -> list[Path]:
    return sorted(path for room in ("dydiff_dist", "kernels", "tools") for path in (ROOT / room).rglob("*.py"))


@cache
def module_names() -> set[str]:
    return {module_name(path) for path in product_files()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("dydiff_kernels", *parts[1:]) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room of a module of ours: ``dydiff_dist.data.stream`` -> ``data``."""
    parts = module.split(".")
    if parts[0] != "dydiff_dist":
        return parts[0]
    return parts[1] if len(parts) > 1 else "dydiff_dist"


def imports(path: Path, *, for_types: bool) -> set[str]:
    """Modules of ours that a file imports, within functions too; ``for_types`` counts those under TYPE_CHECKING."""
    nodes = list(ast.walk(tree(path)))
    if not for_types:
        types = [n for n in nodes if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
        skipped = {id(inner) for block in types for inner in ast.walk(block)}
        nodes = [node for node in nodes if id(node) not in skipped]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{name.name}" for name in node.names}
            found |= (whole & module_names()) or {node.module}
    return {name for name in found if name.partition(".")[0] in ("dydiff_dist", "dydiff_kernels")}


def test_every_room_has_a_floor():
    rooms = {room(module_name(path)) for path in product_files()} - {"dydiff_dist"}
    assert rooms == {name for floor in FLOORS for name in floor}


def test_no_module_imports_upwards():
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for path in product_files():
        ours = room(module_name(path))
        for theirs in {room(module) for module in imports(path, for_types=True)} - {ours, "dydiff_dist"}:
            if height[theirs] >= height.get(ours, 0) and (ours, theirs) not in BESIDE:
                wrong.append(f"{path.relative_to(ROOT)} imports {theirs}")
    assert not wrong, "\n".join(wrong)


def test_no_import_circle():
    """Also not through imports within functions, which would only hide one."""
    graph = {module_name(path): imports(path, for_types=False) for path in product_files()}
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            raise AssertionError(" -> ".join([*trail[trail.index(module) :], module]))
        if module in done:
            return
        for imported in sorted(graph.get(module, ())):
            visit(imported, [*trail, module])
        done.add(module)

    for module in graph:
        visit(module, [])


def test_files_and_functions_fit_a_page():
    """Kernel bodies are one walk over memory and may be longer."""
    long = []
    for path in product_files():
        name = path.relative_to(ROOT)
        if len(path.read_text().splitlines()) > MAX_FILE_LINES:
            long.append(str(name))
        functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef) and name.parts[0] != "kernels"]
        long += [f"{name}: {f.name}" for f in functions if (f.end_lineno or 0) - f.lineno >= MAX_FUNCTION_LINES]
    assert not long, "\n".join(long)


def test_the_product_does_not_grow_unnoticed():
    """A feature that needs more raises the number here, in the commit that says why."""
    total = sum(len(path.read_text().splitlines()) for path in product_files())
    assert total < MAX_PRODUCT_LINES


def test_floors_are_drawn_in_the_documentation():
    page = (ROOT / "docs" / "architecture.md").read_text()
    places = [page.find(f"`{floor[0]}") for floor in FLOORS]
    assert all(place >= 0 for place in places), dict(zip(FLOORS, places, strict=True))
    assert all(upper < lower for lower, upper in pairwise(places)), "the page draws the floors from the top down"
