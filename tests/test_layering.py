"""One import direction, read from the source of every module, imports inside functions included; and short files."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fitv2

PACKAGE = Path(fitv2.__file__).parent
# A module may import lower layers, and its own only inside one sub-package (or among the package's own modules).
LAYERS = [
    set(names.split())
    for names in (
        "classes errors finite legacy messages positions precision randomness sample_list tokens",
        "system",
        "__init__ settings",
        "model flow diffusion",
        "sampling data distributed",
        "checkpoints",
        "build drawing images text",
        "adapters evaluation training prepare",
        "profiling autoencoding",
        "study",
        "cli",
    )
]
# Modules without imports of weight, which the command line may load at its top.
LIGHT = {"errors", "messages", "precision", "sample_list", "model.config", "sampling.editing_defaults"}
LIGHT |= {"sampling.solver_names", "system.atomic"}
HEAVY = {
    "torch",
    "numpy",
    "PIL",
    "accelerate",
    "matplotlib",
    "transformers",
    "diffusers",
    "scipy",
    "pandas",
    "datasets",
}
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
SETTINGS = {"settings"}
# What goes beyond the layers: these know no model, and the data knows nothing of what is done with it.
FORBIDDEN = {
    "flow": SETTINGS,
    "diffusion": SETTINGS,
    "model": SETTINGS,
    "sampling": {"data"} | SETTINGS,
    "data": {"model", "flow", "diffusion"} | SETTINGS,
    "prepare": {"model", "flow", "diffusion", "sampling"} | SETTINGS,
}
# Of the model, these know its configuration alone: a model is a function to them.
CONFIGURATION_ONLY = {"sampling": "model.config"}
# A module that reads settings names none of these: turning settings into objects is the work of `build` alone.
BUILT_FROM_SETTINGS = {"FiTConfig", "TimeDensity", "ImageFolder", "LatentShards", "OfficialLatents", "Fashion"}
BUILT_FROM_SETTINGS |= {"bundled", "full", "Canvases"}


def modules(package: Path) -> dict[str, Path]:
    """Dotted names below the package, such as "model.rope" or "cli.__init__"."""
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))}


def imported(name: str, tree: ast.AST) -> set[str]:
    """Dotted names below the package of all that module `name` imports from it; of a name, where it is looked up."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = ["fitv2", *name.split(".")][: -node.level] if node.level else []
            targets = [".".join([*home, *([node.module] if node.module else []), alias.name]) for alias in node.names]
        else:
            continue
        found |= {target.removeprefix("fitv2.") for target in targets if target.startswith("fitv2.")}
    return found


def part(dotted: str) -> str:
    """The sub-package, or the module itself, that a dotted name belongs to."""
    return dotted.partition(".")[0]


def violations(package: Path) -> list[str]:
    """Every import and call against the rules, as a sentence."""
    found = []
    for name, path in modules(package).items():
        tree = ast.parse(path.read_text(), str(path))
        own, targets = part(name), imported(name, tree)
        if "utils" in name.split("."):
            found.append(f"{name}: no module is called utils")
        if own not in LAYER:
            found.append(f"{name}: has no layer")
            continue
        for target in sorted(targets):
            other = part(target)
            if other not in LAYER:
                if own != "__init__":
                    found.append(f"{name}: imports {target}, which has no layer")
            elif other != own and (
                LAYER[other] > LAYER[own]
                or (LAYER[other] == LAYER[own] and any((package / name).is_dir() for name in (own, other)))
                or other in FORBIDDEN.get(own, ())
                or (other == "model" and not f"{target}.".startswith(CONFIGURATION_ONLY.get(own, "model") + "."))
            ):
                found.append(f"{name}: must not import {target}")
        if own != "build" and SETTINGS & set(map(part, targets)):
            functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
            called = {getattr(function, "id", getattr(function, "attr", "")) for function in functions}
            found += [f"{name}: only build makes {made} from settings" for made in sorted(called & BUILT_FROM_SETTINGS)]
    return found


