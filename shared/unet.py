r"""The conditional U-Net, one definition for 1, 2 and 3 dimensions.

It goes down the levels, each at half the size of the one before, and up again; the two ways meet once a
level. Two choices keep it lighter than the usual diffusion U-Net (Ho et al. 2020) of equal parameters: one
skip a level instead of one a block, and channels are reduced *before* upsampling, so that no convolution
runs at full size with a lower level's channels. Blocks are residual, modulated by scale and shift (Dhariwal &
Nichol 2021) and start as the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .data import NOTHING, Condition, like
from .embeddings import ConditionEmbedding, NoiseEmbedding

CONVOLUTION: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
LAYOUT = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
EPSILON = 1e-5
_MANY = 4096  # positions
M = TypeVar("M", bound=nn.Module)


def _groups(channels: int) -> int:
    """At most 32 groups of at least 4 channels: a group of one value at one position would be all zero."""
    return next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)


def _moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std of each group, computed in float32 at least and repeated for its channels: (B, C)."""
    positions, channels = x[0, 0].numel(), x.shape[1]
    if positions < _MANY or x.device.type != "cpu":  # there the kernel for half precision is the slower one
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    _, mean, rstd = torch.native_group_norm(x, None, None, len(x), channels, positions, groups, EPSILON)
    wide = torch.promote_types(x.dtype, torch.float32)
    return tuple(m.to(wide).repeat_interleave(channels // groups, 1) for m in (mean, rstd))  # type: ignore[return-value]


class _NormModulateSiLU(torch.autograd.Function):
    """silu(scale * norm(x) + shift), keeping only x for the backward pass and not the two maps between.

    The moments are in float32; norm and modulation together are one product and sum in the type of x, which
    in bfloat16 takes two thirds of the time. The rounded mean is taken off first, which is exact where it
    matters; then rounding does no harm.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int) -> Tensor:
        mean, rstd = _moments(x, groups)
        ctx.save_for_backward(x, scale, shift, mean, rstd)
        ctx.groups = groups
        near, rest = _centred(x, mean)
        slope = scale * rstd
        return F.silu(_affine(near, slope, shift - slope * rest), inplace=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient was asked for: let autograd derive it
            return (
                *torch.autograd.grad(
                    _plain(x, scale, shift, ctx.groups), (x, scale, shift), grad, create_graph=True
                ),
                None,
            )
        near, rest = _centred(x, mean)
        slope = scale * rstd
        grad = torch.ops.aten.silu_backward(grad.to(x.dtype), _affine(near, slope, shift - slope * rest))
        axes, wide = tuple(range(2, x.ndim)), mean.dtype
        by_shift = grad.sum(axes, dtype=wide)
        by_scale = rstd * ((grad * near).sum(axes, dtype=wide) - rest * by_shift)

        def in_group(of_channel: Tensor) -> Tensor:
            of_group = of_channel.unflatten(1, (ctx.groups, -1)).mean(2) / x[0, 0].numel()
            repeated: Tensor = of_group.repeat_interleave(x.shape[1] // ctx.groups, 1)
            return repeated

        # With n = (x - mean) rstd and g = scale grad: dx = rstd (g - mean_group(g) - n mean_group(g n)).
        level, along = in_group(scale * by_shift), in_group(scale * by_scale) * rstd**2
        by_x = _affine(near, -along, along * rest - level * rstd).addcmul_(grad, like(slope, x).to(x.dtype))
        return by_x, by_scale.to(scale.dtype), by_shift.to(shift.dtype), None


def _centred(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """x less its mean, rounded to the type of x; and what the rounding left, (B, C)."""
    rounded = mean.to(x.dtype)
    return x - like(rounded, x), mean - rounded


def _affine(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """slope x + offset, both (B, C), in the type of x."""
    slope, offset = (like(c, x).to(x.dtype) for c in (slope, offset))
    out: Tensor = torch.addcmul(offset, x, slope)
    return out


def _plain(x: Tensor, scale: Tensor, shift: Tensor, groups: int) -> Tensor:
    """The function of `_NormModulateSiLU` in differentiable steps."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.silu(_affine(F.group_norm(wide, groups, eps=EPSILON), scale, shift)).to(x.dtype)


def norm_silu(x: Tensor, scale: Tensor, shift: Tensor, groups: int) -> Tensor:
    """silu(scale * group_norm(x) + shift), x (B, C, *S), scale and shift (C,) or (B, C)."""
    scale, shift = scale.expand(len(x), -1), shift.expand(len(x), -1)
    out: Tensor = _NormModulateSiLU.apply(x, scale, shift, groups)
    return out


class Block(nn.Module):
    """Two convolutions beside a shortcut; the embedding scales and shifts between them. The second
    convolution starts at zero: with `inside == outside` a new block is the identity.

    Args:
        ndim: spatial dimensions.
        inside, outside: channels of input and output.
        width: length of the embedding.
        dropout: share of features dropped in training.
    """

    def __init__(self, ndim: int, inside: int, outside: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        convolution = CONVOLUTION[ndim]
        self.groups = _groups(inside), _groups(outside)
        self.scale, self.shift = nn.Parameter(torch.ones(inside)), nn.Parameter(torch.zeros(inside))
        self.first = convolution(inside, outside, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * outside)
        self.dropout = nn.Dropout(dropout)
        self.second = _zero(convolution(outside, outside, 3, padding=1))
        self.shortcut = convolution(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, inside, *S), embedding (B, width) -> (B, outside, *S)."""
        h = self.first(norm_silu(x, self.scale, self.shift, self.groups[0]))
        scale, shift = self.modulation(embedding).chunk(2, 1)
        h = self.second(self.dropout(norm_silu(h, 1 + scale, shift, self.groups[1])))
        # In place: a convolution does not need its own output to be differentiated.
        return h.add_(self.shortcut(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Each position looks at all others, then at the tokens of the condition when there are any; both
    start as the identity.

    Args:
        channels: of the map.
        token_width: length of a token, 0 for none.
        head: channels of one head at most.
    """

    def __init__(self, channels: int, token_width: int = 0, head: int = 64) -> None:
        super().__init__()
        self.heads = next(h for h in range(-(-channels // head), channels + 1) if channels % h == 0)
        self.norm = nn.GroupNorm(_groups(channels), channels, eps=EPSILON)
        self.inside, self.outside = nn.Linear(channels, 3 * channels), _zero(nn.Linear(channels, channels))
        if token_width:
            self.ask, self.tell = nn.Linear(channels, channels), nn.Linear(token_width, 2 * channels)
            self.told = _zero(nn.Linear(channels, channels))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """x (B, C, *S), tokens (B, T, D) -> (B, C, *S)."""
        rows = self.norm(x).flatten(2).transpose(1, 2)
        out = self.outside(self._attend(*self.inside(rows).chunk(3, -1)))
        if tokens is not None:
            out = out + self.told(self._attend(self.ask(rows + out), *self.tell(tokens).chunk(2, -1)))
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])  # type: ignore[no-any-return]


def _zero(module: M) -> M:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Stage(nn.Module):
    """The blocks of one level on one of the two ways, each with attention after it where asked."""

    def __init__(
        self, ndim: int, widths: Sequence[int], width: int, dropout: float, attention: bool, token_width: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(ndim, i, o, width, dropout) for i, o in pairwise(widths))
        looks = (Attention(o, token_width) for o in widths[1:])
        self.attention = nn.ModuleList(looks) if attention else None

    def forward(self, x: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, embedding)
            if self.attention is not None:
                x = self.attention[index](x, tokens)
        return x


class UNet(nn.Module):
    """The conditional U-Net. Called as `NetworkDenoiser` calls its network.

    Args:
        ndim: spatial dimensions: 1, 2 or 3.
        channels: C of the data.
        widths: channels of each level, from full size down.
        blocks: residual blocks of each level, on each of the two ways: one number, or one a level.
        attention: levels that attend (0 is full size); the middle does when the last level does.
        context: channels of `condition.channels`.
        fills: take `condition.known`, values and mask, as 2 C more input channels.
        classes, covariates, token_width: of the condition, as in `ConditionEmbedding`; tokens are attended
            to at the levels of `attention` and in the middle.
        dropout: share of features dropped inside blocks in training.
        checkpointing: recompute each stage in the backward pass instead of keeping its maps.
        padding: how sizes that do not divide are filled up: "replicate", or "reflect" (needs large sizes).

    Example:
        >>> network = UNet(1, channels=2, widths=(16, 32))
        >>> network(torch.zeros(3, 2, 13), torch.zeros(3)).shape
        torch.Size([3, 2, 13])
    """

    def __init__(
        self,
        ndim: int,
        channels: int,
        widths: Sequence[int] = (64, 128, 256),
        *,
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (),
        context: int = 0,
        fills: bool = True,
        classes: int = 0,
        covariates: int = 0,
        token_width: int = 0,
        dropout: float = 0.0,
        checkpointing: bool = False,
        padding: Literal["replicate", "reflect"] = "replicate",
    ) -> None:
        super().__init__()
        if ndim not in CONVOLUTION:
            raise ValueError(f"ndim={ndim}: expected 1, 2 or 3")
        levels = range(len(widths))
        blocks = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
        if len(blocks) != len(widths) or not set(attention) <= set(levels):
            raise ValueError(f"{len(widths)} levels, but blocks={blocks} and attention={tuple(attention)}")
        self.ndim, self.channels, self.context, self.fills = ndim, channels, context, fills
        self.checkpointing, self.padding, self.factor = checkpointing, padding, 2 ** (len(widths) - 1)
        convolution, width = CONVOLUTION[ndim], 4 * widths[0]
        self.noise = NoiseEmbedding(width)
        self.told = ConditionEmbedding(width, classes, covariates, token_width)
        self.entry = convolution(channels * (3 if fills else 1) + context, widths[0], 3, padding=1)

        def stage(chain: Sequence[int], level: int) -> Stage:
            return Stage(ndim, chain, width, dropout, level in attention, token_width)

        self.down = nn.ModuleList(
            stage([w] * (b + 1), i) for i, (w, b) in enumerate(zip(widths, blocks, strict=True))
        )
        self.shrink = nn.ModuleList(convolution(a, b, 2, stride=2) for a, b in pairwise(widths))
        last = widths[-1]
        self.middle = Block(ndim, last, last, width, dropout)
        self.look = Attention(last, token_width) if token_width or len(widths) - 1 in attention else None
        self.widen = nn.ModuleList(convolution(b, a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            stage([2 * w] + [w] * b, i) for i, (w, b) in enumerate(zip(widths, blocks, strict=True))
        )
        self.norm = nn.GroupNorm(_groups(widths[0]), widths[0], eps=EPSILON)
        self.exit = _zero(convolution(widths[0], channels, 3, padding=1))
        self._lay_out()

    def _lay_out(self) -> None:
        """Keep convolution weights channels-last, as the maps are: no reordering at each call."""
        for module in self.modules():
            if isinstance(module, CONVOLUTION[self.ndim]):
                weight: Tensor = module.weight  # type: ignore[assignment]
                weight.data = weight.data.contiguous(memory_format=LAYOUT[self.ndim])

    def _input(self, x: Tensor, condition: Condition) -> Tensor:
        """The noisy data, what is known of it, and the images of the condition, as channels, padded."""
        parts = [x]
        if self.fills:
            known = condition.known
            parts += (
                [x.new_zeros(len(x), 2 * self.channels, *x.shape[2:])]
                if known is None
                else [known.values.to(x), known.observed.to(x)]
            )
        elif condition.known is not None:
            raise ValueError("the condition holds known data, but the network was made with fills=False")
        given = 0 if condition.channels is None else condition.channels.shape[1]
        if given != self.context:
            raise ValueError(f"the condition holds {given} channels, the network was made for {self.context}")
        if condition.channels is not None:
            parts.append(condition.channels.to(x))
        x = torch.cat(parts, 1) if len(parts) > 1 else x
        short = [-n % self.factor for n in x.shape[2:]]
        if any(short):
            x = F.pad(x, [p for n in reversed(short) for p in (n // 2, n - n // 2)], mode=self.padding)
        return x.contiguous(memory_format=LAYOUT[self.ndim])

    def _run(self, stage: nn.Module, *given: Tensor | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, *given, use_reentrant=False)  # type: ignore[no-any-return]
        return stage(*given)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, noise_level: Tensor, condition: Condition = NOTHING) -> Tensor:
        """x (B, C, *S), noise_level (B,) -> (B, C, *S), for any sizes S."""
        size = x.shape[2:]
        vector, tokens = self.told(condition, x)
        embedding = F.silu(self.noise(noise_level) + vector)
        h = self.entry(self._input(x, condition))
        skips = []
        for level, stage in enumerate(self.down):
            h = self.shrink[level - 1](h) if level else h
            h = self._run(stage, h, embedding, tokens)
            skips.append(h)
        h = self.middle(h, embedding)
        if self.look is not None:
            h = self.look(h, tokens)
        for level in reversed(range(len(skips))):
            h = torch.cat([h, skips.pop()], 1)
            h = self._run(self.up[level], h, embedding, tokens)
            if level:
                h = F.interpolate(self.widen[level - 1](h), scale_factor=2, mode="nearest")
        h = norm_silu(h, self.norm.weight, self.norm.bias, self.norm.num_groups)
        h = self.exit(h)
        starts = [(-n % self.factor) // 2 for n in size]
        return h[(..., *(slice(a, a + n) for a, n in zip(starts, size, strict=True)))]  # type: ignore[no-any-return]


SIZES = {
    "tiny": {"widths": (32, 64, 96), "blocks": 1},
    "small": {"widths": (48, 96, 192), "blocks": 2},
    "base": {"widths": (64, 128, 256, 384), "blocks": 2},
    "large": {"widths": (96, 192, 384, 512), "blocks": 3},
}


def unet(
    ndim: int, channels: int, size: Literal["tiny", "small", "base", "large"] = "small", **settings: Any
) -> UNet:
    """A U-Net of a size that is known to be useful; the lowest level attends. `settings` go to `UNet`.

    About 1, 6, 28 and 74 million parameters in 2-D, half of that in 1-D and 2.5 times in 3-D.
    """
    chosen: dict[str, Any] = {**SIZES[size], **settings}
    chosen.setdefault("attention", (len(chosen["widths"]) - 1,))
    return UNet(ndim, channels, **chosen)
