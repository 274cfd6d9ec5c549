"""Which channels of scratch are written at a point of the code, on every way that leads there."""

from __future__ import annotations

from fastar.sampling.index import Ranges, Ref


class Written:
    """Intervals of channels per scratch buffer, in frames that follow the loops and whens."""

    def __init__(self) -> None:
        self._frames: list[dict[str, list[tuple[int, int]]]] = [{}]
        self._survive: list[bool] = []

    def open(self, survives: bool) -> None:
        """Enter a loop, which runs at least once so that its writes survive it, or a when."""
        self._frames.append({})
        self._survive.append(survives)

    def close(self) -> None:
        """Leave the innermost loop or when."""
        inner = self._frames.pop()
        if self._survive.pop():
            for name, intervals in inner.items():
                self._frames[-1].setdefault(name, []).extend(intervals)

    def add(self, ref: Ref) -> None:
        """Note a write. One whose channels depend on a variable counts for nothing: it covers no fixed channel."""
        start = ref.offset.constant
        if start is not None:
            self._frames[-1].setdefault(ref.buffer, []).append((start, start + ref.width))

    def covers(self, ref: Ref, ranges: Ranges) -> bool:
        """Whether every channel that the reference may read is written."""
        low, high = ref.offset.bounds(ranges)
        reached, end = low, high + ref.width
        for start, stop in sorted(pair for frame in self._frames for pair in frame.get(ref.buffer, [])):
            if start > reached:
                break
            reached = max(reached, stop)
        return reached >= end