def cycle(package: Path) -> list[str]:
    """Modules that import each other in a circle, imports inside functions and for type checkers included."""
    homes = {name.removesuffix(".__init__"): name for name in modules(package)}
    graph = {name: set() for name in homes.values()}
    for name, path in modules(package).items():
        for target in imported(name, ast.parse(path.read_text())):
            while target and target not in homes:
                target = target.rpartition(".")[0]
            graph[name] |= {homes[target]} - {name} if target else set()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_go_one_way():
    assert violations(PACKAGE) == []


def test_no_files_import_each_other():
    assert cycle(PACKAGE) == []


def test_a_planted_cycle_is_found(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.py").write_text("from .b import two\n")
    (tmp_path / "data/b.py").write_text("from . import c\n")
    (tmp_path / "data/c.py").write_text("def f():\n    from ..data.a import one\n")
    assert set(cycle(tmp_path)) == {"data.a", "data.b", "data.c"}


def test_every_module_has_a_layer():
    assert {part(name) for name in modules(PACKAGE)} == set(LAYER)


def test_no_file_is_longer_than_350_lines():
    files = [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    assert {path.name: lines for path in files if (lines := path.read_text().count("\n")) > 350} == {}


def heavy_imports(package: Path) -> list[str]:
    """What settings and the command line import at the top of a module, not inside functions, and should not."""
    found = []
    for name, path in modules(package).items():
        own = part(name)
        tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        if own in ("__init__", "cli", *SETTINGS):
            roots = {part(node.module or "") for node in tops if isinstance(node, ast.ImportFrom) and not node.level}
            roots |= {part(alias.name) for node in tops if isinstance(node, ast.Import) for alias in node.names}
            found += [f"{name}: imports {root} at its top" for root in sorted(roots & HEAVY)]
        if own == "cli":
            targets = {target.rpartition(".")[0] or target for node in tops for target in imported(name, node)}
            others = {target for target in targets if part(target) != "cli"} - LIGHT
            found += [f"{name}: imports {target} at its top" for target in sorted(others)]
    return found


def test_settings_and_the_command_line_load_nothing_heavy():
    assert heavy_imports(PACKAGE) == []


@pytest.mark.parametrize("line", ["import torch", "from numpy import array", "from ..data.folder import ImageFolder"])
def test_a_planted_heavy_import_is_found(tmp_path, line):
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli/train.py").write_text(f"from ..errors import UserError\nfrom .options import a\n{line}\n")
    (found,) = heavy_imports(tmp_path)
    assert "at its top" in found


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("flow/path.py", "def f():\n    from fitv2.model.rope import rotate", "must not import model.rope.rotate"),
        ("sampling/ode.py", "from ..model.transformer import FiT", "sampling.ode: must not import model.transformer"),
        ("data/folder.py", "from ..sampling.noise import ImageNoise", "data.folder: must not import sampling.noise"),
        ("prepare/run.py", "from ..model.rope import rotate", "prepare.run: must not import model.rope"),
        ("build.py", "from . import cli", "build: must not import cli"),
        ("model/utils.py", "", "model.utils: no module is called utils"),
        ("helpers.py", "", "helpers: has no layer"),
        ("cli/train.py", "from .. import helpers", "cli.train: imports helpers, which has no layer"),
        (
            "cli/train.py",
            "from ..settings.read import Recipe\nfrom ..data import fashion\nfashion.bundled()",
            "cli.train: only build makes bundled from settings",
        ),
    ],
)
def test_a_planted_violation_is_found(tmp_path, module, line, complaint):
    for name in LAYER:
        (tmp_path / name).mkdir() if (PACKAGE / name).is_dir() else (tmp_path / f"{name}.py").touch()
    assert violations(tmp_path) == []
    (tmp_path / module).write_text(line)
    (found,) = violations(tmp_path)
    assert complaint in found
