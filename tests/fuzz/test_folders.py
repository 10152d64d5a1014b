"""Hostile folders through `interlace.load`: every field and file of small saved folders, damaged.

Whatever a folder holds, `load` gives a model or one error of ours, soon, and runs none of the
folder's code. Case i of a seed is the same on every machine; `python tests/fuzz/test_folders.py I`
shows one. A short sample runs by default, all of it with `make fuzz`.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import struct
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

import interlace
from interlace.errors import InterlaceError
from support.architectures import attach_random, build
from support.saves import base_folder, write_gguf
from support.text import tiny_tokenizer

SEED, CASES, SAMPLE = 20261128, 5_000, 100
SECONDS = 5.0  # of processor time for one folder
MEMORY = 3 * 2**30  # bytes beyond what the process has
CANARY = "interlace_canary"
CODE = f"open({CANARY!r}, 'w').close()"
# What no configuration, tokenizer or weight may make a process do.
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"}
FORBIDDEN |= {"socket.connect", "os.fork"}


# The folders, before they are damaged.


def make_folders(home: Path) -> dict[str, Path]:
    """One small folder of each kind that `load` reads."""
    base = base_folder(home / "base")
    model, tokenizer = interlace.load(base)
    attach_random(model)
    interlace.save(model, home / "blocks", tokenizer=tokenizer)
    interlace.save(model, home / "full", full=True, tokenizer=tokenizer)
    interlace.save(model, home / "trainer", full=True)
    tiny_tokenizer().save_pretrained(home / "trainer")
    (home / "trainer" / "trainer_state.json").write_text('{"global_step": 2}')
    other = interlace.load(base)[0]
    attach_random(other, "pmatch")
    interlace.save(other, home / "pmatch", full=True, tokenizer=tokenizer)
    build("qwen3").save_pretrained(home / "shards", max_shard_size="20KB")
    tokenizer.save_pretrained(home / "shards")
    (home / "gguf").mkdir()
    write_gguf(home / "gguf" / "tiny.gguf")
    names = ("base", "blocks", "full", "trainer", "pmatch", "shards", "gguf")
    return {name: home / name for name in names}


# Damage to JSON.

DEEP = '{"a": ' * 3_000 + "1" + "}" * 3_000
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 7, 2**31, 2**63, -(2**63), 10**12, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", " ", "auto", "none", "x" * 200_000, "\ud800", "\x1b[2J"),
    *("../../../etc/passwd", "/dev/zero", "{{ ''.__class__.__mro__ }}", CODE, "os.system"),
    *("float8", "bfloat16", "cuda:7", "models--a--b", "org/repository", "(a+)+$"),
    *("org/repository--module.Class", [], [[]], [None], [1, "a", {}], {}, {"a": {}}),
    *({"__class__": "x"}, ["x"] * 10_000, {str(i): i for i in range(2_000)}),
]
# Keys that libraries look for, with what would run code or ask for far too much.
ADDED: dict[str, Any] = {
    "auto_map": {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.Words", "evil.Words"],
    },
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "torch_dtype": "evil",
    "dtype": {"": "evil"},
    "_attn_implementation": "org/kernel",
    "attn_implementation": "org/kernel:evil",
    "model_type": "bert",
    "architectures": ["Evil"],
    "is_encoder_decoder": True,
    "num_hidden_layers": 10**9,
    "vocab_size": 2**40,
    "hidden_size": 2**40,
    "head_dim": 2**40,
    "max_position_embeddings": 2**40,
    "layer_types": ["evil"],
    "rope_parameters": {"rope_type": "yarn", "factor": 0},
    "rope_scaling": {"type": "dynamic", "factor": "x"},
    "sliding_window": -1,
    "use_cache": "x",
    "tokenizer_class": "Evil",
    "transformers_weights": "../model.safetensors",
    "base_model_name_or_path": "org/evil",
    "text_config": {"model_type": "llama"},
    "tie_word_embeddings": "x",
    "generation_config": {"a": 1},
    "pad_token": {"content": {"a": 1}},
    "extra_special_tokens": {"a": 1},
    "added_tokens_decoder": {"x": {"content": 1}},
    "chat_template": "{% for i in range(10**12) %}{% endfor %}",
    "gradient_checkpointing": "x",
    "per_layer_config": [],
    "id2label": {"a": []},
    "num_labels": 10**9,
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field."""
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in [*items, *(enumerate(value) if isinstance(value, list) else ())]:
        yield (*at, key)
        yield from places(inner, (*at, key))


