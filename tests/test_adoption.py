"""`patch` puts the fused op behind PyTorch's names, and takes it away again."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import softreg_ext

ORIGINAL = F.cross_entropy
ORIGINAL_LINEAR = getattr(F, "linear_cross_entropy", None)
LOGITS, TARGET = torch.randn(6, 40), torch.tensor([0, 1, 2, -100, 4, 39])


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    softreg_ext.unpatch()
    assert F.cross_entropy is ORIGINAL
    assert getattr(F, "linear_cross_entropy", None) is ORIGINAL_LINEAR


class Calls(TorchDispatchMode):
    """The names of the ops that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def is_fused(*args: Any, **kwargs: Any) -> bool:
    with Calls() as calls:
        F.cross_entropy(*args, **kwargs)
    return any("softreg_ext" in name for name in calls.names)


def check_falls_back(
    name: str, is_fused: Callable[..., bool], arguments: Any, options: dict[str, Any]
) -> None:
    """The patched function of that name leaves it to the original."""
    expected = getattr(F, name)(*arguments, **options)
    with softreg_ext.patch():
        assert not is_fused(*arguments, **options)
        loss = getattr(F, name)(*arguments, **options)
    assert (type(loss), loss.shape) == (type(expected), expected.shape)


def check_same_refusal(name: str, arguments: Any, options: dict[str, Any]) -> None:
    with pytest.raises(Exception) as expected:
        getattr(F, name)(*arguments, **options)
    with softreg_ext.patch(), pytest.raises(expected.type):
        getattr(F, name)(*arguments, **options)


def test_a_handle_used_again() -> None:
    handle = softreg_ext.patch()
    for _ in range(2):
        with handle:
            assert F.cross_entropy is not ORIGINAL
        assert F.cross_entropy is ORIGINAL


def test_function_and_module() -> None:
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(LOGITS, TARGET)
    assert not is_fused(LOGITS, TARGET)
    with softreg_ext.patch():
        assert is_fused(LOGITS, TARGET)
        with Calls() as calls:
            loss = nn.CrossEntropyLoss(label_smoothing=0.1)(LOGITS, TARGET)
        assert any("softreg_ext" in name for name in calls.names)
    assert not is_fused(LOGITS, TARGET)
    torch.testing.assert_close(loss, expected)


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
def test_positions_of_the_arguments() -> None:
    weight = torch.rand(40)
    arguments = (LOGITS, TARGET.where(TARGET >= 0, 4), weight, None, 4, None, "sum", 0.2)
    expected = F.cross_entropy(*arguments)
    legacy = F.cross_entropy(LOGITS, TARGET, weight, False)
    with softreg_ext.patch():
        assert is_fused(*arguments)
        torch.testing.assert_close(F.cross_entropy(*arguments), expected)
        torch.testing.assert_close(F.cross_entropy(LOGITS, TARGET, weight, False), legacy)


class Tagged(Tensor):
    pass


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((LOGITS.to("meta"), TARGET.to("meta")), {}),
        ((LOGITS, TARGET), {"label_smoothing": -0.1}),
        ((LOGITS.as_subclass(Tagged), TARGET), {}),
        ((LOGITS, LOGITS.softmax(1)), {"weight": torch.rand(40, requires_grad=True)}),
    ],
    ids=["meta", "negative smoothing", "subclass", "weight requires grad"],
)
def test_falls_back(arguments: Any, options: dict[str, Any]) -> None:
    check_falls_back("cross_entropy", is_fused, arguments, options)


@pytest.mark.parametrize(
    "arguments",
    [
        (LOGITS, TARGET.int()),
        (LOGITS.long(), TARGET),
        (LOGITS, TARGET[:5]),
        (LOGITS, TARGET + 1),
        (LOGITS, [1, 2]),
        (LOGITS, LOGITS, torch.ones(7)),
    ],
    ids=["int32 labels", "integer logits", "batch", "label", "list", "weight"],
)
def test_same_refusals(arguments: Any) -> None:
    check_same_refusal("cross_entropy", arguments, {})


def test_undone_exactly() -> None:
    softreg_ext.patch()
    softreg_ext.patch()
    assert F.cross_entropy.__name__ == "cross_entropy" and F.cross_entropy is not ORIGINAL
    softreg_ext.unpatch()
    assert F.cross_entropy is ORIGINAL
    softreg_ext.unpatch()
    assert F.cross_entropy is ORIGINAL


def test_blocks_nest() -> None:
    with softreg_ext.patch():
        with softreg_ext.patch():
            pass
        assert is_fused(LOGITS, TARGET)
    assert F.cross_entropy is ORIGINAL
    with pytest.raises(ZeroDivisionError), softreg_ext.patch():
        raise ZeroDivisionError
    assert F.cross_entropy is ORIGINAL
    softreg_ext.patch()
    with softreg_ext.patch():
        pass
    assert is_fused(LOGITS, TARGET)


def test_blocks_overlap_in_threads() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with softreg_ext.patch():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with softreg_ext.patch():
        thread.start()
        assert inside.wait(30)
    assert is_fused(LOGITS, TARGET)
    leave.set()
    thread.join(30)
    assert F.cross_entropy is ORIGINAL


def test_a_name_taken_meanwhile() -> None:
    with softreg_ext.patch():
        taken = F.cross_entropy
    with Calls() as calls:
        torch.testing.assert_close(taken(LOGITS, TARGET), F.cross_entropy(LOGITS, TARGET))
    assert not any("softreg_ext" in name for name in calls.names)


