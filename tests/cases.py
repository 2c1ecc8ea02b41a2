"""Tiny models x tasks x data that cover every layer rule and the cases that have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Data
from expunge.fisher.quantities import expects
from expunge.runtime import Runtime
from expunge.task import Binary, Classification, MultiLabel, Quantile, Regression, Task

N, K = 8, 3
QUIET = Runtime(batch_size=3, progress=False)  # batches of 3, 3 and 2


class Positions(nn.Module):
    """Average over positions, (B, T, D) to (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return self.head(x + F.relu(self.b(x)))


class InPlaceInput(nn.Module):
    """A layer whose input is overwritten after it ran: what its rule would read is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, K)
        self.b.weight.requires_grad_(False)  # so that autograd itself needs no input of b

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x).sum(dim=1, keepdim=True)
        x.mul_(2)
        return self.head(torch.tanh(x + y))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(torch.tanh(self.a(x)))))


class Tied(nn.Module):
    """A tiny language-model head: the output weights are the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(x).mean(dim=1)))


class TwoFields(nn.Module):
    """Two linear layers with one weight, each on its half of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, K), nn.Linear(2, K)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x[:, :2]) + self.right(x[:, 2:])


class Functional(nn.Module):
    """The module is called once, and its weight used once more behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x[:, :4])) + F.linear(x[:, -4:], self.a.weight))


class Keyword(nn.Module):
    """A layer called by keyword: its hook sees no positional input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(input=x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))


class Masked(nn.Module):
    """Attention of queries to other keys and values of other widths, with a mask of each kind."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = options.get("batch_first", False)
        self.attention, self.head = nn.MultiheadAttention(4, 2, **options), nn.Linear(4, K)
        width = 2 if "kdim" in options else 4
        self.keys, self.values = nn.Linear(4, width, bias=False), nn.Linear(4, width)  # keys' bias changes nothing

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tensor([[0, -torch.inf, 0], [-0.5, 0, 0], [0, 0, 0]], dtype=x.dtype)
        triple = (x, self.keys(x), self.values(x))
        if not self.first:
            triple = tuple(t.transpose(0, 1) for t in triple)
        last = torch.where(x[:, :1, 0] > 0, -torch.inf, 0.0).to(x.dtype)
        padding = torch.cat([torch.zeros_like(x[:, :2, 0]), last], dim=1)
        out, weights = self.attention(*triple, key_padding_mask=padding, attn_mask=mask)
        out = out if self.first else out.transpose(0, 1)
        return self.head(out.mean(dim=1) + weights.mean(dim=(1, 2), keepdim=True)[:, 0])


class Decoder(nn.Module):
    """Self-attention and attention to memory by one module, keys being the values."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True, bias=False), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        y = self.attention(x, x, x, attn_mask=causal, is_causal=True, need_weights=False)[0]
        each = causal.expand(2 * len(x), *causal.shape)
        y = y + self.attention(y, x, x, attn_mask=each, need_weights=True, average_attn_weights=False)[0]
        return self.head(torch.tanh(y).mean(dim=1))


class Tokens(nn.Module):
    """A class token, positions, a scale a channel and one number, used by the module's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 4, 4))
        self.gamma, self.heat = nn.Parameter(torch.rand(4)), nn.Parameter(torch.tensor(0.5))
        self.a, self.head = nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.place
        x = x + self.gamma * torch.tanh(self.a(x))
        return self.head(x.mean(dim=1)) * self.heat.exp()


class Recurrent(nn.Module):
    """Each layer with parameters runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(40, K)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.tanh(self.norm(self.conv(x)))
        return self.head(x.flatten(1))


class Viewed(nn.Module):
    """Convolutions followed by a view, which channels last in memory do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, 2, bias=False), nn.Linear(12, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))).view(len(x), -1))


def photographs() -> nn.Module:
    """Convolutions of every kind that channels last in memory meet: strides, edges, dilation, groups, one channel."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(2, 1), padding_mode="reflect", bias=False),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 6, 2, dilation=2, padding="same"),
        nn.PReLU(6),
        nn.Conv2d(6, 4, 1, groups=2),
        nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False),
        nn.InstanceNorm2d(3, affine=True),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, K),
    )


class Frames(nn.Module):
    """Frames folded into the batch for layers of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.a = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(6, 4)
        self.last, self.head = nn.LayerNorm(4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.norm(self.conv(x.flatten(0, 1)))).flatten(1)
        return self.head(self.last(self.a(y)).unflatten(0, x.shape[:2]).mean(dim=1))


