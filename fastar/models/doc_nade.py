"""DocNADE: NADE over the words of documents, each given the bag of those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Categorical
from fastar.models.model import Model
from fastar.ops.nade import check_activation
from fastar.reference import activation as activations
from fastar.sampling import Builder, Program
from fastar.sampling.instructions import Draw, Elementwise, Gather, Linear


class DocNADE(Model):
    """h_t = act(c + sum_{s before t} W[x_s]),  p(x_t | x_<t) = softmax(b + V h_t), or a path through a tree.

    The tree is a balanced one: a decision per level, sigmoid(b_n + V_n h_t) to the left, so that a word's probability
    takes log2(vocabulary) products. Inner nodes are numbered 1.., the children of n being 2 n and 2 n + 1, and word w
    is the leaf vocabulary + w.

    Args:
        vocabulary: number of words.
        hidden: H, hidden units.
        tree: the tree in the place of the softmax.
        activation: sigmoid, relu or tanh.

    x [B, T] of integers, of which row b's first ``lengths[b]`` count; ``model(x)`` [B, T, vocabulary], logits, or with
    a tree the words' log-probabilities.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "20newsgroups": {"vocabulary": 2000, "hidden": 50, "tree": True},
    }

    path_nodes: Tensor
    path_signs: Tensor

    def __init__(
        self,
        vocabulary: int,
        hidden: int,
        tree: bool = False,
        *,
        activation: str = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(vocabulary=vocabulary, hidden=hidden, tree=tree, activation=activation)
        if _checks.positive("vocabulary", vocabulary) < 2:
            raise ValueError(f"vocabulary: expected at least 2 words, got {vocabulary}")
        check_activation(activation)
        self.vocabulary, self.hidden, self.tree, self.activation = vocabulary, hidden, bool(tree), activation
        self.distribution = Categorical(vocabulary)
        self.data_shape = ("T",)
        self.words = nn.Embedding(vocabulary, _checks.positive("hidden", hidden), device=device, dtype=dtype)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden, device=device, dtype=dtype))
        self.out = nn.Linear(hidden, vocabulary - 1 if tree else vocabulary, device=device, dtype=dtype)
        nn.init.uniform_(self.words.weight, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))
        nodes, signs = _paths(vocabulary)
        self.register_buffer("path_nodes", nodes.to(device), persistent=False)
        self.register_buffer("path_signs", signs.to(device), persistent=False)

    def _states(self, x: Tensor) -> Tensor:
        seen = self.words(x.long()).cumsum(1)
        before = F.pad(seen, (0, 0, 1, 0))[:, :-1]
        return activations.APPLY[self.activation](before + self.hidden_bias)

    def forward(self, x: Tensor, cond: None = None) -> Tensor:
        self.check(x, cond)
        out: Tensor = self.out(self._states(x))
        if not self.tree:
            return out
        # The sum over a word's path, for all words: products with the tree's incidence matrices.
        left, right = F.logsigmoid(out), F.logsigmoid(-out)
        went_left, went_right = self._incidence().to(out.dtype)
        words: Tensor = left @ went_left.T + right @ went_right.T
        return words

    def log_prob(self, x: Tensor, cond: None = None, *, lengths: Tensor | None = None) -> Tensor:
        """log p [B] of each row's first `lengths` words (int [B]), of all of them by default."""
        self.check(x, cond)
        if self.tree:
            nodes, signs = self.path_nodes[x.long()], self.path_signs[x.long()]
            decisions = torch.einsum("bth,btlh->btl", self._states(x), self.out.weight[nodes]) + self.out.bias[nodes]
            each = F.logsigmoid(decisions * signs).masked_fill(signs == 0, 0.0).sum(2)
        else:
            each = self.distribution.log_prob(self(x), x)
        if lengths is not None:
            each = each.masked_fill(~self._counts(x, lengths), 0.0)
        return each.sum(1)

    def nll_bits_per_dim(self, x: Tensor, cond: None = None, *, lengths: Tensor | None = None, **none: Any) -> Tensor:
        """-log2 p / words [B]; a row without words has 0."""
        if none:
            raise ValueError(f"{next(iter(none))}: DocNADE has {self.vocabulary} levels of its own")
        words = torch.full((len(x),), x.shape[1], device=x.device) if lengths is None else lengths
        return -self.log_prob(x, cond, lengths=lengths) / (words.clamp(min=1) * math.log(2))

    def _counts(self, x: Tensor, lengths: Tensor) -> Tensor:
        _checks.dtype("lengths", _checks.tensor("lengths", lengths), _checks.INTEGERS)
        _checks.shape("lengths", lengths, [len(x)])
        if lengths.device.type == "cpu" and bool(((lengths < 0) | (lengths > x.shape[1])).any()):
            raise ValueError(f"lengths: expected 0..{x.shape[1]}, got {int(lengths.min())} to {int(lengths.max())}")
        return torch.arange(x.shape[1], device=x.device) < lengths[:, None]

    def _incidence(self) -> Tensor:
        # [2, vocabulary, nodes]: whether a word's path goes left, or right, at a node.
        shape = (self.vocabulary, self.vocabulary - 1)
        sides = []
        for sign in (1, -1):
            side = torch.zeros(shape, device=self.path_nodes.device)
            sides.append(side.scatter_add(1, self.path_nodes, (self.path_signs == sign).float()))
        return torch.stack(sides)

    def lower(self) -> Program:
        V, H, head = self.vocabulary, self.hidden, self.distribution.head
        b = Builder("DocNADE", self.distribution.value, None)
        a = b.state("a", H, init=b.weight("hidden_bias", self.hidden_bias)).at()
        b.weight("words", self.words.weight)
        b.weight("out.weight", self.out.weight)
        b.weight("out.bias", self.out.bias)
        h, logits = b.scratch("h", H).at(), b.scratch("logits", V).at()
        with b.loop("t", None) as t:
            b.add(Gather(a, "words", position=t - 1, add=a), Elementwise(h, self.activation, a))
            if self.tree:
                n = V - 1
                decisions, costs = b.scratch("decisions", n).at(), b.scratch("costs", 2 * n).at()
                # -log sigmoid(s) is softplus(-s), and the other side's softplus(s).
                incidence = -torch.cat(list(self._incidence()), 1).to(self.dtype)
                b.add(
                    Linear(decisions, h, "out.weight", "out.bias"),
                    Elementwise(costs.channels(0, n), "softplus", decisions, alpha=-1.0),
                    Elementwise(costs.channels(n, n), "softplus", decisions),
                    Linear(logits, costs, b.weight("tree", incidence)),
                )
            else:
                b.add(Linear(logits, h, "out.weight", "out.bias"))
            b.add(Draw(head, t, logits))
        return b.build()


def _paths(vocabulary: int) -> tuple[Tensor, Tensor]:
    # Per word the inner nodes above it, counted from 0, and 1 where it lies to the left, -1 to the right, 0 for none.
    depth = (2 * vocabulary - 1).bit_length() - 1
    node = torch.arange(vocabulary, 2 * vocabulary)
    nodes, signs = [], []
    for _ in range(depth):
        up = node // 2
        inside = up >= 1
        nodes.append(torch.where(inside, up - 1, 0))
        signs.append(torch.where(inside, 1 - 2 * (node % 2), 0))
        node = torch.where(inside, up, node // 2)
    return torch.stack(nodes, 1), torch.stack(signs, 1)
