"""Losses of DTensors, by four processes: rows, classes or both shared out."""

import itertools
from collections.abc import Iterator

import pytest
import sharded_checks as checks
import torch
from processes import Processes, processes
from torch.distributed.tensor import Partial, Replicate, Shard

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)
R, P = Replicate(), Partial()
ON_TWO_DIMS = list(itertools.product((Shard(0), Shard(1), R, P), repeat=2))


def name(value: object) -> str:
    """Of placements, in the letters that DTensor has for them."""
    if not isinstance(value, tuple):
        return str(value)
    return "x".join(map(str, value))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with processes(checks.PROCESSES, tmp_path_factory.mktemp("processes")) as found:
        yield found


@pytest.mark.parametrize("placements", ON_TWO_DIMS, ids=name)
def test_any_placement(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_logits, (7, 11), 2, placements)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((8, 8), 1), ((1, 9), 0), ((5, 3), 1), ((0, 4), 1), ((11,), 0), ((2,), 0)],
    ids=name,
)
def test_uneven_shares(four: Processes, shape: tuple[int, ...], dim: int) -> None:
    """Some of which have nothing in them."""
    four.run(checks.check_logits, shape, 1, (Shard(dim),))


@pytest.mark.parametrize(
    "placements",
    [(Shard(0), Shard(1)), (Shard(2), Shard(1)), (Shard(-1), Shard(2)), (Shard(1), Shard(1))],
    ids=name,
)
def test_k_dimensional(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_logits, (3, 5, 4, 3), 2, placements)


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(1), R)], ids=name)
def test_other_targets(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_other_targets, 2, placements)


@pytest.mark.parametrize("on_target", [(R, R), (Shard(0), R), (Shard(0), Shard(0))], ids=name)
@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (R, Shard(0))], ids=name)
def test_distributed_targets(
    four: Processes, placements: checks.Placements, on_target: checks.Placements
) -> None:
    four.run(checks.check_distributed_targets, placements, on_target)


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(0), Shard(0))], ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_accuracy(four: Processes, dtype: torch.dtype, placements: checks.Placements) -> None:
    four.run(checks.check_accuracy, dtype, placements)


@pytest.mark.parametrize("placements", [(Shard(0),), (Shard(1),)], ids=name)
def test_extremes(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_extremes, placements)


@pytest.mark.parametrize("on_layer", list(itertools.product((Shard(0), R), repeat=2)), ids=name)
@pytest.mark.parametrize("on_input", [(Shard(0), R), (R, R), (Shard(0), Shard(1))], ids=name)
def test_layer(four: Processes, on_input: checks.Placements, on_layer: checks.Placements) -> None:
    four.run(checks.check_layer, 2, on_input, on_layer)


def test_k_dimensional_layer(four: Processes) -> None:
    four.run(checks.check_layer, 2, (Shard(0), R), (R, Shard(0)), (2, 3))
    four.run(checks.check_layer, 2, (Shard(0), R), (Shard(1), Shard(0)), (2,))


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(0), R)], ids=name)
def test_bad_arguments(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_bad_arguments, placements)


@pytest.mark.parametrize("placements", [(Shard(0),), (Shard(1),)], ids=name)
@pytest.mark.parametrize("label", [-1, 8])
def test_bad_label(four: Processes, label: int, placements: checks.Placements) -> None:
    four.run(checks.check_bad_label, label, placements)


def test_ignored_rows(four: Processes) -> None:
    four.run(checks.check_ignored_rows)


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(0), R)], ids=name)
def test_gradient_of_the_weight(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_weight_gradient, placements)


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(0), R), (R, R)], ids=name)
def test_changes_are_noticed(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_changes_are_noticed, placements)


def test_plain_input(four: Processes) -> None:
    four.run(checks.check_plain_input)


def test_offloaded(four: Processes) -> None:
    four.run(checks.check_offloaded)


def test_other_mesh(four: Processes) -> None:
    four.run(checks.check_other_mesh)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="DTensor.to_local has no second derivative in this torch",
)
def test_second_derivatives(four: Processes) -> None:
    four.run(checks.check_second_derivatives, (Shard(0),))


def test_no_second_derivatives_where_classes_are_shared(four: Processes) -> None:
    four.run(checks.check_second_derivatives, (Shard(1),))


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(0), R)], ids=name)
def test_autocast(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_autocast, placements)


@pytest.mark.parametrize("placements", [(Shard(0), Shard(1)), (Shard(0), R)], ids=name)
def test_compile(four: Processes, placements: checks.Placements) -> None:
    four.run(checks.check_compile, placements)


@pytest.mark.parametrize(
    ("placements", "gathered", "reduced"),
    [((Shard(0), Shard(1)), 1, 1), ((Shard(0), R), 0, 1), ((R, Shard(1)), 1, 0), ((R, R), 0, 0)],
    ids=name,
)
def test_what_travels(
    four: Processes, placements: checks.Placements, gathered: int, reduced: int
) -> None:
    four.run(checks.check_what_travels, placements, gathered, reduced)


def test_data_parallel(four: Processes) -> None:
    four.run(checks.check_data_parallel)


def test_tensor_parallel(four: Processes) -> None:
    four.run(checks.check_tensor_parallel)
