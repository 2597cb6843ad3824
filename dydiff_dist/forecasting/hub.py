"""Models given to others: a folder with a model card, on the Hugging Face hub or anywhere files can lie.

What is given away says how a model was made and not where: of every path and address in the record
of its run the last name alone is left. The hub is reached through huggingface_hub, an optional package; a local folder
needs none of it.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from dydiff_dist.autoencoders import read_description as read_autoencoder_description
from dydiff_dist.autoencoders.description import DESCRIPTION_NAME
from dydiff_dist.data.manifest import document_bytes
from dydiff_dist.evaluation.score_files import ScoredRun
from dydiff_dist.files import parse_sealed, read_document_bytes, seal, write_bytes, write_json
from dydiff_dist.forecasting.exported import (
    AUTOENCODER_FOLDER,
    CONFIG_NAME,
    INDEX_NAME,
    ModelDescription,
    find_model,
    load_forecaster,
    read_description,
)
from dydiff_dist.forecasting.forecaster import Forecaster
from dydiff_dist.quoting import first_line

CARD_NAME = "README.md"
MODEL_FILES = (
    *(CONFIG_NAME, INDEX_NAME, "model*.safetensors"),
    *(f"{AUTOENCODER_FOLDER}/*.json", f"{AUTOENCODER_FOLDER}/*.safetensors"),
)
"""What of a repository is downloaded: weights and JSON, nothing that runs."""
_COMPUTED = ("model", "diffusion", "sampling")
"""Sections of a run's configuration that say what is computed; no place stands in them."""


def from_pretrained(
    name: str | Path, *, revision: str | None = None, local_files_only: bool = False, **options: Any
) -> Forecaster:
    """Loads a model from a folder or from the hub.

    Args:
        name: a folder as ``load_forecaster`` takes it, or a repository of the hub, ``"owner/model"``, where there is
            no such folder.
        revision: branch, tag or commit of the repository; a commit is what can't change under you.
        local_files_only: take what was downloaded before and ask no server (HF_HUB_OFFLINE=1 does the same).
        options: as for ``load_forecaster``: device, sampling, dtype, max_batch.

    Raises:
        FileNotFoundError: neither a folder nor a repository that can be reached has a model of this name.
        ValueError: huggingface_hub is needed and not installed, or the model is damaged.
        OSError: what the hub gave can't be kept here: no room, no right.

    Examples:
        >>> forecaster = from_pretrained("owner/turbulence", revision="v1")  # doctest: +SKIP
    """
    if Path(name).exists():
        return load_forecaster(name, **options)
    hub = _hub(f"{str(name)!r} is no folder here, and to look for it on the hub")
    try:
        folder = hub.snapshot_download(
            str(name), revision=revision, local_files_only=local_files_only, allow_patterns=list(MODEL_FILES)
        )
    except Exception as error:  # as in ``push_to_hub``
        raise FileNotFoundError(
            f"no model {str(name)!r}: no such folder here, and the hub gave none ({_reason(error)}); check name and "
            "revision"
        ) from None
    return load_forecaster(folder, **options)


def save_pretrained(
    model: str | Path,
    folder: str | Path,
    *,
    scores: str | Path | None = None,
    licence: str | None = None,
    note: str | None = None,
) -> Path:
    """Copies a model into a folder of its own, with a model card made from what is known of its run, and without the
    places of data, outputs and caches on this machine.

    Args:
        model: a model's folder or its run's.
        folder: created where needed; it may be a git repository of the hub, or the model's own folder.
        scores: folder that tools/evaluate.py wrote of this model's forecasts, for the card's table.
        licence: of the weights, an SPDX name such as ``"cc-by-4.0"``; where None the card says that none was given.
        note: paragraph for the card, e.g. the commit that trained the model.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no model, or no scores there.
        ValueError: a damaged file.
    """
    source, folder = find_model(model), Path(folder)
    description, _ = read_description(source)
    card = model_card(description, None if scores is None else ScoredRun("", Path(scores)).summary(), licence, note)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in MODEL_FILES:
        for path in sorted(source.glob(pattern)):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            if not (target.exists() and target.samefile(path)):
                shutil.copyfile(path, target)
    _leave_out_places(folder)
    write_bytes(folder / CARD_NAME, card.encode())
    return folder


def _leave_out_places(folder: Path) -> None:
    """Rewrites the records of a model in ``folder`` without the places that its run's configuration names."""
    path = folder / CONFIG_NAME
    record = parse_sealed(read_document_bytes(path), str(path), "export the model again")
    run = {name: tree if name in _COMPUTED else _last_names(tree) for name, tree in record["run"].items()}
    write_json(path, seal({**record, "run": run}))
    described = folder / AUTOENCODER_FOLDER / DESCRIPTION_NAME
    if described.is_file():
        description = read_autoencoder_description(described.parent)
        facts = _last_names(description.facts)
        write_bytes(described, document_bytes(description.model_copy(update={"facts": facts})))


