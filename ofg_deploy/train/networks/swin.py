"""Swin transformer of volumes (Liu et al., ICCV 2021), as TransMorph's encoder (Chen et al., 2022), published names.

Tokens are kept as rows, (N, L, C). Which rows form the windows of an attention, shifted or not, is known from the grid,
so windows are one gather of rows and one back: no roll, no partition, no stored mask for each window.
"""

from __future__ import annotations

from itertools import islice, product
from math import prod

import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.geometry import Shape
from ofg_deploy.train.networks.base import HeavyBlock

PATCH = 4
MLP_RATIO = 4
DROP_PATH = 0.3  # of the last block; rises linearly from 0 at the first
SIDES = 6  # of a query or key: what masks, see WindowLayout
MASK_SCORE = 100.0  # subtracted from a score for each axis on which two tokens must not meet

# In which order the published weights expect the eight corners of a 2x2x2 cell.
CORNERS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)]


class WindowLayout(nn.Module):
    """Constants of one way to cut a token grid into windows.

    Windows are cut from the grid rolled by ``shift``, padded at the upper ends to whole windows.

    Attributes:
        rows: (windows * N,) token of each place; L stands for a padded place.
        places: (L,) where in ``rows`` each token is.
        query_sides, key_sides: (1, windows, 1, N, channels + 6), or None without a shift. The product of their last six
            is -100 for each axis on which one token came around the end of the grid and the other did not, and exactly
            0 otherwise: added to queries and keys of ``channels`` with six zeros behind, they mask what must not meet,
            without a (windows, N, N) mask.
    """

    def __init__(self, shape: Shape, window: Shape, shift: Shape, channels: int) -> None:
        super().__init__()
        padded = [-(-n // w) * w for n, w in zip(shape, window, strict=True)]
        self.windows, self.size = prod(padded) // prod(window), prod(window)
        self.has_padding = tuple(padded) != tuple(shape)
        tokens = torch.full(padded, prod(shape))
        tokens[: shape[0], : shape[1], : shape[2]] = torch.arange(prod(shape)).view(*shape)
        rows = _cut(tokens.roll([-s for s in shift], (0, 1, 2)), window)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("places", rows.argsort(stable=True)[: prod(shape)], persistent=False)
        if not any(shift):
            self.query_sides = self.key_sides = None
        else:
            axes = [torch.arange(n) >= n - s for n, s in zip(padded, shift, strict=True)]
            around = torch.stack([_cut(a, window) for a in torch.meshgrid(*axes, indexing="ij")], dim=-1).float()
            around = around.view(1, self.windows, 1, self.size, 3)
            root = MASK_SCORE**0.5
            query, key = (torch.cat(sides, dim=-1) for sides in ((around, 1 - around), (1 - around, around)))
            self.register_buffer("query_sides", functional.pad(query * -root, (channels, 0)), persistent=False)
            self.register_buffer("key_sides", functional.pad(key * root, (channels, 0)), persistent=False)


class WindowAttention(nn.Module):
    """Attention within windows of ``size`` tokens, with a learned bias for each relative position."""

    def __init__(self, channels: int, heads: int, window: Shape) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty(prod(2 * w - 1 for w in window), heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("known_bias", None, persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, layout: WindowLayout, relative: torch.Tensor) -> torch.Tensor:
        """(N, windows, size, C) -> the same; ``relative`` (size, size): row of the bias table of each pair."""
        channels = x.shape[-1] // self.heads
        # (N, windows, heads, size, channels of a head)
        q, k, v = (t.unflatten(-1, (self.heads, channels)).transpose(2, 3) for t in self.qkv(x).chunk(3, dim=-1))
        q = q * channels**-0.5
        if layout.query_sides is not None:
            q, k = (
                functional.pad(t, (0, SIDES)) + sides for t, sides in ((q, layout.query_sides), (k, layout.key_sides))
            )
        bias = self.bias(relative) if self.known_bias is None else self.known_bias
        x = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.proj(x.transpose(2, 3).flatten(-2))

    def bias(self, relative: torch.Tensor) -> torch.Tensor:
        """(heads, size, size) of each pair of tokens."""
        return functional.embedding(relative, self.relative_position_bias_table).permute(2, 0, 1)

    def freeze_bias(self, relative: torch.Tensor) -> None:
        """For inference: look it up once, so that a graph holds the bias and not its table."""
        self.known_bias = self.bias(relative).detach().contiguous()
        del self.relative_position_bias_table


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Leaves out a residual branch of a sample at random in training (Huang et al., ECCV 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class Block(HeavyBlock):
    """Window attention and an MLP, each on normalised tokens and added to what came in."""

    def __init__(self, channels: int, heads: int, window: Shape, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)

    def forward(self, x: torch.Tensor, layout: WindowLayout, relative: torch.Tensor) -> torch.Tensor:
        """(N, L, C) -> (N, L, C)."""
        tokens = self.norm1(x)
        if layout.has_padding:
            tokens = functional.pad(tokens, (0, 0, 0, 1))  # row L: the zeros of a padded place
        windows = tokens.index_select(1, layout.rows).unflatten(1, (layout.windows, layout.size))
        windows = self.attn(windows, layout, relative)
        x = x + self.drop_path(windows.flatten(1, 2).index_select(1, layout.places))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Eight neighbouring tokens become one of twice the channels; the grid halves."""

    def __init__(self, shape: Shape, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)
        tokens = torch.arange(prod(shape)).view(*shape)
        rows = torch.stack([tokens[x::2, y::2, z::2].flatten() for x, y, z in CORNERS], dim=1)
        self.register_buffer("rows", rows.flatten(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, C) -> (N, L / 8, 2 C)."""
        x = x.index_select(1, self.rows).unflatten(1, (-1, 8)).flatten(2)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks on one token grid, every second one with windows shifted by half a window."""

    def __init__(self, shape: Shape, channels: int, heads: int, window: Shape, drop_path: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, heads, window, rate) for rate in drop_path)
        shifts = [(0, 0, 0), tuple(w // 2 for w in window)]
        self.layouts = nn.ModuleList(WindowLayout(shape, window, shift, channels // heads) for shift in shifts)

    def forward(self, x: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, self.layouts[index % 2], relative)
        return x


class PatchEmbed(nn.Module):
    """Patches of 4x4x4 voxels -> tokens (N, L, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(2, channels, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))


class SwinTransformer(nn.Module):
    """(N, 2, X, Y, Z) -> features (N, C * 2^i, X / 2^(i+2), ...) of each stage i."""

    def __init__(
        self, grid: Shape, channels: int, depths: tuple[int, ...], heads: tuple[int, ...], window: Shape
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels)
        self.shapes = [tuple(n // PATCH // 2**i for n in grid) for i in range(len(depths))]
        rates = iter([DROP_PATH * i / (sum(depths) - 1) for i in range(sum(depths))])
        self.layers = nn.ModuleList(
            Stage(shape, channels * 2**i, heads[i], window, list(islice(rates, depths[i])))
            for i, shape in enumerate(self.shapes)
        )
        for i, (stage, shape) in enumerate(zip(self.layers, self.shapes, strict=True)):
            self.add_module(f"norm{i}", nn.LayerNorm(channels * 2**i))
            if i + 1 < len(depths):
                stage.downsample = PatchMerging(shape, channels * 2**i)
        self.register_buffer("relative", _relative_positions(window), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = self.patch_embed(images)
        features = []
        for i, (stage, shape) in enumerate(zip(self.layers, self.shapes, strict=True)):
            x = stage(x, self.relative)
            norm = self.get_submodule(f"norm{i}")
            features.append(norm(x).transpose(1, 2).unflatten(2, shape))
            if i + 1 < len(self.shapes):
                x = stage.downsample(x)
        return features


def _cut(volume: torch.Tensor, window: Shape) -> torch.Tensor:
    """(X, Y, Z), multiples of the window -> flat, window after window."""
    a, b, c = (n // w for n, w in zip(volume.shape, window, strict=True))
    x, y, z = window
    return volume.reshape(a, x, b, y, c, z).permute(0, 2, 4, 1, 3, 5).flatten()


def _relative_positions(window: Shape) -> torch.Tensor:
    """Row of the bias table for each (query, key) of a window: their offset, the last axis running fastest."""
    places = torch.tensor(list(product(*(range(w) for w in window))))
    offset = places[:, None] - places[None] + torch.tensor(window) - 1
    strides = torch.tensor([(2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1])
    return (offset * strides).sum(-1)
