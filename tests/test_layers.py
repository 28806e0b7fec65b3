"""The layers of csrc/: an #include points to the same layer or further down, never up."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))

# The first pattern that matches a path below csrc/ gives its layer; 5 is the lowest.
LAYERS = [
    (r"core/", 5),
    (
        r"(kernel_args|row_target|parts)\.h|cpu/kernels|cuda/\w+\.cuh?$|cuda/(\w+_kernel|launch_plan)\.h",
        4,
    ),
    (
        r"cpu/|cuda/|meta/|((linear_)?args|checks|row_matrix|kernel_inputs|(float|layer)_products|layer_rows)\.",
        3,
    ),
    (r"autograd/|(ops|linear_cross_entropy|no_autocast|module)\.", 2),
]
# What a layer may include from outside, as patterns of <...>.
OUTSIDE = {
    5: r"math\.h",
    4: r"algorithm|cstdint|type_traits|cuda_\w+\.h|ATen/cpu/vec/\w+\.h|c10/util/(BFloat16|Half)\.h",
}


def layer(path: str) -> int:
    return next(number for pattern, number in LAYERS if re.match(pattern, path))


def violations(path: str, text: str) -> list[str]:
    """The include lines of a source that its layer does not allow."""
    here, found = layer(path), []
    for included in re.findall(r'#include "(.+?)"', text):
        target = included
        if not (CSRC / included).exists():
            target = str((CSRC / path).parent.joinpath(included).relative_to(CSRC))
        if layer(target) < here:
            found.append(included)
    for included in re.findall(r"#include <(.+?)>", text):
        if here in OUTSIDE and not re.fullmatch(OUTSIDE[here], included):
            found.append(included)
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_includes_point_down(source: Path) -> None:
    assert violations(str(source.relative_to(CSRC)), source.read_text()) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("core/exp.h", '#include "kernel_args.h"'),
        ("core/exp.h", "#include <vector>"),
        ("cpu/kernels.h", "#include <ATen/core/Tensor.h>"),
        ("cpu/kernels.inc.h", '#include "args.h"'),
        ("cpu/cross_entropy.cpp", '#include "ops.h"'),
    ],
)
def test_the_rule_can_fail(path: str, line: str) -> None:
    assert len(violations(path, line)) == 1


def test_knowledge_points_down() -> None:
    """No pointers in the formulas, no tensors in the kernels."""
    for source in SOURCES:
        text = re.sub(r"//.*", "", source.read_text())
        number = layer(str(source.relative_to(CSRC)))
        if number == 5:
            assert not re.search(r"\w \*|\w\* ", text.replace(" * ", "×")), source
        if number >= 4:
            assert "Tensor" not in text, source
