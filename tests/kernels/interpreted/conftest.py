"""Every load and store of an interpreted kernel has to lie inside one of the tensors of its launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import interpreter_builder

from fastar.kernels import _launch


@pytest.fixture(autouse=True)
def _nothing_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    storages: list[tuple[int, int]] = []
    launch = _launch.launch

    def launch_known(kernel: Any, grid: Any, device: Any, arguments: dict[str, Any], **resources: Any) -> None:
        owned = [one.untyped_storage() for one in arguments.values() if isinstance(one, torch.Tensor)]
        storages[:] = [(one.data_ptr(), one.data_ptr() + one.nbytes()) for one in owned]
        launch(kernel, grid, device, arguments, **resources)

    def guarded(name: str, mask_place: int) -> Callable[..., Any]:
        access = getattr(interpreter_builder, name)

        def check(pointers: Any, *rest: Any) -> Any:
            mask = np.broadcast_to(rest[mask_place].data, pointers.data.shape)
            addresses = pointers.data[mask].astype(np.uint64)
            last = addresses + np.uint64(pointers.get_element_ty().primitive_bitwidth // 8 or 1)
            inside = np.zeros(addresses.shape, bool)
            for start, end in storages:
                inside |= (addresses >= start) & (last <= end)
            assert inside.all(), f"{name}: {(~inside).sum()} of {inside.size} addresses lie outside every tensor"
            return access(pointers, *rest)

        return check

    monkeypatch.setattr(_launch, "launch", launch_known)
    monkeypatch.setattr(interpreter_builder, "create_masked_load", guarded("create_masked_load", 0))
    monkeypatch.setattr(interpreter_builder, "create_masked_store", guarded("create_masked_store", 1))
