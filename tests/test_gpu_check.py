"""gpu_check.sh where there is no GPU, and its way through a machine played by a script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT

SCRIPT = ROOT / "benchmarks/gpu_check.sh"
# In the place of Python: what it is asked for tells it what to answer.
PLAYED = """#!/usr/bin/env bash
case "$*" in
  *get_device_name*) printf 'Some GPU\\n9.0\\n' ;;
  *setup.py*) echo "arch $TORCH_CUDA_ARCH_LIST"; exit {build} ;;
  *xdist*) exit 1 ;;
  *'-m pytest'*) echo '3 failed, 5 passed'; exit {tests} ;;
  *launch_shapes*) echo 'ran all launch shapes' ;;
  *print*) echo 1 ;;
  *bench_cross_entropy*) echo "${{@: -1}}" >'{folder}/asked'
    printf 'time was up\\ntime was up\\n' >'{folder}/out/cross_entropy_gpu.csv'
    printf '## Not measured\\n\\n- quack-kernels: not there\\n' >'{folder}/out/cross_entropy_gpu.md'
    exit {benchmark} ;;
  *--short*) echo 'the short table' ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
echo "$*" >>'{folder}/sanitized'
echo '========= ERROR SUMMARY: 0 errors'
case "$*" in *racecheck*) exit {racecheck} ;; esac
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run(folder: Path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": "", **environment}
    command = ["bash", str(SCRIPT), str(folder / "out")]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)


def play(
    folder: Path, sanitizer: bool = False, racecheck: int = 0, **steps: int
) -> subprocess.CompletedProcess[str]:
    """Runs the script where some steps end with a status other than 0."""
    (folder / "out").mkdir()
    statuses = {"build": 0, "tests": 0, "benchmark": 0, **steps}
    executable(folder / "python", PLAYED.format(folder=folder, **statuses))
    if sanitizer:
        played = SANITIZER.format(folder=folder, racecheck=racecheck)
        executable(folder / "cuda/bin/compute-sanitizer", played)
    return run(folder, str(folder / "python"), PATH="/usr/bin:/bin", CUDA_HOME=str(folder / "cuda"))


def test_without_a_gpu(tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable)
    assert done.returncode == 1
    assert "GPU          none: nothing was run." in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gpu_check.log"]


def test_all_is_well(tmp_path: Path) -> None:
    done = play(tmp_path, sanitizer=True)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "out/gpu_check.log").read_text()
    assert "=== build\narch 9.0" in log
    lines = done.stdout.splitlines()
    assert lines.index("the short table") < lines.index("GPU          Some GPU")
    for tool in ("memcheck", "racecheck", "initcheck"):
        assert f"{tool:12} ========= ERROR SUMMARY: 0 errors" in lines
    assert "- quack-kernels: not there" in done.stdout
    assert "2 cells not measured: time was up" in done.stdout
    assert (tmp_path / "asked").read_text().strip() == str(tmp_path / "out")
    sanitized = (tmp_path / "sanitized").read_text().splitlines()
    assert len(sanitized) == 3
    assert sum("kns=softreg" in line for line in sanitized) == 2


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("tests", "tests        FAILED (1): 3 failed, 5 passed"),
        ("benchmark", "benchmark    FAILED (1)"),
        ("build", "the-rest     not run: nothing was built"),
        ("racecheck", "racecheck    FAILED (9): ========= ERROR SUMMARY: 0 errors"),
    ],
)
def test_a_step_that_fails(tmp_path: Path, step: str, line: str) -> None:
    done = play(tmp_path, sanitizer=True, **{step: 9 if step == "racecheck" else 1})
    assert done.returncode == 1
    assert line in done.stdout


def test_says_what_it_could_not_run(tmp_path: Path) -> None:
    done = play(tmp_path)
    assert done.returncode == 0
    assert "sanitizer    not run: there is no compute-sanitizer" in done.stdout


def test_is_bash() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
