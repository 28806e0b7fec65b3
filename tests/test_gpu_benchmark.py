"""The benchmark of a GPU, as far as a machine without one can run it: a clock in its place."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench_cross_entropy
import gpu_measure
import gpu_peers
import measure
import pytest
import torch
import torch.nn.functional as F
from cells import GPU_SIZES, SIZES, VARIANTS, Cell, gpu_grid, make_inputs
from gpu_measure import GRAPHED_MODES, MODES, Steps
from gpu_peers import Peer
from peers import torch_loss
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

import softreg_ext

SMALL = Cell((6, 5), "float32", 1)


class Clock:
    """What gpu_measure.Gpu measures on a device, on the host."""

    def seconds(self, steps: Steps) -> float:
        prepared = steps.prepare()
        begin = time.perf_counter()
        steps.run(prepared)
        return time.perf_counter() - begin

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        call()
        return 64

    def graph(self, call: Callable[[], Any]) -> Callable[[], Any]:
        return call


def overwriting(logits: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
    """The gradient in the place of the logits, once the loss is there."""
    loss = torch_loss(logits * 1, target, **options)
    with torch.no_grad():
        logits.data.fill_(0.5)
    return loss


def broken(*arguments: Any, **options: Any) -> torch.Tensor:
    raise RuntimeError("no such luck\nand more of it")


def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
    return torch_loss(*arguments, **options) * 1.01


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Peer]:
    found = {
        "softreg_ext": Peer(softreg_ext.cross_entropy),
        "eager": Peer(torch_loss),
        "liger-kernel": Peer(overwriting, overwrites=True),
    }
    missing = {"flash-attn": "not there"}
    monkeypatch.setattr(gpu_measure, "peers_for", lambda cell: (dict(found), dict(missing)))
    monkeypatch.setattr(measure, "MOST_ROUNDS", 3)
    monkeypatch.setattr(measure, "LEAST_ROUNDS", 3)
    monkeypatch.setattr(gpu_measure, "Gpu", Clock)
    return found


def measured(cell: Cell) -> list[dict[str, Any]]:
    return list(gpu_measure.measure(cell, 0.01, Clock()))


def test_grid() -> None:
    cells = list(gpu_grid(quick=False))
    assert len(cells) == len(set(cells))
    for dtype in ("float32", "bfloat16"):
        assert {c.shape for c in cells if c.dtype == dtype} >= {*GPU_SIZES, *SIZES}
    assert {cell.variant for cell in cells} == set(VARIANTS)
    assert {cell.device for cell in cells} == {"cuda"}
    assert max(cell.logits for cell in cells) == 2**31
    assert len(list(gpu_grid(quick=True))) < 10


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4)])
def test_rows(variant: str, shape: tuple[int, ...], peers: dict[str, Peer]) -> None:
    rows = measured(Cell(shape, "float32", 1, variant))
    assert {frozenset(row) for row in rows} == {frozenset(rows[0])}
    timed = [row for row in rows if not row["note"]]
    yardsticks = {"read", "copy"}
    for mode in (*MODES, *GRAPHED_MODES.values()):
        of_mode = {row["peer"] for row in timed if row["mode"] == mode}
        expected = {*peers, *yardsticks}
        assert of_mode == (expected - {"liger-kernel"} if mode == "backward" else expected)
    assert [(row["peer"], row["note"]) for row in rows if row["note"]] == [
        ("flash-attn", "not there")
    ]


@pytest.mark.parametrize(
    ("loss", "why"), [(broken, "RuntimeError: no such luck"), (wrong, "is wrong by")]
)
def test_a_peer_that_fails_is_left_out(loss: Any, why: str, peers: dict[str, Peer]) -> None:
    peers["quack-kernels"] = Peer(loss)
    rows = [row for row in measured(SMALL) if row["peer"] == "quack-kernels"]
    assert len(rows) == 1
    assert why in rows[0]["note"]
    assert rows[0]["median_s"] is None


def test_ours_must_not_fail(peers: dict[str, Peer]) -> None:
    peers["softreg_ext"] = Peer(wrong)
    with pytest.raises(AssertionError, match="softreg_ext is wrong"):
        measured(SMALL)


def test_backward_alone_is_all_of_it() -> None:
    """Nothing of it is done in the forward pass, which is not timed."""
    inputs = make_inputs(Cell((64, 1024), "float32", 1, "plain"))
    steps = gpu_measure.backward_steps("softreg_ext", Peer(softreg_ext.cross_entropy), inputs)
    recorded = steps.prepare()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        steps.run(recorded)
    assert "softreg_ext::cross_entropy_backward" in {x.key for x in profiled.key_averages()}


def test_time_is_up(peers: dict[str, Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of = gpu_measure.within(1e-9, 0.01)
    time.sleep(0.001)
    assert [row["note"] for row in rows_of(SMALL)] == ["time was up"]
    assert len(list(gpu_measure.within(None, 0.01)(SMALL))) > 10


def test_reference_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are found wherever they are, and the loss is that of all samples."""
    for variant in VARIANTS:
        inputs = make_inputs(Cell((7, 50), "float64", 1, variant))
        call = measure.call_of(torch_loss, inputs, MODES[2])
        monkeypatch.setattr(measure, "EXACT_LOGITS", 1 << 26)
        assert len(list(measure.exact(inputs))) == 1
        monkeypatch.setattr(measure, "EXACT_LOGITS", 100)
        assert len(list(measure.exact(inputs))) == 4
        assert max(measure.errors(call, measure.exact(inputs))) < 1e-14

        def off(row: int, call: Any = call) -> Any:
            loss, grad = call()
            grad = grad.clone()
            grad[row, 3] += grad.abs().max()
            return loss, grad

        for row in (0, 6):
            assert measure.errors(lambda row=row: off(row), measure.exact(inputs))[1] > 0.4


