"""A stand-in for models/tcm.py of LIC-TCM: small, of another design, and with the same peculiarities.

Those are: windows that need sides of multiples of 128, above 128; a key `para` in what `forward` returns; a
`load_state_dict` without `strict`, which needs the tables of the Gaussian model; a `from_state_dict` that reads a layer
the model does not have; the base class's deprecated argument; two strings, the latents' coded slice by slice into one.
"""

import torch
from compressai.ans import BufferedRansEncoder, RansDecoder
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import ResidualBlockWithStride, conv3x3, subpel_conv3x3
from compressai.models import CompressionModel
from compressai.models.utils import update_registered_buffers
from torch import nn

WINDOW = 8


class Windows(nn.Module):
    """Subtracts a part of the mean of each window; as little as attention, it takes one window or half ones."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Parameter(torch.tensor(0.1))

    def forward(self, y):
        n, c, h, w = y.shape
        if h <= WINDOW or w <= WINDOW or h % WINDOW or w % WINDOW:
            raise RuntimeError(f"latents of {h}x{w} are not several whole windows of {WINDOW}x{WINDOW}")
        windows = y.reshape(n, c, h // WINDOW, WINDOW, w // WINDOW, WINDOW)
        return (windows - self.part * windows.mean((3, 5), keepdim=True)).reshape(y.shape)


class TCM(CompressionModel):
    def __init__(self, N=8, slices=2):
        super().__init__(entropy_bottleneck_channels=N)
        self.slices = slices
        self.g_a = nn.Sequential(
            ResidualBlockWithStride(3, 2 * N, 2),
            nn.Conv2d(2 * N, 2 * N, 5, 2, 2),
            nn.Conv2d(2 * N, 2 * N, 5, 2, 2),
            nn.Conv2d(2 * N, 2 * N, 5, 2, 2),
            Windows(),
        )
        self.g_s = nn.Sequential(*(subpel_conv3x3(2 * N, channels, 2) for channels in (2 * N, 2 * N, 2 * N, 3)))
        self.h_a = nn.Sequential(conv3x3(2 * N, N, 2), conv3x3(N, N, 2))
        self.h_s = nn.Sequential(subpel_conv3x3(N, N, 2), subpel_conv3x3(N, 4 * N, 2))
        self.entropy_bottleneck = EntropyBottleneck(N)
        self.gaussian_conditional = GaussianConditional(None)

    def update(self, scale_table=None, force=False):
        table = torch.exp(torch.linspace(-2.2, 5.5, 64)) if scale_table is None else scale_table
        updated = self.gaussian_conditional.update_scale_table(table, force=force)
        return updated | super().update(force=force)

    def load_state_dict(self, state_dict):
        names = ["_quantized_cdf", "_offset", "_cdf_length", "scale_table"]
        update_registered_buffers(self.gaussian_conditional, "gaussian_conditional", names, state_dict)
        super().load_state_dict(state_dict)

    @classmethod
    def from_state_dict(cls, state_dict):
        net = cls(state_dict["g_a.0.weight"].size(0), state_dict["g_a.6.weight"].size(0))
        net.load_state_dict(state_dict)
        return net

    def parameters_of(self, z_hat):
        scales, means = self.h_s(z_hat).chunk(2, 1)
        return scales.chunk(self.slices, 1), means.chunk(self.slices, 1)

    def forward(self, x):
        y = self.g_a(x)
        z = self.h_a(y)
        _, z_likelihoods = self.entropy_bottleneck(z)
        offset = self.entropy_bottleneck._get_medians()
        z_hat = torch.round(z - offset) + offset
        scales, means = self.parameters_of(z_hat)
        likelihoods, y_hat = [], []
        for part, scale, mean in zip(y.chunk(self.slices, 1), scales, means, strict=True):
            likelihoods.append(self.gaussian_conditional(part, scale, mean)[1])
            y_hat.append(part + (torch.round(part - mean) + mean - part).detach())
        return {
            "x_hat": self.g_s(torch.cat(y_hat, 1)),
            "likelihoods": {"y": torch.cat(likelihoods, 1), "z": z_likelihoods},
            "para": {"means": torch.cat(means, 1), "scales": torch.cat(scales, 1), "y": y},
        }

    def tables(self):
        model = self.gaussian_conditional
        return model.quantized_cdf.tolist(), model.cdf_length.reshape(-1).tolist(), model.offset.reshape(-1).tolist()

    def compress(self, x):
        y = self.g_a(x)
        z = self.h_a(y)
        z_strings = self.entropy_bottleneck.compress(z)
        scales, means = self.parameters_of(self.entropy_bottleneck.decompress(z_strings, z.shape[-2:]))
        symbols, indexes = [], []
        for part, scale, mean in zip(y.chunk(self.slices, 1), scales, means, strict=True):
            symbols += self.gaussian_conditional.quantize(part, "symbols", mean).reshape(-1).tolist()
            indexes += self.gaussian_conditional.build_indexes(scale).reshape(-1).tolist()
        encoder = BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, *self.tables())
        return {"strings": [[encoder.flush()], z_strings], "shape": z.shape[-2:]}

    def decompress(self, strings, shape):
        scales, means = self.parameters_of(self.entropy_bottleneck.decompress(strings[1], shape))
        decoder = RansDecoder()
        decoder.set_stream(strings[0][0])
        y_hat = []
        for scale, mean in zip(scales, means, strict=True):
            indexes = self.gaussian_conditional.build_indexes(scale)
            symbols = torch.tensor(decoder.decode_stream(indexes.reshape(-1).tolist(), *self.tables()))
            y_hat.append(self.gaussian_conditional.dequantize(symbols.reshape(mean.shape), mean))
        return {"x_hat": self.g_s(torch.cat(y_hat, 1)).clamp_(0, 1)}
