"""What the C++ extension is built from: the build writes its digest into the extension, loading compares it.

``setup.py`` runs this file by its path, so it imports nothing of this package.
"""

import hashlib
from pathlib import Path


def sources_sha256(folder: Path) -> str:
    """SHA-256 of the C++ sources under ``folder``, by path; "" where there are none, only the built extension."""
    sources = sorted(path.relative_to(folder) for end in ("h", "cpp") for path in folder.glob(f"*/*.{end}"))
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.as_posix()}\0".encode() + hashlib.sha256((folder / path).read_bytes()).digest())
    return digest.hexdigest() if sources else ""
