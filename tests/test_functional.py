"""`cross_entropy` against PyTorch's and against the definition, over the whole option table."""

import math
from typing import Any, ClassVar

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import (
    DEVICE,
    DTYPES,
    check_against_torch,
    loss_and_grad,
    make_case,
    random_source,
)
from torch import Tensor

import softreg_ext

INDEX_ERROR = pytest.mark.index_error

# 1; around 8 lanes and the textbook's 10; the border between the two row layouts (32); no multiple
# of any vector; the border of a chunk (2048); several chunks and a tail.
CLASSES = [1, 7, 8, 9, 10, 32, 33, 100, 1000, 2048, 2049, 5003]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_matches_torch(
    dtype: torch.dtype, classes: int, reduction: str, smoothing: float, weighted: bool
) -> None:
    rows = 45 if classes > 100 else 300  # enough for the largest error to be a typical one
    logits, target, weight = make_case(rows, classes, dtype)
    target[::7] = -100
    shape = (rows,) if reduction == "none" else ()
    grad_output = torch.randn(shape, generator=random_source(1)).to(dtype)
    check_against_torch(
        logits,
        target,
        grad_output,
        reduction=reduction,
        label_smoothing=smoothing,
        weight=weight if weighted else None,
    )


@pytest.mark.parametrize("classes", [1000, 32000])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_weighted_smoothing_of_many_classes(classes: int, smoothing: float) -> None:
    logits, target, weight = make_case(12, classes, torch.float32)
    check_against_torch(logits, target, weight=weight, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 500, 9000])
