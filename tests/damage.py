"""Damage to files, of any bytes and of their own fields, and a judge of what a reader makes of it."""

import contextlib
import json
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dydiff_dist.errors import USER_ERRORS
from dydiff_dist.files import SEAL, seal

TIME_LIMIT_SEC = 20.0
"""For one reading, some milliseconds long; on a machine four times slower too."""


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    noise = rng.randbytes(rng.choice([1, 1, 16, 512, 3000]))
    return data[:start] + noise[: len(data) - start] + data[start + len(noise) :]


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def drop_middle(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 512, 2000]) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.choice([1, 512])) + data[start:]


def zero_blocks(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data)) // 512 * 512
    return data[:start] + bytes(512) + data[start + 512 :]


def swap_blocks(data: bytes, rng: random.Random) -> bytes:
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    first, second = rng.randrange(len(blocks)), rng.randrange(len(blocks))
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b"".join(blocks)


def size_field(data: bytes, rng: random.Random) -> bytes:
    """A number of 2, 4 or 8 bytes, most often in the head or the tail, where formats keep their sizes, made extreme."""
    width = rng.choice([2, 4, 8])
    value = rng.choice([0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.randrange(2 ** (8 * width))])
    place = rng.choice([rng.randrange(64), max(len(data) - rng.randrange(1, 128), 0), rng.randrange(len(data))])
    return data[:place] + value.to_bytes(width, "little") + data[place + width :]


def decimal_field(data: bytes, rng: random.Random) -> bytes:
    """A number written in digits, as tar and npy headers and JSON have them, made extreme."""
    places = [digit.start() for digit in re.finditer(rb"\d", data)]
    if not places:
        return flip_bit(data, rng)
    start = end = rng.choice(places)
    while data[end : end + 1].isdigit():
        end += 1
    return data[:start] + rng.choice([b"0", b"-1", b"9" * (end - start), b"10000000000000", b"1e400"]) + data[end:]


DAMAGES = [overwrite, flip_bit, truncate, drop_middle, insert, zero_blocks, swap_blocks, size_field, decimal_field]


def deep(levels: int = 100_000) -> str:
    return "[" * levels + "]" * levels


_VALUES: list[Callable[[random.Random], Any]] = [
    lambda rng: rng.choice([0, -1, 10**13, 10**400, 2**63, 1e308, float("nan"), float("inf"), True, None, ""]),
    lambda rng: "x" * 7316,
    lambda rng: rng.choice([[], {}, [None], {"a": {}}, "../../../x.tar", "/etc/passwd", "nowhere", "\0"]),
    lambda rng: [[rng.random()] * 3] * 3,
]


def change_tree(tree: Any, rng: random.Random) -> Any:
    """A value of a JSON tree, anywhere in it, replaced, removed or exchanged for another; the tree is changed."""
    spots = list(_spots(tree))
    holder, key = rng.choice(spots)
    action = rng.choice(["replace", "replace", "remove", "exchange"])
    if action == "remove":
        del holder[key]
    elif action == "exchange":
        other, place = rng.choice(spots)
        with contextlib.suppress(KeyError, IndexError):
            holder[key], other[place] = other[place], holder[key]
    else:
        holder[key] = rng.choice(_VALUES)(rng)
    return tree


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        if key != SEAL:
            yield tree, key
            yield from _spots(tree[key])


def change_json(data: bytes, rng: random.Random) -> bytes:
    """One value changed, or 100,000 levels of nesting in place of one; the seal, if any, is left as it was."""
    tree = json.loads(data)
    if rng.random() < 0.1:
        holder, key = rng.choice(list(_spots(tree)))
        holder[key] = "DEEP"
        return json.dumps(tree).replace('"DEEP"', deep()).encode()
    try:
        return json.dumps(change_tree(tree, rng)).encode()
    except (ValueError, RecursionError):  # an exchange made the tree hold itself
        return flip_bit(data, rng)


def forge_json(data: bytes, rng: random.Random) -> bytes:
    """One value changed, and the document sealed again, as somebody would who means it."""
    tree = json.loads(data)
    try:
        return json.dumps(seal(change_tree(tree, rng))).encode()
    except (ValueError, RecursionError):
        return flip_bit(data, rng)


class TooSlowError(BaseException):
    """A reading that takes too long; no ``except Exception`` stops it."""


@contextlib.contextmanager
def time_limit(seconds: float = TIME_LIMIT_SEC) -> Iterator[None]:
    """Ends the block when it takes longer; for the main thread."""

    def stop(*_: Any) -> None:
        raise TooSlowError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Target:
    """Files that are read together, whole at first."""

    name: str
    files: list[Path]
    """Each gets its share of the damage."""
    read: Callable[[], Any]
    """What a reader takes from them; equal for equal content."""
    damages: list[Callable[[bytes, random.Random], bytes]] = field(default_factory=lambda: list(DAMAGES))
    sealed: bool = True
    """Whether damage must be noticed; without, the content may be another, but never a traceback or a hang."""
    errors: tuple[type[Exception], ...] = USER_ERRORS

    def damage_often(self, trials: range) -> Counter[str]:
        """Damages a file, reads, judges, and puts the file back, once for each number of ``trials``; returns how often
        the damage was refused, made no difference, or (where nothing seals the file) made one."""
        expected, whole = self.read(), {path: path.read_bytes() for path in self.files}
        counts: Counter[str] = Counter()
        for trial in trials:
            rng = random.Random(f"{self.name}/{trial}")
            path = rng.choice(self.files)
            damage = rng.choice(self.damages)
            case = (self.name, path.name, damage.__name__, trial)
            try:
                path.write_bytes(damage(whole[path], rng))
                counts[self._judge(expected, case)] += 1
            finally:
                path.write_bytes(whole[path])
        return counts

    def _judge(self, expected: Any, case: tuple) -> str:
        try:
            with time_limit():
                found = self.read()
        except self.errors as error:
            text = str(error)
            assert text and "\n" not in text and len(text) < 1200, (case, len(text), text[:2000])
            return "refused"
        except BaseException as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
        if found == expected:
            return "no difference"
        assert not self.sealed, (case, "the content differs and nobody noticed")
        return "another content"
