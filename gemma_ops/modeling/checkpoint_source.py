"""The files of a model: where they are, and whether they are all there.

`fetch` leaves `model.json` (which model, which revision, the digest of every file) and a symbolic link `weights` to the
checkpoint folder: nothing is copied, and every later step reads the model through the link.
"""

from __future__ import annotations

import difflib
import json
import struct
from pathlib import Path
from typing import Any

import gemma_ops
from gemma_ops import family
from gemma_ops.config import MachineConfig, ModelConfig
from gemma_ops.errors import ConfigError, GateError, ModelError, ServiceError
from gemma_ops.privacy.classes import learned_class, record_learned, stricter
from gemma_ops.runs import digest, journal

_SHIPPED = {"nano": "weights", "nano-assistant": "drafter"}
"""Folders of the checkpoints that are shipped, by name."""
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def checkpoint(path: Path) -> Path:
    """Return the Hugging Face folder inside an artifact (`weights` of `fetch`, `model` of `merge`), or the path
    itself."""
    for inner in ("weights", "model"):
        if (path / inner / "config.json").exists():
            return (path / inner).resolve()
    return path


def local_base(base: str) -> Path | None:
    """Return the folder that `model.base` names: nano's or its drafter's, or an existing path; None for a Hub id."""
    if base in _SHIPPED:
        return Path(gemma_ops.__file__).parent / "nano" / _SHIPPED[base]
    path = Path(base).expanduser()
    return path if path.is_dir() else None


def fetch(out: Path, settings: ModelConfig, machine: MachineConfig, *, source: Path | None = None) -> dict[str, float]:
    """Resolve `model.base`, check the checkpoint, write `model.json` and the link.

    Raises ModelError for an incomplete or foreign checkpoint and ServiceError when the Hub can't be reached.
    """
    if source and settings.revision:
        raise ConfigError(
            f"model.revision {settings.revision!r} has no effect on a local model",
            "leave it out, or set model.base to a Hub id",
        )
    folder, revision = (source.resolve(), None) if source else _download(settings.base, settings.revision)
    config = read_model_config(folder)
    shards = check_shards(folder)
    name = settings.base if source is None or settings.base in _SHIPPED else folder.name
    files = {}
    for pattern in _FILES:
        for file in sorted(folder.glob(pattern)):
            files[file.name] = digest.of_file(file)
            journal.record(file=file.name, sha256=files[file.name])
    body = {
        "id": name,
        "revision": revision,
        "size": family.identify(config),
        "files": dict(sorted(files.items())),
    }
    recorded = learned_class(folder)
    stated = settings.privacy or "any"
    reasons = [f"{name}: {recorded}"] + ([f"model.privacy: {stated}"] if settings.privacy else [])
    record_learned(out, stricter(recorded, stated), reasons)
    link = out / "weights"
    link.unlink(missing_ok=True)
    link.symlink_to(folder, target_is_directory=True)
    (out / "model.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return {"shards": len(shards), "bytes": float(sum(shard.stat().st_size for shard in shards))}


def fetched_id(folder: Path) -> str:
    """Return the id, and the revision where there is one, of what `fetch` left in a folder; the name of another
    folder."""
    file = folder / "model.json"
    if not file.is_file():
        return folder.resolve().name
    body = json.loads(file.read_text(encoding="utf-8"))
    return f"{body['id']}@{body['revision']}" if body.get("revision") else str(body["id"])


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read the checkpoint's `config.json`. Raises ModelError when there is none or it is not Gemma 4."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} holds no readable config.json", "point model.base at a Hugging Face checkpoint folder"
        ) from error
    kind = str(config.get("model_type"))
    if not kind.startswith("gemma4"):
        raise ModelError(f"{folder} is a {kind} model, not Gemma 4", "gemma-ops knows the Gemma 4 family only")
    return config


def check_shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, each present and as long as its own header says.

    Raises ModelError naming what is missing or cut off. Format: 8 bytes header length, the header, the data
    (https://github.com/huggingface/safetensors#format).
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        pickles = [file.name for file in folder.glob("*.bin")]
        hint = "convert it to safetensors first: pickled weights can run code" if pickles else "download it again"
        raise ModelError(f"{folder} holds no safetensors weights", hint)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files: "
            f"{', '.join(missing[:3])}{'…' if len(missing) > 3 else ''}",
            "the download did not finish: fetch the model again",
        )
    for name in names:
        size = (folder / name).stat().st_size
        if size != _expected_bytes(folder / name, size):
            raise ModelError(
                f"{folder / name} is cut off or not a safetensors file ({size} bytes)", "fetch the model again"
            )
    return [folder / name for name in names]


def _expected_bytes(file: Path, size: int) -> int:
    with file.open("rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            return -1
        length = int(struct.unpack("<Q", head)[0])
        if length > size - 8:
            return -1
        try:
            header: dict[str, dict[str, list[int]]] = json.loads(stream.read(length))
        except ValueError:
            return -1
    ends = [item["data_offsets"][1] for key, item in header.items() if key != "__metadata__"]
    return 8 + length + max(ends, default=0)


def tokenizer_folder(settings: ModelConfig) -> Path:
    """Return a folder with the tokenizer and template of the model, fetching no weights."""
    return local_base(settings.base) or _download(settings.base, settings.revision, ("*.json", "*.jinja"))[0]


def find_base(described: dict[str, Any], who: str) -> Path:
    """Return the checkpoint of a base as manifests describe it (`id`, `revision`, `files` with their digests), here or
    from the Hub. Raises ConfigError where it is in neither, and GateError for another one of that name."""
    name = str(described["id"])
    if local_base(name) is None and "/" not in name:
        raise ConfigError(
            f"{who} is put on the base {name}, and where that lies is not recorded",
            "serve it as ADAPTER@FOLDER with the folder of its base, or register merged too",
        )
    folder = local_base(name) or _download(name, described.get("revision"))[0]
    for file, sha256 in (described.get("files") or {}).items():
        if not (folder / file).is_file() or digest.of_file(folder / file) != sha256:
            raise GateError(f"{folder / file} is not that of the base that {who} was trained on", "fetch that base")
    return folder


def _download(repo: str, revision: str | None, patterns: tuple[str, ...] = _FILES) -> tuple[Path, str]:
    """Fetch a Hub snapshot (from the cache when offline), and return the folder and the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    known = sorted({repo_id for size in family.SIZES.values() for repo_id in size.repos})
    if "/" not in repo or repo.startswith((".", "/", "~")):
        close = difflib.get_close_matches(repo, ["nano", *known], n=1, cutoff=0.3)
        raise ModelError(
            f"model.base {repo!r} is neither a folder here nor a Hub id",
            f"did you mean {close[0] if close else 'nano'}?",
        )
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError, OSError) as error:
        close = difflib.get_close_matches(repo, known, n=1)
        hint = f"; did you mean {close[0]}?" if close and close[0] != repo else ""
        raise ServiceError(
            f"{repo} could not be fetched from the Hub: {str(error).splitlines()[0]}{hint}",
            "check the id, the network and `hf auth login`, or set model.base to a local folder",
        ) from error
    return folder, folder.name