def test_row_counts(rows: int, smoothing: float) -> None:
    """A part of a vector, whole vectors, one block of rows and several."""
    logits, target, _ = make_case(rows, 10, torch.float32)
    check_against_torch(logits, target, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("step", [1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("classes", [5003, 262144])
def test_climbing_logits(classes: int, step: float) -> None:
    """A maximum that grows with each block of a row costs no digits of what was summed."""
    logits = (torch.arange(classes, dtype=torch.float64) * step).float()[None]
    target = torch.tensor([classes - 1])
    ours, torchs = (
        loss_and_grad(f, logits, target, None) for f in (softreg_ext.cross_entropy, F.cross_entropy)
    )
    exact = oracle.cross_entropy(logits, target)
    # The sum is 1 or more, and is rounded before its logarithm is.
    size = max(1.0, float(exact.loss))
    oracle.assert_as_accurate(oracle.Draw(ours[0], torchs[0], exact.loss, size))
    oracle.assert_as_accurate(oracle.Draw(ours[1], torchs[1], exact.grad, 1.0))


@pytest.mark.parametrize("low", [-3e38, -1e30, -100.0, -5.0])
@pytest.mark.parametrize("leap", [255, 3000, 5002])
def test_leaping_logits(low: float, leap: int) -> None:
    """What a row begins with says nothing of the logits that follow."""
    logits, _, _ = make_case(6, 5003, torch.float32)
    logits[:, :leap] = low
    check_against_torch(logits, torch.full((6,), 5002))


@pytest.mark.parametrize("leap", [255, 3000, 5002])
def test_classes_ruled_out(leap: int) -> None:
    """Logits of -inf at a row's beginning leave what the others give alone."""
    logits, _, _ = make_case(6, 5003, torch.float32)
    target = torch.full((6,), 5002)
    rest = F.cross_entropy(logits[:, leap:].double(), target - leap).float()
    logits[:, :leap] = -math.inf
    torch.testing.assert_close(softreg_ext.cross_entropy(logits, target), rest)


@pytest.mark.parametrize("classes", [10, 100, 3000])
def test_unlikely_classes(classes: int) -> None:
    """exp(-700) is as exact, for its size, as exp(-1)."""
    logits = -100 - 600 * torch.rand(64, classes, dtype=torch.float64, generator=random_source(2))
    logits[:, 0] = 0
    target = torch.zeros(64, dtype=torch.long)
    exact = oracle.cross_entropy(logits, target, reduction="sum").grad
    ours, torchs = (
        loss_and_grad(function, logits, target, None, reduction="sum")[1]
        for function in (softreg_ext.cross_entropy, F.cross_entropy)
    )
    oracle.assert_as_accurate(oracle.at_own_size(ours[:, 1:], torchs[:, 1:], exact[:, 1:]))


@pytest.mark.parametrize("classes", [10, 100])
class TestLayouts:
    def test_rows_apart(self, classes: int) -> None:
        logits, target, _ = make_case(20, classes + 3, torch.float32)
        check_against_torch(logits[::2, 1 : classes + 1], target[::2] % classes)

    def test_transposed(self, classes: int) -> None:
        logits, _, _ = make_case(classes, 20, torch.float32)
        check_against_torch(logits.t(), torch.arange(20) % classes)

    def test_expanded_logits(self, classes: int) -> None:
        logits, _, _ = make_case(1, classes, torch.float32)
        check_against_torch(logits.expand(6, classes), torch.arange(6))

    def test_strided_target(self, classes: int) -> None:
        logits, target, _ = make_case(20, classes, torch.float32)
        check_against_torch(logits[:10], target[::2])

    def test_strided_weight(self, classes: int) -> None:
        logits, target, _ = make_case(20, classes, torch.float32)
        weight = torch.rand(2 * classes)[::2]
        check_against_torch(logits, target, weight=weight, label_smoothing=0.3)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("labels", [torch.uint8, torch.int16, torch.int32], ids=str)
    def test_narrow_target(self, classes: int, dtype: torch.dtype, labels: torch.dtype) -> None:
        logits, target, _ = make_case(20, classes, dtype)
        check_against_torch(logits, target.to(labels), reduction="none")

    def test_uint8_ignore_index(self, classes: int) -> None:
        logits, target, _ = make_case(20, classes, torch.float32)
        target[3] = 255
        check_against_torch(logits, target.to(torch.uint8), ignore_index=255)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @pytest.mark.parametrize("target_shape", [(), (1,)], ids=["0d", "1d"])
    def test_unbatched(self, classes: int, reduction: str, target_shape: tuple[int, ...]) -> None:
        logits = make_case(1, classes, torch.float64)[0][0]
        target = torch.full(target_shape, 3)
        ours = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, reduction=reduction)
        assert ours[0].shape == F.cross_entropy(logits, target, reduction=reduction).shape
        # backward of the original fails for one label in one dimension
        torchs = loss_and_grad(F.cross_entropy, logits, target.view(()), None, reduction=reduction)
        torch.testing.assert_close(ours, torchs)

    def test_grad_output_strides(self, classes: int) -> None:
        """Expanded from one value (loss.sum()), and every other value of a larger tensor."""
        logits, target, _ = make_case(20, classes, torch.float32)
        check_against_torch(logits, target, torch.tensor(0.7).expand(20), reduction="none")
        check_against_torch(logits, target, torch.randn(40)[::2], reduction="none")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("classes", [0, 10, 100])
def test_no_rows(reduction: str, classes: int) -> None:
    logits, target = torch.empty(0, classes), torch.empty(0, dtype=torch.long)
    options: dict[str, Any] = {"reduction": reduction}
    ours = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, **options)
    torchs = loss_and_grad(F.cross_entropy, logits, target, None, **options)
    torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_all_rows_ignored(reduction: str, classes: int, weighted: bool) -> None:
    logits, _, weight = make_case(5, classes, torch.float32)
    target = torch.full((5,), 2)
    options = {
        "reduction": reduction,
        "ignore_index": 2,
        "weight": weight if weighted else None,
        "label_smoothing": 0.1,
    }
    loss, grad = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, **options)
    expected = {"none": torch.zeros(5), "mean": torch.tensor(math.nan), "sum": torch.tensor(0.0)}
    torch.testing.assert_close(loss, expected[reduction], equal_nan=True)
    assert torch.equal(grad, torch.zeros_like(logits))


