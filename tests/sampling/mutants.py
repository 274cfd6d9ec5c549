"""Programs of the consumers with a few leaves of their JSON replaced, as far as they are valid still."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from fastar.sampling.program import Program
from fastar.sampling.request import Request, make
from tests.sampling.consumers_more import CONSUMERS

NAMES = ("a", "x0", "gates", "x", "logits", "keys", "out", "t", "relu", "tanh", "scratch", "W")


def mutants(seed: int, count: int) -> Iterator[tuple[Program, Request]]:
    """Of `count` mutated programs those that are not refused, each with a request for a run of two rows."""
    chance = random.Random(seed)
    sources = {name: make_one().program for name, (make_one, *_) in sorted(CONSUMERS.items())}
    texts = {name: json.dumps(program.to_json()) for name, program in sources.items()}
    for _ in range(count):
        name = chance.choice(sorted(sources))
        data = json.loads(texts[name])
        for _ in range(chance.randint(1, 3)):
            _mutate(data, chance)
        try:
            program = Program.from_json(data, sources[name].weights)
            request = make(program, 2, seed=1, length=None if program.positions else min(6, program.limit or 6))
        except ValueError:
            continue
        yield program, request


def _mutate(data: dict[str, Any], chance: random.Random) -> None:
    # Mostly the code, and mostly numbers near those that are there: others hardly ever leave a valid program.
    node: Any = data["code" if chance.random() < 0.7 else chance.choice(["buffers", "value", "positions", "limit"])]
    parent, key = None, None
    while isinstance(node, dict | list) and node:
        parent, key = node, chance.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    if parent is None:
        return
    if isinstance(node, bool | str | dict | list) or node is None:
        parent[key] = chance.choice([True, False, None, *NAMES])
    elif chance.random() < 0.8:
        parent[key] = node + chance.choice([-2, -1, 1, 2])
    else:
        parent[key] = chance.choice([0, -1, 7, 1 << 20, 0.5, None])
