"""Checks that the build left torch alone, and what wheel and sdist say of the torch they need.

python .ci/check_metadata.py TORCH_VERSION [SDIST]
"""

import sys
import tarfile
from importlib.metadata import requires, version

expected = sys.argv[1]
assert version("torch").split("+")[0] == expected, version("torch")
minor = ".".join(expected.split(".")[:2])
installed = requires("softreg-ext") or []
assert f"torch=={minor}.*" in installed, installed
if len(sys.argv) > 2:
    with tarfile.open(sys.argv[2]) as sdist:
        names = {name.split("/", 1)[-1]: name for name in sdist.getnames()}
        info = sdist.extractfile(names["PKG-INFO"])
        assert info is not None
        needs = [
            line for line in info.read().decode().splitlines() if "Requires-Dist: torch" in line
        ]
    assert needs[0] == "Requires-Dist: torch>=2.11", needs
    for name in ("csrc/core/exp.h", "tests/oracle.py", "build_backend.py"):
        assert name in names, name
print(f"torch {version('torch')} left as it was; metadata as it should be")
