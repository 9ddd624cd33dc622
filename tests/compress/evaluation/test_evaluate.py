"""`svdrd evaluate` against CompressAI's own `eval_model`, and against what the numbers claim to be."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("compressai", reason="svdrd.compress needs pip install 'svdrd[compress]'")

from compressai.models import CompressionModel, FactorizedPrior, JointAutoregressiveHierarchicalPriors, ScaleHyperprior
from compressai.utils.plot.__main__ import parse_json_file
from torchvision.transforms.functional import to_tensor

from svdrd.__main__ import main as svdrd
from svdrd.compress import BadInput, load_codec
from svdrd.compress.commands import call
from svdrd.compress.evaluation import coding
from svdrd.compress.images.folders import ImageFolder
from svdrd.compress.images.metrics import MEASURES
from tests.warm import Warm

MODEL = "bmshj2018-hyperprior"
SIZES = {"wide.png": (161, 180), "tall.png": (178, 161)}


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Edges, a gradient and grain: enough structure that PSNR and MS-SSIM say something."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    pixels = np.stack([np.sin(9 * rows + 5 * columns + channel) > 0.3 for channel in range(3)], axis=-1) * 120.0
    pixels += 90 * rows[..., None] + generator.normal(0, 6, (height, width, 3)) + 20
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def spread(model: CompressionModel, seed: int = 0) -> CompressionModel:
    """Makes the latents of a random model reach several integers, where those of an untrained one all round to 0."""
    torch.manual_seed(seed)
    scales = {"h_s.4.bias": slice(None), "entropy_parameters.4.bias": slice(0, 12)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("g_a.6.weight", "h_a.4.weight"):
                parameter.mul_(8).add_(torch.randn_like(parameter), alpha=0.05)
            elif name in scales:
                # Latents far outside their distribution cost what the coder's escape codes cost, not their likelihood.
                parameter[scales[name]] += 2
    return model


def save(path: Path, model: CompressionModel) -> Path:
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def evaluated(output: Path, *arguments: object) -> dict:
    assert svdrd(["evaluate", *map(str, arguments), "-o", str(output)]) == 0
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed, (name, size) in enumerate(SIZES.items()):
        photograph(*size, seed).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never updated: no CDF tables in it."""
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("codec") / "spread.pth.tar", spread(ScaleHyperprior(8, 12)))


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, folder: Path, checkpoint: Path) -> Path:
    run = tmp_path_factory.mktemp("finetune")
    arguments = f"-m {MODEL} -d {folder} --val-dataset {folder} --checkpoint {checkpoint} --lambda 0.01 --steps 2 "
    arguments += f"--batch-size 2 --patch-size 64 64 --block-size 8 -lr 1e-3 -n 0 --device cpu -o {run / 'run'}"
    assert call("finetune", arguments.split()) == 0
    return run / "run" / "checkpoint.pth.tar"


def test_agrees_with_eval_model(folder: Path, checkpoint: Path, finetuned: Path, tmp_path: Path, warm: Warm) -> None:
    command = ["-m", "compressai.utils.eval_model", "checkpoint", folder, "-a", MODEL, "-p", checkpoint, finetuned]
    result = warm.run(command, tmp_path)
    assert result.returncode == 0, result.stderr.decode()
    printed = result.stdout.decode()
    theirs = json.loads(printed[printed.index("{") :])
    ours = evaluated(tmp_path / "ours.json", "-m", MODEL, "-d", folder, "--checkpoint", checkpoint, finetuned)
    assert (ours["name"], ours["description"]) == (theirs["name"], theirs["description"])
    assert ours["results"].keys() == theirs["results"].keys()
    # The strings are as long to the byte; eval_model runs on one thread, which rounds the convolutions differently.
    assert ours["results"]["bpp"] == pytest.approx(theirs["results"]["bpp"], rel=1e-12)
    assert ours["results"]["psnr-rgb"] == pytest.approx(theirs["results"]["psnr-rgb"], abs=1e-3)
    assert ours["results"]["ms-ssim-rgb"] == pytest.approx(theirs["results"]["ms-ssim-rgb"], abs=1e-5)
    assert ours["results"]["bpp"][0] != ours["results"]["bpp"][1]


@torch.no_grad()
def test_estimate_is_the_likelihoods_of_the_padded_image(folder: Path, checkpoint: Path) -> None:
    model = load_codec(MODEL, checkpoint=checkpoint).eval()
    x = to_tensor(Image.open(folder / "tall.png")).unsqueeze(0)
    # 178 x 161: eval_model's own estimation raises on sides that are no multiples of 64.
    output = model(torch.nn.functional.pad(x, (15, 16, 7, 7)))
    bits = -sum(torch.log(likelihoods).sum() for likelihoods in output["likelihoods"].values()) / math.log(2)
    estimated = coding.estimate(model, x)
    assert estimated.bpp == pytest.approx(bits.item() / (178 * 161), rel=1e-6)
    x_hat = output["x_hat"][..., 7:-7, 15:-16].clamp(0, 1)
    assert torch.allclose(estimated.x_hat, (x_hat * 255).round() / 255)


