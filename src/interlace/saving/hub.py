"""Upload saved blocks to a repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from interlace.coupling.registry import COUPLINGS
from interlace.saving.manifest import BASE, CARD, MANIFEST, TOKENIZER, Manifest


def push(
    folder: Path,
    repository: str,
    manifest: Manifest,
    *,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a save to a hub repository, in one commit, and nothing else that the folder holds.

    Returns:
        The commit's address.
    """
    api = HfApi(token=token)
    name = api.create_repo(repository, private=private, exist_ok=True).repo_id
    saved = [manifest.weights_file, MANIFEST, CARD, f"{TOKENIZER}/*"]
    saved += [f"{BASE}/*"] if manifest.base_included else []
    weights = [f"{kind}.safetensors" for kind in COUPLINGS]
    commit = api.upload_folder(
        repo_id=name,
        folder_path=folder,
        allow_patterns=saved,
        delete_patterns=[*weights, f"{TOKENIZER}/*", f"{BASE}/*"],  # what an earlier push left
        commit_message=f"Interlace: {manifest.config.kind} blocks",
    )
    return str(commit.commit_url)
