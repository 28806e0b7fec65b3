"""Builds `softreg_ext._C`. Metadata: pyproject.toml; the search for torch: build_backend.py."""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from build_backend import MINIMUM_TORCH, expose_target_torch  # noqa: E402

IS_X86 = platform.machine() in ("x86_64", "AMD64")
# at::vec's portable vectors are loops over lanes there. Those that gcc unrolls at once, as it would
# without this, it does not turn into vector instructions later.
X86_GENERIC_FLAGS = ["--param=max-completely-peel-times=4"]
# One file of csrc/cpu per instruction set, compiled with its own flags and chosen at run time.
X86_KERNEL_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
        *("-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    ],
}
KERNEL_FLAGS = {
    "generic": ["-DCPU_CAPABILITY=DEFAULT", *(X86_GENERIC_FLAGS if IS_X86 else [])],
    **(X86_KERNEL_FLAGS if IS_X86 else {}),
}
# Each is compiled once for each of these: compilers run side by side, and none for minutes.
KERNEL_DTYPES = {
    "float32": "float",
    "float64": "double",
    "bfloat16": "c10::BFloat16",
    "float16": "c10::Half",
}
# at::parallel_for is serial without OpenMP; no -std: torch chooses the one its headers need.
# Products and sums are rounded one by one unless mul_add says so: a gradient has the same bits from
# either pass, into whichever loop it is inlined. at::vec's headers trip the four warnings off.
CXX_FLAGS = [
    *("-O3", "-g0", "-ffp-contract=off", "-fopenmp", "-fvisibility=hidden"),
    *(
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Wno-psabi",
        "-Wno-uninitialized",
        "-Wno-maybe-uninitialized",
    ),
    *(f"-DSOFTREG_KERNELS_{name.upper()}" for name in KERNEL_FLAGS),
]
# How many compilers run at a time.
JOBS = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
# What is compiled for 8.0 runs on 8.6, 8.7 and 8.9 as well: within a major version code is upward
# compatible. 11.0 is there beside Arm processors alone.
CUDA_ARCHS = ("7.5", "8.0", "9.0", "10.0", "11.0", "12.0")


class CudaPlan(NamedTuple):
    """Whether the CUDA sources are compiled, and why (not)."""

    enabled: bool
    reason: str


def plan_cuda(torch_cuda: str | None, nvcc_cuda: str | None, env: dict[str, str]) -> CudaPlan:
    """Decide about the CUDA sources.

    Args:
        torch_cuda: the CUDA version torch was built with ("13.2"), None for a CPU build.
        nvcc_cuda: the release of the nvcc found ("13.0"), None where there is none.
        env: the environment; SOFTREG_NO_CUDA=1 says no, FORCE_CUDA=1 makes a no an error.
    """
    forced = env.get("FORCE_CUDA") == "1"
    if env.get("SOFTREG_NO_CUDA") == "1":
        if forced:
            raise SystemExit("FORCE_CUDA=1 and SOFTREG_NO_CUDA=1 contradict each other: unset one.")
        return CudaPlan(False, "SOFTREG_NO_CUDA=1")
    if torch_cuda is None:
        plan = CudaPlan(False, "torch is built without CUDA")
    elif nvcc_cuda is None:
        plan = CudaPlan(False, f"torch has CUDA {torch_cuda}, but no nvcc with headers was found")
    elif torch_cuda.split(".")[0] != nvcc_cuda.split(".")[0]:
        plan = CudaPlan(False, f"torch has CUDA {torch_cuda}, nvcc is {nvcc_cuda}: majors differ")
    else:
        plan = CudaPlan(True, f"torch has CUDA {torch_cuda}, nvcc is {nvcc_cuda}")
    if forced and not plan.enabled:
        raise SystemExit(f"FORCE_CUDA=1, but {plan.reason}. Set CUDA_HOME or unset FORCE_CUDA.")
    return plan


