"""Model: what all models have in common."""

from __future__ import annotations

import abc
import copy
import inspect
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Distribution
from fastar.models import checkpoint
from fastar.nn import MaskedLinear
from fastar.nn._tap_conv2d import TapConv2d
from fastar.sampling import Program, Sampler, SampleResult
from fastar.sampling.sampler import Progress

M = TypeVar("M", bound="Model")

# Rows that `sample` runs together. More are drawn in chunks, which changes no sample and bounds the memory.
ROWS = 256


class Model(nn.Module, abc.ABC):
    """p(x) = prod_t p(x_t | x_<t): a network from x to the parameters of every position, and their distribution.

    A subclass passes the arguments of its constructor, as JSON knows them, to ``super().__init__``; sets `distribution`
    and `data_shape`; and defines `forward` and `lower`.
    """

    # Published configurations by name: arguments of the constructor.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # The dimension of ``model(x)`` along which a position's parameters lie.
    params_dim: ClassVar[int] = -1
    # Where real data lie unless told otherwise; see `nll_bits_per_dim`.
    data_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    distribution: Distribution
    # The shape of one x; a string stands for any size.
    data_shape: tuple[int | str, ...]

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self._config = copy.deepcopy(config)

    @abc.abstractmethod
    def forward(self, x: Tensor, cond: Any = None) -> Tensor:
        """The parameters of every position; those of position t depend on the earlier positions only."""

    @abc.abstractmethod
    def lower(self) -> Program:
        """The sampling loop as a step program, with the weights as they are now."""

    def check(self, x: Tensor, cond: Any = None) -> None:
        """ValueError or TypeError that says what is wrong with x or cond."""
        _checks.shape("x", _checks.tensor("x", x), ["B", *self.data_shape])
        self.distribution.check(x)
        if cond is not None:
            raise ValueError(f"cond: {type(self).__name__} takes none")

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        """log p(x) [B] in nats, differentiable."""
        params = self(x) if cond is None else self(x, cond)
        return self.distribution.log_prob(params, x, self.params_dim).flatten(1).sum(1)

    def loss(self, x: Tensor, cond: Any = None) -> Tensor:
        """What training minimises: mean nats, or a bound on them or an estimate where that is cheaper."""
        return -self.log_prob(x, cond).mean()

    def initialise(self, x: Tensor, cond: Any = None) -> None:
        """What a model whose start hangs on data does before the first training step, with its batch."""

    def nll_bits_per_dim(
        self,
        x: Tensor,
        cond: Any = None,
        *,
        levels: int | None = None,
        data_range: tuple[float, float] | None = None,
    ) -> Tensor:
        """-log2 p(x) / D [B], for D numbers in an x.

        Real data have a density and no probability; `levels` is the number of bins that `data_range` (by default the
        model's own) falls into, and an x then stands for its bin, of probability density x width.
        """
        nats = -self.log_prob(x, cond)
        if self.distribution.is_density:
            if levels is None:
                raise ValueError("levels: real data have no bits per dim; pass the number of levels they were made of")
            low, high = self.data_range if data_range is None else data_range
            nats = nats - self._numbers(x) * math.log((high - low) / _checks.positive("levels", levels))
        elif levels is not None or data_range is not None:
            own = self.distribution.head.levels or self.distribution.levels
            raise ValueError(f"levels: {type(self).__name__} has {own} levels of its own")
        return nats / (self._numbers(x) * math.log(2))

    def _numbers(self, x: Tensor) -> int:
        return math.prod(x.shape[1:])

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        length: int | Sequence[int] | Tensor | None = None,
        cond: Any = None,
        seed: int | Sequence[int] | None = None,
        row_offset: int = 0,
        uniforms: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        given: Tensor | None = None,
        support: tuple[object, object] | Tensor | None = None,
        stop: int | None = None,
        backend: str = "auto",
        dtype: torch.dtype | None = None,
        progress: Progress = False,
        return_info: bool = False,
    ) -> Tensor | SampleResult:
        """n samples [n, ...] in the data's space, by `fastar.sampling.Sampler`, which documents the options.

        The weights are packed anew in every call; hold a Sampler to pack them once.
        """
        rows = max(1, min(n, ROWS)) if isinstance(n, int) else n
        sampler = Sampler(self, rows, dtype, backend)
        try:
            return sampler.sample(
                n,
                length=length,
                cond=cond,
                seed=seed,
                row_offset=row_offset,
                uniforms=uniforms,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                greedy=greedy,
                given=given,
                support=support,
                stop=stop,
                progress=progress,
                return_info=return_info,
            )
        finally:
            sampler.close()

    def num_parameters(self) -> int:
        """How many numbers are learned; what a mask removes does not count."""
        removed = sum(_removed(layer) for layer in self.modules() if isinstance(layer, MaskedLinear | TapConv2d))
        return sum(p.numel() for p in self.parameters()) - removed

    def to_config(self) -> dict[str, Any]:
        """The constructor's arguments, in types that JSON has."""
        return copy.deepcopy(self._config)

    @classmethod
    def from_config(
        cls: type[M],
        config: Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> M:
        """A new model with the arguments that `to_config` gave."""
        known = inspect.signature(cls).parameters
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise ValueError(f"config: {cls.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**config, device=device, dtype=dtype)

    @classmethod
    def preset(
        cls: type[M],
        name: str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> M:
        """A new model in a published configuration, with `changes` to it."""
        if name not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise ValueError(f"preset: {cls.__name__} has {known}, not {name!r}")
        return cls.from_config({**cls.presets[name], **changes}, device=device, dtype=dtype)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write configuration and weights into the folder; if that fails, what it held before is still whole."""
        checkpoint.write(folder, {"model": type(self).__name__, "config": self.to_config()}, self.state_dict())

    @classmethod
    def from_pretrained(cls: type[M], folder: str | os.PathLike[str], *, device: torch.device | str | None = None) -> M:
        """The model that `save_pretrained` wrote, its weights bit for bit and in their own dtypes."""
        return cls.from_checkpoint(*checkpoint.read(folder), device=device, source=str(folder))

    @classmethod
    def from_checkpoint(
        cls: type[M],
        header: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        device: torch.device | str | None = None,
        source: str = "checkpoint",
    ) -> M:
        """The model of what `checkpoint.read` gave; ValueError where it is another one's."""
        if header.get("model") != cls.__name__ or not isinstance(header.get("config"), Mapping):
            raise ValueError(f"{source}: expected a checkpoint of {cls.__name__}, this is one of {header.get('model')}")
        model = cls.from_config(header["config"], device=device)
        for name, t in itertools.chain(model.named_parameters(), model.named_buffers()):
            if name in tensors:
                t.data = t.data.to(tensors[name].dtype)
        try:
            model.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise ValueError(f"{source}: the weights are not those of its configuration: {error}") from error
        return model

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return next(self.parameters()).device


def _removed(layer: MaskedLinear | TapConv2d) -> int:
    """How many of the layer's weights its mask removes; plans know that also where the weights are on meta."""
    if isinstance(layer, TapConv2d):
        mask = layer.plan.dense(layer.weight.shape, torch.device("cpu"))
        return 0 if mask is None else int((~mask).sum())
    visible = layer.plan.mask if layer.plan.reach is None else layer.plan.reach
    return 0 if visible is None else layer.weight.numel() - int(visible.sum())