@pytest.mark.parametrize("classes", [5, 40, 3000])
class TestSpecialValues:
    @pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, 1e37, -1e37])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_huge_equal_logits(self, classes: int, value: float, smoothing: float) -> None:
        self.check_same(torch.full((3, classes), value), smoothing)

    @pytest.mark.parametrize("mask", [torch.finfo(torch.float32).min, -1e30, -1e9, -1e5])
    @pytest.mark.parametrize("masked", [0.5, 0.9])
    def test_masked_classes_of_no_weight(self, classes: int, mask: float, masked: float) -> None:
        """Nothing of their size is left in the loss, wherever in the row they stand."""
        logits, _, weight = make_case(3, classes, torch.float32)
        first = int(masked * classes)
        weight[:first] = 0
        logits[:, :first] = mask
        target = torch.full((3,), classes - 1)
        check_against_torch(logits, target, weight=weight, label_smoothing=0.1)
        check_against_torch(logits.flip(1), target * 0, weight=weight.flip(0), label_smoothing=0.1)

    def test_every_nan_stays_one(self, classes: int) -> None:
        """Also the one with all bits set, which GPUs make."""
        for bits in (0x7FFFFFFF, 0x7FC00000, -1):
            logits = torch.zeros(3, classes)
            logits.view(torch.int32)[1, 4] = bits
            self.check_same(logits, 0.0)

    def test_weight_of_other_classes_is_not_looked_at(self, classes: int) -> None:
        weight = torch.ones(classes)
        weight[1], weight[4] = math.inf, math.nan
        logits, target, _ = make_case(3, classes, torch.float32)
        ours, torchs = (
            loss_and_grad(f, logits, target * 0, None, weight=weight)
            for f in (softreg_ext.cross_entropy, F.cross_entropy)
        )
        torch.testing.assert_close(ours, torchs)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf"])
    @pytest.mark.parametrize("position", [0, 2, -1], ids=["first", "target", "last"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_one_logit(self, classes: int, value: float, position: int, smoothing: float) -> None:
        logits = make_case(3, classes, torch.float32)[0]
        logits[1, position] = value
        self.check_same(logits, smoothing)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_whole_row(self, classes: int, smoothing: float) -> None:
        logits = make_case(3, classes, torch.float32)[0]
        logits[1] = -math.inf
        self.check_same(logits, smoothing)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_masked_classes(self, classes: int, smoothing: float) -> None:
        """-inf but for the last classes: whole vectors and chunks of a row hold nothing."""
        logits = make_case(3, classes, torch.float32)[0]
        logits[:, :-2] = -math.inf
        self.check_same(logits.flip(1) if smoothing else logits, smoothing)
        self.check_same(logits.roll(3, dims=1), smoothing)

    def check_same(self, logits: Tensor, smoothing: float) -> None:
        """PyTorch's in float64: of 3000 classes it may lose four digits in float32."""
        target, options = torch.full((3,), 2), {"reduction": "none", "label_smoothing": smoothing}
        ours = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, **options)
        exact = loss_and_grad(F.cross_entropy, logits.double(), target, None, **options)
        torch.testing.assert_close(ours, tuple(x.float() for x in exact), equal_nan=True)

    def test_nan_in_ignored_row_stays_there(self, classes: int) -> None:
        logits, _, _ = make_case(3, classes, torch.float32)
        logits[1] = math.nan
        target = torch.tensor([1, -100, 2])
        loss, grad = loss_and_grad(softreg_ext.cross_entropy, logits, target, None)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()
        assert torch.equal(grad[1], torch.zeros(classes))

    @pytest.mark.parametrize(
        ("dtype", "size"), [(torch.float32, 2.0**24), (torch.float64, 2.0**53)], ids=str
    )
    def test_large_equal_logits(self, classes: int, dtype: torch.dtype, size: float) -> None:
        """max + log_sum would round log(C) away, and with it loss and gradient."""
        logits = torch.full((2, classes), size, dtype=dtype)
        target = torch.tensor([0, classes - 1])
        loss, grad = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, reduction="sum")
        expected = 1 / classes - F.one_hot(target, classes).to(dtype)
        torch.testing.assert_close(loss, torch.tensor(2 * math.log(classes), dtype=dtype))
        torch.testing.assert_close(grad, expected)

    def test_shift_invariance(self, classes: int) -> None:
        logits = make_case(4, classes, torch.float64)[0].round(decimals=3)
        target = torch.tensor([0, 1, 2, 3])
        for shift in (1000.0, -1000.0):
            torch.testing.assert_close(
                loss_and_grad(softreg_ext.cross_entropy, logits + shift, target, None),
                loss_and_grad(softreg_ext.cross_entropy, logits, target, None),
            )


