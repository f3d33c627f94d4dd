"""What importing costs, what it drags in, and which floor may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vadapt"

# From the ground up; a file imports from its own floor or one below. `training` stands beside the
# models: it knows the partition, and no task.
FLOORS = [
    {"beside", "configs", "datasets", "errors", "options", "registry", "command_line", "__init__"},
    {"partition", "packages", "remat", "micro_batches", "sharding", "drawing", "charts", "boxes"}
    | {"plots", "quantization", "kernels", "losses", "data", "metrics"},
    {"nn"},
    {"backbones"},
    {"heads", "necks", "weights"},
    {"adapters"},
    {"models", "runtime"},
    {"system"},
    {"training"},
    {"tasks"},
    {"run"},
    {"exporting", "found_run", "painters", "painted"},
    {"trained"},
    {"main", "plan", "predict", "paint", "catalogue"},
    {"list"},
]
# Rooms that the plan keeps apart though their floors would allow it.
FORBIDDEN = {
    *(("runtime", room) for room in ("models", "adapters", "heads", "backbones", "nn", "data")),
    ("training", "tasks"),
    ("training", "system"),
    ("training", "models"),
    ("training", "adapters"),
    ("training", "backbones"),
    ("backbones", "adapters"),
    ("data", "partition"),
    ("metrics", "partition"),
}


def room(path: Path) -> str:
    """Where a file belongs; the commands of a package are no part of it but stand on top."""
    parts = path.relative_to(PACKAGE).parts
    if path.name == "__main__.py":
        return "main"
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms of vadapt that a file imports, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] != "vadapt" or len(parts) == 1:
                continue
            if (PACKAGE / parts[1]).exists() or (PACKAGE / f"{parts[1]}.py").exists():
                rooms.add(parts[1])
    return rooms


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    level = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    here = room(path)
    for there in imports(path):
        assert level[there] <= level[here], f"{here} must not import {there}"
        assert (here, there) not in FORBIDDEN, f"{here} must not import {there}"


def test_nothing_outside_adapters_names_an_adapter():
    names = {path.stem for path in (PACKAGE / "adapters").glob("*.py")} - {"__init__", "surgery"}
    assert "rein" in names
    found = {
        (str(path.relative_to(PACKAGE)), value)
        for path in FILES
        if room(path) != "adapters"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for value in (getattr(node, "value", None), getattr(node, "module", None))
        if isinstance(value, str) and value.removeprefix("vadapt.adapters.") in names
    }
    # A family of released files goes by the name of the system that they are of.
    assert {pair for pair in found if not pair[0].startswith("weights/")} == set()


def test_no_task_and_no_command_names_a_head():
    heads = {f"vadapt.heads.{path.stem}" for path in (PACKAGE / "heads").glob("[a-z]*.py")}
    for path in FILES:
        if room(path) in ("heads", "weights"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert getattr(node, "module", None) not in heads, path


def test_training_and_the_commands_name_no_task():
    from vadapt.tasks import TASKS

    shared = [
        path for path in FILES if room(path) in ("training", "run", "plan", "predict", "main")
    ]
    assert len(shared) > 15
    for path in shared:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert getattr(node, "value", None) not in set(TASKS), path
            module = getattr(node, "module", None) or ""
            assert not module.startswith("vadapt.tasks."), path


def test_training_knows_the_types_of_tasks_models_and_states():
    """No `Any` for what the contract describes, in no signature and no field."""
    described = {"task", "model", "state", "system", "initial"}
    found = 0
    for path in FILES:
        if room(path) != "training":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.arg if isinstance(node, ast.arg) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
            if name in described and node.annotation is not None:
                found += 1
                assert ast.unparse(node.annotation) != "Any", (path, node.lineno)
    assert found > 10


def test_general_code_of_weights_names_no_family():
    families = {path.stem for path in (PACKAGE / "weights" / "families").glob("[a-z]*.py")}
    assert {"clip", "vig"} <= families
    for path in FILES:
        if path.parent.name == "families":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = getattr(node, "module", None) or ""
            assert not module.startswith("vadapt.weights.families."), (path, module)
            if path.parent.name == "weights" or path.stem == "models":
                assert getattr(node, "value", None) not in families, (path, node.value)


def test_files_do_not_import_in_a_circle():
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {
            f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules
            else node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }  # fmt: skip
        graph[name] = (found & set(modules)) - {name}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(graph[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_no_file_is_too_long():
    long = {
        str(path): count
        for path in PACKAGE.rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def in_a_fresh_interpreter(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return result.stdout.strip()


HEAVY = ("torch", "transformers", "tensorflow", "orbax", "grain", "tensorflow_datasets", "wandb")


def test_importing_vadapt_drags_in_nothing_heavy():
    code = (
        "import sys, vadapt; vadapt.create, vadapt.adapt, vadapt.split, vadapt.load_weights;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert in_a_fresh_interpreter(code) == "[]"


def test_importing_vadapt_does_not_even_import_jax():
    # `import vadapt` is to stay under a second; jax and flax, on first use, are most of one. The
    # time itself is measured by benchmarks/import_time.py.
    code = "import sys, vadapt; print([name for name in ('jax', 'flax') if name in sys.modules])"
    assert in_a_fresh_interpreter(code) == "[]"


def test_a_clone_does_not_hide_the_datasets_of_hugging_face(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("theirs = True\n")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r}); import datasets; print(datasets.theirs)"
    )
    assert in_a_fresh_interpreter(code) == "True"
    code += "; from vadapt.datasets.msip.layouts import TOTAL; print(TOTAL)"
    assert in_a_fresh_interpreter(code).split() == ["True", "178756"]


def test_every_public_name_is_there():
    import vadapt

    assert len(vadapt.__all__) <= 25
    for name in vadapt.__all__:
        assert getattr(vadapt, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = vadapt.nothing_like_it
