"""Check the structure of the code: the direction of imports, long modules and functions, and the required packages."""

import ast
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

# Folders that med_model may have, in the order of imports: a folder must not import from a folder after it.
ROOMS = ("data", "model", "generation", "measures", "training", "pages")
STAGES = ("pre_training", "sft", "dpo")
SCRIPTS = [*(file for stage in STAGES for file in (ROOT / stage).glob("py/*.py")), ROOT / "compare_different_model.py"]
HOUSE = sorted((ROOT / "med_model").rglob("*.py"))
# Limits in lines. A test prints each module or function above its AIM limit, and fails for one above its MOST limit.
AIM_MODULE, MOST_MODULE, AIM_FUNCTION, MOST_FUNCTION = 200, 250, 50, 60
SOURCES = sorted(
    file
    for folder in ("med_model", "benchmarks", "corpus", "tests", *STAGES)
    for file in (ROOT / folder).rglob("*.py")
) + [ROOT / "compare_different_model.py"]


def imported_modules(source: str) -> list[str]:
    """Return the full name of each import in the Python code `source`, including imports inside functions.

    `from a import b` gives `a` and `a.b`, because b may be a module.
    """
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def wrong_imports(module: str, source: str) -> list[str]:
    """Return the forbidden imports of a module of med_model. `source` is the code of the module.

    A module must not import from a folder that comes later in ROOMS, or from a script outside med_model.
    """
    room = module.split(".")[1]
    level = ROOMS.index(room) if room in ROOMS else -1  # -1: a module outside the folders may import from none
    wrong = []
    for name in imported_modules(source):
        parts = name.split(".")
        if parts[0] in (*STAGES, "compare_different_model", "benchmarks", "corpus"):
            wrong.append(name)
        if parts[0] == "med_model" and len(parts) > 1 and parts[1] in ROOMS and ROOMS.index(parts[1]) > level:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("file", HOUSE, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_of_the_house_go_one_way(file):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    assert wrong_imports(module, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("med_model.data.records", "from med_model.measures import safety"),
        ("med_model.model.head", "def f():\n    import med_model.training.stage"),
        ("med_model.files", "from med_model.data.sources import find_files"),
        ("med_model.training.stage", "from sft.py import sft_train"),
    ],
)
def test_wrong_imports_finds_an_import_against_the_direction(module, source):
    assert wrong_imports(module, source) != []


def test_rooms_hold_no_folder_of_their_own():
    assert [folder for folder in (ROOT / "med_model").glob("*/*/") if (folder / "__init__.py").exists()] == []
    rooms = {file.parent.name for file in (ROOT / "med_model").glob("*/__init__.py")}
    assert rooms <= set(ROOMS) and rooms, "a new room has a place in the order"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_folder_imports_no_other_stage(stage):
    others = {*STAGES, "compare_different_model"} - {stage}
    for file in (ROOT / stage).rglob("*.py"):
        assert {name.split(".")[0] for name in imported_modules(file.read_text(encoding="utf-8"))} & others == set()


def lines_over(source: str, module_limit: int, function_limit: int) -> list[str]:
    """Return one message for a module of more than `module_limit` lines, and one for each function that is too long.

    A function may have `function_limit` lines.
    """
    over = []
    if (count := len(source.splitlines())) > module_limit:
        over.append(f"module: {count} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (count := node.end_lineno - node.lineno + 1) > function_limit:
            over.append(f"{node.name}: {count} lines")
    return over


def test_modules_and_functions_stay_short(note):
    too_long = []
    for file in [*HOUSE, *SCRIPTS]:
        source, name = file.read_text(encoding="utf-8"), file.relative_to(ROOT)
        for line in lines_over(source, AIM_MODULE, AIM_FUNCTION):
            note(f"{name}, {line} (aim: {AIM_MODULE}, {AIM_FUNCTION})")
        too_long += [f"{name}, {line}" for line in lines_over(source, MOST_MODULE, MOST_FUNCTION)]
    assert too_long == []


def test_lines_over_finds_a_long_module_and_a_long_function():
    body = "    pass\n" * MOST_FUNCTION
    assert lines_over(f"def long_one():\n{body}", MOST_MODULE, MOST_FUNCTION) == ["long_one: 61 lines"]
    assert lines_over("pass\n" * 251, MOST_MODULE, MOST_FUNCTION) == ["module: 251 lines"]
    assert lines_over("pass\n" * 250, MOST_MODULE, MOST_FUNCTION) == []


def requirements(file: Path) -> dict[str, Requirement]:
    """Return {name: requirement} of a requirements file. A name is in lower case, with `-` instead of `_`."""
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {requirement.name.lower().replace("_", "-"): requirement for requirement in found}


def test_requirements_name_every_package_that_is_imported():
    names = {name.split(".")[0] for file in SOURCES for name in imported_modules(file.read_text(encoding="utf-8"))}
    distributions = packages_distributions()
    imported = {distributions[name][0].lower().replace("_", "-") for name in names if name in distributions}
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"].replace("_", "-")
    assert imported - {own} <= set(requirements(ROOT / "requirements.txt"))
    assert {"torch", "transformers", "numpy", "pyyaml", "safetensors"} <= imported, "the search finds nothing else"


def test_constraints_pin_every_requirement_and_all_dependencies():
    pinned = requirements(ROOT / "constraints.txt")
    assert all(str(requirement.specifier).startswith("==") for requirement in pinned.values())
    assert set(requirements(ROOT / "requirements.txt")) <= set(pinned)
    assert {"regex", "jinja2", "sympy"} <= set(pinned), "packages that only other packages import"
    assert not any("+" in str(requirement.specifier) for requirement in pinned.values()), "+cpu exists on Linux only"