@pytest.mark.parametrize("classes", [10, 100, 300])
def test_same_bits_twice_and_for_any_thread_count(classes: int) -> None:
    logits, target, weight = make_case(6000, classes, torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 3):
        torch.set_num_threads(count)
        results.append(
            loss_and_grad(softreg_ext.cross_entropy, logits, target, None, weight=weight)
        )
    torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_logits_and_target_are_left_alone() -> None:
    logits, target, _ = make_case(50, 10, torch.float32)
    copies = logits.clone(), target.clone()
    loss_and_grad(softreg_ext.cross_entropy, logits, target, None)
    assert torch.equal(logits, copies[0])
    assert torch.equal(target, copies[1])


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("offset", [-1, 0, 100000, -(2**40)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@INDEX_ERROR
class TestLabelOutOfRange:
    """Negative labels; and from the first behind the last class on."""

    @pytest.fixture
    def label(self, classes: int, offset: int) -> int:
        return offset if offset < 0 else classes + offset

    def test_forward(self, classes: int, label: int, smoothing: float) -> None:
        logits, target, _ = make_case(40, classes, torch.float32)
        target[30] = target[33] = label
        with pytest.raises(IndexError, match=rf"target {label} at row 30 .* {classes} classes"):
            softreg_ext.cross_entropy(logits, target, label_smoothing=smoothing)

    def test_backward(self, classes: int, label: int, smoothing: float) -> None:
        """The backward op trusts nobody either."""
        logits, target, _ = make_case(40, classes, torch.float32)
        options = (None, 1, -100, smoothing, 0.0, 1.0, None)
        ops = torch.ops.softreg_ext
        loss, _, state, total_weight = ops.cross_entropy_forward(logits, target, *options, False)
        target[30] = label
        with pytest.raises(IndexError, match=rf"target {label} at row 30"):
            ops.cross_entropy_backward(
                torch.ones_like(loss), None, logits, target, state, total_weight, *options
            )

    def test_as_ignore_index(self, classes: int, label: int, smoothing: float) -> None:
        logits, target, _ = make_case(400, classes, torch.float32)  # of few, the errors are luck
        target[30] = label
        check_against_torch(logits, target, ignore_index=label, label_smoothing=smoothing)


LOGITS, TARGET, WEIGHT = torch.zeros(4, 10), torch.tensor([1, 2, 3, 4]), torch.ones(10)
IMAGE, LABELS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
# (what is wrong, arguments, options, words the message must hold)
REFUSED_LIKE_TORCH = [
    ("int64 logits", (LOGITS.long(), TARGET), {}, "input .* Long"),
    ("complex logits", (LOGITS.cfloat(), TARGET), {}, "input .* ComplexFloat"),
    ("0-d logits", (torch.tensor(1.0), torch.tensor(0)), {}, r"input .* \[\]"),
    ("float target", (LOGITS, TARGET.float()), {}, "target .* Float"),
    ("int8 target", (LOGITS, TARGET.char()), {}, "target .* Char"),
    ("bool target", (LOGITS, TARGET.bool()), {}, "target .* Bool"),
    ("int64 target shaped like input", (LOGITS, LOGITS.long()), {}, "target .* Long"),
    ("batch sizes", (LOGITS, TARGET[:3]), {}, r"batch size 4.*\[3\]"),
    ("0-d target", (LOGITS, TARGET[0]), {}, r"batch size 4.*\[\]"),
    ("2-d target", (LOGITS, TARGET[:, None]), {}, r"target .* \[4, 1\]"),
    ("two labels, one row", (LOGITS[0], TARGET[:2]), {}, r"target .* \[2\]"),
    ("short weight", (LOGITS, TARGET, WEIGHT[:9]), {}, r"weight .* 10 .*\[9\]"),
    ("2-d weight", (LOGITS, TARGET, WEIGHT[None]), {}, r"weight .*\[1, 10\]"),
    ("float64 weight", (LOGITS, TARGET, WEIGHT.double()), {}, "weight .* Double"),
    ("int64 weight", (LOGITS, TARGET, WEIGHT.long()), {}, "weight .* Long"),
    ("probabilities, batch sizes", (LOGITS, LOGITS[:3]), {}, r"batch size 4.*\[3, 10\]"),
    ("complex probabilities", (LOGITS, LOGITS.cfloat()), {}, "target .* ComplexFloat"),
    ("probabilities, ignore_index", (LOGITS, LOGITS), {"ignore_index": 2}, "ignore_index .* 2"),
    ("probabilities, short weight", (LOGITS, LOGITS, WEIGHT[:9]), {}, r"weight .* 10 .*\[9\]"),
    ("K-d batch sizes", (IMAGE, LABELS[:1]), {}, r"batch size 2.*\[1, 4, 5\]"),
    ("K-d positions", (IMAGE, LABELS[:, :3]), {}, r"\[2, 4, 5\] for .*got shape \[2, 3, 5\]"),
    ("K-d target too short", (IMAGE, LABELS[:, 0]), {}, r"got shape \[2, 5\]"),
    ("K-d float target", (IMAGE, LABELS.float()), {}, "target .* Float"),
    ("K-d label", (IMAGE, LABELS + 3), {}, "target 3 at row 0 .* 3 classes"),
    ("K-d weight", (IMAGE, LABELS, WEIGHT[:2]), {}, r"weight .* 3 .*\[2\]"),
    ("meta target", (LOGITS, TARGET.to("meta")), {}, "meta"),
    ("unknown reduction", (LOGITS, TARGET), {"reduction": "avg"}, "reduction .* 'avg'"),
    ("no reduction", (LOGITS, TARGET), {"reduction": None}, "reduction .* None"),
    ("smoothing > 1", (LOGITS, TARGET), {"label_smoothing": 1.5}, "label_smoothing .* 1.5"),
    ("smoothing a str", (LOGITS, TARGET), {"label_smoothing": "a"}, "label_smoothing .* 'a'"),
    ("ignore_index too large", (LOGITS, TARGET), {"ignore_index": 2**70}, "ignore_index"),
    ("ignore_index a float", (LOGITS, TARGET), {"ignore_index": 1.5}, "ignore_index .* 1.5"),
    ("ignore_index a bool", (LOGITS, TARGET), {"ignore_index": False}, "ignore_index .* False"),
    ("ignore_index NumPy's", (LOGITS, TARGET), {"ignore_index": np.float32(1)}, r"index .*\(1.0"),
    ("ignore_index a tensor", (LOGITS, TARGET), {"ignore_index": torch.ones(1)}, "index .*tensor"),
    ("ignore_index an array", (LOGITS, TARGET), {"ignore_index": np.array([1])}, "index .*array"),
    ("ignore_index two", (LOGITS, TARGET), {"ignore_index": TARGET[:2]}, "index .*tensor"),
    ("input a list", ([1.0], TARGET), {}, r"input .* \[1.0\]"),
    ("target a list", (LOGITS, [1]), {}, r"target .* \[1\]"),
    ("weight a list", (LOGITS, TARGET, [1.0]), {}, r"weight .* \[1.0\]"),
]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        pytest.param(*case[1:], id=case[0], marks=[INDEX_ERROR] if "at row" in case[3] else [])
        for case in REFUSED_LIKE_TORCH
    ],
)
def test_refused_like_torch(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    # On the CPU, whatever ours runs on: PyTorch's kernels for a GPU raise other types.
    there = [x.cpu() if isinstance(x, Tensor) and not x.is_meta else x for x in arguments]
    with pytest.raises(Exception) as theirs:
        F.cross_entropy(*there, **options)
    with pytest.raises(theirs.type, match=message) as ours:
        softreg_ext.cross_entropy(*arguments, **options)
    assert ours.type is theirs.type


@pytest.mark.parametrize("smoothing", [-0.1, math.nan])
def test_smoothing_below_zero_is_refused(smoothing: float) -> None:
    """PyTorch lets these pass and computes as if they were 0."""
    with pytest.raises(RuntimeError, match=f"label_smoothing .* {smoothing}"):
        softreg_ext.cross_entropy(LOGITS, TARGET, label_smoothing=smoothing)


def test_weight_that_requires_grad_is_refused() -> None:
    weight = WEIGHT.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="weight requires grad"):
        softreg_ext.cross_entropy(LOGITS, TARGET, weight)


