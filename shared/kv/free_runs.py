"""The free blocks of a pool as runs of consecutive ids, so that a request's blocks are few contiguous pieces."""

from shared.specs.ids import BlockId


class FreeRuns:
    """Free block ids. `take` prefers one run that fits tightly; `give` joins neighbours again."""

    def __init__(self, blocks: int) -> None:
        self._count = blocks
        self._length_at: dict[int, int] = {0: blocks} if blocks else {}  # first block of a run -> its length
        self._start_before: dict[int, int] = {blocks: 0} if blocks else {}  # block after a run -> its first block

    def __len__(self) -> int:
        return self._count

    def take(self, count: int) -> list[BlockId]:
        """`count` blocks, in ascending runs. The caller has checked that there are as many."""
        assert 0 <= count <= self._count
        taken: list[BlockId] = []
        while len(taken) < count:
            wanted = count - len(taken)
            start = self._best_run(wanted)
            length = self._length_at[start]
            used = min(wanted, length)
            self._remove(start)
            if used < length:
                self._insert(start + used, length - used)
            taken.extend(BlockId(block) for block in range(start, start + used))
        self._count -= count
        return taken

    def give(self, blocks: list[BlockId]) -> None:
        for block in blocks:
            start, length = int(block), 1
            if start in self._start_before:  # a run ends right before it
                start = self._start_before[start]
                length += self._remove(start)
            if block + 1 in self._length_at:  # a run starts right after it
                length += self._remove(block + 1)
            self._insert(start, length)
        self._count += len(blocks)

    def ids(self) -> list[int]:
        return [block for start, length in self._length_at.items() for block in range(start, start + length)]

    def _best_run(self, wanted: int) -> int:
        """The shortest run that holds all of it, else the longest; the lowest id among equals."""
        fitting = [(length, start) for start, length in self._length_at.items() if length >= wanted]
        if fitting:
            return min(fitting)[1]
        return min((-length, start) for start, length in self._length_at.items())[1]

    def _insert(self, start: int, length: int) -> None:
        self._length_at[start] = length
        self._start_before[start + length] = start

    def _remove(self, start: int) -> int:
        length = self._length_at.pop(start)
        del self._start_before[start + length]
        return length