def damage_json(rng: random.Random, path: Path) -> str:
    """Change one to three fields of a JSON file."""
    try:
        values = json.loads(path.read_text())
        found = list(places(values))
    except (ValueError, OSError, RecursionError):  # damaged before
        return damage_bytes(rng, path)
    told = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        # Few long lists hold most of the fields: their length must not hide the others.
        by_top = sorted({str(place[0]) for place in found})
        top = rng.choice(by_top) if by_top else None
        place = rng.choice([p for p in found if str(p[0]) == top]) if top is not None else ()
        told.append(change_field(rng, values, place))
        found = list(places(values))
    path.write_text(json.dumps(values))
    return f"{path.name}: {'; '.join(told)}"


def change_field(rng: random.Random, values: Any, place: tuple[Any, ...]) -> str:
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    how = rng.choice(("value", "value", "value", "delete", "near", "add"))
    if how == "add" or not place:
        key = rng.choice(list(ADDED))
        if isinstance(values, dict):
            values[key] = copy.deepcopy(ADDED[key])
        return f"added {key}"
    if how == "delete":
        del holder[place[-1]]
        return f"deleted {place}"
    old = holder[place[-1]]
    if how == "near" and isinstance(old, (int, float)) and not isinstance(old, bool):
        new: Any = rng.choice((old + 1, old - 1, -old, old * 2, old / 3, str(old), [old]))
    elif how == "near" and isinstance(old, str):
        new = rng.choice((old[:-1], old + "x", old.upper(), [old], {"content": old}, old * 3))
    else:
        new = copy.deepcopy(rng.choice(VALUES))  # a later damage may go inside it
    holder[place[-1]] = new
    return f"{place} = {new!r:.60}"


# Damage to files.


def damage_bytes(rng: random.Random, path: Path) -> str:
    """Cut, flip, fill or replace the bytes of a file."""
    data = path.read_bytes() if path.is_file() else b""
    at = rng.randrange(len(data) + 1)
    ways: dict[str, Callable[[], bytes]] = {
        "cut": lambda: data[:at],
        "flipped": lambda: flipped(rng, data),
        "flipped at its head": lambda: flipped(rng, data[:400]) + data[400:],
        "empty": lambda: b"",
        "zeros": lambda: bytes(len(data)),
        "random": lambda: rng.randbytes(300),
        "doubled": lambda: data * 2,
        "inserted": lambda: data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at:],
        "null": lambda: b"null",
        "list": lambda: b"[]",
        "number": lambda: b"7",
        "text": lambda: b'"text"',
        "deep": lambda: DEEP.encode(),
        "brackets": lambda: b"[" * 200_000,
        "a long number": lambda: b'{"format": ' + b"9" * 5_000 + b"}",
        "invalid UTF-8": lambda: b'{"a": "\xff\xfe"}' + data,
        "a byte-order mark": lambda: b"\xef\xbb\xbf" + data,
        "a pickle": lambda: f"cos\nsystem\n(S'touch {CANARY}'\ntR.".encode(),
        "code": lambda: CODE.encode(),
    }
    how = rng.choice(list(ways))
    path.write_bytes(ways[how]())
    return f"{path.name}: {how}"


def flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damage_safetensors(rng: random.Random, path: Path) -> str:
    """Change the header of a safetensors file, its length, or put NaN into the weights."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    ways: dict[str, Callable[[], Any]] = {
        "dtype": lambda: header[name].update(dtype=rng.choice(("BF16", "I8", "F8_E4M3", "X", 1))),
        "shape": lambda: header[name].update(shape=rng.choice(([], [0], [2**40, 0], [1], [-1], 3))),
        "offsets": lambda: header[name].update(data_offsets=rng.choice(([0, 1], [2**62, 2**63]))),
        "renamed": lambda: header.update({name + "x": header.pop(name)}),
        "deleted": lambda: header.pop(name),
        "metadata": lambda: header.update(__metadata__=rng.choice(({}, {"format": "evil"}, 3))),
    }
    how = rng.choice([*ways, "length", "values"])
    if how == "length":
        data = struct.pack("<Q", rng.choice((0, 1, size - 1, 2**40, 2**63))) + data[8:]
    elif how == "values":
        data = data[: 8 + size] + b"\xff" * (len(data) - 8 - size)
    else:
        ways[how]()
        text = json.dumps(header).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + size :]
    path.write_bytes(data)
    return f"{path.name}: {how} of {name}"


def damage_entry(rng: random.Random, path: Path) -> str:
    """Delete a file, or put something else in its place."""
    how = rng.choice(("deleted", "a folder", "a dangling link", "a link to itself", "a pickle"))
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a dangling link":
        path.symlink_to(path.parent / "nowhere")
    elif how == "a link to itself":
        path.symlink_to(path)
    elif how == "a pickle":
        path.with_name("pytorch_model.bin").write_bytes(
            f"cos\nsystem\n(S'touch {CANARY}'\ntR.".encode()
        )
    return f"{path.name}: {how}"


def damage(seed: int, case: int, folder: Path) -> str:
    """Damage a folder in the way of one case, and say how."""
    rng = random.Random(f"{seed}-{case}")
    told = []
    for name in ("evil.py", "json.py", "config.py", "modeling_evil.py"):
        (folder / name).write_text(f"{CODE}\nclass Config: pass\nclass Model: pass\n")
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".py")
        if not files:
            break
        path = rng.choice(files)
        json_files = [p for p in files if p.suffix == ".json"]
        if json_files and rng.random() < 0.6:
            path = rng.choice(json_files)
        ways = [damage_bytes, damage_entry]
        if path.suffix == ".json":
            ways = [damage_json] * 8 + ways
        if path.suffix == ".safetensors" and path.stat().st_size > 100:
            ways += [damage_safetensors] * 3
        try:
            told.append(rng.choice(ways)(rng, path))
        except (ValueError, KeyError, IndexError, AttributeError, struct.error):  # damaged before
            told.append(damage_bytes(rng, path))
    return " | ".join(told)


# What came of it.


class Watch:
    """Notes what forbidden things happen while it is on; audit hooks cannot be taken off again."""

    def __init__(self) -> None:
        self.on = False
        self.folder = ""
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        code = getattr(arguments[0], "co_filename", "") if event == "exec" else ""
        if event in FORBIDDEN or (code and code.startswith(self.folder)):
            self.seen.append(f"{event} {code or arguments!r:.100}")


@contextmanager
def bounded_memory() -> Iterator[None]:
    """More memory than a folder may ask for is an error, rather than the end of the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