class Bidirectional(nn.Module):
    """One embedding looked up twice, and a table of positions without a batch that has the samples' number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place, self.head = nn.Embedding(5, 4), nn.Embedding(2, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        there = self.word(x) + self.word(x.flip(1)).cos()
        return self.head(torch.tanh(there[:, :2] + self.place(torch.arange(2))).mean(dim=1))


class Branch(nn.Module):
    """A Python branch on a value: vmap cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.rand(4)), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        if bool(torch.isinf(x).any()):
            x = x.clamp(-1, 1)
        return self.head(torch.tanh(x * self.scale))


class WritesBuffer(nn.Module):
    """A fresh tensor filled in place: vmap refuses to write a batched value into it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.rand(4)), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 4, dtype=x.dtype)
        out[:, :2] = (x * self.scale)[:, :2]
        out[:, 2:] += x[:, 2:] * self.scale[2:]
        return self.head(torch.tanh(out))


class Routed(nn.Module):
    """An expert that only some samples reach, in some batches none."""

    def __init__(self) -> None:
        super().__init__()
        self.expert, self.head = nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        mine = x[:, 0] > 0
        if bool(mine.any()):
            x = x.index_put((mine.nonzero().squeeze(1),), torch.tanh(self.expert(x[mine])))
        return self.head(x)


class Flattened(nn.Module):
    """Positions folded into the batch, and a position embedding without a batch at all."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.a, self.head = nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place(torch.arange(3))
        return self.head(torch.tanh(self.a(x.reshape(-1, 4))).reshape(x.shape).mean(dim=1))


class Output(nn.Module):
    """Returns an object with logits, as transformers do; ``mapping`` returns a dict."""

    def __init__(self, mapping: bool) -> None:
        super().__init__()
        self.head, self.mapping = nn.Linear(4, K), mapping

    def forward(self, x: Tensor) -> Any:
        logits = self.head(x)
        return {"loss": None, "logits": logits} if self.mapping else SimpleNamespace(logits=logits, loss=None)


class Dict(nn.Module):
    """Token ids and a mask by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(6, 4), nn.LayerNorm(4), nn.Linear(4, K)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        shown = mask.unsqueeze(2).to(self.head.weight.dtype)
        return self.head((self.norm(self.embedding(input_ids)) * shown).sum(dim=1) / shown.sum(dim=1))


class Squeezed(nn.Module):
    """One logit a sample without a column of its own, (B,)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(1)


@dataclass(frozen=True)
class Case:
    """A model with data for it; ``vmap`` says whether vmap can trace it."""

    build: Callable[[], nn.Module]
    x: Callable[[], Any]
    task: Task = Classification()
    classes: int = K
    weighted: bool = False
    vmap: bool = True

    def make(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Data]:
        """Return the model in eval mode, BatchNorm statistics non-trivial, and N samples."""
        torch.manual_seed(5)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        x = self.x()
        x = {k: _cast(v, dtype) for k, v in x.items()} if isinstance(x, dict) else _cast(x, dtype)
        y = self.targets(dtype)
        weight = torch.linspace(0.5, 2.0, N) if self.weighted else None
        return model.to(dtype).eval(), Data.from_arrays(x, y, weight=weight)

    def targets(self, dtype: torch.dtype) -> Tensor:
        """Return targets that fit the task, and outputs of two real numbers, two steps or K labels."""
        if isinstance(self.task, Regression | Quantile):
            return torch.randn(N, 2, dtype=dtype)
        if isinstance(self.task, Binary):
            return (torch.arange(N) % 2).to(dtype)
        if isinstance(self.task, MultiLabel):
            return torch.arange(N)[:, None] // 2 ** torch.arange(K) % 2
        return torch.arange(N) % self.classes

    def quantities(self) -> tuple[str, ...]:
        """Return the quantities that are sums over samples and defined for the task."""
        return ("loss", "sampled_loss", "output_norm") + (("true",) if expects(self.task) else ())


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def frozen_first() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def mlp(out: int = K) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, out))


def convolution(**options: Any) -> Case:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 4, **options), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, K)
        )

    return Case(build, lambda: torch.randn(N, 4, 6, 5))


