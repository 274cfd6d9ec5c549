"""Transformer: GPT-2's architecture, over symbols in a row or over the pixels of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Categorical
from fastar.models import _windows
from fastar.models.model import ROWS, Model
from fastar.nn import CausalSelfAttention
from fastar.reference import activation as activations
from fastar.sampling import Builder, Head, Program, Sampler, SampleResult, fuse
from fastar.sampling.index import Index
from fastar.sampling.instructions import Draw, Elementwise, Gather, Linear
from fastar.sampling.lower import Signal, Step


class Transformer(Model):
    """p(x_t | x_<t) = softmax(W_e norm(blocks(W_e[x_<t] + W_p))): pre-norm, learned positions, a tied output layer.

    Args:
        vocabulary: number of symbols.
        context: the most positions that an x can have.
        width: channels of the network.
        layers: blocks of attention and two linear layers.
        heads: attention heads; they divide the width.
        bos: the symbol that stands before the first one; None: position 0 is given and not modelled.
        inner: channels between the two linear layers; 4 * width unless given.
        kv_heads: heads of keys and values; as many as `heads` unless given.
        window: positions that a layer looks back, its own included; all unless given.
        image: (height, width) of a picture whose pixels, in raster order, are the positions: they are then learned as
            a row's vector plus a column's.
        classes: number of classes to condition on: a class's vector stands before the first symbol, in place of `bos`.
        activation: between the two linear layers.
        bias: additive biases in linear layers and norms.
        tied: use the embedding as the output layer.
        dropout: of embeddings, attention and both outputs of a block, while training.

    x [B, T] int, T <= context; ``model(x)`` [B, T, vocabulary], entry 0 zero where position 0 is given.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"vocabulary": 50257, "context": 1024, "width": width, "layers": layers, "heads": heads}
        for name, width, layers, heads in (
            ("gpt2", 768, 12, 12),
            ("gpt2-medium", 1024, 24, 16),
            ("gpt2-large", 1280, 36, 20),
            ("gpt2-xl", 1600, 48, 25),
        )
    }

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        bos: int | None = None,
        *,
        inner: int | None = None,
        kv_heads: int | None = None,
        window: int | None = None,
        image: Sequence[int] | None = None,
        classes: int = 0,
        activation: str = "gelu_tanh",
        bias: bool = True,
        tied: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            vocabulary=vocabulary,
            context=context,
            width=width,
            layers=layers,
            heads=heads,
            bos=bos,
            inner=inner,
            kv_heads=kv_heads,
            window=window,
            image=None if image is None else list(image),
            classes=classes,
            activation=activation,
            bias=bias,
            tied=tied,
            dropout=dropout,
        )
        for name, size in (("vocabulary", vocabulary), ("context", context), ("width", width), ("layers", layers)):
            _checks.positive(name, size)
        if activations.check(activation) == "concat_elu":
            raise ValueError("activation: concat_elu doubles the channels")
        if bos is not None and (isinstance(bos, bool) or not isinstance(bos, int) or not 0 <= bos < vocabulary):
            raise ValueError(f"bos: expected a symbol of 0..{vocabulary - 1}, got {bos!r}")
        if classes != 0 and bos is not None:
            raise ValueError("classes: a class stands in the place of bos; give one of the two")
        if image is not None and (len(image) != 2 or math.prod(image) != context):
            raise ValueError(f"image: expected (height, width) of {context} pixels, got {tuple(image)}")
        self.vocabulary, self.context, self.bos = vocabulary, context, bos
        self.classes = classes if classes == 0 else _checks.positive("classes", classes)
        self.distribution = Categorical(vocabulary)
        self.data_shape = ("T",)
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.wte = nn.Embedding(vocabulary, width, **placed)
        sizes = [context] if image is None else [_checks.positive("image", size) for size in image]
        self.wpe = nn.ModuleList(nn.Embedding(size, width, **placed) for size in sizes)
        self.wce = nn.Embedding(classes, width, **placed) if classes else None
        self.drop = nn.Dropout(dropout)
        options: dict[str, Any] = {"kv_heads": kv_heads, "window": window, "bias": bias, "dropout": dropout, **placed}
        hidden = 4 * width if inner is None else _checks.positive("inner", inner)
        blocks = (_Block(width, heads, hidden, activation, bias, dropout, options, placed) for _ in range(layers))
        self.body = nn.Sequential(*blocks, nn.LayerNorm(width, bias=bias, **placed))
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False, **placed)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's start: deviations of 0.02, less for what is added to the stream, by the root of how often that is."""
        blocks = [one for one in self.body if isinstance(one, _Block)]
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for block in blocks:
            for out in (block.attention.proj, block.narrow):
                nn.init.normal_(out.weight, std=0.02 / math.sqrt(2 * len(blocks)))

    @property
    def given_first(self) -> bool:
        """Whether position 0 has to be given, because nothing stands before it."""
        return self.bos is None and not self.classes

    @property
    def positions(self) -> Tensor:
        """The vectors of all positions, [context, width]."""
        tables = [one.weight for one in self.wpe if isinstance(one, nn.Embedding)]
        return tables[0] if len(tables) == 1 else (tables[0][:, None] + tables[1][None]).flatten(0, 1)

    def check(self, x: Tensor, cond: Any = None) -> None:
        _checks.shape("x", _checks.tensor("x", x), ["B", "T"])
        self.distribution.check(x)
        if not 1 <= x.shape[1] <= self.context:
            raise ValueError(f"x: expected 1 to {self.context} positions, got {x.shape[1]}")
        self._check_classes(cond, len(x))

    def _check_classes(self, cond: Any, rows: int) -> None:
        if (cond is None) != (self.classes == 0):
            wanted = f"classes [{rows}] of 0..{self.classes - 1}" if self.classes else "None"
            raise ValueError(f"cond: this Transformer takes {wanted}, got {type(cond).__name__}")
        if self.classes:
            _checks.dtype("cond", _checks.tensor("cond", cond), _checks.INTEGERS)
            _checks.shape("cond", cond, [rows])
            if cond.device.type == "cpu" and bool(((cond < 0) | (cond >= self.classes)).any()):
                raise ValueError(f"cond: expected 0..{self.classes - 1}, got {int(cond.min())} to {int(cond.max())}")

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        self.check(x, cond)
        if self.given_first:
            first = self.wte.weight.new_zeros(len(x), 1, self.vocabulary)
            return first if x.shape[1] == 1 else torch.cat([first, self._logits(self.wte(x[:, :-1].long()))], 1)
        start = self.wte.weight[self.bos].expand(len(x), -1) if self.wce is None else self.wce(cond.long())  # type: ignore[union-attr]
        return self._logits(torch.cat([start[:, None], self.wte(x[:, :-1].long())], 1))

    def next_logits(self, x: Tensor) -> Tensor:
        """Entry t parametrises x_{t+1}, as published: [B, T, vocabulary]; x begins with what stands first."""
        if self.classes:
            raise ValueError(
                "next_logits: a class stands before the first symbol; entry t of model(x) parametrises x_t"
            )
        self.check(x)
        return self._logits(self.wte(x.long()))

    def _logits(self, y: Tensor) -> Tensor:
        y = self.body(self.drop(y + self.positions[: y.shape[1]]))
        return F.linear(y, self.wte.weight if self.head is None else self.head.weight)

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p(x) [B] in nats, differentiable; of what follows position 0 where that is given."""
        first = int(self.given_first)
        params = self(x) if cond is None else self(x, cond)
        return self.distribution.log_prob(params[:, first:], x[:, first:]).sum(1)

    def _numbers(self, x: Tensor) -> int:
        return x.shape[1] - int(self.given_first)

    def lower(self) -> Program:
        b = Builder("Transformer", self.distribution.value, None, self.context)
        width = self.wte.embedding_dim
        start = b.input("cond", width).at() if self.classes else None
        x = b.state("x", width).at() if self.classes else b.scratch("x", width).at()
        logits = b.scratch("logits", self.vocabulary).at()
        wte, wpe = b.weight("wte", self.wte.weight), b.weight("wpe", self.positions)
        head = wte if self.head is None else b.weight("head", self.head.weight)

        def body(t: Index, position: Index) -> None:
            step = Step(b, position)
            b.add(Gather(x, wte, t - 1, first=self.bos))
            if start is not None:
                with b.when(t, 0, 1):
                    b.add(Elementwise(x, "none", start))
            entered = b.scratch("entered", width).at()
            b.add(Gather(entered, wpe, base=position, add=x))
            y = step.child("body", self.body, Signal(entered))
            b.add(Linear(logits, y.ref, head), Draw(self.distribution.head, t, logits))

        with b.loop("t", None) as t:
            if self.given_first:
                with b.when(t, 0, 1):
                    b.add(Draw(Head("given"), t))
                with b.when(t, 1):
                    body(t, t - 1)
            else:
                body(t, t)
        return fuse(b.build())

    def condition(self, cond: Any, n: int, length: Any) -> Mapping[str, Tensor]:
        """The program's inputs: the vector of each row's class."""
        self._check_classes(cond, n)
        return {} if self.wce is None else {"cond": self.wce(cond.long()).detach().float()}

    def prefill(self, values: Tensor, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Known first values [B, P, 1] in one pass: the caches behind them, and their log-probabilities [B, P]."""
        x = values[..., 0].long().to(self.device)
        before = [self.wte(x[:, :-1])]
        if not self.given_first:
            start = inputs["cond"].to(before[0]) if self.classes else self.wte.weight[self.bos].expand(len(x), -1)
            before.insert(0, start[:, None])
        y = torch.cat(before, 1)
        y = y + self.positions[: y.shape[1]]
        caches: dict[str, Tensor] = {}
        for number, block in enumerate(self.body):
            if isinstance(block, _Block):
                _, *pair = block.attention._split(block.norm_1(y))
                for part, t in zip(("keys", "values"), pair, strict=True):
                    slots = self._slots if block.attention.window is None else min(block.attention.window, self._slots)
                    caches[f"body.{number}.attention.{part}"] = _cache(t.transpose(1, 2).flatten(2), slots)
            y = block(y)
        logits = F.linear(y, self.wte.weight if self.head is None else self.head.weight)
        first = int(self.given_first)
        log_prob = F.pad(self.distribution.log_prob(logits, x[:, first:]), (first, 0))
        return caches, log_prob

    @property
    def _slots(self) -> int:
        # Symbols that enter: where the first position is given, the last one never does.
        return self.context - int(self.given_first)

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        n: int,
        *,
        length: int | Sequence[int] | Tensor | None = None,
        overflow: str = "stop",
        stride: int | None = None,
        **options: Any,
    ) -> Tensor | SampleResult:
        """As `Model.sample`. What is asked beyond the context ends there ("stop"), or with ``overflow="recompute"`` is
        drawn in windows: whenever the context is full, its `stride` oldest positions (half of it unless given) are
        dropped and the others taken in anew, at the first positions.
        """
        if overflow not in ("stop", "recompute"):
            raise ValueError(f"overflow: expected stop or recompute, got {overflow!r}")
        given = options.get("given")
        if length is None and isinstance(given, Tensor) and given.dim() == 2:
            length = given.shape[1]
        asked = None if length is None else torch.as_tensor(length)
        if asked is None or asked.numel() == 0 or int(asked.max()) <= self.context:
            return super().sample(n, length=length, **options)
        if overflow == "stop":
            kept = {name: _first(name, options[name], self.context) for name in _ALONG if name in options}
            clipped = asked.clamp(max=self.context)
            return super().sample(n, length=clipped if asked.dim() else int(clipped), **{**options, **kept})
        step = max(1, self.context // 2) if stride is None else _checks.positive("stride", stride)
        if step >= self.context:
            raise ValueError(f"stride: expected less than the context, {self.context}, got {step}")
        return self._slide(n, asked.expand(n).long(), step, **options)

    def _slide(
        self,
        n: int,
        lengths: Tensor,
        stride: int,
        *,
        cond: Any = None,
        seed: int | Sequence[int] | None = None,
        uniforms: Tensor | None = None,
        given: Tensor | None = None,
        support: Any = None,
        backend: str = "auto",
        dtype: torch.dtype | None = None,
        return_info: bool = False,
        **options: Any,
    ) -> Tensor | SampleResult:
        longest = int(lengths.max())
        for name, t in (("given", given), ("uniforms", uniforms)):
            if t is not None and tuple(_checks.tensor(name, t).shape[:2]) != (n, longest):
                raise ValueError(f"{name}: expected shape [{n}, {longest}, ..], got {list(t.shape)}")
        sampler = Sampler(self, max(1, min(n, ROWS)), dtype, backend)
        result = _windows.sample(
            self,
            sampler,
            n,
            self.context,
            stride,
            lengths,
            cond=cond,
            seed=int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed,
            uniforms=uniforms,
            given=given,
            support=support,
            **options,
        )
        sampler.close()
        return result if return_info else result.values


# Options of `sample` that say something of every position.
_ALONG = ("given", "uniforms", "support")


def _cache(t: Tensor, slots: int) -> Tensor:
    # Rows [B, P, width] where a cache of so many slots keeps them: each in its number modulo the slots.
    cache = t.new_zeros(len(t), slots, t.shape[2])
    first = max(0, t.shape[1] - slots)
    cache[:, torch.arange(first, t.shape[1]) % slots] = t[:, first:]
    return cache


def _first(name: str, value: Any, count: int) -> Any:
    # The part of an option that concerns the first positions.
    if value is None or name == "support":
        return _windows.part(value, 0, count)
    return value[:, :count]


class _Block(nn.Module):
    # x + attention(norm(x)), then x + linear(act(linear(norm(x)))).
    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        activation: str,
        bias: bool,
        dropout: float,
        options: dict[str, Any],
        placed: dict[str, Any],
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, bias=bias, **placed)
        self.attention = CausalSelfAttention(width, heads, **options)
        self.norm_2 = nn.LayerNorm(width, bias=bias, **placed)
        self.widen = nn.Linear(width, inner, bias=bias, **placed)
        self.activation = activation
        self.narrow = nn.Linear(inner, width, bias=bias, **placed)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm_1(x)))
        inner = activations.APPLY[self.activation](self.widen(self.norm_2(x)))
        return x + self.drop(self.narrow(inner))  # type: ignore[no-any-return]
