"""Weights, buffers, tables and latents that are not finite: refused by name, before the range coder sees them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("compressai")

from compressai.entropy_models import EntropyBottleneck
from compressai.models import FactorizedPrior, JointAutoregressiveHierarchicalPriors, ScaleHyperprior

from svdrd.__main__ import main as svdrd
from svdrd.compress import BadInput, load_codec
from svdrd.compress.codecs import checkpoints
from svdrd.compress.codecs.soundness import problem_of_codec, problem_of_tables
from svdrd.compress.evaluation import coding
from svdrd.compress.study import run as study_run
from tests.compress.conftest import TINY_RUN, synthetic_photograph

MODEL = "bmshj2018-hyperprior"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("a.png", "b.png")):
        synthetic_photograph(192, 192, seed).save(folder / name)
    return folder


def hyperprior() -> ScaleHyperprior:
    torch.manual_seed(0)
    return ScaleHyperprior(8, 12)


def broken(path: Path, key: str, value: float, update: bool = False) -> Path:
    model = hyperprior()
    if update:
        model.update()
    weights = model.state_dict()
    weights[key].view(-1)[0] = value
    torch.save({"state_dict": weights}, path)
    return path


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("g_a.0.weight", math.nan, "weights that are not finite: g_a.0.weight (1 of 600 entries); take an earlier"),
        ("h_s.4.weight", math.inf, "weights that are not finite: h_s.4.weight (1 of 864 entries); take"),
        ("g_s.1.beta", -math.inf, "weights that are not finite: g_s.1.beta (1 of 8 entries); take"),
        # Buffers: of the entropy model, of a table, of a layer.
        ("entropy_bottleneck.target", math.nan, "entropy_bottleneck.target (1 of 3 entries)"),
        ("gaussian_conditional.scale_table", math.inf, "gaussian_conditional.scale_table (1 of 64 entries)"),
        ("g_a.1.beta_reparam.pedestal", math.inf, "g_a.1.beta_reparam.pedestal (1 of 1 entries)"),
        ("entropy_bottleneck.quantiles", math.nan, "entropy_bottleneck.quantiles (1 of 24 entries)"),
        ("entropy_bottleneck.quantiles", -3e6, "those of channel 0 are -3e+06, 0, 10, which is a table of 3000012 ent"),
        ("entropy_bottleneck.quantiles", -3e38, "entropy_bottleneck: its quantiles run away"),
    ],
)
def test_a_checkpoint_is_refused_by_name(key: str, value: float, said: str, tmp_path: Path):
    path = broken(tmp_path / "c.pth.tar", key, value, update=True)
    with pytest.raises(BadInput) as caught:
        load_codec(MODEL, checkpoint=path)
    assert str(caught.value).startswith(f"checkpoint '{path}': ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_tensors_are_counted_and_the_best_checkpoint_is_named(tmp_path: Path):
    weights = {
        key: value * math.nan if value.is_floating_point() else value
        for key, value in hyperprior().state_dict().items()
    }
    torch.save({"state_dict": weights}, tmp_path / checkpoints.LAST)
    torch.save({"state_dict": hyperprior().state_dict()}, tmp_path / checkpoints.BEST)
    with pytest.raises(BadInput, match=rf"and \d\d more; take an earlier checkpoint such as '.*{checkpoints.BEST}' "):
        load_codec(MODEL, checkpoint=tmp_path / checkpoints.LAST)
    load_codec(MODEL, checkpoint=tmp_path / checkpoints.BEST)


@pytest.mark.parametrize("command", ["evaluate", "estimate", "recompose", "compare", "finetune", "experiment"])
def test_every_command_refuses_in_one_line(
    command: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    # The stages of a study in this process: starting one takes seconds.
    monkeypatch.setattr(study_run, "OwnProcess", lambda _lock: svdrd)
    nan = broken(tmp_path / "nan.pth.tar", "g_a.0.weight", math.nan)
    codec = ["-m", MODEL, "-d", str(folder)]
    argv = {
        "evaluate": ["evaluate", *codec, "--checkpoint", str(nan), "-o", str(tmp_path / "out.json")],
        "estimate": ["evaluate", *codec, "--checkpoint", str(nan), "--estimate", "-o", str(tmp_path / "out.json")],
        "recompose": ["recompose", *codec, "--checkpoint", str(nan), "--whole", "-o", str(tmp_path / "out")],
        "compare": ["compare", *codec, "--arm", f"a={nan}", "--arm", f"b={nan}", "-o", str(tmp_path / "out")],
        "finetune": ["finetune", *codec, *TINY_RUN, "--lambda", "1", "--checkpoint", str(nan), "--no-save"],
        "experiment": ["experiment", str(tmp_path / "study.toml"), "-o", str(tmp_path / "study")],
    }[command]
    (tmp_path / "study.toml").write_text(
        f'model = "{MODEL}"\nlambdas = [0.01]\nbase.weights = "{nan}"\narms.basis.mu = 10\n'
        f'finetune.dataset = "{folder}"\nfinetune.patch-size = [64, 64]\nevaluate.folders.kodak = "{folder}"\n'
    )
    assert svdrd(argv) == (1 if command == "experiment" else 2)
    said = capsys.readouterr()
    assert f"checkpoint '{nan}': weights that are not finite: g_a.0.weight (1 of 600 entries)" in said.err
    if command == "experiment":
        assert "arms/basis/lambda-0.01/seed-0 ended with exit code 2" in said.err
    else:
        assert said.err.count("\n") == 1
    assert not (tmp_path / "out.json").exists()
    assert not (tmp_path / "out").exists()


def test_the_longest_table_that_the_coder_takes():
    bottleneck = EntropyBottleneck(2)
    with torch.no_grad():
        bottleneck.quantiles[1, 0] = torch.tensor([-30000.0, 0.0, 35534.0])
    # One more entry for the median, one for the tails: 2^16.
    assert problem_of_tables(bottleneck) == ""
    with torch.no_grad():
        bottleneck.quantiles[1, 0, 0] = -30001
    said = "channel 1 are -3e+04, 0, 3.553e+04, which is a table of 65537 entries; a range coder of 16 bits takes "
    assert said + "65536" in problem_of_tables(bottleneck)


def test_a_table_of_nan_is_refused_before_it_is_made():
    """Finite weights whose sums are infinite, with both signs."""
    model = hyperprior()
    with torch.no_grad():
        model.entropy_bottleneck.biases[1][2, :2, 0] = torch.tensor([3e38, -3e38])
        model.entropy_bottleneck.matrices[2][2].fill_(3e38)
    said = "entropy_bottleneck: its weights are finite, and the likelihoods of channel 2 of 8 are not"
    assert problem_of_codec(model) == said


def test_tables_in_disorder_are_none_that_run_away():
    """As CompressAI makes them: what is on the wrong side of the median counts as none."""
    bottleneck = EntropyBottleneck(1)
    with torch.no_grad():
        bottleneck.quantiles[0, 0] = torch.tensor([40.0, 0.0, -40.0])
    assert problem_of_tables(bottleneck) == ""
    bottleneck.update(force=True)
    assert int(bottleneck._cdf_length) == 3


def test_masks_of_other_codecs_are_infinite():
    class WithMask(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((2, 2), value))

    model = hyperprior()
    model.attention = WithMask(-math.inf)
    assert problem_of_codec(model) == ""
    model.attention = WithMask(math.nan)
    assert problem_of_codec(model) == "weights that are not finite: attention.mask (4 of 4 entries)"


def diverged(model: nn.Module, key: str, value: float) -> nn.Module:
    """Finite weights, and so large, in both signs, that something behind them is not."""
    with torch.no_grad():
        weight = dict(model.named_parameters())[key]
        weight.copy_(value * torch.randn_like(weight).sign())
        # What comes before is no zero, as most latents of a random codec are.
        for before in ("g_s.4.bias", "h_s.2.bias"):
            dict(model.named_parameters()).get(before, weight.new_empty(1)).fill_(1e5)
    assert problem_of_codec(model) == ""
    model.update(force=True)
    return model.eval()


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize(
    ("model", "key", "value", "said"),
    [
        (lambda: FactorizedPrior(8, 12), "g_a.6.bias", 2e9, r"of 576 latents are not or beyond 16777216"),
        (hyperprior, "h_a.0.weight", 3e38, r"latents are not or beyond"),
        (hyperprior, "h_s.4.weight", 3e38, r"288 of 576 scales of latents are not: the codec has diverged"),
        (hyperprior, "g_s.6.weight", 3e38, r"of 36864 values of the decoded image are not"),
        (lambda: JointAutoregressiveHierarchicalPriors(8, 12), "g_a.6.bias", 3e38, r"latents are not or beyond"),
    ],
)
def test_finite_weights_that_have_diverged(
    model: Callable[[], nn.Module], key: str, value: float, said: str, estimated: bool
):
    torch.manual_seed(0)
    codec = diverged(model(), key, value)
    x = torch.rand(1, 3, 64, 192)
    with pytest.raises(coding.NotFinite, match=said):
        (coding.estimate if estimated else coding.code)(codec, x)


def test_the_image_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = diverged(hyperprior(), "g_a.6.bias", 3e38)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "c.pth.tar")
    argv = ["evaluate", "-m", MODEL, "-d", str(folder), "--checkpoint", str(tmp_path / "c.pth.tar")]
    assert svdrd([*argv, "-o", str(tmp_path / "out.json")]) == 1
    assert f"{folder / 'a.png'}: its weights are finite, and " in (said := capsys.readouterr().err)
    assert said.endswith("the codec has diverged; take an earlier checkpoint\n")
    assert not (tmp_path / "out.json").exists()


def test_an_infinite_pixel_is_no_white_one(monkeypatch: pytest.MonkeyPatch):
    """Clamped to 8 bits it would have a PSNR."""
    codec = hyperprior().eval()
    codec.update()
    decompress = ScaleHyperprior.decompress

    def infinite(self: ScaleHyperprior, *args: object) -> dict[str, Tensor]:
        return {"x_hat": decompress(self, *args)["x_hat"] + math.inf}

    monkeypatch.setattr(ScaleHyperprior, "decompress", infinite)
    with pytest.raises(coding.DecoderMismatch):
        coding.code(codec, torch.ones(1, 3, 64, 64))
