"""ViT-V-Net (Chen et al., MIDL 2021) under the published names."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from torch import nn
from torch.nn import functional

from ofg_deploy.errors import UsageError
from ofg_deploy.geometry import Shape
from ofg_deploy.kernels.integration import Integration
from ofg_deploy.train.networks.base import HeavyBlock, RegistrationNetwork
from ofg_deploy.train.networks.convolution import Conv3d
from ofg_deploy.train.networks.up import Up

ENCODER = (16, 32, 32)  # channels at full, half and quarter resolution
REDUCTION = 4  # the transformer's patches are taken at a quarter of the resolution
PATCH = 8
HIDDEN, MLP, HEADS, LAYERS = 252, 3072, 12, 12
DROPOUT = 0.1
BELOW = 512  # channels between transformer and decoder
DECODER = (96, 48, 32, 32, 16)
SKIPS = (32, 32, 32, 32, 16)


class DoubleConv(HeavyBlock):
    """Twice: 3x3x3 convolution, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            Conv3d(channels_in, channels_out, 3, padding=1),
            nn.ReLU(),
            Conv3d(channels_out, channels_out, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    """Half the resolution, then a double convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool3d(2), DoubleConv(channels_in, channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maxpool_conv(x)


class ConvEncoder(nn.Module):
    """(N, 2, X, Y, Z) -> features from full resolution down to a sixteenth, the last two merely pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.inc = DoubleConv(2, ENCODER[0])
        self.down1 = Down(ENCODER[0], ENCODER[1])
        self.down2 = Down(ENCODER[1], ENCODER[2])

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        full = self.inc(images)
        half = self.down1(full)
        quarter = self.down2(half)
        eighth = functional.max_pool3d(quarter, 2)
        return [full, half, quarter, eighth, functional.max_pool3d(eighth, 2)]


class Embeddings(nn.Module):
    """Convolutional features, and tokens (N, L, C) of patches of them with their learned position."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.hybrid_model = ConvEncoder()
        self.patch_embeddings = nn.Conv3d(ENCODER[-1], HIDDEN, PATCH, stride=PATCH)
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, HIDDEN))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features = self.hybrid_model(images)
        tokens = self.patch_embeddings(features[2]).flatten(2).transpose(1, 2) + self.position_embeddings
        return functional.dropout(tokens, DROPOUT, self.training), features


class Attention(nn.Module):
    """Attention of all tokens to all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, HIDDEN // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = (q * (HIDDEN // HEADS) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(HIDDEN, MLP), nn.Linear(MLP, HIDDEN)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.dropout(functional.gelu(self.fc1(x)), DROPOUT, self.training)
        return functional.dropout(self.fc2(x), DROPOUT, self.training)


class Block(HeavyBlock):
    """Attention and an MLP, each on normalised tokens and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(HIDDEN, eps=1e-6)
        self.attn = Attention()
        self.ffn_norm = nn.LayerNorm(HIDDEN, eps=1e-6)
        self.ffn = Mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Encoder(nn.Module):
    """The transformer's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block() for _ in range(LAYERS))
        self.encoder_norm = nn.LayerNorm(HIDDEN, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layer:
            x = block(x)
        return self.encoder_norm(x)


class Transformer(nn.Module):
    """(N, 2, X, Y, Z) -> tokens (N, L, C) and convolutional features from full resolution down."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(tokens)
        self.encoder = Encoder()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tokens, features = self.embeddings(images)
        return self.encoder(tokens), features


class Conv(nn.Sequential):
    """3x3x3 convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        convolution = Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm3d(channels_out), nn.ReLU())


class Decoder(nn.Module):
    """Tokens on their grid (N, C, X / 32, ...) and skipped features -> (N, 16, X, Y, Z)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_more = Conv(HIDDEN, BELOW)
        levels = zip(pairwise((BELOW, *DECODER)), SKIPS, strict=True)
        self.blocks = nn.ModuleList(Up(Conv, a, skipped, b) for (a, b), skipped in levels)

    def forward(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        x = self.conv_more(x)
        for block, skip in zip(self.blocks, reversed(features), strict=True):
            x = block(x, skip)
        return x


class ViTVNet(RegistrationNetwork):
    """A V-Net whose lowest level is a vision transformer.

    Any grid of more than 32 voxels along some axis; it computes on multiples of 32. Its position embeddings have a row
    for each 32x32x32 voxels, so weights fit one padded grid only.
    """

    divisor = REDUCTION * PATCH
    weights_know_grid = True
    operators = frozenset(
        {"Conv", "Relu", "MaxPool", "LayerNormalization", "MatMul", "Reshape", "Transpose", "Softmax", "Gelu"}
        | {"Add", "Mul", "Resize", "Concat"}
    )

    def __init__(self, grid: Shape, diffeomorphic: bool | Integration = False) -> None:
        super().__init__(grid, diffeomorphic)
        self.tokens = tuple(n // self.divisor for n in self.padded)
        self.transformer = Transformer(prod(self.tokens))
        self.decoder = Decoder()
        self.reg_head = nn.Sequential(Conv3d(DECODER[-1], 3, 3, padding=1))
        # A start close to the identity map, as published.
        nn.init.normal_(self.reg_head[0].weight, std=1e-5)
        nn.init.zeros_(self.reg_head[0].bias)

    @classmethod
    def check_grid(cls, grid: Shape) -> None:
        super().check_grid(grid)
        if max(grid) <= cls.divisor:
            # One token alone has no batch statistics to normalise by.
            given = " ".join(map(str, grid))
            raise UsageError(f"grid {given}: ViT-V-Net needs more than {cls.divisor} voxels along some axis")

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        tokens, features = self.transformer(images)
        x = tokens.transpose(1, 2).unflatten(2, self.tokens)
        return self.reg_head(self.decoder(x, features))
