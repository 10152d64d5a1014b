"""Saved models for tests: base folders, a tiny GGUF file (a two-layer Llama), equal models, folders
with one thing wrong, and a stand-in for the Hugging Face hub at the network's edge.

Of the hub, `HfApi`'s two uploading calls are replaced; what they are given is written in the layout
of huggingface_hub's own cache, from which the real, offline code then loads.

Run by torch.distributed.run as two processes with FOLDER, they save a model that FSDP2 shards over
them. The first then loads both saves and compares them with the model before it was sharded."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from huggingface_hub import HfApi, constants
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import interlace
from interlace import Groups
from interlace.attached import get_attachment
from support.architectures import attach_random, build, random_ids, randomise
from support.processes import leave_group
from support.text import tiny_tokenizer


def base_folder(folder: Path, name: str = "llama", **options: Any) -> Path:
    """A plain Hugging Face folder with a tiny random model and its tokenizer."""
    build(name, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def outputs(model: PreTrainedModel, width: int = 3) -> Tensor:
    """Logits of six rows of five tokens at a width."""
    ids = random_ids(6, 5).to(model.device)
    extra = {"groups": Groups(width=width)} if hasattr(model, "interlace_attachment") else {}
    return model(ids, **extra).logits


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every tensor is there and has the same bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change `interlace.json` in place."""
    path = folder / "interlace.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change `bridge.safetensors` in place, with a manifest that vouches for the change."""
    path = folder / "bridge.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    data = safetensors.torch.save(tensors)
    path.write_bytes(data)

    def vouch(values: dict[str, Any]) -> None:
        values["weights"]["bytes"] = len(data)
        values["weights"]["sha256"] = hashlib.sha256(data).hexdigest()

    edit_manifest(folder, vouch)


HEADS, KV_HEADS, LAYERS, HIDDEN, MLP = 4, 2, 2, 64, 96  # rows of whole 32-value blocks
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
RENAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def vocabulary() -> list[str]:
    """Three special tokens, GPT-2's 256 byte letters, and a few merges of them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [*WORDS, *bytes_to_unicode().values(), *(a + b for a, b in merges())]


def merges() -> list[tuple[str, str]]:
    """Two line ends, two spaces, and a pair of letters make one token each."""
    return [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("a", "b")]


def reference() -> LlamaForCausalLM:
    """The model that the file holds, before quantisation."""
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rope_parameters={"rope_theta": 1000.0, "rope_type": "default"},
        rms_norm_eps=2.0**-17,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    randomise(model.named_parameters(), seed=1)
    return model.eval()


def write_gguf(path: Path, kind: str = "Q4_1", leave_out: str = "") -> Path:
    """Write the reference model, its matrices in the type `kind`, without one tensor if asked."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(2.0**-17)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(WORDS) + [1] * (len(vocabulary()) - len(WORDS)))
    writer.add_token_merges([" ".join(pair) for pair in merges()])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in reference().named_parameters():
        if name != leave_out:
            values, stored = _stored(name, tensor.detach(), gguf.GGMLQuantizationType[kind])
            writer.add_tensor(_gguf_name(name), values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantised(name: str, tensor: Tensor, kind: str = "Q4_1") -> Tensor:
    """What is left of a weight after quantisation, straight from the package gguf."""
    stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
    quants = gguf.quantize(tensor.detach().numpy(), stored)
    return torch.from_numpy(np.ascontiguousarray(gguf.dequantize(quants, stored)))


def _stored(
    name: str, tensor: Tensor, kind: gguf.GGMLQuantizationType
) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    if tensor.ndim == 1:
        return tensor.numpy(), gguf.GGMLQuantizationType.F32
    for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
        if part in name:  # llama.cpp keeps the two halves of rotary pairs beside each other
            halves = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2)
            tensor = halves.reshape(tensor.shape)
    return gguf.quantize(tensor.contiguous().numpy(), kind), kind


def _gguf_name(name: str) -> str:
    for ours, theirs in RENAMES.items():
        name = name.replace(ours, theirs)
    return name


class LocalHub:
    """Repositories by name, each with commits, in a folder that stands for the cache."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def repository(self, name: str) -> Path:
        """Where a repository is in the cache."""
        return self.cache / f"models--{name.replace('/', '--')}"

    def head(self, name: str) -> str:
        """The latest commit."""
        return (self.repository(name) / "refs" / "main").read_text()

    def files(self, name: str) -> set[str]:
        """The files of the latest commit."""
        root = self.repository(name) / "snapshots" / self.head(name)
        return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}

    def commit(self, name: str, folder: Path, allow: str | list[str], delete: list[str]) -> str:
        """Add the files of `folder` that match, as one commit on top of the last."""
        repository = self.repository(name)
        refs = repository / "refs" / "main"
        parent = refs.read_text() if refs.exists() else ""
        revision = hashlib.sha1(f"{name} {parent}".encode()).hexdigest()
        snapshot = repository / "snapshots" / revision
        if parent:
            shutil.copytree(repository / "snapshots" / parent, snapshot)
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in [p for p in snapshot.rglob("*") if p.is_file()]:
            if any(fnmatch(path.relative_to(snapshot).as_posix(), p) for p in delete):
                path.unlink()
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            relative = path.relative_to(folder).as_posix()
            if any(fnmatch(relative, pattern) for pattern in allow):
                (snapshot / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / relative)
        refs.parent.mkdir(exist_ok=True)
        refs.write_text(revision)
        return revision

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        """As `HfApi.create_repo`; a name without a user gets the one that is logged in."""
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"someone/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> Any:
        """As `HfApi.upload_folder`."""
        self.calls.append(("upload_folder", {"repo_id": repo_id, **options}))
        allow, delete = options.get("allow_patterns", ["*"]), options.get("delete_patterns", [])
        revision = self.commit(repo_id, Path(folder_path), allow, delete)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/{revision}")


def local_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> LocalHub:
    """Put a local hub in the place of the real one."""
    hub = LocalHub(cache)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **options: hub.create_repo(repo_id, **options)
    )
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, **options: hub.upload_folder(**options)
    )
    return hub


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    model = attach_random(interlace.load(folder / "base")[0])
    expected, logits = weights(model), outputs(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name in get_attachment(model).layer_names:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)

    interlace.save(model, folder / "blocks")
    interlace.save(model, folder / "full", full=True, tokenizer=tiny_tokenizer())
    if dist.get_rank() == 0:
        for out in ("blocks", "full"):
            loaded, _ = interlace.load(folder / out)
            assert_same_weights(weights(loaded), expected)
            assert torch.equal(outputs(loaded), logits)
        print("both saves are whole")
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