WATCH = Watch()


def outcome(folder: Path) -> tuple[str, str]:
    """A word for what `load` did with a folder, and what there is to say about it."""
    WATCH.seen, WATCH.folder, WATCH.on = [], str(folder), True
    started = time.process_time()
    found, text = "loaded", ""
    try:
        with warnings.catch_warnings(), bounded_memory():
            warnings.simplefilter("ignore")
            model, tokenizer = interlace.load(folder)
            del model, tokenizer
    except InterlaceError as error:
        found, text = type(error).__name__, str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        found, text = "FOREIGN", "".join(traceback.format_exception(error)[-6:])
    finally:
        WATCH.on = False
    seconds = time.process_time() - started
    if WATCH.seen or Path(CANARY).exists():
        return "EXECUTED", " ".join(WATCH.seen)
    if seconds > SECONDS:
        return "SLOW", f"{seconds:.1f} s: {text}"
    if len(text) > 4_000 and found != "FOREIGN":
        return "LONG", text[:300]
    return found, text


def run(
    home: Path, seed: int, cases: Iterator[int], show: bool = False
) -> tuple[Counter[str], list[str]]:
    """Outcomes of cases, counted, and the faults among them."""
    folders = make_folders(home / "folders")
    counts: Counter[str] = Counter()
    faults = []
    for case in cases:
        name = list(folders)[case % len(folders)]
        place = home / "case"
        shutil.copytree(folders[name], place)
        told = damage(seed, case, place)
        found, text = outcome(place)
        counts[found] += 1
        if found.isupper() or show:
            faults.append(f"case {case}, {name}, {told[:300]}\n  {found}: {text[-1500:]}")
            print(faults[-1], flush=True)
        shutil.rmtree(place)
        Path(CANARY).unlink(missing_ok=True)
    return counts, faults


def quiet(home: Path) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ["INTERLACE_CACHE"] = str(home / "cache")


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INTERLACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def test_a_sample_of_hostile_folders_ends_in_errors_of_ours(tmp_path: Path) -> None:
    counts, faults = run(tmp_path, SEED + 1, iter(range(SAMPLE)))
    assert not faults, "\n\n".join(faults)
    assert counts["loaded"] > SAMPLE // 20, counts
    assert counts["LoadError"] > SAMPLE // 10, counts
    assert counts["CheckpointError"] > SAMPLE // 20, counts


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(2))
def test_hostile_folders_end_in_errors_of_ours(tmp_path: Path, part: int) -> None:
    counts, faults = run(tmp_path, SEED, iter(range(part, CASES, 2)))
    print(f"\nfolders, part {part}: {dict(counts)}")
    assert not faults, "\n\n".join(faults)


if __name__ == "__main__":
    place = Path(sys.argv[2] if len(sys.argv) > 2 else "fuzz-folders").resolve()
    place.mkdir()
    quiet(place)
    torch.manual_seed(0)
    span = [int(x) for x in sys.argv[1].split("-")]
    numbers = range(span[0], span[-1] + 1)
    os.chdir(place)
    found_counts, found_faults = run(place, SEED, iter(numbers), show=len(numbers) == 1)
    print(len(found_faults), found_counts)
