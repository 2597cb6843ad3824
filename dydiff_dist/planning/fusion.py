"""What is left of a network's launches where a compiler fuses them: products and attention as they are, and between
them one pass over memory for what works row by row, one for sums over rows.

It is a count of what must be moved, not the compiler itself. A tensor is written where a product, attention or a later
pass of the same direction reads it; the backward pass makes anew, from what was written, what it needs beside that.
Sums over tokens (gradients of biases, shifts, scales) can't be had row by row, so they read again what they add up.
"""

from collections.abc import Iterable

from scipy.cluster.hierarchy import DisjointSet

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
        self.levels: list[int] = []
        self.sources: list[dict[int, int | None]] = []
        """By launch: storage it reads -> launch that made it, None for weights and inputs."""
        producer: dict[int, int] = {}
        level_after: dict[int, int] = {}
        first = 0
        for number, launch in enumerate(self.all):
            if number == trace.num_forward:
                first = max(level_after.values(), default=0) + 1  # the passes of one direction end before the other's
            self.sources.append({storage: producer.get(storage) for storage in launch.reads})
            self.levels.append(max([first, *(level_after.get(storage, first) for storage in launch.reads)]))
            for storage in launch.writes:
                producer[storage] = number
                level_after[storage] = self.levels[number] + (launch.kind in _BARRIERS)
        self.written = self._written()

    def _is_fused(self, number: int) -> bool:
        return self.all[number].kind not in _BARRIERS

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

    def _groups(self) -> list[set[int]]:
        """Fused launches that are linked: by a result, or by their largest operand."""
        fused = [number for number in range(len(self.all)) if self._is_fused(number)]
        linked = DisjointSet(fused)
        readers: dict[tuple[int, int], int] = {}
        for number in fused:
            reads, level = self.all[number].reads, self.levels[number]
            for maker in self.sources[number].values():
                if maker is not None and self._is_fused(maker) and self.levels[maker] == level:
                    linked.merge(number, maker)
            if reads:
                largest = max(reads, key=reads.__getitem__), level
                linked.merge(number, readers.setdefault(largest, number))
        return linked.subsets()

    def _passes(self, group: set[int]) -> Iterable[Launch]:
        """The pass row by row and the one of the sums, where there are such."""
        made = [(number, storage) for number in sorted(group) for storage in self.all[number].writes]
        sums = [pair for pair in made if self.all[pair[0]].is_column_sum]
        rows = [pair for pair in made if pair in self.written and not self.all[pair[0]].is_column_sum]
        for name, results in (("rows", rows), ("sums", sums)):
            if results:
                reads = self._reads({number for number, _ in results}, group)
                writes = {storage: self.all[number].writes[storage] for number, storage in results}
                yield Launch(f"fused_{name}", "fused", {s: b for s, b in reads.items() if s not in writes}, writes)

    def _reads(self, ends: Iterable[int], group: set[int]) -> dict[int, int]:
        """What a pass over ``group`` must read from memory for the results of the launches ``ends``."""
        reads: dict[int, int] = {}
        seen: set[int] = set()
        stack = list(ends)
        while stack:
            number = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            for storage, size in self.all[number].reads.items():
                maker = self.sources[number][storage]
                if maker is not None and (
                    (maker in group and not self.all[maker].is_column_sum)
                    or (self._is_fused(maker) and (maker, storage) not in self.written)  # it is made anew
                ):
                    stack.append(maker)
                else:
                    reads[storage] = max(reads.get(storage, 0), size)
        return reads
