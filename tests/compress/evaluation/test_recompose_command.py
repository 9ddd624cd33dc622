"""`svdrd recompose` against numbers worked out independently in float64, and what it writes and refuses."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("compressai", reason="svdrd.compress needs pip install 'svdrd[compress]'")

from torchvision.transforms.functional import to_tensor

from svdrd.__main__ import main as svdrd
from svdrd.compress import load_codec
from svdrd.compress.evaluation import coding
from svdrd.compress.evaluation.recomposed_folder import FILES
from svdrd.compress.evaluation.recomposition import Spectrum, captured_latents, recompose_image
from tests.compress.conftest import synthetic_photograph

MODEL = "bmshj2018-hyperprior"
STAND_IN = Path(__file__).parents[1] / "codecs" / "stand_in"


BASE = Path(__file__).parents[3] / "docs" / "studies" / "dose_response" / "base" / "lambda-0.013.pth.tar"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The committed codec, and the same with its latents on a grid twice as coarse: two rates of a codec that codes."""
    folder = tmp_path_factory.mktemp("codecs")
    model = load_codec(MODEL, checkpoint=BASE)
    torch.save({"state_dict": model.state_dict()}, folder / "fine.pth.tar")
    with torch.no_grad():
        for parameter in (model.g_a[6].weight, model.g_a[6].bias):
            parameter.mul_(0.5)
        model.g_s[0].weight.mul_(2)
    torch.save({"state_dict": model.state_dict()}, folder / "coarse.pth.tar")
    return [str(folder / "fine.pth.tar"), str(folder / "coarse.pth.tar")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sides that no patch divides, one image upright and one lying."""
    root = tmp_path_factory.mktemp("photographs")
    synthetic_photograph(70, 140, 0).save(root / "lying.png")
    synthetic_photograph(130, 75, 1).save(root / "upright.png")
    return root


def float64_recomposition(x_hat: np.ndarray, x: np.ndarray, block: int | None) -> np.ndarray:
    """(C, H, W): U_x S_xhat V_x^T of each channel's blocks, one by one, by LAPACK in float64."""
    result = np.empty(x.shape)
    height, width = (block, block) if block else x.shape[1:]
    for c in range(x.shape[0]):
        for top in range(0, x.shape[1], height):
            for left in range(0, x.shape[2], width):
                place = (c, slice(top, top + height), slice(left, left + width))
                u, _, vh = np.linalg.svd(x[place].astype(np.float64), full_matrices=False)
                s = np.linalg.svd(x_hat[place].astype(np.float64), compute_uv=False)
                result[place] = u * s @ vh
    return result


def float64_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of values in [0, 1], on the 256 levels of a file."""
    a, b = (np.rint(np.clip(255 * image.astype(np.float64), 0, 255)) for image in (a, b))
    return 10 * math.log10(255**2 / np.mean((a - b) ** 2))


@pytest.mark.parametrize("patch_size", [64, None])
def test_numbers_against_float64(checkpoints: list[str], folder: Path, tmp_path: Path, patch_size: int | None) -> None:
    matrices = ["--whole"] if patch_size is None else ["--patch-size", str(patch_size)]
    argv = ["recompose", "-m", MODEL, "-d", str(folder), "--checkpoint", *checkpoints, *matrices, "-o", str(tmp_path)]
    assert svdrd(argv) == 0
    with (tmp_path / "recompose.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["lying.png", "upright.png"] * 2
    # Cut around the middle to what the patches fill; whole images stay whole and are padded for coding.
    boxes = {"lying.png": (6, 3, 134, 67), "upright.png": (6, 1, 70, 129)}
    models = {Path(path).name.partition(".")[0]: load_codec(MODEL, checkpoint=path).eval() for path in checkpoints}
    for model in models.values():
        model.update(force=True)
    for row in rows:
        image = Image.open(folder / row["image"])
        x = to_tensor(image.crop(boxes[row["image"]]) if patch_size else image).unsqueeze(0)
        model = models[row["codec"]]
        with torch.no_grad():
            coded = coding.code(model, x)
            padded, unpad = coding.padded(model, x)
            y = model.g_a(padded)
            strings = model.compress(padded)
            z_hat = model.entropy_bottleneck.decompress(strings["strings"][1], strings["shape"])
            indexes = model.gaussian_conditional.build_indexes(model.h_s(z_hat))
            y_hat = model.gaussian_conditional.decompress(strings["strings"][0], indexes, z_hat.dtype)
            block = None if patch_size is None else patch_size // 16
            y_rec = float64_recomposition(y_hat[0].numpy(), y[0].numpy(), block)
            latent = torch.nn.functional.pad(model.g_s(torch.from_numpy(y_rec)[None].float()), unpad)
        original = x[0].numpy()
        pixel = float64_recomposition(coded.x_hat[0].numpy(), original, patch_size)
        assert float(row["bpp"]) == pytest.approx(coded.bpp, abs=1e-6)
        # Float32 moves a few of the 8192 pixels to the neighbouring of 256 levels.
        assert float(row["psnr_lq"]) == pytest.approx(float64_psnr(coded.x_hat[0].numpy(), original), abs=1e-4)
        assert float(row["psnr_pixel"]) == pytest.approx(float64_psnr(pixel, original), abs=2e-3)
        assert float(row["psnr_latent"]) == pytest.approx(float64_psnr(latent[0].numpy(), original), abs=2e-3)
        # What is compared is far from LQ, so that agreeing says something.
        assert abs(float(row["psnr_latent"]) - float(row["psnr_lq"])) > 0.1
        # By Mirsky's theorem: |S_x - S_xhat| <= |X - X_hat|.
        assert float(row["psnr_pixel"]) > float(row["psnr_lq"])


def test_files_and_table(
    checkpoints: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "folder"
    argv = ["recompose", "-m", MODEL, "-d", str(folder), "--checkpoint", *checkpoints, "--patch-size", "64"]
    assert svdrd([*argv, "-o", str(output), "--show", "upright"]) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)
    document = json.loads((output / "recompose.json").read_text())
    with (output / "recompose.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert document["description"] == "Recomposition of patches of 64x64 (ans)"
    assert document["results"]["bpp"] == sorted(document["results"]["bpp"])
    # The coarser codec was given last and costs less: rates are sorted.
    assert [Path(rate["checkpoint"]).name for rate in document["rates"]] == ["coarse.pth.tar", "fine.pth.tar"]
    columns = {"bpp": "bpp", "psnr-rgb": "psnr_lq", "psnr-rgb-latent": "psnr_latent", "psnr-rgb-pixel": "psnr_pixel"}
    printed = capsys.readouterr().out.splitlines()
    for index, label in enumerate(("coarse", "fine")):
        of_codec = [row for row in rows if row["codec"] == label]
        assert len(of_codec) == 2
        for key, column in columns.items():
            mean = sum(float(row[column]) for row in of_codec) / 2
            assert document["results"][key][index] == pytest.approx(mean, abs=1e-6)
        words = printed[1 + index].replace("(", " ").split()
        assert words[0] == label
        shown = [document["results"][key][index] for key in columns]
        assert [float(words[1]), float(words[2]), float(words[3]), float(words[5])] == pytest.approx(shown, abs=6e-4)
    for name in ("psnr_bpp.png", "strip.png", "spectrum.png"):
        pixels = np.asarray(Image.open(output / name).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 5


def test_strip_shows_the_pixels_of_the_picture(folder: Path, checkpoints: list[str], tmp_path: Path) -> None:
    """Patches of 64, magnified four times: the first picture is the original's middle patch, pixel for pixel."""
    argv = ["recompose", "-m", MODEL, "-d", str(folder), "--checkpoint", checkpoints[0], "--patch-size", "64"]
    assert svdrd([*argv, "-o", str(tmp_path)]) == 0
    # lying.png is cut to (6, 3, 134, 67); of its two patches the right one counts as the middle.
    patch = Image.open(folder / "lying.png").crop((6 + 64, 3, 6 + 128, 3 + 64))
    strip = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB"))
    assert np.array_equal(strip[64 : 64 + 256, 12 : 12 + 256], np.asarray(patch.resize((256, 256), Image.NEAREST)))


def test_estimate_is_labelled(checkpoints: list[str], folder: Path, tmp_path: Path) -> None:
    argv = ["recompose", "-m", MODEL, "-d", str(folder), "--checkpoint", checkpoints[0], "--patch-size", "64"]
    assert svdrd([*argv, "-o", str(tmp_path), "--estimate"]) == 0
    header = (tmp_path / "recompose.csv").read_text().splitlines()[0]
    assert header == "model,codec,matrices,image,bpp_estimated,psnr_lq,psnr_latent,psnr_pixel"
    assert "estimation" in json.loads((tmp_path / "recompose.json").read_text())["description"]


@torch.no_grad()
def test_latents_are_those_that_the_decoder_reads(folder: Path) -> None:
    model = load_codec(MODEL, checkpoint=BASE).eval()
    model.update(force=True)
    x = to_tensor(Image.open(folder / "upright.png"))[None, :, :128, :64]
    with captured_latents(model) as latents:
        coded = coding.code(model, x)
    assert torch.equal(latents["y"], model.g_a(x))
    decoded = model.g_s(latents["y_hat"]).clamp(0, 1)
    assert torch.equal((decoded * 255).round(), (coded.x_hat * 255).round())
    assert not model.g_a._forward_hooks
    assert not model.g_s._forward_pre_hooks


@torch.no_grad()
def test_lic_tcm(folder: Path) -> None:
    """A codec of another class, with other padding: the whole image, its latents with what it pads."""
    torch.manual_seed(0)
    model = load_codec("lic-tcm", init="random", lic_tcm_repo=STAND_IN).eval()
    model.update(force=True)
    x = to_tensor(Image.open(folder / "upright.png"))[None]
    recomposed = recompose_image(model, x)
    assert recomposed.latent.shape == recomposed.pixel.shape == x.shape
    results = recomposed.results(x)
    assert results["psnr_pixel"] > results["psnr_lq"]
    assert all(math.isfinite(value) for value in results.values())


def test_spectrum_against_its_definition() -> None:
    """Two images of different sizes, in blocks of 8 and whole."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.rand(2, 1, 3, *sides, generator=generator) for sides in ((16, 24), (24, 8))]
    for patch_size, length in ((8, 8), (None, 16)):
        spectrum = Spectrum()
        matrices: list[tuple[torch.Tensor, torch.Tensor]] = []
        for x_hat, x in pairs:
            spectrum.add(x_hat, x, patch_size)
            tiles = [
                image.double()[0].unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size).flatten(0, 2)
                if patch_size
                else image.double()[0]
                for image in (x_hat, x)
            ]
            matrices += list(zip(*tiles, strict=True))
        curves = spectrum.curves()
        assert [len(curve) for curve in curves.values()] == [length] * 3
        for i in range(length):
            hq, lq, along, energy = [], [], 0.0, 0.0
            for x_hat, x in matrices:
                if i >= min(x.shape):
                    continue
                u, s, vh = torch.linalg.svd(x, full_matrices=False)
                hq.append(s[i].item())
                lq.append(torch.linalg.svdvals(x_hat)[i].item())
                along += (s[i] * (u[:, i] @ x_hat @ vh[i])).item()
                energy += s[i].square().item()
            assert curves["hq"][i] == pytest.approx(np.mean(hq), rel=1e-4)
            assert curves["lq"][i] == pytest.approx(np.mean(lq), rel=1e-4)
            assert curves["kept"][i] == pytest.approx(along / energy, rel=1e-3, abs=1e-4)


def test_spectrum_of_the_original_itself_keeps_everything() -> None:
    x = torch.rand(1, 3, 32, 32)
    spectrum = Spectrum()
    spectrum.add(x, x, None)
    assert spectrum.curves()["kept"] == pytest.approx([1] * 32, abs=1e-3)
    flat = Spectrum()
    flat.add(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), None)
    assert flat.curves()["kept"] == [None] * 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-d", "missing"], "dataset 'missing': missing"),
        (["-d", "empty"], "no image among them"),
        (["--patch-size", "100"], "--patch-size 100: wanted a multiple of 64"),
        (["--patch-size", "0"], "--patch-size 0: wanted a multiple of 64"),
        (["--patch-size", "192"], "lying.png has 70x140 pixels, less than a patch of 192"),
        (["--patch-size", "64", "--whole"], "argument --whole: not allowed with argument --patch-size"),
        (["--show", "sideways"], "--show sideways: no such image in"),
        (["-o", "a file"], "--output a file: not writable: 'a file' is not a folder"),
        (["-o", "a file/below"], "a file' is not a folder that can be written to"),
        (["--checkpoint", "absent.pth.tar"], "absent.pth.tar': no such file"),
        (["-m", "mbt2018"], "not a mbt2018"),
        (["--device", "abacus"], "--device abacus: "),
        (["-m", "test_recompose_flat:build"], "has no transforms g_a and g_s"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    options: list[str],
    said: str,
    checkpoints: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").touch()
    (tmp_path / "test_recompose_flat.py").write_text(
        "from compressai.models import CompressionModel\n"
        "class build(CompressionModel):\n"
        "    def forward(self, x): return {'x_hat': x}\n"
        "    def compress(self, x): pass\n"
        "    def decompress(self, strings, shape): pass\n"
        "    def load_state_dict(self, state_dict): pass\n"
        "    def state_dict(self, *args, **options): return {}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    if "test_recompose_flat:build" in options:
        monkeypatch.setattr("svdrd.compress.codecs.external._load_weights", lambda *_: None)
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
    argv = ["recompose", "-m", MODEL, "-d", str(folder), "--checkpoint", checkpoints[0], "--patch-size", "64"]
    if "--checkpoint" in options:
        argv = argv[: argv.index("--checkpoint")] + argv[argv.index("--checkpoint") + 2 :]
    try:
        code = svdrd([*argv, *options])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("svdrd recompose: error: ")
    assert said in errors[0]
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before
