"""The build's decisions: whether CUDA is compiled, for which GPUs, and what a wheel requires."""

import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import load

setup = load("setup")
build_backend = sys.modules["build_backend"]


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "env", "enabled", "reason"),
    [
        ("13.2", "13.0", {}, True, "torch has CUDA 13.2, nvcc is 13.0"),
        ("13.2", "12.8", {}, False, "majors differ"),
        ("13.2", None, {}, False, "no nvcc"),
        (None, "13.0", {}, False, "torch is built without CUDA"),
        ("13.2", "13.0", {"SOFTREG_NO_CUDA": "1"}, False, "SOFTREG_NO_CUDA=1"),
        ("13.2", "13.0", {"FORCE_CUDA": "1"}, True, "nvcc is 13.0"),
        ("13.2", "13.0", {"FORCE_CUDA": "0", "SOFTREG_NO_CUDA": "0"}, True, "nvcc is 13.0"),
    ],
)
def test_cuda_switch(
    torch_cuda: str | None, nvcc: str | None, env: dict[str, str], enabled: bool, reason: str
) -> None:
    plan = setup.plan_cuda(torch_cuda, nvcc, env)
    assert plan.enabled is enabled
    assert reason in plan.reason


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "env", "words"),
    [
        (None, "13.0", {"FORCE_CUDA": "1"}, "FORCE_CUDA=1, but torch is built without CUDA"),
        ("13.2", None, {"FORCE_CUDA": "1"}, "FORCE_CUDA=1, but .* no nvcc"),
        ("13.2", "13.0", {"FORCE_CUDA": "1", "SOFTREG_NO_CUDA": "1"}, "contradict"),
    ],
)
def test_forced_cuda_that_cannot_be(
    torch_cuda: str | None, nvcc: str | None, env: dict[str, str], words: str
) -> None:
    with pytest.raises(SystemExit, match=words):
        setup.plan_cuda(torch_cuda, nvcc, env)


def test_cuda_home_needs_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper script called nvcc makes torch guess a folder without headers."""
    wrapper, toolkit = tmp_path / "local", tmp_path / "cuda"
    for home in (wrapper, toolkit):
        (home / "bin").mkdir(parents=True)
        (home / "bin/nvcc").touch()
    (toolkit / "include").mkdir()
    (toolkit / "include/cuda_runtime.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert setup.find_cuda_home(str(wrapper)) == toolkit
    monkeypatch.setenv("CUDA_HOME", str(wrapper))
    assert setup.find_cuda_home(str(toolkit)) == toolkit


def test_default_archs_are_those_nvcc_knows() -> None:
    listed = (
        "compute_75\ncompute_80\ncompute_86\ncompute_89\ncompute_90\ncompute_100\ncompute_103\n"
    )
    assert setup.default_archs(listed, "x86_64") == "7.5;8.0;9.0;10.0+PTX"
    listed += "compute_110\ncompute_120\n"
    assert setup.default_archs(listed, "x86_64") == "7.5;8.0;9.0;10.0;12.0+PTX"
    assert setup.default_archs(listed, "aarch64") == "7.5;8.0;9.0;10.0;11.0;12.0+PTX"


def test_numbers_print_where_the_compiler_would_link_a_second_cxx_library(tmp_path: Path) -> None:
    """They do not, beside torch 2.11, where the two copies share their data."""
    source, library = tmp_path / "print.cpp", tmp_path / "print.so"
    source.write_text(
        "#include <sstream>\n#include <string>\n"
        'extern "C" const char* text() {\n'
        "  static std::string result;\n"
        '  std::ostringstream out;\n  out << 2.5 << " and " << 12;\n'
        "  result = out.str();\n  return result.c_str();\n}\n"
    )
    command = ["g++", "-shared", "-fPIC", "-static-libstdc++", str(source), "-o", str(library)]
    subprocess.run([*command, *setup.loaded_cxx_library()], check=True)
    code = (
        f"import ctypes, torch\ntext = ctypes.CDLL({str(library)!r}).text\n"
        "text.restype = ctypes.c_char_p\nprint(text().decode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2.5 and 12\n", done.stderr


def test_a_library_is_taken_again_for_the_same_sources_and_tools_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "csrc/core").mkdir(parents=True)
    (tmp_path / "setup.py").write_text("build")
    facts = {"torch": "2.15.0", "headers": "0123"}

    def keys_after(edits: dict[str, str]) -> list[str]:
        for name, text in edits.items():
            (tmp_path / name).write_text(text)
        return [setup.library_key(facts), setup.library_key({**facts, "headers": "4567"})]

    source = {"csrc/core/exp.h": "a"}
    first = keys_after(source)
    assert first == keys_after(source)
    others = [
        keys_after(edit)
        for edit in ({"csrc/core/exp.h": "b"}, {"csrc/core/log.h": "a"}, {"setup.py": "other"})
    ]
    every_key = [key for keys in (first, *others) for key in keys]
    assert len(set(every_key)) == len(every_key)


def test_a_wheel_is_tied_to_its_torch_and_an_sdist_is_not() -> None:
    assert "torch==2.15.*" in setup.dependencies("2.15.0+cu132")
    assert f"torch>={build_backend.MINIMUM_TORCH}" in setup.dependencies(None)
    nightly = setup.dependencies("2.16.0.dev20261101+cpu")
    assert "torch==2.16.0.dev20261101" in nightly
    assert not any("torchvision" in requirement for requirement in nightly)


def test_versions_are_compared_as_numbers() -> None:
    oldest = setup.version_of(build_backend.MINIMUM_TORCH)
    assert setup.version_of("2.9.1") < oldest == setup.version_of("2.11.0+cu130")
    assert setup.version_of("3.0.0a0") > oldest


def test_torch_of_the_system_is_seen_where_the_environment_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    counts = {}
    for answer in ("true", "false"):
        (tmp_path / "pyvenv.cfg").write_text(f"include-system-site-packages = {answer}\n")
        counts[answer] = len(build_backend._target_folders())
    assert counts == {"true": 5, "false": 2}


def test_torch_is_asked_for_only_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = build_backend.build_meta
    monkeypatch.setattr(hooks, "get_requires_for_build_wheel", lambda settings: ["ninja"])
    assert build_backend.get_requires_for_build_wheel() == ["ninja"]
    monkeypatch.setattr(build_backend, "expose_target_torch", lambda: False)
    assert build_backend.get_requires_for_build_wheel() == ["ninja", "torch>=2.11"]
