"""Every codec through the same three commands: a step of fine-tuning, a resume, an evaluation with real coding."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("compressai")

from compressai.zoo import image_models

from svdrd.__main__ import main as svdrd
from svdrd.compress import BadInput, load_codec, options
from svdrd.compress.codecs import checkpoints, models
from svdrd.compress.evaluation import coding
from tests.compress.conftest import differing, equal, synthetic_photograph, weights

STAND_IN = Path(__file__).parent / "stand_in"
LIC_TCM_REPO = os.environ.get("SVDRD_LIC_TCM_REPO")
COMPRESSAI = [name for name in models.image_codecs() if not name.endswith("-vbr")]
FACTORY = '''
from compressai.models import ScaleHyperprior

class Codec(ScaleHyperprior):
    """Of a size that its weights do not tell."""

    def __init__(self, width, gain=1.0):
        super().__init__(width, width + 4)
        self.gain = gain

    @classmethod
    def from_state_dict(cls, state_dict):
        raise NotImplementedError

    def forward(self, x):
        output = super().forward(x)
        return {**output, "x_hat": self.gain * output["x_hat"]}

    def decompress(self, strings, shape):
        return {"x_hat": (self.gain * super().decompress(strings, shape)["x_hat"]).clamp(0, 1)}

def build(width=8, gain=1.0):
    return Codec(width, gain)

def no_codec():
    import torch
    return torch.nn.Identity()

def grey():
    import torch
    codec = Codec(8)
    codec.g_a[0] = torch.nn.Conv2d(1, 8, 5, stride=2, padding=2)
    return codec

def makes_grey():
    import torch
    codec = Codec(8)
    codec.g_s[6] = torch.nn.ConvTranspose2d(8, 1, 5, stride=2, padding=2, output_padding=1)
    return codec

def number():
    return 3

constant = 3
'''


def folder_of_images(root: Path, side: int) -> Path:
    """Two training images and one for validation of that height, and one of odd sides to code."""
    for seed, name in enumerate(("train/a.png", "train/b.png", "test/c.png")):
        (root / name).parent.mkdir(exist_ok=True)
        synthetic_photograph(side, side + 4, seed).save(root / name)
    (root / "to_code").mkdir()
    synthetic_photograph(161, 170, 7).save(root / "to_code" / "d.png")
    return root


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("crops"), 256)


@pytest.fixture(scope="session")
def small_crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("small_crops"), 64)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of a user that holds a factory."""
    (tmp_path / "site" / "somebodys").mkdir(parents=True)
    (tmp_path / "site" / "somebodys" / "__init__.py").touch()
    (tmp_path / "site" / "somebodys" / "codecs.py").write_text(FACTORY)
    (tmp_path / "site" / "somebodys" / "needy.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "somebodys"]:
        monkeypatch.delitem(sys.modules, name)
    return "somebodys.codecs"


def trained_evaluated_resumed(
    crops: Path, folder: Path, codec: list[str], evaluation: list[str], *options: str
) -> tuple[dict, dict]:
    """One step; an evaluation of what it left; the second step by a resume that names no model.

    Returns:
        The checkpoint of the second step, and the results of the evaluation.
    """
    run = [*codec, "--lambda", "0.01", "-d", str(crops), "--batch-size", "1", "-n", "0", "--device", "cpu", *options]
    assert svdrd(["finetune", *run, "--steps", "1", "-o", str(folder)]) == 0
    first = checkpoints.load(folder / checkpoints.LAST)
    output = folder / "coded.json"
    argv = [*evaluation, "--checkpoint", str(folder / checkpoints.LAST), "-d", str(crops / "to_code")]
    assert svdrd(["evaluate", *argv, "-o", str(output)]) == 0
    document = json.loads(output.read_text())
    assert svdrd(["finetune", "--resume", str(folder / checkpoints.LAST), "--steps", "2"]) == 0
    second = checkpoints.load(folder / checkpoints.LAST)
    assert (first["step"], second["step"]) == (1, 2)
    assert equal(second["metrics"][0], first["metrics"][0])
    assert any(not torch.equal(weights(first)[key], weights(second)[key]) for key in weights(first))
    results = {key: values[0] for key, values in document["results"].items()}
    assert results["bpp"] > 0
    assert math.isfinite(results["psnr-rgb"])
    return second, results


@pytest.mark.parametrize("name", COMPRESSAI)
def test_compressais_codecs(name: str, small_crops: Path, tmp_path: Path):
    # ELIC's class finds N in a checkpoint and takes M = 320.
    size = ["N=8"] if name.startswith(("cheng", "elic")) else ["N=8", "M=12"]
    codec = ["-m", name, "--init", "random", "--model-args", *size]
    trained_evaluated_resumed(small_crops, tmp_path / "run", codec, ["-m", name], "--patch-size", "64", "64")


def test_the_list_of_compressais_codecs_is_complete():
    assert {name for name in image_models if not name.endswith("-vbr")} <= set(COMPRESSAI)
    assert {"elic2022-official", "elic2022-chandelier", "cheng2020-anchor-checkerboard"} <= set(COMPRESSAI)


def test_lic_tcm(crops: Path, tmp_path: Path):
    """On a stand-in with the peculiarities of the official code; N is not named after the first command."""
    lic_tcm = ["-m", "lic-tcm", "--lic-tcm-repo", str(STAND_IN)]
    random = [*lic_tcm, "--init", "random", "--model-args", "N=12"]
    resumed, results = trained_evaluated_resumed(crops, tmp_path / "run", random, lic_tcm)
    assert resumed["arguments"]["lic_tcm_repo"] == str(STAND_IN)
    compared = ["-d", str(crops / "to_code"), "-o", str(tmp_path / "compared")]
    checkpoint = str(tmp_path / "run" / checkpoints.LAST)
    arms = ["--arm", "one", checkpoint, "--arm", "other", checkpoint]
    assert svdrd(["compare", *lic_tcm, *compared, *arms]) == 0
    (kept,) = (tmp_path / "compared" / "evaluations").rglob("*.json")
    assert json.loads(kept.read_text())["results"]["bpp"][0] > 0
    straight = ["--lambda", "0.01", "-d", str(crops), "--batch-size", "1", "-n", "0", "--device", "cpu"]
    assert svdrd(["finetune", *random, *straight, "--steps", "2", "-o", str(tmp_path / "straight")]) == 0
    # A run stopped after one step validates there too, which the straight one does at the end of the epoch only.
    validated = {"metrics", "loss", "best_loss", "lr_scheduler", "epoch_sums", "epoch_count"}
    assert set(differing(checkpoints.load(tmp_path / "straight" / checkpoints.LAST), resumed)) <= validated

    # As its authors' checkpoints come: with prefixes of DataParallel, and without svdrd's arguments.
    state = {f"module.{key}": value for key, value in weights(resumed).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.pth.tar")
    model = load_codec("lic-tcm", checkpoint=tmp_path / "theirs.pth.tar", lic_tcm_repo=STAND_IN)
    assert all(torch.equal(value, weights(resumed)[key]) for key, value in model.state_dict().items())
    assert model.training
    assert models.input_sides(model) == (128, 256)
    assert math.isfinite(results["ms-ssim-rgb"])


@pytest.mark.skipif(LIC_TCM_REPO is None, reason=f"SVDRD_LIC_TCM_REPO names no checkout of {options.LIC_TCM_ADDRESS}")
def test_lic_tcm_of_the_official_repository(crops: Path, tmp_path: Path):
    pytest.importorskip("einops")
    pytest.importorskip("timm")
    lic_tcm = ["-m", "lic-tcm", "--lic-tcm-repo", str(LIC_TCM_REPO)]
    random = [*lic_tcm, "--init", "random", "--model-args", "N=32"]
    resumed, _ = trained_evaluated_resumed(crops, tmp_path / "run", random, lic_tcm)
    state = {f"module.{key}": value for key, value in weights(resumed).items()}
    torch.save({"state_dict": state}, tmp_path / "theirs.pth.tar")
    model = load_codec("lic-tcm", checkpoint=tmp_path / "theirs.pth.tar", lic_tcm_repo=LIC_TCM_REPO)
    assert all(torch.equal(value, weights(resumed)[key]) for key, value in model.state_dict().items())


def test_a_factorys_checkpoint_in_16_bits(tmp_path: Path, package: str):
    codec = load_codec(f"{package}:build")
    torch.save({"state_dict": codec.half().state_dict()}, tmp_path / "half.pth.tar")
    loaded = load_codec(f"{package}:build", checkpoint=tmp_path / "half.pth.tar")
    bounds = {
        name: value.item() for name, value in loaded.named_buffers() if name.endswith("likelihood_lower_bound.bound")
    }
    assert bounds
    assert set(bounds.values()) == {torch.tensor(1e-9).item()}


def test_factory(small_crops: Path, tmp_path: Path, package: str):
    name = f"{package}:build"
    codec = ["-m", name, "--model-args", "width=10", "gain=0.5"]
    resumed, results = trained_evaluated_resumed(
        small_crops, tmp_path / "run", codec, ["-m", name], "--patch-size", "64", "64"
    )
    assert weights(resumed)["g_a.0.weight"].shape[0] == 10
    checkpoint = tmp_path / "run" / checkpoints.LAST
    # What the weights do not tell comes from the run's arguments, and the command line wins over them.
    assert load_codec(name, checkpoint=checkpoint).gain == 0.5
    assert load_codec(name, checkpoint=checkpoint, gain=0.25).gain == 0.25
    assert load_codec(f"{package}:Codec", width=6).g_a[0].weight.shape[0] == 6
    # Of a file of weights alone only the command line knows the size.
    torch.save({"state_dict": weights(resumed)}, tmp_path / "weights.pth.tar")
    assert load_codec(name, checkpoint=tmp_path / "weights.pth.tar", width=10).gain == 1
    with pytest.raises(BadInput, match=r"weights\.pth\.tar': not a .*:build of these --model-args: .* shapes differ"):
        load_codec(name, checkpoint=tmp_path / "weights.pth.tar")
    assert math.isfinite(results["ms-ssim-rgb"])


@pytest.mark.parametrize(("sides", "wanted"), [((64, 64), (256, 256)), ((257, 500), (384, 512)), ((256, 384),) * 2])
def test_images_are_padded_to_what_lic_tcm_takes(sides: tuple[int, int], wanted: tuple[int, int]):
    model = load_codec("lic-tcm", init="random", lic_tcm_repo=STAND_IN)
    x = torch.rand(1, 3, *sides)
    padded, unpad = coding.padded(model, x)
    assert padded.shape[-2:] == wanted
    assert torch.equal(torch.nn.functional.pad(padded, unpad), x)
    assert model(padded)["x_hat"].shape == padded.shape


def repository(folder: Path, code: str | None) -> Path:
    (folder / "models").mkdir(parents=True)
    if code is not None:
        (folder / "models" / "tcm.py").write_text(code)
    return folder


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "no models/tcm.py in it; give a checkout of https://github.com/jmliu206/LIC_TCM"),
        ("from einops import rearrange", "einops is not installed; pip install einops timm"),
        ("from timm.models.layers import DropPath", "timm is not installed; pip install einops timm"),
        ("import a_package_nobody_has", "imports a_package_nobody_has, which is not installed"),
        ("class TCM(", "tcm.py cannot be imported (SyntaxError: "),
        ("TCN = 3", "models/tcm.py has no class TCM"),
        ("class TCM:\n def __init__(self, width): pass", "model_args={'N': 8}: lic-tcm takes width"),
        ("class TCM:\n def __init__(self, N): pass", "what it makes (TCM) is no torch.nn.Module"),
    ],
)
def test_a_checkout_that_cannot_work(code: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("einops", "timm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "einops", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BadInput) as caught:
        load_codec("lic-tcm", init="random", lic_tcm_repo=repository(tmp_path / "repo", code), N=8)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "lic-tcm"}, "CompressAI's zoo has no weights for it; give --checkpoint"),
        ({"name": "lic-tcm", "init": "random"}, "--lic-tcm-repo is missing; git clone https://github.com/jmliu206"),
        ({"name": "lic-tmc"}, "did you mean lic-tcm"),
        ({"name": "jpeg"}, "lic-tcm and package.module:factory are others"),
        ({"name": "somebodys.codecs:"}, "wanted package.module:factory"),
        ({"name": "some/body:build"}, "wanted package.module:factory"),
        ({"name": "nobodys.codecs:build"}, "no module nobodys; install it, or name its folder in PYTHONPATH"),
        ({"name": "somebodys.other:build"}, "no module somebodys.other; install it"),
        ({"name": "somebodys.needy:build"}, "somebodys.needy imports a_package_nobody_has, which is not installed"),
        ({"name": "somebodys.codecs:built"}, "has no function or class built; it has "),
        ({"name": "somebodys.codecs:constant"}, "has no function or class constant"),
        ({"name": "somebodys.codecs:build", "depth": 3}, "somebodys.codecs:build takes width=8, gain=1.0"),
        ({"name": "somebodys.codecs:no_codec"}, "what it makes (Identity) has no aux_loss, update, compress"),
        (
            {"name": "somebodys.codecs:grey"},
            "grey': its forward does not take an image of shape (1, 3, 64, 64) (Runtime",
        ),
        ({"name": "somebodys.codecs:grey"}, "have three channels, grey ones too: make the codec with three"),
        (
            {"name": "somebodys.codecs:makes_grey"},
            "its forward makes (1, 1, 64, 64) of an image of shape (1, 3, 64, 64)",
        ),
        ({"name": "somebodys.codecs:number"}, "what it makes (int) is no torch.nn.Module"),
    ],
)
def test_bad_input(arguments: dict, said: str, package: str):
    with pytest.raises(BadInput) as caught:
        load_codec(**arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_model(tmp_path: Path):
    state = load_codec("bmshj2018-hyperprior", init="random", N=8, M=12).state_dict()
    torch.save({"state_dict": state}, tmp_path / "hyperprior.pth.tar")
    with pytest.raises(BadInput, match=r"hyperprior\.pth\.tar': not a lic-tcm: it has no g_a\.0\.conv1\.weight"):
        load_codec("lic-tcm", checkpoint=tmp_path / "hyperprior.pth.tar", lic_tcm_repo=STAND_IN)
    state = load_codec("lic-tcm", init="random", lic_tcm_repo=STAND_IN, N=8).state_dict()
    del state["g_a.1.bias"]
    torch.save({"state_dict": state}, tmp_path / "part.pth.tar")
    with pytest.raises(BadInput, match=r"not a lic-tcm of these --model-args: 1 keys missing \(g_a\.1\.bias\)"):
        load_codec("lic-tcm", checkpoint=tmp_path / "part.pth.tar", lic_tcm_repo=STAND_IN)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--patch-size", "128", "128"], "--patch-size 128: lic-tcm takes multiples of 128 from 256 on; 256 would do"),
        (["-q", "3"], "quality=3: lic-tcm has no qualities in CompressAI's zoo"),
        (["--lic-tcm-repo", "nowhere"], "nowhere': no models/tcm.py in it"),
        (["--model-args", "K=3"], "model_args={'K': 3}: lic-tcm takes N=8, slices=2"),
    ],
)
def test_finetune_refuses_in_one_line_and_writes_nothing(
    options: list[str], said: str, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["finetune", "-m", "lic-tcm", "--lic-tcm-repo", str(STAND_IN), "--init", "random", "--lambda", "0.01"]
    assert svdrd([*argv, "-d", str(crops), "-o", str(tmp_path / "run"), "--device", "cpu", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("svdrd finetune: error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not (tmp_path / "run").exists()