def test_nan_is_an_error(peers: dict[str, Peer]) -> None:
    peers["quack-kernels"] = Peer(lambda x, t, **options: F.cross_entropy(x, t) + (0 * x).sum() / 0)
    notes = {row["peer"]: row["note"] for row in measured(SMALL)}
    assert "is wrong by (nan, nan)" in notes["quack-kernels"]


@pytest.mark.parametrize(
    ("shape", "dtype", "variant", "forward"),
    [
        ((6, 5), "float32", "plain", 6 * 5 * 4 + 6 * 8),
        ((6, 5), "bfloat16", "plain", 6 * 5 * 2 + 6 * 8),
        ((6, 5), "float32", "probabilities", 2 * 6 * 5 * 4),
        ((6, 5), "float32", "class weights", 6 * 5 * 4 + 6 * 8 + 5 * 4),
        ((6, 5), "float32", "reduction none", 6 * 5 * 4 + 6 * 8 + 6 * 4),
        ((2, 5, 3, 4), "float32", "plain", 120 * 4 + 24 * 8),
        ((2, 5, 3, 4), "float32", "reduction none", 120 * 4 + 24 * 8 + 24 * 4),
    ],
)
def test_fewest_bytes(shape: tuple[int, ...], dtype: str, variant: str, forward: int) -> None:
    inputs = make_inputs(Cell(shape, dtype, 1, variant))
    assert inputs.fewest_bytes("forward") == forward
    for mode in ("backward", "forward + backward"):
        assert inputs.fewest_bytes(mode) == forward + inputs.logits.nbytes


def test_ignored_rows_are_not_read() -> None:
    inputs = make_inputs(Cell((40, 5), "float32", 1, "half ignored"))
    counted = int((inputs.target != -100).sum())
    assert 0 < counted < 40
    assert inputs.fewest_bytes("forward") == counted * 5 * 4 + 40 * 8
    assert inputs.fewest_bytes("backward") == counted * 5 * 4 + 40 * 8 + 40 * 5 * 4


def test_each_shape_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile gives up after a few graphs of one code object."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    for rows in range(2, 22):
        loss = gpu_peers.compiled(dynamic=False)
        loss(torch.zeros(rows, 5), torch.zeros(rows).long())
    assert counters["stats"]["unique_graphs"] == 20


def test_peers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("No module named 'x'\nmore")

    installed = {"x": (absent, frozenset({"plain"}), False)}
    monkeypatch.setattr(gpu_peers, "INSTALLED", installed)
    found, missing = gpu_peers.peers_for(SMALL)
    assert list(found) == ["softreg_ext", "eager", "compiled", "compiled, dynamic"]
    assert missing == {"x": "ImportError: No module named 'x'"}
    for other in (Cell((6, 5), "float32", 1, "probabilities"), Cell((2, 5, 3), "float32", 1)):
        assert gpu_peers.peers_for(other)[1] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "3"], "--minutes is positive and of --device cuda"),
        (["--device", "cuda"], "--device cuda: nothing to run on"),
    ],
)
def test_bad_options(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_cross_entropy, "why_no_gpu", lambda: "nothing to run on")
    with pytest.raises(SystemExit):
        bench_cross_entropy.parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("peers")
def test_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [SMALL, Cell((2, 5, 3), "bfloat16", 1, "smoothing 0.1")]
    monkeypatch.setattr(bench_cross_entropy, "gpu_grid", lambda quick: cells)
    monkeypatch.setattr(bench_cross_entropy, "why_no_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a clock")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    bench_cross_entropy.main(["--device", "cuda", "--seconds", "0.01", "--out", str(tmp_path)])
    names = {path.name for path in tmp_path.glob("cross_entropy*")}
    assert names == {f"cross_entropy_gpu.{end}" for end in ("csv", "md", "png")}
    text = (tmp_path / "cross_entropy_gpu.md").read_text()
    assert text.startswith("# Softmax cross-entropy on a GPU\n\na clock, ")
    assert text.count("| 6x5 | float32 | plain |") == len(MODES) + len(GRAPHED_MODES)