def find_cuda_home(guess: str | None) -> Path | None:
    """The first toolkit folder that holds both nvcc and its headers.

    torch guesses the folder from the nvcc on PATH, which is wrong where that is a wrapper script.
    """
    for folder in (os.environ.get("CUDA_HOME"), guess, "/usr/local/cuda"):
        home = Path(folder) if folder else None
        if home and (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            return home
    return None


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def nvcc_output(cuda_home: Path, option: str) -> str:
    return output_of(str(cuda_home / "bin/nvcc"), option)


def nvcc_release(cuda_home: Path | None) -> str | None:
    if cuda_home is None:
        return None
    found = re.search(r"release (\d+\.\d+)", nvcc_output(cuda_home, "--version"))
    return found.group(1) if found else None


def loaded_cxx_library() -> list[str]:
    """The C++ library that torch runs on: linked by its path, it comes before any other copy.

    A compiler that has none but a static one, or prefers it, would put a second copy into the
    extension; beside torch 2.11 the two share some of their data, and numbers in messages crash.
    """
    maps = Path("/proc/self/maps")
    mapped = maps.read_text() if maps.exists() else ""
    return sorted(set(re.findall(r"/\S*/libstdc\+\+\.so\.\S+", mapped)))[:1]


def default_archs(supported: str, machine: str = platform.machine()) -> str:
    """TORCH_CUDA_ARCH_LIST for a machine without a GPU, where torch's own default fails.

    Args:
        supported: what `nvcc --list-gpu-arch` prints (compute_75 ... compute_121).
        machine: the processor that the code is for.
    """
    numbers = set(re.findall(r"compute_(\d+)\b", supported))
    if machine != "aarch64":
        numbers -= {"110"}
    archs = [arch for arch in CUDA_ARCHS if arch.replace(".", "") in numbers]
    return ";".join(archs) + "+PTX"


def library_key(facts: dict[str, object]) -> str:
    """A digest of what decides the compiled library: `facts`, the sources and this file.

    Not of where torch lies: where there is none yet, pip installs it anew for each build, in
    another place each time.
    """
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path in [ROOT / "setup.py", *sorted(ROOT.glob("csrc/**/*.[ch]*"))]:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(content)} ".encode() + content)
    return digest.hexdigest()