def pooled(dimensions: int, channels: int) -> tuple[nn.Module, ...]:
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    return pool(2), nn.Flatten(), nn.Linear(channels * 2**dimensions, K)


def spatial(dimensions: int, transposed: bool = False, **options: Any) -> Case:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    layer = kinds[transposed][dimensions - 1]
    options = {"kernel_size": 2, **options}
    size = (6, 5, 4)[:dimensions]
    return Case(
        lambda: nn.Sequential(layer(4, 2, **options), nn.Tanh(), *pooled(dimensions, 2)),
        lambda: torch.randn(N, 4, *size),
    )


def flat() -> Tensor:
    return torch.randn(N, 4)


def sequence() -> Tensor:
    return torch.randn(N, 3, 4)


def image() -> Tensor:
    return torch.randn(N, 2, 5, 4)


def tokens() -> Tensor:
    """Token indices with repeats inside a sample and padding (0)."""
    x = torch.randint(1, 5, (N, 4))
    x[:, 1] = x[:, 0]
    x[::2, 3] = 0
    return x


def routed() -> Tensor:
    """The first two samples reach the expert, of the others some, in the second batch none."""
    x = torch.randn(N, 4)
    x[:, 0] = torch.tensor([1.0, 2.0, -1.0, -1.0, -1.0, -2.0, 1.0, -1.0])
    return x


def half_silent() -> Tensor:
    """Inputs whose second half is zero in the first samples: they do not show that a weight is shared."""
    x = torch.randn(N, 4)
    x[:3, 2:] = 0
    return x


def silent_tail() -> Tensor:
    x = torch.randn(N, 8)
    x[:3, 4:] = 0
    return x