def _last_names(tree: Any) -> Any:
    """A JSON tree in which each string with a slash or backslash, a path or an address, keeps what follows the last."""
    if isinstance(tree, dict):
        return {name: _last_names(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_last_names(value) for value in tree]
    if not isinstance(tree, str) or not re.search(r"[/\\]", tree):
        return tree
    return re.split(r"[/\\]", tree.rstrip("/\\"))[-1] or "."


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Uploads a folder of ``save_pretrained`` to the hub, with the credentials that huggingface_hub finds by itself.

    Args:
        folder: what is uploaded; files that are not the model's or its card stay here.
        repo_id: ``"owner/model"``, created where needed.
        private: whether a repository that is created is private.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: no model in the folder.
        ValueError: huggingface_hub is not installed, or the hub refuses or can't be reached.
    """
    find_model(folder)
    hub = _hub("to upload a model")
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=repo_id, folder_path=str(folder), allow_patterns=[*MODEL_FILES, CARD_NAME])
    except Exception as error:  # the hub's client raises its own, and those of its HTTP library
        raise ValueError(f"the hub refused {repo_id!r}: {_reason(error)}") from None
    return str(commit.commit_url)


def model_card(
    description: ModelDescription, scores: dict | None = None, licence: str | None = None, note: str | None = None
) -> str:
    """The card as Markdown with the hub's YAML head: what the model forecasts, from what, how well, how to load it.

    Args:
        description: of the model.
        scores: as ``ScoredRun.summary`` gives them.
        licence: SPDX name of the weights' licence.
        note: a paragraph of its own.
    """
    data, schema = description.data, description.data_schema
    channels, *size = schema["shape"]
    names = ", ".join(schema.get("channels") or [f"{channels} channels"])
    lines = [
        *("---", "library_name: dydiff_dist", f"license: {(licence or 'unknown').lower()}"),
        *("tags: [diffusion, forecasting, video-prediction]", "---", ""),
        *("# Forecasts by diffusion", ""),
        f"{data.num_history_frames} frames in, {data.num_future_frames} frames out, as an ensemble of any size.",
        "",
        f"- Data: {names}; frames of {' × '.join(map(str, size))}"
        + (f", in {schema['units']}" if schema.get("units") else "")
        + (f"; {schema['num_actions']} actions a frame" if schema.get("num_actions") else "")
        + ".",
        f"- Network: {description.model.network}; process {description.diffusion.describe()}.",
        f"- Sampling: {description.sampling.sampler} in {description.sampling.num_steps} steps.",
        f"- Latents: {'through the autoencoder beside the weights' if description.autoencoder_sha256 else 'none'}.",
        f"- Licence of the weights: {licence or 'none was given'}.",
        "",
        *([note, ""] if note else []),
        *("## Load", "", "```python", "from dydiff_dist.forecasting import from_pretrained", ""),
        *('forecaster = from_pretrained("FOLDER_OR_OWNER/MODEL")', "```", ""),
        *_score_lines(scores),
        *("## Limits", "", "Trained on the data above and nothing else: what its forecasts are worth on other data is"),
        *("not known. Calibration is to be checked on your own cases with tools/evaluate.py.", ""),
    ]
    return "\n".join(lines)


def _score_lines(scores: dict | None) -> list[str]:
    """The table of the card, forecasts and baselines; without scores it says so."""
    if scores is None:
        return ["## Scores", "", "None were given.", ""]
    shown = [name for name in ("crps", "mse") if all(name in by_name for by_name in scores["scores"].values())]
    rows = [["", *shown], ["---"] * (len(shown) + 1)]
    for who, by_name in scores["scores"].items():
        values = (by_name[name]["overall"] for name in shown)
        rows.append([who, *("–" if value is None else f"{value:.4g}" for value in values)])
    number, members = (scores["protocol"].get(name) for name in ("num_cases", "num_members"))
    ensemble = f" with {members} members" if members else ""
    head = ["## Scores", "", f"Over {number or 'some'} cases{ensemble}, all lead times; lower is better.", ""]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _reason(error: Exception) -> str:
    """What the hub's client says. What the system says of this machine (a full disk, say) is no word of the hub: that
    is raised on."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return first_line(error)


def _hub(purpose: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"{purpose}, huggingface_hub is needed: pip install 'dydiff_dist[hub]'") from None
    return huggingface_hub