def test_what_others_put_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*args: Any, **kwargs: Any) -> Tensor:
        return args[0].sum()

    with softreg_ext.patch():
        monkeypatch.setattr(F, "cross_entropy", theirs)
    assert F.cross_entropy is theirs
    monkeypatch.setattr(F, "cross_entropy", ORIGINAL)


needs_linear = pytest.mark.skipif(ORIGINAL_LINEAR is None, reason="torch 2.13 brings the function")
HIDDEN, LAYER = torch.randn(6, 5), torch.randn(40, 5)


def is_fused_linear(*args: Any, **kwargs: Any) -> bool:
    """Its op alone: the fused loss of the original's logits is none."""
    with torch.profiler.profile() as profile:
        F.linear_cross_entropy(*args, **kwargs)
    return any("softreg_ext::linear" in event.key for event in profile.key_averages())


@needs_linear
def test_linear_function_and_module() -> None:
    options = {"bias": True, "label_smoothing": 0.1, "reduction": "none"}
    loss = nn.LinearCrossEntropyLoss(5, 40, **options)
    arguments = {"linear_bias": torch.randn(40), "weight": torch.rand(40), "ignore_index": 4}
    of_module = loss(HIDDEN, TARGET)
    expected = F.linear_cross_entropy(HIDDEN, LAYER, TARGET.abs() % 40, **arguments)
    assert not is_fused_linear(HIDDEN, LAYER, TARGET)
    with softreg_ext.patch():
        assert is_fused_linear(HIDDEN, LAYER, TARGET)
        assert is_fused_linear(HIDDEN, LAYER, TARGET, options=nn.LinearCrossEntropyOptions())
        assert is_fused_linear(HIDDEN, LAYER, LOGITS.softmax(1))
        torch.testing.assert_close(loss(HIDDEN, TARGET), of_module)
        found = F.linear_cross_entropy(HIDDEN, LAYER, TARGET.abs() % 40, **arguments)
    torch.testing.assert_close(found, expected)


@needs_linear
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((HIDDEN.to("meta"), LAYER.to("meta"), TARGET.to("meta")), {}),
        ((HIDDEN, LAYER, TARGET), {"label_smoothing": -0.1}),
        ((HIDDEN.as_subclass(Tagged), LAYER, TARGET), {}),
        ((HIDDEN, LAYER.as_subclass(Tagged), TARGET), {}),
        ((HIDDEN, LAYER, TARGET), {"linear_bias": torch.zeros(40).as_subclass(Tagged)}),
        ((HIDDEN, LAYER, LOGITS.softmax(1)), {"weight": torch.rand(40, requires_grad=True)}),
    ],
    ids=["meta", "smoothing", "input", "layer", "bias", "weight requires grad"],
)
def test_linear_falls_back(arguments: Any, options: dict[str, Any]) -> None:
    check_falls_back("linear_cross_entropy", is_fused_linear, arguments, options)


@needs_linear
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((HIDDEN, LAYER, TARGET.int()), {}),
        ((HIDDEN, LAYER.double(), TARGET), {}),
        ((HIDDEN, LAYER[:, :4], TARGET), {}),
        ((HIDDEN, LAYER, TARGET[:5]), {}),
        ((HIDDEN, LAYER, TARGET + 1), {}),
        ((HIDDEN, None, TARGET), {}),
        ((HIDDEN, LAYER, LOGITS.softmax(1)), {"ignore_index": -100}),
        ((HIDDEN, LAYER, TARGET), {"z_loss": 0.1}),
        ((HIDDEN, LAYER, TARGET), {"linear_bias": torch.zeros(1)}),
        ((HIDDEN, LAYER, TARGET), {"reduction": "max"}),
    ],
    ids=["int32", "dtype", "features", "batch", "label", "none", "index", "z", "bias", "reduction"],
)
def test_linear_same_refusals(arguments: Any, options: dict[str, Any]) -> None:
    check_same_refusal("linear_cross_entropy", arguments, options)


@pytest.mark.filterwarnings("ignore")  # the tracer warns of its own insides
def test_compiled() -> None:
    torch._dynamo.reset()
    expected = F.cross_entropy(LOGITS, TARGET)
    with softreg_ext.patch():
        step = torch.compile(
            lambda x: nn.CrossEntropyLoss()(x, TARGET), backend="eager", fullgraph=True
        )
        with torch.profiler.profile() as profile:
            loss = step(LOGITS)
    assert "softreg_ext::cross_entropy_forward" in {event.key for event in profile.key_averages()}
    torch.testing.assert_close(loss, expected)


def train_language_model() -> list[float]:
    """Losses of a small causal language model on made-up tokens."""
    transformers = pytest.importorskip("transformers", reason="the test extra brings it")
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:  # one built for another torch than the one installed
        pytest.skip(f"transformers imports torchvision, which fails here: {error}")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=199,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(199, (4, 16))
    losses = []
    for _ in range(5):
        torch.manual_seed(1)  # equal dropout
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_language_model() -> None:
    expected = train_language_model()
    with softreg_ext.patch(), torch.profiler.profile() as profile:
        losses = train_language_model()
    names = {event.key for event in profile.key_averages()}
    assert {"softreg_ext::cross_entropy_forward", "softreg_ext::cross_entropy_backward"} <= names
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(expected, rel=1e-5)