def test_json_lists_codecs_and_images(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    document = evaluated(
        tmp_path / "out.json", "-m", MODEL, "-d", folder, "--checkpoint", checkpoint, checkpoint, "--estimate"
    )
    assert "estimation" in document["description"]
    assert [image["source"] for image in document["images"]] == ["tall.png", "wide.png"] * 2
    for key, means in document["results"].items():
        assert len(means) == 2
        of_images = [image["results"][key] for image in document["images"]]
        assert means[0] == pytest.approx(sum(of_images[:2]) / 2)
    # CompressAI's plot tool reads the file.
    assert parse_json_file(tmp_path / "out.json", "psnr")["xs"] == document["results"]["bpp"]


def test_further_measures_are_those_of_the_decoded_files(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-m", MODEL, "-d", folder, "--checkpoint", checkpoint, "--decoded", tmp_path / "decoded"]
    document = evaluated(tmp_path / "out.json", *options, "--also", "gmsd", "basis")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-2:] == ["gmsd", "basis"]
    for image, line in zip(document["images"], lines[2:], strict=False):
        x, x_hat = (to_tensor(Image.open(place / image["source"])) for place in (folder, tmp_path / "decoded"))
        for name, printed in zip(("gmsd", "basis"), line.split()[-2:], strict=True):
            expected = MEASURES[name](x_hat.unsqueeze(0), x.unsqueeze(0)).item()
            assert image["results"][name] == pytest.approx(expected, rel=1e-6)
            assert float(printed) == pytest.approx(expected, abs=1e-6)
    assert "basis" not in evaluated(tmp_path / "plain.json", *options)["results"]


@pytest.mark.parametrize("estimated", [False, True])
def test_table_prints_what_the_file_says(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], estimated: bool
) -> None:
    options = ["--estimate"] if estimated else []
    document = evaluated(tmp_path / "out.json", "-m", MODEL, "-d", folder, "--checkpoint", checkpoint, *options)
    lines = capsys.readouterr().out.splitlines()
    assert ("bpp (estimate)" in lines[1]) == estimated
    printed = {line.split()[0]: [float(value) for value in line.split()[1:4]] for line in lines[2:]}
    assert set(printed) == {"tall.png", "wide.png", "mean"}
    mean = [document["results"][key][0] for key in ("bpp", "psnr-rgb", "ms-ssim-rgb")]
    assert printed["mean"] == pytest.approx(mean, abs=6e-4)


def test_decoded_images_have_the_reported_psnr(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "below").mkdir(parents=True)
    for name, place in (("wide.png", "in"), ("tall.png", "in/below")):
        Image.open(folder / name).save(tmp_path / place / name)
    decoded = tmp_path / "decoded"
    document = evaluated(
        tmp_path / "out.json", "-m", MODEL, "-d", tmp_path / "in", "--checkpoint", checkpoint, "--decoded", decoded
    )
    assert [image["source"] for image in document["images"]] == ["below/tall.png", "wide.png"]
    for image in document["images"]:
        x = np.asarray(Image.open(tmp_path / "in" / image["source"]), dtype=np.float64)
        x_hat = np.asarray(Image.open(decoded / image["source"]), dtype=np.float64)
        assert image["results"]["psnr-rgb"] == pytest.approx(
            10 * np.log10(255**2 / np.mean((x - x_hat) ** 2)), abs=1e-4
        )


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(lambda: spread(FactorizedPrior(8, 12)), id="factorized"),
        pytest.param(lambda: spread(ScaleHyperprior(8, 12)), id="hyperprior"),
        pytest.param(lambda: spread(JointAutoregressiveHierarchicalPriors(8, 12)), id="autoregressive"),
    ],
)
def test_estimate_is_near_the_coded_length(folder: Path, codec: object) -> None:
    torch.manual_seed(3)
    model = codec()  # type: ignore[operator]
    model.update(force=True)
    images = ImageFolder(folder)
    coded, estimated = coding.evaluate(model, images), coding.evaluate(model, images, estimated=True)
    for real, guess in zip(coded, estimated, strict=True):
        # The coder's tables are 16-bit and each string ends on a whole 32-bit word.
        assert real["results"]["bpp"] == pytest.approx(guess["results"]["bpp"], rel=0.1, abs=64 / 30_000)
        assert real["results"]["bpp"] > 0.01


