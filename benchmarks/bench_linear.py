"""A linear layer and its loss in one, against PyTorch's, and the three matrix products alone.

    python benchmarks/bench_linear.py [--quick] [--threads N] [--seconds S] [--out DIR]

Writes linear.csv and a table in linear.md. All peers run in one process and take turns; loss and
gradients of each are held against float64 before it is timed. One that takes longer than S seconds
is timed once, forward + backward.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import arguments
import torch
import torch.nn.functional as F
from measure import assert_right, peak_bytes, summary, timings
from report import OURS, write_table
from surroundings import heading, surroundings
from torch import Tensor, nn
from tqdm import tqdm

import softreg_ext

MODES = ("forward", "forward + backward")
PRODUCTS = "three products"
IGNORED = -100


class Size(NamedTuple):
    rows: int
    features: int
    classes: int
    dtype: torch.dtype = torch.float32
    ignored: float = 0.0  # part of the labels

    def __str__(self) -> str:
        text = f"{self.rows}x{self.features}x{self.classes}"
        return f"{text}, {self.ignored:.0%} ignored" if self.ignored else text

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def allowed_error(self) -> float:
        return 1e-5 if self.dtype == torch.float32 else 8 * torch.finfo(self.dtype).eps


SIZES = (
    Size(256, 256, 8000, torch.bfloat16),
    Size(1024, 512, 32000),
    Size(1024, 768, 50257),
    Size(512, 768, 128256),
    Size(1024, 768, 50257, ignored=0.5),  # prompts
    Size(1024, 768, 30522, ignored=0.85),  # a masked language model's
)
# Where the processor has instructions for bfloat16: without them PyTorch takes minutes.
BFLOAT16_SIZES = (
    Size(1024, 512, 32000, torch.bfloat16),
    Size(4096, 768, 50257, torch.bfloat16),
    Size(512, 768, 128256, torch.bfloat16),
)
QUICK_SIZES = (Size(512, 128, 32000),)


def has_bfloat16() -> bool:
    products: Any = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and bool(products._is_mkldnn_bf16_supported())


class Layer(NamedTuple):
    input: Tensor
    weight: Tensor
    target: Tensor


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_layer(size: Size) -> Layer:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(size.rows, size.features, generator=generator)
    weight = torch.randn(size.classes, size.features, generator=generator) / size.features**0.5
    target = torch.randint(size.classes, (size.rows,), generator=generator)
    target[torch.rand(size.rows, generator=generator) < size.ignored] = IGNORED
    return Layer(input.to(size.dtype), weight.to(size.dtype), target)


def eager(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(input, weight), target)


def apart(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return softreg_ext.cross_entropy(F.linear(input, weight), target)


def eager_of_picked_rows(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """As one writes it who knows that rows are ignored."""
    picked = target != IGNORED
    return eager(input[picked], weight, target[picked])


def peers(size: Size) -> dict[str, Loss]:
    torch._dynamo.reset()
    found: dict[str, Loss] = {
        OURS: softreg_ext.linear_cross_entropy,
        "softreg_ext, compiled": torch.compile(softreg_ext.linear_cross_entropy, dynamic=False),
        "softreg_ext, two ops": apart,
        "eager": eager,
        "compiled": torch.compile(eager, dynamic=False),
    }
    if size.ignored:
        found["eager, of picked rows"] = eager_of_picked_rows
    if hasattr(F, "linear_cross_entropy"):
        options = nn.LinearCrossEntropyOptions()
        found["F.linear_cross_entropy"] = lambda input, weight, target: F.linear_cross_entropy(
            input, weight, target, options=options
        )
    return found


def call_of(loss: Loss, layer: Layer, mode: str) -> Callable[[], list[Tensor]]:
    input, weight = (
        x.detach().requires_grad_(mode != "forward") for x in (layer.input, layer.weight)
    )

    def call() -> list[Tensor]:
        result = loss(input, weight, layer.target)
        if mode == "forward":
            return [result]
        return [result.detach(), *torch.autograd.grad(result, (input, weight))]

    return call


def seconds_of(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def three_products(layer: Layer) -> Callable[[], None]:
    """Of the rows that count, into memory that is in use."""
    input = layer.input[layer.target != IGNORED]
    logits = torch.randn(len(input), len(layer.weight)).to(input)
    of_input, of_weight = torch.zeros_like(input), torch.zeros_like(layer.weight)

    def call() -> None:
        torch.mm(input, layer.weight.t(), out=logits)
        torch.mm(logits, layer.weight, out=of_input)
        torch.mm(logits.t(), input, out=of_weight)

    return call


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Largest ones, as parts of the largest exact value."""
    return [
        float((x.double() - right).abs().max() / right.abs().max())
        for x, right in zip(found, exact, strict=True)
    ]