CASES: dict[str, Case] = {
    "linear": Case(mlp, flat),
    "linear_weighted": Case(mlp, flat, weighted=True),
    "linear_regression": Case(lambda: mlp(2), flat, task=Regression()),
    "linear_absolute": Case(lambda: mlp(2), flat, task=Regression(error="absolute"), weighted=True),
    "binary": Case(lambda: mlp(1), flat, task=Binary(), classes=2),
    "binary_flat": Case(lambda: Squeezed(mlp(1)), flat, task=Binary(), classes=2, weighted=True),
    "multilabel": Case(mlp, flat, task=MultiLabel(), weighted=True),
    "quantile_steps": Case(
        lambda: nn.Sequential(mlp(6), nn.Unflatten(1, (2, 3))), flat, task=Quantile(quantiles=(0.05, 0.5, 0.8))
    ),
    "linear_positions": Case(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Positions(), nn.Linear(5, K)), sequence),
    "linear_grid": Case(
        lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(30, K)),
        lambda: torch.randn(N, 2, 3, 4),
    ),
    "conv": convolution(kernel_size=3),
    "conv_stride": convolution(kernel_size=(3, 2), stride=(2, 1), padding=(1, 2)),
    "conv_same": convolution(kernel_size=(2, 3), padding="same", bias=False),
    "conv_dilated_same": convolution(kernel_size=2, padding="same", dilation=2),
    "conv_dilated": convolution(kernel_size=2, dilation=(2, 3), padding=2),
    "conv_groups": convolution(kernel_size=3, groups=2, stride=2, padding=1),
    "conv_depthwise": convolution(kernel_size=3, groups=4, padding=1),
    "conv_reflect": convolution(kernel_size=3, padding=2, padding_mode="reflect"),
    "conv_circular": convolution(kernel_size=3, padding=(1, 2), padding_mode="circular"),
    "batchnorm1d": Case(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, K)), flat),
    "batchnorm1d_positions": Case(
        lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, K)), sequence
    ),
    "batchnorm2d": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, K),
        ),
        image,
    ),
    "layernorm": Case(lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, K)), flat),
    "layernorm_positions": Case(
        lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh(), Positions(), nn.Linear(4, K)), sequence
    ),
    "layernorm_wide": Case(lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, K)), sequence),
    "groupnorm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, K)
        ),
        image,
    ),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Tanh(), Positions(), nn.Linear(4, K)), tokens
    ),
    "embedding_by_frequency": Case(
        lambda: nn.Sequential(nn.Embedding(5, 4, scale_grad_by_freq=True), Positions(), nn.Linear(4, K)),
        lambda: torch.cat([torch.tensor([[1, 2, 3, 4]] * 3), tokens()[3:]]),
        vmap=False,
    ),
    "inplace_relu": Case(
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, K)
        ),
        flat,
    ),
    "input_overwritten": Case(InPlaceInput, flat),
    "residual": Case(Residual, flat),
    "twice": Case(Twice, flat),
    "tied": Case(Tied, tokens, classes=5),
    "tied_unseen_at_first": Case(TwoFields, half_silent),
    "functional": Case(Functional, flat),
    "functional_unseen_at_first": Case(Functional, silent_tail),
    "keyword": Case(Keyword, flat),
    "attention": Case(Attention, sequence),
    "encoder_layer": Case(
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), Positions(), nn.Linear(4, K)
        ),
        sequence,
    ),
    "frozen": Case(frozen_first, flat),
    **{f"conv{n}d": spatial(n) for n in (1, 3)},
    "conv1d_groups": spatial(1, groups=2, kernel_size=2, stride=2, padding=1, padding_mode="replicate"),
    "conv3d_dilated": spatial(3, kernel_size=(1, 2, 2), dilation=(1, 1, 2), padding=(0, 1, 1)),
    **{f"transposed{n}d": spatial(n, transposed=True) for n in (1, 2, 3)},
    "transposed2d_odd": spatial(
        2, transposed=True, groups=2, kernel_size=(3, 2), stride=2, padding=1, output_padding=(1, 0), dilation=(1, 2)
    ),
    "batchnorm3d": Case(lambda: nn.Sequential(nn.BatchNorm3d(2), *pooled(3, 2)), lambda: torch.randn(N, 2, 3, 2, 4)),
    "instancenorm": Case(
        lambda: nn.Sequential(nn.InstanceNorm2d(2, affine=True), nn.Tanh(), *pooled(2, 2)),
        lambda: torch.randn(N, 2, 3, 4),
    ),
    "rmsnorm": Case(lambda: nn.Sequential(nn.RMSNorm(4), nn.Tanh(), Positions(), nn.Linear(4, K)), sequence),
    "prelu": Case(lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, K)), flat),
    "prelu_channels": Case(lambda: nn.Sequential(nn.PReLU(2), *pooled(2, 2)), image),
    "attention_masked": Case(Masked, sequence),
    "attention_batch_first": Case(lambda: Masked(batch_first=True, bias=False), sequence),
    "attention_widths": Case(lambda: Masked(kdim=2, vdim=2, batch_first=True), sequence),
    "attention_twice": Case(Decoder, sequence),
    "attention_extra_key": Case(lambda: Masked(add_bias_kv=True, batch_first=True), sequence),
    "tokens": Case(Tokens, sequence),
    "recurrent": Case(Recurrent, image),
    "frames": Case(Frames, lambda: torch.randn(N, 3, 2, 3, 2)),
    "viewed": Case(Viewed, image),
    "photographs": Case(photographs, lambda: torch.randn(N, 1, 7, 6)),
    "bidirectional": Case(Bidirectional, tokens),
    "branch": Case(Branch, flat, vmap=False),
    "writes_buffer": Case(WritesBuffer, flat, vmap=False),
    "routed": Case(Routed, routed, vmap=False),
    "flattened": Case(Flattened, sequence),
    "output_object": Case(lambda: Output(mapping=False), flat),
    "output_mapping": Case(lambda: Output(mapping=True), flat),
    "dict_inputs": Case(Dict, lambda: {"input_ids": tokens(), "mask": (torch.arange(N * 4).reshape(N, 4) % 3 > 0)}),
}


def blobs(
    n: int = 60, *, classes: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0, name: str = "train"
) -> Data:
    """Return n labelled points (4 features) around one centre a class, easy to learn."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = 2 * torch.eye(classes, 4, dtype=torch.float64)
    return Data.from_arrays(
        (centres[y] + 0.5 * torch.randn(n, 4, generator=generator, dtype=torch.float64)).to(dtype), y, name=name
    )


def deep(dtype: torch.dtype = torch.float64, classes: int = 3) -> nn.Module:
    """Return a nested network with BatchNorm, so that a reset of direct children alone is found out."""
    torch.manual_seed(11)
    body = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
    return nn.Sequential(body, nn.Linear(6, classes)).to(dtype)


def gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest relative difference over tensors, scaled by each tensor's largest entry."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp_min(1e-12)) for k in b)
