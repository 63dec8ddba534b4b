"""The laws of the house, read off the source: see the table of rooms in docs/architecture.md."""

import ast
import dataclasses
import inspect
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import HANG_SECONDS

import mifuse_cli
from mifuse_cli.config import Config

ROOT = Path(mifuse_cli.__file__).parent

FLOORS = [
    # From the ground up. A room may import from floors below, and within itself.
    {"mifuse_cli"},  # the package itself: its version, and names that it finds when asked
    {"errors"},
    {"files", "labels", "encoding_settings"},
    {"config", "provenance", "audio", "splits", "cores", "segments", "tables"},
    {"listing"},
    {"manifest", "artifacts"},
    {"kaldi"},
    {"corpora"},
    {"lineage", "fusion", "evaluation"},
    {"truth", "answer_counts"},
    {"lalm", "model", "reporting"},
    {"methods"},
    {"steps", "notebook"},
    {"console"},
    {"subcommand"},
    {"cli"},
    {"__main__", "demo"},
]

DEEP = {"torch", "torchaudio", "transformers", "safetensors"}
SCREEN = {"typer", "click", "rich"}
FORBIDDEN = {
    # What a room knows nothing of, though it may lie below or beside.
    "lalm": {"artifacts", "manifest", "fusion", "evaluation", "h5py"} | DEEP,
    "model": {"fusion", "evaluation", "openai"} | SCREEN,
    "methods": {"artifacts", "lineage", "evaluation", "h5py", "openai"} | SCREEN,
    "evaluation": {"h5py", "soundfile"} | DEEP,
    "reporting": {"lineage", "manifest", "truth", "audio", "h5py", "soundfile", "openai"} | DEEP | SCREEN,
    "artifacts": {"soundfile", "openai"} | DEEP,
    "manifest": {"artifacts", "h5py"} | DEEP,
    "kaldi": {"artifacts", "h5py", "soundfile"} | DEEP,
    "corpora": {"audio", "artifacts", "numpy", "h5py", "soundfile"} | DEEP,
    "steps": {"console"} | SCREEN,
    "cli": {"artifacts", "numpy", "h5py", "openai"} | DEEP,
    "subcommand": {"artifacts", "numpy", "h5py", "openai"} | DEEP,
    "console": {"artifacts", "numpy", "h5py", "openai"} | DEEP,
}

LABELS_ARE_READ_IN = {"manifest.py", "steps/train_source.py", "steps/evaluate.py", "truth.py"}
TRUTH_IS_KNOWN_TO = {"steps/fuse.py", "steps/train.py", "steps/compare/planning.py"}