def version_of(text: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def dependencies(torch_version: str | None) -> list[str]:
    """Run-time requirements; `torch_version` ties a wheel to the torch minor it is built for."""
    always = ["numpy", "tqdm", "matplotlib", "pillow"]
    if torch_version is None:
        return [f"torch>={MINIMUM_TORCH}", "torchvision", *always]
    public = torch_version.split("+")[0]
    if "dev" in public:  # a nightly has no torchvision of its own that a resolver could find
        return [f"torch=={public}", *always]
    return [f"torch=={'.'.join(public.split('.')[:2])}.*", "torchvision>=0.26", *always]


def main() -> None:
    if {"sdist", "egg_info"} & set(sys.argv):  # describe the sources: no torch is needed
        setup(install_requires=dependencies(None))
        return
    if not expose_target_torch():
        raise SystemExit(
            "softreg_ext is compiled against torch, and none was found.\n"
            "Install it first (pip install torch setuptools ninja), then run\n"
            "  pip install --no-build-isolation ."
        )

    import torch
    from torch.utils import cpp_extension

    if version_of(torch.__version__) < version_of(MINIMUM_TORCH):
        raise SystemExit(
            f"softreg_ext needs torch {MINIMUM_TORCH} or newer, but found {torch.__version__}: "
            "pip install --upgrade torch"
        )
    cuda_home = find_cuda_home(cpp_extension.CUDA_HOME)
    cuda = plan_cuda(torch.version.cuda, nvcc_release(cuda_home), dict(os.environ))
    print(f"softreg_ext: CUDA kernels {'on' if cuda.enabled else 'off'}: {cuda.reason}")
    if cuda.enabled:
        cpp_extension.CUDA_HOME = str(cuda_home)
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            supported = nvcc_output(cuda_home, "--list-gpu-arch")
            os.environ["TORCH_CUDA_ARCH_LIST"] = default_archs(supported)

    class BuildKernels(cpp_extension.BuildExtension):
        """Adds what setuptools lacks: flags of its own for each instruction set's file.

        And a library that was compiled before is taken again, though torch has moved since.
        """

        def build_extension(self, ext):
            facts = {
                "version": self.distribution.get_version(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda if cuda.enabled else None,
                "cuda_reason": cuda.reason,
                "cuda_archs": os.environ.get("TORCH_CUDA_ARCH_LIST") if cuda.enabled else None,
                "cxx_flags": CXX_FLAGS,
                "kernel_flags": KERNEL_FLAGS,
            }
            library = Path(self.get_ext_fullpath(ext.name))
            kept = Path(self.build_temp, library.name)
            key_file = kept.with_suffix(".key")
            key = library_key({**facts, **self.tools(ext)})
            if key_file.exists() and key_file.read_text() == key:
                print("softreg_ext: compiled before, from these sources and for this torch")
                library.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(kept, library)
            else:
                key_file.unlink(missing_ok=True)
                self.compile_extension(ext)
                shutil.copy2(library, kept)
                key_file.write_text(key)
            facts.update(library=library.name, built=time.time())
            library.with_name("_build_info.json").write_text(json.dumps(facts, indent=2) + "\n")

        def tools(self, ext) -> dict[str, object]:
            """What compiles and links, and the headers' version."""
            return {
                "headers": torch.version.git_version,
                "compiler": output_of(*shlex.split(cpp_extension.get_cxx_compiler()), "--version"),
                "command": [*self.compiler.compiler_so, *self.compiler.linker_so],
                "linked": ext.extra_link_args,
                "nvcc": nvcc_output(cuda_home, "--version") if cuda.enabled else None,
                "nvcc_flags": [os.environ.get(f"NVCC_{x}_FLAGS") for x in ("PREPEND", "APPEND")],
            }

        def compile_extension(self, ext) -> None:
            def compile_kernels(kernels: tuple[str, str]) -> list[str]:
                name, dtype = kernels
                flags = [*KERNEL_FLAGS[name], f"-DSOFTREG_DTYPE={KERNEL_DTYPES[dtype]}"]
                return self.compiler.compile(
                    [f"csrc/cpu/kernels_{name}.cpp"],
                    output_dir=str(Path(self.build_temp, f"kernels_{name}_{dtype}").resolve()),
                    include_dirs=ext.include_dirs,
                    extra_postargs={"cxx": CXX_FLAGS + flags, "nvcc": []},
                )

            with ThreadPoolExecutor(JOBS) as pool:
                for objects in pool.map(compile_kernels, product(KERNEL_FLAGS, KERNEL_DTYPES)):
                    ext.extra_objects.extend(objects)
            super().build_extension(ext)

        def copy_extensions_to_source(self):
            super().copy_extensions_to_source()
            built = Path(self.build_lib, "softreg_ext", "_build_info.json")
            self.copy_file(str(built), str(ROOT / "softreg_ext"), level=self.verbose)

    sources = [
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.glob("csrc/**/*.c*"))
        if path.suffix in (".cpp", ".cu")
        and not path.match("cpu/kernels_*")
        and (cuda.enabled or path.parent.name != "cuda")
    ]
    # The few CUDA sources take longest, an architecture at a time: jobs that are left share those.
    nvcc_threads = max(1, JOBS // max(1, sum(source.endswith(".cu") for source in sources)))
    make_extension = cpp_extension.CUDAExtension if cuda.enabled else cpp_extension.CppExtension
    extension = make_extension(
        "softreg_ext._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3", f"--threads={nvcc_threads}"]},
        extra_link_args=["-fopenmp", "-s", *loaded_cxx_library()],
    )
    # Objects of one torch must not be taken for those of another: a build folder for each.
    build_base = f"build/py{platform.python_version()}-torch{torch.__version__}"
    for stale in ROOT.glob(f"{build_base}/lib*"):  # else modules since deleted get into the wheel
        shutil.rmtree(stale)
    setup(
        install_requires=dependencies(torch.__version__),
        ext_modules=[extension],
        cmdclass={"build_ext": BuildKernels},
        options={"build": {"build_base": build_base}},
    )


if __name__ == "__main__":
    main()