def test_checkpoint_with_tables_older_than_its_weights(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = spread(ScaleHyperprior(8, 12))
    model.update(force=True)
    with torch.no_grad():
        for name, parameter in model.entropy_bottleneck.named_parameters():
            if name.startswith(("_matrix", "matrices")):
                parameter.add_(0.4)
    stale = save(tmp_path / "stale.pth.tar", model)
    tables = model.entropy_bottleneck._quantized_cdf.clone()
    images = ImageFolder(folder)
    with_stale_tables = coding.average(coding.evaluate(model, images))["bpp"]
    model.update(force=True)
    assert not torch.equal(tables, model.entropy_bottleneck._quantized_cdf)
    document = evaluated(tmp_path / "out.json", "-m", MODEL, "-d", folder, "--checkpoint", stale)
    assert document["results"]["bpp"] == [coding.average(coding.evaluate(model, images))["bpp"]]
    assert document["results"]["bpp"][0] < with_stale_tables


def test_rate_counts_the_pixels_before_padding(checkpoint: Path, folder: Path) -> None:
    model = load_codec(MODEL, checkpoint=checkpoint).eval()
    model.update(force=True)
    x = to_tensor(Image.open(folder / "tall.png")).unsqueeze(0)
    padded, unpad = coding.padded(model, x)
    assert padded.shape == (1, 3, 192, 192)
    assert torch.equal(torch.nn.functional.pad(padded, unpad), x)
    strings = model.compress(padded)["strings"]
    assert coding.code(model, x).bpp == pytest.approx(8 * (len(strings[0][0]) + len(strings[1][0])) / (178 * 161))


@pytest.mark.parametrize("damage", [lambda x: x.flip(-1), lambda x: x * torch.nan], ids=["garbage", "nan"])
def test_decoder_that_reads_something_else(
    folder: Path,
    finetuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: object,
) -> None:
    # A codec that is good enough for a mirrored image to be more than 1 dB worse: the identity, as far as pixels go.
    monkeypatch.setattr(ScaleHyperprior, "forward", lambda self, x: {"x_hat": x})
    monkeypatch.setattr(
        ScaleHyperprior, "compress", lambda self, x: (setattr(self, "seen", x), {"strings": [[b""]], "shape": None})[1]
    )
    monkeypatch.setattr(ScaleHyperprior, "decompress", lambda self, strings, shape: {"x_hat": damage(self.seen)})
    arguments = ["evaluate", "-m", MODEL, "-d", str(folder), "--checkpoint", str(finetuned)]
    assert svdrd([*arguments, "-o", str(tmp_path / "out.json")]) == 1
    message = capsys.readouterr().err
    assert "tall.png" in message
    assert "did not reproduce" in message
    assert not (tmp_path / "out.json").exists()


def test_skips_a_corrupt_image_by_name_and_counts_the_rest(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    data = (folder / "wide.png").read_bytes()
    (images / "good.png").write_bytes(data)
    (images / "cut.png").write_bytes(data[: len(data) // 2])
    (images / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"cut\.png"):
        document = evaluated(tmp_path / "out.json", "-m", MODEL, "-d", images, "--checkpoint", checkpoint, "--estimate")
    assert [image["source"] for image in document["images"]] == ["good.png"]
    assert "skipped 1 files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"-d": "missing"}, "missing"),
        ({"-d": "empty"}, "no image"),
        ({"-d": "small"}, r"icon\.png has 100x200 pixels.*161"),
        ({"-m": "bmshj2018-hyperpriors"}, "bmshj2018-hyperprior"),
        ({"-m": "mbt2018-mean"}, "not a mbt2018-mean"),
        ({"--checkpoint": "absent.pth.tar"}, r"absent\.pth\.tar"),
        ({"--device": "abacus"}, "--device cpu"),
        ({"-o": "empty"}, "a folder"),
        ({"-o": "nowhere/out.json"}, "no folder"),
        ({"--decoded": "small/icon.png"}, "not a folder"),
        ({"--decoded": "decoded", "-d": "twins"}, "2 images are called 'a'"),
        ({"--checkpoint": None, "-q": "9"}, "quality=9"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "small", "twins"):
        Path(name).mkdir()
    photograph(100, 200, 0).save("small/icon.png")
    for name in ("a.png", "a.bmp"):
        photograph(170, 170, 0).save(f"twins/{name}")
    before = sorted(tmp_path.rglob("*"))
    options = {"-m": MODEL, "-d": str(folder), "--checkpoint": str(checkpoint), "-o": "out.json"} | change
    arguments = [word for option, value in options.items() if value is not None for word in (option, value)]
    assert svdrd(["evaluate", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("svdrd evaluate: error: ")
    assert re.search(message, errors[0])
    assert sorted(tmp_path.rglob("*")) == before


def test_decoded_images_of_two_codecs_are_refused(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["-m", MODEL, "-d", str(folder), "--checkpoint", str(checkpoint), str(checkpoint)]
    with pytest.raises(BadInput, match="one codec a call"):
        call("evaluate", [*arguments, "--decoded", str(tmp_path / "decoded")])
    assert not (tmp_path / "decoded").exists()
