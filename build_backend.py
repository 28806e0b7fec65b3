"""PEP 517 hooks: setuptools' own, told which torch the extension is built against.

A C++ extension has to be compiled against the very torch it will be loaded beside. Inside an
isolated build that torch is out of sight, though the interpreter still knows where the target
environment keeps its packages: a torch found there is used, and only without one is torch asked
for as a build requirement (and then, by the wheel's own pin, installed in the same version).
"""

import importlib.util
import os
import site
import sys
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (hooks passed on unchanged)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

MINIMUM_TORCH = "2.11"


def expose_target_torch() -> bool:
    """Make the target environment's torch importable; return whether there is one."""
    if importlib.util.find_spec("torch") is not None:
        return True
    for folder in _target_folders():
        if os.path.isfile(os.path.join(folder, "torch", "__init__.py")):
            # Last on the path: the build's own setuptools and ninja stay in front.
            sys.path.append(folder)
            return True
    return False


def _target_folders() -> list[str]:
    """Where the target environment's packages are, in the order of its path."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    try:
        with open(os.path.join(sys.prefix, "pyvenv.cfg"), encoding="utf-8") as file:
            settings = file.read().lower().replace(" ", "")
        sees_system = "include-system-site-packages=true" in settings
    except OSError:  # no virtual environment
        sees_system = True
    if sees_system:
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        places += [sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")]
        places.append(site.getusersitepackages())
    return places


def _torch_if_missing() -> list[str]:
    return [] if expose_target_torch() else [f"torch>={MINIMUM_TORCH}"]


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_if_missing()]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_if_missing()]
