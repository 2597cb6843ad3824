"""What is left of a network's launches where a compiler fuses them: products and attention as they are, and between
them one pass over memory for what works row by row, one for sums over rows.

It is a count of what must be moved, not the compiler itself. A tensor is written where a product, attention or a later
pass of the same direction reads it; the backward pass makes anew, from what was written, what it needs beside that.
Sums over tokens (gradients of biases, shifts, scales) can't be had row by row, so they read again what they add up.
"""

from collections import defaultdict
from collections.abc import Iterable

from dydiff_dist.planning.launches import Launch, NetworkTrace

_BARRIERS = ("products", "attention", "fused")


def fuse(trace: NetworkTrace) -> list[Launch]:
    """The launches of ``trace`` after fusion; what is fused has the kind ``fused``."""
    return _Fusion(trace).launches()


class _Fusion:
    """Launches by their number, storages by theirs.

    A launch's level is how many barriers stand before it at the most: what is of one level and linked is one pass.
    """

    def __init__(self, trace: NetworkTrace):
        self.trace, self.all = trace, trace.launches
        self.producer: dict[int, int] = {}
        self.levels: list[int] = []
        self.sources: list[dict[int, int | None]] = []
        """By launch: storage it reads -> launch that made it, None for weights and inputs."""
        level_after: dict[int, int] = {}
        last = 0
        for number, launch in enumerate(self.all):
            if number == trace.num_forward:
                last = max(level_after.values(), default=0) + 1  # the passes of one direction end before the other's
            first = last if number >= trace.num_forward else 0
            self.sources.append({storage: self.producer.get(storage) for storage in launch.reads})
            level = max((level_after.get(storage, first) for storage in launch.reads), default=first)
            level = max(level, first)
            self.levels.append(level)
            for storage in launch.writes:
                self.producer[storage] = number
                level_after[storage] = level + (launch.kind in _BARRIERS)
        self.written = self._written()

    def _is_fused(self, number: int | None) -> bool:
        return number is not None and self.all[number].kind not in _BARRIERS

    def _written(self) -> set[tuple[int, int]]:
        """(launch, storage) of results of fused launches that must lie in memory."""
        written = set()
        read = set()
        for number, sources in enumerate(self.sources):
            for storage, maker in sources.items():
                if maker is None or not self._is_fused(maker):
                    continue
                read.add((maker, storage))
                later = self.levels[number] != self.levels[maker]
                same_direction = (number < self.trace.num_forward) == (maker < self.trace.num_forward)
                if not self._is_fused(number) or (later and same_direction):
                    written.add((maker, storage))
        made = {(number, storage) for number, each in enumerate(self.all) for storage in each.writes}
        return written | {pair for pair in made - read if self._is_fused(pair[0])}

    def launches(self) -> list[Launch]:
        barriers = [launch for launch in self.all if launch.kind in _BARRIERS]
        return barriers + [fused for group in self._groups() for fused in self._passes(group)]

    def _groups(self) -> Iterable[list[int]]:
        """Fused launches that are linked: by a result, or by their largest operand."""
        parent = list(range(len(self.all)))

        def root(number: int) -> int:
            while parent[number] != number:
                parent[number] = parent[parent[number]]
                number = parent[number]
            return number

        readers: dict[tuple[int, int], int] = {}
        for number, launch in enumerate(self.all):
            if not self._is_fused(number):
                continue
            for maker in self.sources[number].values():
                if maker is not None and self._is_fused(maker) and self.levels[maker] == self.levels[number]:
                    parent[root(number)] = root(maker)
            if launch.reads:
                largest = (max(launch.reads, key=launch.reads.__getitem__), self.levels[number])
                parent[root(number)] = root(readers.setdefault(largest, number))
        groups = defaultdict(list)
        for number in range(len(self.all)):
            if self._is_fused(number):
                groups[root(number)].append(number)
        return groups.values()

    def _passes(self, group: list[int]) -> Iterable[Launch]:
        """The pass row by row and the one of the sums, where there are such."""
        members = set(group)
        sums = [number for number in group if self.all[number].is_column_sum]
        results = [
            (number, storage)
            for number in group
            for storage in self.all[number].writes
            if (number, storage) in self.written and not self.all[number].is_column_sum
        ]
        kinds = (("rows", {number for number, _ in results}, results), ("sums", set(sums), None))
        for name, ends, pairs in kinds:
            if not ends:
                continue
            reads: dict[int, int] = {}
            for end in ends:
                self._collect(end, members, reads, set())
            made = pairs if pairs is not None else [(n, s) for n in ends for s in self.all[n].writes]
            writes = {storage: self.all[number].writes[storage] for number, storage in made}
            yield Launch(f"fused_{name}", "fused", {s: b for s, b in reads.items() if s not in writes}, writes)

    def _collect(self, number: int, members: set[int], reads: dict[int, int], seen: set[int]) -> None:
        """Adds what must be read from memory for the results of ``number``."""
        stack = [number]
        while stack:
            number = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            for storage, size in self.all[number].reads.items():
                maker = self.sources[number][storage]
                made_here = maker in members and not (maker is not None and self.all[maker].is_column_sum)
                made_anew = maker is not None and self._is_fused(maker) and (maker, storage) not in self.written
                if maker is not None and (made_here or made_anew):
                    stack.append(maker)
                else:
                    reads[storage] = max(reads.get(storage, 0), size)
