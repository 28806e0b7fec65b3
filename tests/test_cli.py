"""The command line: usage, predicting, exit statuses."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import softreg_ext
from softreg_ext.cli import main
from softreg_ext.data import draw_garments
from softreg_ext.model import SoftmaxRegression
from softreg_ext.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose model takes everything bright for a bag, everything dark for a coat."""
    net = SoftmaxRegression()
    weight, bias = net.parameters()
    with torch.no_grad():
        weight.zero_()
        weight[8] = 0.01
        bias[4] = 4
    folder = RunFolder.create(tmp_path / "run")
    folder.save_model(net)
    folder.save_metrics({"synthetic": False})
    return folder


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--epochs", "0"], "argument --epochs: must be a whole number >= 1, got '0'"),
        (["--epochs", "2.5"], "argument --epochs: must be a whole number >= 1, got '2.5'"),
        (["--batch-size", "-4"], "argument --batch-size: must be a whole number >= 1, got '-4'"),
        (["--threads", "0"], "argument --threads: must be a whole number >= 1, got '0'"),
        (["--seed", "-1"], "argument --seed: must be a whole number >= 0, got '-1'"),
        (["--seed", str(2**64)], f"whole number >= 0 and <= {2**63 - 1}, got '{2**64}'"),
        (["--lr", "0"], "argument --lr: must be a finite number > 0, got '0'"),
        (["--lr", "nan"], "argument --lr: must be a finite number > 0, got 'nan'"),
        (["--lr", "inf"], "argument --lr: must be a finite number > 0, got 'inf'"),
        (["--lr", "much"], "argument --lr: must be a finite number > 0, got 'much'"),
        (["--loss", "hinge"], "argument --loss: invalid choice: 'hinge'"),
        (["--device", "toaster"], "argument --device: must be auto, cpu, cuda or cuda:N, got"),
        (["--device", "cuda:99"], "argument --device: 'cuda:99' is not available"),
        (["--data-dir", "d"], "argument --data-dir: 'd' contradicts --data synthetic"),
        (["--verbose"], "unrecognized arguments: --verbose"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert main(["train", "--data", "synthetic", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("softreg: error: ") and errors.count("\n") == 1
    assert complaint in errors


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("softreg: error: ")


def test_predict(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = draw_garments(100, seed=1)
    coat = images[labels == 4][0]
    paths = [tmp_path / "black.png", tmp_path / "white.png"]
    Image.fromarray(coat.numpy()).save(paths[0])
    Image.fromarray(255 - coat.numpy()).save(paths[1])
    predict = ["predict", str(run.path), *map(str, paths)]

    net = run.load_model()
    share = 100 * net(coat.div(255).unsqueeze(0)).softmax(1)[0, 4].item()
    assert main(predict) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{paths[0]}: coat {share:.1f} %, ")
    assert lines[0].count("%") == 3
    assert lines[1] == lines[0].replace("black", "white")

    assert main([*predict, "--invert", "yes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{paths[0]}: bag ")
    assert lines[1].startswith(f"{paths[1]}: coat ")


def test_predict_goes_on_after_a_bad_image(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "black.png")
    images = [str(tmp_path / "gone.png"), str(tmp_path / "black.png")]
    assert main(["predict", str(run.path), *images]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"softreg: error: image {images[0]}: no such file\n"
    assert captured.out.startswith(f"{images[1]}: coat ")


@pytest.mark.filterwarnings("default")
def test_predict_warns_of_a_synthetic_model(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "black.png")
    run.save_metrics({"synthetic": True})
    assert main(["predict", str(run.path), str(tmp_path / "black.png")]) == 0
    assert capsys.readouterr().err == (
        "softreg: warning: this model was trained on SYNTHETIC garments\n"
    )


def test_predict_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "gone"), "image.png"]) == 1
    assert capsys.readouterr().err == (
        f"softreg: error: run folder {tmp_path / 'gone'}: no such folder\n"
    )


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert capsys.readouterr().out.strip()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"softreg_ext {softreg_ext.__version__}\n"


def test_a_reader_may_leave(run: RunFolder, tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "dark.png")
    command = [sys.executable, "-m", "softreg_ext", "predict", run.path, tmp_path / "dark.png"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_importing_the_package_is_light() -> None:
    script = "import sys, softreg_ext; print({'matplotlib', 'torchvision'} & sys.modules.keys())"
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert finished.stdout == "set()\n"