def modules(root: Path) -> dict[str, Path]:
    """Path of every module below ``root`` by its name, packages by theirs."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Full names of what a module imports anywhere in it; ``from package import module`` names the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return found


def room(name: str) -> str:
    """Room of one of our modules, top-level package of any other."""
    parts = name.split(".")
    return parts[1] if parts[0] == ROOT.name and len(parts) > 1 else parts[0]


MODULES = modules(ROOT)
IMPORTS = {name: imports(path, MODULES) for name, path in MODULES.items()}
INSIDE = {name: {other for other in found if other in MODULES} for name, found in IMPORTS.items()}
INSIDE[ROOT.name] = set()  # it finds what it exports when asked; the imports in it are for type checkers
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


PAGE = (ROOT.parent / "docs/architecture.md").read_text(encoding="utf-8")


def told(heading: str) -> list[str]:
    """Lines of the page behind a mark, up to the first empty one, without fences."""
    lines = PAGE.partition(f"<!-- {heading} -->\n")[2].partition("\n\n")[0].splitlines()
    return [line for line in lines if not line.startswith("```")]


def test_the_picture_of_the_rooms_is_true():
    rooms = [" ".join(sorted(names)) for names in reversed(FLOORS) if names != {ROOT.name}]
    assert told("rooms") == rooms
    assert told("lalm") == [" ".join(sorted(names)) for names in reversed(LALM_FLOORS)]


def reached(name: str) -> set[str]:
    """Modules that a module imports, and those that these import, and so on; doors are gone through."""
    found, todo = set(), [name]
    while todo:
        new = INSIDE[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_the_way_of_one_probability_is_as_told():
    stops = [line.split("`")[1] for line in told("walk") if line[0].isdigit()]
    files = {path.relative_to(ROOT).as_posix(): name for name, path in MODULES.items()}
    names = [files[stop] for stop in stops]
    assert len(names) <= 12
    for here, following in pairwise(names):
        # One uses the other, or both are steps with a file between them, or an engine reads what a step wrote.
        between_files = room(here) == "steps"
        assert here in reached(following) or between_files, (here, following)
    for number, name in enumerate(names):
        assert not INSIDE[name] & set(names[number + 1 :]), f"{name} turns back"


def test_imports_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "house").mkdir()
    (tmp_path / "house/__init__.py").touch()
    (tmp_path / "house/cellar.py").touch()
    (tmp_path / "house/attic.py").write_text(
        "import torch.nn\nfrom house import cellar, door\n"
        "if x:\n    import numpy as np\n\ndef f():\n    from house.cellar import wine\n    import h5py\n"
    )
    known = modules(tmp_path / "house")
    assert known.keys() == {"house", "house.attic", "house.cellar"}
    assert imports(known["house.attic"], known) == {"torch.nn", "house.cellar", "house", "numpy", "h5py"}


def test_every_room_has_a_floor_and_every_floor_a_room():
    assert {room(name) for name in MODULES} == FLOOR.keys()


@pytest.mark.parametrize("name", MODULES)
def test_no_room_calls_upstairs(name):
    here = room(name)
    up = {o for o in INSIDE[name] if room(o) != here and FLOOR[room(o)] >= FLOOR[here]}
    assert not up


def test_no_circles():
    try:
        TopologicalSorter(INSIDE).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def step(name: str) -> str:
    """Step that a module of the room belongs to; a large one is a package."""
    return name.split(".")[2]


def test_steps_do_not_know_each_other():
    steps = {name for name in MODULES if room(name) == "steps" and name.count(".") > 1}
    others = {name: {o for o in INSIDE[name] & steps if step(o) != step(name)} for name in steps}
    assert {name: found for name, found in others.items() if found} == {}


def test_nobody_imports_the_demo():
    assert {n for n, found in INSIDE.items() if room(n) != "demo" and "demo" in map(room, found)} == set()


@pytest.mark.parametrize("here", FORBIDDEN)
def test_rooms_do_not_know_what_is_not_theirs(here):
    inside = [name for name in MODULES if room(name) == here]
    assert inside
    assert {
        name: known for name in inside if (known := set(map(room, IMPORTS[name])) & FORBIDDEN[here])
    } == {}


@pytest.mark.parametrize(
    ("name", "allowed"),
    # How settings are declared as options, which the fusion's are, is the one thing of ours that it knows.
    [("fusion", {"numpy", "scipy", "sklearn", "config"}), ("evaluation", {"numpy", "scipy"})],
)
def test_the_maths_stands_alone(name, allowed):
    found = {room(other) for module in MODULES if room(module) == name for other in IMPORTS[module]}
    assert found - sys.stdlib_module_names - {name} == allowed


def names_in(path: Path) -> set[str]:
    """Names, attributes and imported names in the code of a module; not those in text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return found


def test_labels_are_read_by_two_steps_and_the_oracle_alone():
    labels = {"read_labelled", "LabelledClip"}
    found = {path.relative_to(ROOT).as_posix() for path in MODULES.values() if names_in(path) & labels}
    assert found == LABELS_ARE_READ_IN


def test_true_classes_are_known_to_the_oracle_and_to_what_scores():
    found = {name for name, inside in INSIDE.items() if "mifuse_cli.truth" in inside}
    assert {MODULES[name].relative_to(ROOT).as_posix() for name in found} == TRUTH_IS_KNOWN_TO


LALM = "mifuse_cli.lalm"
LALM_FLOORS = [
    # From the ground up, as above.
    {"answers", "cost"},
    {"questions"},
    {"journal"},
    {"service"},
    {"arrays"},
]
LALM_FLOOR = {name: number for number, names in enumerate(LALM_FLOORS) for name in names}
LALM_MODULES = sorted(name for name in MODULES if name.startswith(f"{LALM}."))


def part(name: str) -> str:
    """Room within lalm that a module of it belongs to."""
    return name.split(".")[2]


def test_every_part_of_lalm_has_a_floor_and_every_floor_a_part():
    assert {part(name) for name in LALM_MODULES} == LALM_FLOOR.keys()


@pytest.mark.parametrize("name", LALM_MODULES)
def test_no_part_of_lalm_calls_upstairs(name):
    here, others = part(name), {o for o in INSIDE[name] if o.startswith(f"{LALM}.")}
    assert LALM not in INSIDE[name], "the door is for those outside"
    assert not {o for o in others if part(o) != here and LALM_FLOOR[part(o)] >= LALM_FLOOR[here]}


