"""An install without a clone: the package is built, installed beside what is here, and used.

Nothing is fetched: the new environments see the packages of this one behind their own.
"""

import json
import re
import shutil
import site
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import vadapt
from tests.processes import ROOT, finish, spawn
from tests.recipes import CONFIGS
from vadapt.__main__ import COMMANDS

FOLDERS = ("vadapt", "configs", "datasets", "docs", "launch")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "*.md", "LICENSE", "tests/test_[im]*.py")
OWN = '''
"""A recipe of my own.

Beside it lies what it needs.
"""

import beside_me

from vadapt.configs import pad_msip, parts


def get_config(arg=""):
    config = pad_msip.get_config("scenes")
    config.total_steps = beside_me.STEPS
    config.optimizer = parts.adamw(0.25, parts.named("cosine", warmup=0.0), weight_decay=0.0)
    return config
'''


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The repository without its history, in a folder of the package's name."""
    root = tmp_path_factory.mktemp("above") / "vadapt"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for pattern in FILES for path in ROOT.glob(pattern)):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    return root


@pytest.fixture(scope="module")
def built(clone, tmp_path_factory):
    """The source distribution, and the wheel that is made of that alone."""
    out = tmp_path_factory.mktemp("built")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    finish(spawn([sys.executable, "-c", code, out], cwd=clone))
    (source,) = out.glob("*.tar.gz")
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    finish(spawn([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", out, source]))
    (wheel,) = out.glob("*.whl")
    return source, wheel


def new_environment(root, *what):
    """An environment with one package of its own, and those of this one; returns its programs."""
    venv.create(root, symlinks=True)
    (packages,) = root.glob("lib/python*/site-packages")
    (packages / "behind.pth").write_text("\n".join(site.getsitepackages()))
    python = root / "bin" / "python"
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet"]
    finish(spawn([*pip, "--no-deps", "--no-index", "--no-build-isolation", *what]))
    return python.parent


@pytest.fixture(scope="module")
def programs(built, tmp_path_factory):
    return new_environment(tmp_path_factory.mktemp("plain"), built[1])


@pytest.fixture
def call(programs, tmp_path):
    """Calls an installed program in an empty folder; returns both its outputs."""

    def run(*command, code=0):
        return finish(start(programs, *command, cwd=tmp_path), code=code)

    return run


def start(programs, program, *arguments, cwd):
    """A process that does not know of the clone, which PYTHONPATH may name."""
    return spawn(["env", "-u", "PYTHONPATH", programs / program, *arguments], cwd=cwd)


def test_the_main_job_runs_in_an_empty_folder(call, tmp_path):
    tiny = {
        "total_steps": 2,
        "batch_size": 8,
        "data.num_scenes": 16,
        "eval.probe_scenes": 8,
        "task.decoder_depth": 1,
        "model.options.depth": 2,
        "model.allow_unexpected": "('(backbone/)?blocks/[2-5]/.*', 'decoder/blocks/[1-9]/.*')",
    }
    flags = [f"--config.{name}={value}" for name, value in tiny.items()]
    arguments = ("--config=pad_msip:scenes", "--workdir=run", *flags)
    said, _ = call("vadapt", "train", *arguments)
    assert re.search(r"probe/miou|frozen +adapted", said)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["steps"], {"probe/frozen", "probe/adapted"} <= set(result)) == (2, True)
    assert (tmp_path / "run" / "adapter.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_recipes_go_by_their_names(call):
    said, _ = call("vadapt", "list", "recipes")
    assert [line.split()[0] for line in said.splitlines()[1:] if line] == CONFIGS
    said, _ = call("vadapt", "train", "--config", "rein_gta:frozen", "--help")
    assert said.startswith("Rein from GTA5")
    assert "--config.method.name=none" in said
    _, errors = call("vadapt", "train", "--config=pad_mspi:scenes", "--workdir=run", code=1)
    assert "no config file 'pad_mspi'; nearest: 'pad_msip'" in errors
    _, errors = call("vadapt", "train", "--config=pad_msip:scnes", "--workdir=run", code=1)
    assert "--config=pad_msip:scnes: unknown argument ['scnes']" in errors


def test_every_command_says_what_it_takes(call):
    said, _ = call("vadapt", "--help")
    assert re.findall(r"^  (\w+)  ", said, re.MULTILINE) == list(COMMANDS)
    assert len(said.splitlines()) < 25
    takes = {"predict": "--images", "weights": "merge", "check": "--layout", "list": "recipes"}
    for command, option in takes.items():
        said, _ = call("vadapt", command, "--help")
        assert said.startswith(f"usage: vadapt {command} ")
        assert option in said
    for command, option in {"train": "--workdir", "plan": "--topology"}.items():
        assert f"  {option}: " in call("vadapt", command, "--help")[0]
    _, errors = call("vadapt", "evaluate", "--config=pad_msip", "--workdir=none", code=1)
    assert "--mode=evaluate: no complete checkpoint under 'none'" in errors
    assert call("vadapt", "--version")[0] == f"vadapt {vadapt.__version__}\n"
    assert "unknown command 'trian'; nearest: 'train'" in call("vadapt", "trian", code=1)[1]
    assert "usage: vadapt" in call("vadapt", code=2)[1]


def test_a_recipe_of_ones_own_uses_those_of_the_package(call, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "beside_me.py").write_text("STEPS = 7\n")
    said, _ = call("vadapt", "train", "--config=own.py", "--print_config")
    assert {"--config.total_steps=7", "--config.optimizer.lr=0.25"} <= set(said.split())
    _, errors = call("vadapt", "train", "--config=owm", "--print_config", code=1)
    assert "'own.py'" in errors


def test_builders_of_data_sets_come_along(call, tmp_path):
    said, _ = call("python", "-m", "vadapt.datasets.msip", tmp_path, code=1)
    assert "LLVIP" in said
    for name in ("coco_labels", "voc_labels"):
        assert "--tfds" in call("python", "-m", f"vadapt.datasets.{name}", "--help")[0]


@pytest.mark.parametrize("way", ["plain", "editable"])
def test_the_folder_above_a_clone_does_not_hide_the_package(way, clone, programs, tmp_path):
    if way == "editable":
        programs = new_environment(tmp_path / "editable", "--editable", clone)
    show = "import vadapt, vadapt.configs as c; print(vadapt.__version__, c.FOLDER, c.names())"
    said, _ = finish(start(programs, "python", "-c", show, cwd=clone.parent))
    version, folder, names = said.split(maxsplit=2)
    assert (version, names.strip()) == ("0.1.0", str(CONFIGS))
    assert (Path(folder) == clone / "configs") == (way == "editable")
    assert "usage: vadapt" in finish(start(programs, "vadapt", "--help", cwd=clone.parent))[0]


def test_the_source_distribution_makes_the_package_and_has_no_tests(built):
    source, wheel = built
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"configs/parts/pad.py", "docs/pad.md", "launch/slurm.sh", "LICENSE"} <= names
    assert not {name for name in names if name.startswith(("tests", "benchmarks"))}
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    top = {name.partition("/")[0] for name in packed}
    assert top == {"vadapt", "vadapt-0.1.0.dist-info"}
    for folder in ("configs", "datasets"):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.[ptm]*")}
        expected = {f"vadapt/{path.as_posix()}" for path in files if path.suffix != ".pyc"}
        assert expected
        assert expected <= packed
