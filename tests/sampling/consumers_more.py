"""Further consumers: MADE, PixelCNN with colours, a gated one with a vertical stack, Transformer, cells, a flow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, pad

from fastar.sampling.builder import Builder
from fastar.sampling.instructions import (
    Attention,
    Cell,
    Draw,
    Elementwise,
    Emit,
    Gate,
    Gather,
    Head,
    Linear,
    Norm,
    SpanLinear,
    Store,
    TappedLinear,
)
from fastar.sampling.program import Program, Value
from tests.sampling.consumers import Consumer, nade, rnade, wavenet, weights


def _below(degrees: Tensor, D: int) -> list[int]:
    # For every d of 0..D: how many of the sorted degrees are less than d.
    return [int((degrees < d).sum()) for d in range(D + 1)]


def made(D: int = 6, H: int = 9, K: int = 3, seed: int = 3) -> Consumer:
    """Two hidden layers, units sorted by degree: each is computed in the pass in which its last input is known."""
    w = weights(seed, w1=(H, D), b1=(H,), w2=(H, H), b2=(H,), w3=(D * K, H), b3=(D * K,), direct=(D * K, D))
    generator = torch.Generator().manual_seed(seed)
    m1, m2 = (torch.randint(0, D, (H,), generator=generator).sort().values for _ in range(2))
    inputs, outputs = torch.arange(D), torch.arange(D).repeat_interleave(K)
    w["w1"] = w["w1"] * (m1[:, None] > inputs)
    w["w2"] = w["w2"] * (m2[:, None] >= m1)
    w["w3"] = w["w3"] * (outputs[:, None] >= m2)
    w["direct"] = w["direct"] * (outputs[:, None] > inputs)
    b = Builder("made", Value("int", 1, K), D)
    for name, t in w.items():
        b.weight(name, t)
    below1, below2 = _below(m1, D), _below(m2, D)
    for name, entries in (
        ("spans1", below1),
        ("spans2", below2),
        ("spans3", [d * K for d in range(D + 1)]),
        ("reach1", list(range(D))),
        ("reach2", below1[1:]),
        ("reach3", below2[1:]),
    ):
        b.table(name, entries)
    x, h1, h2, out = (b.state(name, n).at() for name, n in (("x", D), ("h1", H), ("h2", H), ("out", D * K)))
    head = Head("categorical", K)
    with b.loop("t", D) as t:
        b.add(
            SpanLinear(h1, x, "w1", "spans1", t, "b1", "reach1", activation="relu"),
            SpanLinear(h2, h1, "w2", "spans2", t, "b2", "reach2", activation="tanh"),
            SpanLinear(out, h2, "w3", "spans3", t, "b3", "reach3"),
            SpanLinear(out, x, "direct", "spans3", t, reach="reach1", add=out),
            Draw(head, t, out.channels(t * K, K)),
            Store(x.channels(t, 1), t, scale=0.5, shift=-0.25),
        )

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        v = {name: t.to(dtype) for name, t in w.items()}
        z = 0.5 * values[..., 0].to(dtype) - 0.25
        h = torch.tanh(torch.relu(z @ v["w1"].T + v["b1"]) @ v["w2"].T + v["b2"])
        return (h @ v["w3"].T + v["b3"] + z @ v["direct"].T).view(-1, D, K)

    return Consumer(b.build(shape=(D,)), head, params)


_TAPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0))


def _masked(weight: Tensor, centre: Tensor) -> Tensor:
    # A 3x3 kernel [out, taps, in] as [out, in, 3, 3], the centre cut to what `centre` [out, in] lets through.
    full = weight.new_zeros(weight.shape[0], weight.shape[2], 3, 3)
    for k, (dh, dw) in enumerate(_TAPS):
        full[:, :, 1 + dh, 1 + dw] = weight[:, k] * (centre if (dh, dw) == (0, 0) else 1)
    return full


def pixelcnn(H: int = 3, W: int = 2, C: int = 2, F: int = 3, K: int = 3, seed: int = 4) -> Consumer:
    """Colour groups of channels, a bank of weights per colour, row caches of two rows; data [C, H, W]."""
    w = weights(
        seed, **{"1": (C * F, 5, C), "1.b": (C * F,), "2": (C * F, 5, C * F), "2.b": (C * F,), "3": (C * K, C * F)}
    )
    group, colours = torch.arange(C).repeat_interleave(F), torch.arange(C)
    logits_group = colours.repeat_interleave(K)
    centre1, centre2 = group[:, None] > colours, group[:, None] >= group
    w["1"] = torch.cat([w["1"][:, :4], w["1"][:, 4:] * centre1[:, None]], 1)
    w["2"] = torch.cat([w["2"][:, :4], w["2"][:, 4:] * centre2[:, None]], 1)
    w["3"] = w["3"] * (logits_group[:, None] >= group)
    b = Builder("pixelcnn", Value("int", 1, K), H * W * C)
    for name, t in w.items():
        b.weight(name, t.view(C, t.shape[0] // C, *t.shape[1:]))
    b.table("layout", [(c * H + h) * W + v for h in range(H) for v in range(W) for c in range(C)])
    x, y1, y2 = b.state("x", 2, W, C, ring=True), b.state("y1", 2, W, C * F, ring=True), b.scratch("y2", F)
    features, logits = b.state("features", C * F), b.scratch("logits", K).at()
    head = Head("categorical", K)
    with b.loop("h", H) as h, b.loop("w", W) as v, b.loop("c", C) as c:
        mine = y1.at(h, v).channels(c * F, F)
        b.add(
            TappedLinear(mine, x.at(h, v), _TAPS, "1", "1.b", activation="relu", bank=c),
            TappedLinear(y2.at(), y1.at(h, v), _TAPS, "2", "2.b", add=mine, activation="elu", bank=c),
            Elementwise(features.at().channels(c * F, F), "none", y2.at()),
            Linear(logits, features.at(), "3", bank=c),
            Draw(head, (h * W + v) * C + c, logits),
            Store(x.at(h, v).channels(c, 1), (h * W + v) * C + c, scale=2 / (K - 1), shift=-1),
        )

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        u = {name: t.to(dtype) for name, t in w.items()}
        z = (values[..., 0].to(dtype) * 2 / (K - 1) - 1).view(-1, H, W, C).permute(0, 3, 1, 2)
        first = torch.relu(conv2d(z, _masked(u["1"], centre1), u["1.b"], padding=1))
        second = torch.nn.functional.elu(conv2d(first, _masked(u["2"], centre2), u["2.b"], padding=1) + first)
        return torch.einsum("nfhw,kf->nhwk", second, u["3"]).reshape(-1, H * W * C, K)

    return Consumer(b.build(shape=(C, H, W), layout="layout"), head, params)


def gated_pixelcnn(H: int = 3, W: int = 3, F: int = 4, seed: int = 5) -> Consumer:
    """Grey, Bernoulli: a vertical stack that runs once per row, and a horizontal one along it."""
    w = weights(
        seed,
        **{"v": (2 * F, 6, 1), "v.b": (2 * F,), "h": (2 * F, 2, 1), "vh": (2 * F, F), "out": (1, F), "out.b": (1,)},
    )
    above = tuple((dh, dw) for dh in (-2, -1) for dw in (-1, 0, 1))
    b = Builder("gated_pixelcnn", Value("int", 1, 2), H * W)
    for name, t in w.items():
        b.weight(name, t)
    x, vertical = b.state("x", 3, W + 1, 1, ring=True), b.state("vertical", W, F)
    gates, bridge, z, logit = (
        b.scratch(n, k).at() for n, k in (("gates", 2 * F), ("bridge", 2 * F), ("z", F), ("logit", 1))
    )
    head = Head("bernoulli")
    halves = gates.channels(0, F), gates.channels(F, F)
    with b.loop("h", H) as h:
        with b.loop("w", W) as v:
            b.add(TappedLinear(gates, x.at(h, v), above, "v", "v.b"), Gate(vertical.at(v), "tanh", *halves))
        with b.loop("w", W) as v:
            b.add(
                Linear(bridge, vertical.at(v), "vh"),
                TappedLinear(gates, x.at(h, v), ((0, -2), (0, -1)), "h", add=bridge),
                Gate(z, "tanh", *halves),
                Linear(logit, z, "out", "out.b"),
                Draw(head, h * W + v, logit),
                Store(x.at(h, v), h * W + v),
            )

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        u = {name: t.to(dtype) for name, t in w.items()}
        z = values[..., 0].to(dtype).view(-1, 1, H, W)
        kernel = u["v"].view(2 * F, 2, 3, 1).permute(0, 3, 1, 2)
        a = conv2d(pad(z, (1, 1, 2, 0))[:, :, : H + 1], kernel, u["v.b"])
        stack = torch.tanh(a[:, :F]) * torch.sigmoid(a[:, F:])
        row = conv2d(pad(z, (2, 0, 0, 0))[..., : W + 1], u["h"].permute(0, 2, 1)[:, :, None])
        a = row + torch.einsum("nfhw,gf->nghw", stack, u["vh"])
        y = torch.tanh(a[:, :F]) * torch.sigmoid(a[:, F:])
        return torch.einsum("nfhw,of->nhwo", y, u["out"]).reshape(-1, H * W, 1) + u["out.b"]

    return Consumer(b.build(shape=(H, W)), head, params)


def transformer(
    A: int = 5,
    N: int = 8,
    D: int = 8,
    heads: int = 2,
    bos: int | None = 0,
    local: tuple[int, int, int] | None = None,
    seed: int = 6,
) -> Consumer:
    """One pre-norm block and a tied head; without `bos` position 0 is given, not modelled.

    With `local` = (rows, columns, width) the cache is a ring of as many slots as are ever looked back at.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (A, D),
        "wpe": (N, D),
        "fc": (4 * D, D),
        "fc.b": (4 * D,),
        "proj": (D, 4 * D),
    }
    shapes |= dict.fromkeys(("q", "k", "v", "o"), (D, D))
    shapes |= {f"ln{i}.{part}": (D,) for i in range(3) for part in "wb"}
    w = weights(seed, **shapes)
    b = Builder("transformer", Value("int", 1, A), None, limit=N)
    for name, tensor in w.items():
        b.weight(name, tensor)
    slots = N if local is None else local[0] * local[2] + min(local[1], local[2] - 1) + 1
    K, V = (b.state(name, slots, D, ring=local is not None) for name in ("keys", "values"))
    x, y, q, z, f = (b.scratch(n, k).at() for n, k in (("x", D), ("y", D), ("q", D), ("z", D), ("f", 4 * D)))
    logits = b.scratch("logits", A).at()
    head = Head("categorical", A)

    def body(t, slot) -> None:  # type: ignore[no-untyped-def]
        b.add(
            Gather(x, "wpe", base=slot),
            Gather(x, "wte", position=t - 1, first=bos, add=x),
            Norm(y, x, "layer", "ln0.w", "ln0.b"),
            Linear(q, y, "q"),
            Linear(K.at(slot), y, "k"),
            Linear(V.at(slot), y, "v"),
            Attention(z, q, "keys", "values", slot, heads, heads, (D // heads) ** -0.5, local=local),
            Linear(x, z, "o", add=x),
            Norm(y, x, "layer", "ln1.w", "ln1.b"),
            Linear(f, y, "fc", "fc.b", activation="gelu"),
            Linear(x, f, "proj", add=x),
            Norm(y, x, "layer", "ln2.w", "ln2.b"),
            Linear(logits, y, "wte"),
            Draw(head, t, logits),
        )

    with b.loop("t", None) as t:
        if bos is None:
            with b.when(t, 0, 1):
                b.add(Draw(Head("given"), t))
            with b.when(t, 1):
                body(t, t - 1)
        else:
            body(t, t)

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        u = {name: tensor.to(dtype) for name, tensor in w.items()}
        symbols = values[..., 0].long()
        if bos is not None:
            symbols = torch.cat([torch.full_like(symbols[:, :1], bos), symbols[:, :-1]], 1)
        else:
            symbols = symbols[:, :-1]
        n, T = symbols.shape
        s = u["wte"][symbols] + u["wpe"][:T]

        def ln(i: int, s: Tensor) -> Tensor:
            return layer_norm(s, (D,), u[f"ln{i}.w"], u[f"ln{i}.b"])

        def split(name: str) -> Tensor:
            return (ln(0, s) @ u[name].T).view(n, T, heads, -1).transpose(1, 2)

        scores = split("q") @ split("k").transpose(2, 3) * (D // heads) ** -0.5
        t = torch.arange(T)
        hidden = t > t[:, None]
        if local is not None:
            (rows, columns), (row, column) = local[:2], (t // local[2], t % local[2])
            hidden = hidden | (row[:, None] - row > rows) | ((column[:, None] - column).abs() > columns)
        scores = scores.masked_fill(hidden, float("-inf"))
        mixed = (scores.softmax(3) @ split("v")).transpose(1, 2).reshape(n, T, D)
        s = s + mixed @ u["o"].T
        s = s + gelu(ln(1, s) @ u["fc"].T + u["fc.b"]) @ u["proj"].T
        out = ln(2, s) @ u["wte"].T
        return out if bos is not None else torch.cat([torch.zeros_like(out[:, :1]), out], 1)

    return Consumer(b.build(), head, params)


def recurrent(kind: str, A: int = 4, H: int = 5, seed: int = 7) -> Consumer:
    """One cell of torch.nn's RNN, LSTM or GRU between an embedding and a head."""
    gates = {"tanh": 1, "gru": 3, "lstm": 4}[kind] * H
    w = weights(
        seed, embed=(A + 1, H), ih=(gates, H), hh=(gates, H), bi=(gates,), bh=(gates,), head=(A, H), h0=(H,), c0=(H,)
    )
    b = Builder(kind, Value("int", 1, A), None)
    for name, tensor in w.items():
        if name != "c0" or kind == "lstm":
            b.weight(name, tensor)
    h = b.state("h", H, init="h0").at()
    c = b.state("c", H, init="c0").at() if kind == "lstm" else None
    x, gi, gh, logits = (b.scratch(n, k).at() for n, k in (("x", H), ("gi", gates), ("gh", gates), ("logits", A)))
    head = Head("categorical", A)
    with b.loop("t", None) as t:
        b.add(
            Gather(x, "embed", position=t - 1, first=A),
            Linear(gi, x, "ih", "bi"),
            Linear(gh, h, "hh", "bh"),
            Cell(kind, h, gi, gh, hidden=h if kind == "gru" else None, cell=c, cell_out=c),
            Linear(logits, h, "head"),
            Draw(head, t, logits),
        )

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        module = {"tanh": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[kind](H, H, batch_first=True).to(
            dtype
        )
        twins = {"weight_ih_l0": "ih", "weight_hh_l0": "hh", "bias_ih_l0": "bi", "bias_hh_l0": "bh"}
        module.load_state_dict({theirs: w[ours].to(dtype) for theirs, ours in twins.items()})
        symbols = torch.cat([torch.full_like(values[:, :1, 0], A), values[:, :-1, 0]], 1).long()
        h0, c0 = (w[name].to(dtype).expand(1, len(values), H).contiguous() for name in ("h0", "c0"))
        with torch.no_grad():
            y, _ = module(w["embed"].to(dtype)[symbols], (h0, c0) if kind == "lstm" else h0)
        return y @ w["head"].to(dtype).T

    return Consumer(b.build(), head, params)


def colours(C: int = 3, K: int = 2, levels: int = 4, T: int = 2, seed: int = 8) -> Consumer:
    """PixelCNN++'s head: a mixture of discretised logistics coupled over colours, whose state is the earlier pixels."""
    P = K * (1 + 2 * C + C * (C - 1) // 2)
    head = Head("logistic", levels=levels, components=K, channels=C, low=-1.0, high=1.0, min_log_scale=-3.0)
    w = weights(seed, W=(P, C), b=(P,))
    b = Builder("colours", Value("int", C, levels), T)
    for name, tensor in w.items():
        b.weight(name, tensor)
    x, out = b.scratch("x", C).at(), b.scratch("mixture", P).at()
    with b.loop("t", T) as t:
        b.add(
            Store(x, t - 1, scale=2 / (levels - 1), shift=-1, first=0.5),
            Linear(out, x, "W", "b", activation="tanh"),
            Draw(head, t, out),
        )

    def params(values: Tensor, dtype: torch.dtype) -> Tensor:
        x = values.to(dtype) * 2 / (levels - 1) - 1
        before = torch.cat([torch.full_like(x[:, :1], 0.5), x[:, :-1]], 1)
        return torch.tanh(before @ w["W"].to(dtype).T + w["b"].to(dtype))

    return Consumer(b.build(shape=(T, C)), head, params)


def flow(D: int = 3, layers: int = 2, seed: int = 9) -> tuple[Program, dict[str, Tensor]]:
    """Affine autoregressive layers x_i = z_i exp(a_i) + m_i, a and m linear in x_<i, dimensions reversed between."""
    w = weights(seed, **{f"{part}{k}": (D, D) for k in range(layers) for part in "am"}, base=(2,))
    w |= {name: 0.4 * t.tril(-1) for name, t in w.items() if name != "base"}
    w["base"] = torch.zeros(2)
    b = Builder("flow", Value("float", 1), D)
    for name, tensor in w.items():
        b.weight(name, tensor)
    b.table("each", list(range(D + 1)))
    b.table("before", list(range(D)))
    base = b.state("base_law", 2, init="base").at()
    z, scales = b.state("z0", D).at(), b.state("log_scales", D).at()
    with b.loop("t", D) as t:
        b.add(Draw(Head("normal"), t, base, out=z.channels(t, 1)))
    for k in range(layers):
        x, a, m = (b.state(f"{name}{k + 1}", D).at() for name in ("z", "a", "m"))
        e, log_prob = b.scratch("e", 1).at(), b.scratch("log_prob", 1).at()
        with b.loop("t", D) as t:
            at = [one.channels(t, 1) for one in (x, a, m)]
            # Layer k takes its noise in the order opposite to that of the layer before.
            noise = z.channels(t if k == 0 else D - 1 - t, 1)
            sums = scales.channels(t if k % 2 == (layers - 1) % 2 else D - 1 - t, 1)
            b.add(
                SpanLinear(a, x, f"a{k}", "each", t, reach="before"),
                SpanLinear(m, x, f"m{k}", "each", t, reach="before"),
                Elementwise(e, "exp", at[1]),
                Elementwise(e, "mul", e, noise),
                Elementwise(at[0], "add", e, at[2]),
                Elementwise(sums, "add", sums, at[1]),
            )
            if k + 1 == layers:
                b.add(Elementwise(log_prob, "none", sums, alpha=-1.0), Emit(at[0], t, log_prob))
        z = x
    return b.build(shape=(D,)), w


# Every program whose head reads what a full pass gives, with the length that an open one is run at.
CONSUMERS: dict[str, tuple[Callable[[], Consumer], int | None]] = {
    "nade": (nade, None),
    "rnade_gaussian": (rnade, None),
    "rnade_laplace": (lambda: rnade(kind="laplace"), None),
    "rnade_logistic": (lambda: rnade(kind="logistic"), None),
    "wavenet": (wavenet, 12),
    "made": (made, None),
    "pixelcnn": (pixelcnn, None),
    "gated_pixelcnn": (gated_pixelcnn, None),
    "transformer": (transformer, 8),
    "transformer_given": (lambda: transformer(bos=None), 8),
    "transformer_local": (lambda: transformer(local=(1, 1, 3)), 8),
    "tanh": (lambda: recurrent("tanh"), 6),
    "gru": (lambda: recurrent("gru"), 6),
    "lstm": (lambda: recurrent("lstm"), 6),
    "colours": (colours, None),
}
