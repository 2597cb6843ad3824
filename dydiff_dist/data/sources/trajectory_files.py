"""Sources whose inputs are files of trajectories in a folder, split by its folders or by a hash of each trajectory."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from dydiff_dist.data.inputs import SPLITS, find_files, unique_stems
from dydiff_dist.data.manifest import Independent
from dydiff_dist.data.source import BadItem, ShardTask, Source, reading, split_of, split_tasks
from dydiff_dist.strict_config import StrictConfig


class TrajectoryFilesConfig(StrictConfig):
    """The options that they share."""

    root: str
    """Folder of the files, searched with all folders in it, links included; train/, valid/ (val/, validation/) and
    test/ in it are the splits."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the trajectories for validation, where there are no folders for the splits."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the trajectories for testing, where there are no folders for the splits."""
    trajectories_per_shard: Annotated[int, Field(ge=1)] = 64
    """Trajectories whose samples make one shard."""


Config = TypeVar("Config", bound=TrajectoryFilesConfig)


class TrajectoryFilesSource(Source[Config]):
    """An item is (file relative to the root, what names a trajectory in it, stem of the keys)."""

    suffixes: ClassVar[tuple[str, ...]]
    """Of the files, in small letters."""
    folder_suffix: ClassVar[str] = ""
    """Of folders that are inputs as a whole."""
    unopened: ClassVar[Any] = None
    """Names the trajectory of a file that can't be opened, which is then read, and rejected, with its shard; None
    rejects it beforehand."""
    _folders_split: bool = False
    """Whether folders are the splits; known when the inputs were planned."""

    def check_files(self, names: list[str]) -> None:
        """Raises ``ValueError`` where files of such names can't be read here at all."""

    @abstractmethod
    def trajectories(self, path: Path) -> Iterator[tuple[Any, int]]:
        """(what names it, bytes of its samples) of each trajectory in a file."""

    def plan(self) -> list[ShardTask]:
        """Shards of each split."""
        root, config = Path(self.config.root), self.config
        found = find_files(root, self.suffixes, folder_suffix=self.folder_suffix)
        self.check_files(found.files)
        folders, stems = found.by_split(), unique_stems(found.files)
        self._folders_split = folders is not None
        by_split: dict[str, list[tuple[tuple[str, Any, str], int]]] = {split: [] for split in SPLITS}
        for split_folder, names in (folders or {"": found.files}).items():
            for name in names:
                results = list(reading(name, self.trajectories(root / name)))
                for result in results or [BadItem(name, "it holds no trajectory", is_whole_input=True)]:
                    if isinstance(result, BadItem) and (self.unopened is None or not results):
                        found.aside.append(result)
                        continue
                    trajectory, size = (self.unopened, 0) if isinstance(result, BadItem) else result
                    hashed = split_of(f"{name}/{trajectory}", config.valid_fraction, config.test_fraction)
                    by_split[split_folder or hashed].append(((name, trajectory, stems[name]), size))
        if not by_split["train"]:
            advice = "lower the fractions or fill train/"
            raise ValueError(f"no trajectory under {root} is left for training; {advice}{found.first_fault()}")
        return split_tasks(by_split, config.trajectories_per_shard, found.aside)

    def item_name(self, item: Any) -> str:
        """File and trajectory."""
        return f"{item[0]}, trajectory {item[1]}"

    def item_files(self, item: Any) -> list[Path]:
        """The trajectory's file."""
        return [Path(self.config.root) / item[0]]

    def independent(self, split: str) -> Independent:
        """Each trajectory: keys go on with the window's first frame."""
        return "key_prefix"

    def split_hint(self, split: str) -> str:
        """The folder or the fraction that decides."""
        if self._folders_split:
            return f"there is no folder {split}/ with files under {self.config.root}"
        fraction = getattr(self.config, f"{split}_fraction", None)
        return f"--{split}-fraction {fraction} chose no trajectory; give more, or folders train/, valid/ and test/"