@pytest.mark.parametrize("size_average", [None, False, True])
@pytest.mark.parametrize("reduce", [None, False, True])
@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
def test_deprecated_reduction_arguments(size_average: bool | None, reduce: bool | None) -> None:
    options = {"size_average": size_average, "reduce": reduce}
    ours = softreg_ext.cross_entropy(LOGITS, TARGET, **options)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, TARGET, **options))


@pytest.mark.filterwarnings("ignore:reduction='elementwise_mean' is deprecated")
def test_deprecated_reduction() -> None:
    ours = softreg_ext.cross_entropy(LOGITS, TARGET, reduction="elementwise_mean")
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, TARGET))


class Tagged(Tensor):
    """A subclass that sees every function called on it."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_target_without_data() -> None:
    target = TARGET.clone()
    target.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="target has elements, but its data is not allocated"):
        softreg_ext.cross_entropy(LOGITS, target)


def autocast_by_torch(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """In float32, as on a CPU; on a GPU torch would round each log-probability first."""
    if DEVICE.type != "cpu" and logits.dtype != torch.float64:
        logits, weight = logits.float(), None if weight is None else weight.float()
    return F.cross_entropy(logits, target, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_autocast_as_torch(dtype: torch.dtype, weighted: bool) -> None:
    logits, target, weight = make_case(20, 50, dtype)
    options = {"weight": weight if weighted else None}
    with torch.autocast(DEVICE.type, torch.bfloat16):
        ours = loss_and_grad(softreg_ext.cross_entropy, logits, target, None, **options)
        torchs = loss_and_grad(autocast_by_torch, logits, target, None, **options)
        torch.testing.assert_close(ours, torchs)
        probabilities = logits.softmax(1)
        loss = softreg_ext.cross_entropy(logits, probabilities)
        torch.testing.assert_close(loss, autocast_by_torch(logits, probabilities))


def test_tensor_subclasses_see_the_call() -> None:
    logits = torch.randn(4, 10).as_subclass(Tagged)
    loss = softreg_ext.cross_entropy(logits, TARGET, reduction="sum")
    assert isinstance(loss, Tagged)
    assert softreg_ext.cross_entropy in Tagged.seen
    expected = F.cross_entropy(logits.as_subclass(Tensor), TARGET, reduction="sum")
    torch.testing.assert_close(loss.as_subclass(Tensor), expected)