def measure(size: Size, threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    """One row for each mode and peer, and for the products.

    Raises:
        AssertionError: A peer's loss or a gradient is wrong: it is not timed then.
    """
    torch.set_num_threads(threads)
    layer = make_layer(size)
    wide = Layer(layer.input.double(), layer.weight.double(), layer.target)
    exact = call_of(eager, wide, MODES[-1])()
    losses, wrong, once = peers(size), {}, {}
    for name, loss in losses.items():
        call = call_of(loss, layer, MODES[-1])
        wrong[name] = errors(call(), exact)
        assert_right(size, name, wrong[name], size.allowed_error())
        once[name] = seconds_of(call)
    del exact, wide
    slow = {name: took for name, took in once.items() if took > seconds and name != OURS}
    for mode in MODES:
        calls: dict[str, Callable[[], Any]] = {
            name: call_of(loss, layer, mode) for name, loss in losses.items() if name not in slow
        }
        peaks = {name: peak_bytes(call) for name, call in calls.items()}
        if mode == MODES[-1]:
            calls[PRODUCTS] = three_products(layer)
        # Both of ours take the memory that is kept for large results.
        found = timings(calls, threads, seconds, untimed_calls=1)
        if mode == MODES[-1]:
            found |= {name: [took] for name, took in slow.items()}
        for name, times in found.items():
            yield {
                "size": str(size),
                "dtype": size.dtype_name,
                "threads": threads,
                "mode": mode,
                "peer": name,
                **summary(times),
                "peak_bytes": peaks.get(name),
                "largest_error": max(wrong.get(name, [0.0])),
            }


def report(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """A table for each mode: times of ours, and how many times as long the others take."""
    lines = [
        *heading("A linear layer and its loss in one", where),
        "Medians of peers in turns, each of which begins with an untimed call. The peak is what",
        "the process grows by during a call, gradients included; it is not taken of a peer that",
        "was timed once. Error: the largest of loss and gradients, as a part of the largest exact",
        "value. The three products are those of the rows that are not ignored; a peer `of picked",
        "rows` takes these out first, by hand.",
        "",
        "| rows x features x classes | dtype | mode | peer | ms | times ours | peak MB | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cell = ("size", "dtype", "mode")
    ours = {
        tuple(row[name] for name in cell): row["median_s"] for row in rows if row["peer"] == OURS
    }
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        about = tuple(row[name] for name in cell)
        times = row["median_s"] / ours[about]
        error = "" if row["peer"] == PRODUCTS else f"{row['largest_error']:.0e}"
        lines.append(
            f"| {' | '.join(about)} | {row['peer']} | {row['median_s'] * 1e3:.0f} | {times:.2f} "
            f"| {peak} | {error} |"
        )
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for a mode of a size")
    given = arguments.parse(parser, words, "threads", "seconds")
    # A graph that was kept may be of kernels that there were before.
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    where = surroundings()
    rows: list[dict[str, Any]] = []
    sizes = SIZES + (BFLOAT16_SIZES if has_bfloat16() else ())
    for size in tqdm(QUICK_SIZES if given.quick else sizes, unit="size"):
        rows += measure(size, given.threads, given.seconds)
        write_table(given.out / "linear.csv", [{**row, **where} for row in rows])
        text = report(rows, {"threads": given.threads, **where})
        (given.out / "linear.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