def test_lalm_is_entered_by_its_door():
    outside = {name: found for name, found in INSIDE.items() if not name.startswith(LALM)}
    assert {n: found & set(LALM_MODULES) for n, found in outside.items() if found & set(LALM_MODULES)} == {}


def classes_in(path: Path) -> set[str]:
    """Names of the public classes of a module."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}


def test_no_two_classes_have_the_same_name():
    found = [name for path in MODULES.values() for name in classes_in(path)]
    assert sorted(found) == sorted(set(found))


def test_a_class_or_module_of_lalm_shares_its_name_with_no_other():
    def names(modules: list[str]) -> list[str]:
        classes = [name for module in modules for name in classes_in(MODULES[module])]
        files = [module.rpartition(".")[2] for module in modules if MODULES[module].stem != "__init__"]
        return [*classes, *files]

    mine, others = names(LALM_MODULES), names([name for name in MODULES if not name.startswith(LALM)])
    assert sorted(mine) == sorted(set(mine))
    assert set(mine) & set(others) == set()


def public_names(path: Path) -> set[str]:
    """Names that a module makes for others: its functions, classes and constants without an underscore."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def imported_names(path: Path) -> set[str]:
    """Names of ours that a module imports."""
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOT.name)
        for alias in node.names
    }


MOST_IMPORTED = 46  # names of ours
MOST_GIVEN = 24


def test_a_module_is_one_concept():
    """One that needs much, or gives much out, is more than one; how long it is says nothing."""
    needs = {
        name: len(imported_names(path)) for name, path in MODULES.items() if name not in (LALM, ROOT.name)
    }
    gives = {name: len(public_names(path)) for name, path in MODULES.items()}
    assert {name: number for name, number in needs.items() if number > MOST_IMPORTED} == {}
    assert {name: number for name, number in gives.items() if number > MOST_GIVEN} == {}


def loaded_after(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_help_does_not_load_what_is_slow():
    slow = {"openai", "h5py", "sklearn", "scipy", "soundfile", "matplotlib", "jinja2"} | DEEP
    loaded = loaded_after("import mifuse_cli.cli")
    assert "typer" in loaded and not loaded & slow


def test_the_door_of_lalm_does_not_load_what_is_slow():
    loaded = loaded_after("import mifuse_cli.lalm")
    assert "mifuse_cli" in loaded and not loaded & ({"openai", "h5py", "scipy", "matplotlib"} | DEEP)


def test_the_package_itself_loads_nothing():
    loaded = loaded_after("import mifuse_cli")
    assert "mifuse_cli" in loaded and not loaded & ({"numpy", "yaml"} | SCREEN | DEEP)


STEPS = sorted(path.stem for path in (ROOT / "steps").iterdir() if not path.stem.startswith("__"))


def test_every_step_and_its_types_are_exported():
    stems = {step: "".join(map(str.capitalize, step.split("_"))) for step in STEPS}
    types = {f"{stem}{kind}" for stem in stems.values() for kind in ("Config", "Result")}
    assert set(mifuse_cli.__all__) >= {"__version__", *STEPS, *types}
    assert sorted(mifuse_cli.__all__) == dir(mifuse_cli)


def test_type_checkers_see_what_is_exported():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert seen == mifuse_cli._MODULE_OF and (ROOT / "py.typed").is_file()


@pytest.mark.parametrize("name", mifuse_cli.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(mifuse_cli, name).__doc__


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        mifuse_cli.evaluat  # noqa: B018


@pytest.mark.parametrize("name", STEPS)
def test_every_step_takes_a_config_and_gives_a_result(name):
    step = getattr(mifuse_cli, name)
    signature = inspect.signature(step, eval_str=True)
    config, progress = signature.parameters.values()
    assert (config.name, config.kind) == ("config", config.POSITIONAL_OR_KEYWORD)
    assert (progress.name, progress.kind, progress.default) == ("progress", progress.KEYWORD_ONLY, None)
    stem = "".join(map(str.capitalize, name.split("_")))
    assert config.annotation is getattr(mifuse_cli, f"{stem}Config")
    assert signature.return_annotation is getattr(mifuse_cli, f"{stem}Result")
    assert issubclass(config.annotation, Config)
    for made in (config.annotation, signature.return_annotation):
        assert dataclasses.is_dataclass(made) and made.__dataclass_params__.frozen
