"""Whatever lies in a checkpoint's files, load() gives a model or one sentence of ours."""

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers as tf
from models.families import FAMILIES, GPT2, NO_SPECIAL
from peft import LoraConfig, get_peft_model

from workbench.core.errors import ModelNotFound, NoRoom, UnsupportedModel, WorkbenchError
from workbench.datasets.bigram_backcopy import VOCABULARY
from workbench.models import checkpoint, load
from workbench.models.loading import read_module
from workbench.organisms.tokenizer import word_tokenizer

ADAPTER = "adapter"


def save(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2 | NO_SPECIAL)).save_pretrained(folder, **settings)
    return folder


def save_adapter(folder: Path) -> Path:
    base = tf.AutoModelForCausalLM.from_pretrained(save(folder.parent / "base"))
    settings = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, settings).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- what lies there instead of weights ----

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 123456789\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (LFS, "git-lfs pointer.*`git lfs pull`"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (b"", "the file is empty"),
        (b"\0" * 7, "a header of 0 bytes in a file of 7"),
        (struct.pack("<Q", 2_000_000_000) + b"{", "a header of 2000000000 bytes in a file of 9"),
        (struct.pack("<Q", 50) + b"[" * 50, "a header of 50 bytes"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors"])
def test_a_file_that_is_no_safetensors_is_said_to_be_what_it_is(content, says, file, tmp_path):
    folder = save(tmp_path / "m") if file == checkpoint.WEIGHTS else save_adapter(tmp_path / "m")
    (folder / file).write_bytes(content)
    with pytest.raises(UnsupportedModel, match=f"weights of 'm' are damaged .*{says}.*copy them again"):
        load(str(folder))


def test_settings_that_are_a_pointer_say_so(tmp_path):
    (save(tmp_path / "m") / "config.json").write_bytes(LFS)
    with pytest.raises(UnsupportedModel, match=r"config.json in 'm' is no JSON .*`git lfs pull`"):
        load(str(tmp_path / "m"))


def test_a_long_header_is_refused_by_its_length_and_not_read(tmp_path):
    """A sparse file: two gigabytes on paper, nothing on disk; what reading them would cost shows in the peak."""
    path = save(tmp_path / "m") / checkpoint.WEIGHTS
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", 2_000_000_000) + b"{")
        handle.truncate(2_000_000_100)
    code = """
import resource, sys
from workbench.core.errors import UnsupportedModel
from workbench.models import checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    checkpoint.weight_files(checkpoint.Path(sys.argv[1]))
except UnsupportedModel:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code, str(path.parent)], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 50_000, "kilobytes"


# ---- which files are read ----


def sharded(folder: Path) -> Path:
    save(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model-00001-of-00002.bin", "only safetensors are read"),
        ("../elsewhere/model.safetensors", "a weight file outside the folder"),
        ("/etc/model.safetensors", "a weight file outside the folder"),
        ("..\\elsewhere\\model.safetensors", "a weight file outside the folder"),
        ("C:model.safetensors", "a weight file outside the folder"),
        (7, "only safetensors are read"),
        (["model.safetensors"], "only safetensors are read"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(name, says, tmp_path):
    """transformers joins folder and name, so that a name with .. is read from where it leads."""
    folder = sharded(tmp_path / "m")
    save(tmp_path / "elsewhere")
    index = json.loads((folder / checkpoint.INDEX).read_text())
    index["weight_map"] |= {"transformer.wte.weight": name}
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match=says):
        load(str(folder))


@pytest.mark.parametrize("name", ["model.bin", "../elsewhere/model.safetensors"])
def test_settings_that_name_weights_elsewhere_are_refused(name, tmp_path):
    save(tmp_path / "elsewhere")
    edit(save(tmp_path / "m") / "config.json", transformers_weights=name)
    with pytest.raises(UnsupportedModel, match=r"config.json in 'm' names .*weight file"):
        load(str(tmp_path / "m"))


def test_a_missing_shard_is_named_and_counted(tmp_path):
    folder = sharded(tmp_path / "m")
    first = min(folder.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(ModelNotFound, match=f"'m' lacks {first.name}, 1 of the "):
        load(str(folder))


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["model.safetensors"]}, [], "text"])
def test_an_index_without_a_map_is_refused(index, tmp_path):
    folder = sharded(tmp_path / "m")
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match=r"model.safetensors.index.json in 'm'"):
        load(str(folder))


def test_a_consolidated_file_beside_the_shards_is_neither_read_nor_counted(tmp_path, monkeypatch):
    folder = sharded(tmp_path / "m")
    (folder / "consolidated.safetensors").write_bytes(b"not looked at")
    n_bytes = 4 * sum(p.numel() for p in FAMILIES["gpt2"]().parameters())
    monkeypatch.setattr("workbench.models.memory.available_bytes", lambda device: n_bytes)
    assert load(str(folder)).weights_hash == load(str(save(tmp_path / "whole"))).weights_hash
    monkeypatch.setattr("workbench.models.memory.available_bytes", lambda device: n_bytes - 1)
    with pytest.raises(NoRoom):
        load(str(folder))


def test_weights_under_another_name_alone_are_not_found(tmp_path):
    folder = save(tmp_path / "m")
    (folder / checkpoint.WEIGHTS).rename(folder / "consolidated.safetensors")
    with pytest.raises(ModelNotFound, match=r"'m' has a config.json and no model.safetensors or"):
        load(str(folder))


# ---- settings ----

FORMATS = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "awq", "bits": 4, "group_size": 128},
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "compressed-tensors", "format": "int-quantized"},
    {"quant_method": "fp8"},
    {"quant_method": "mxfp4"},
    {"quant_method": "of next year"},
]


@pytest.mark.parametrize("settings", FORMATS, ids=lambda settings: settings["quant_method"])
def test_quantised_weights_are_refused_by_the_name_of_their_format(settings, tmp_path):
    edit(save(tmp_path / "m") / "config.json", quantization_config=settings)
    with pytest.raises(
        UnsupportedModel, match=rf"quantised \({settings['quant_method']}\).*load the checkpoint it was"
    ):
        load(str(tmp_path / "m"))


@pytest.mark.parametrize(("entry", "value"), [("n_layer", 10**9), ("num_labels", 10**9), ("n_layer", 1e300)])
def test_sizes_that_would_be_built_for_hours_are_refused(entry, value, tmp_path):
    edit(save(tmp_path / "m") / "config.json", **{entry: value})
    with pytest.raises(UnsupportedModel, match=f"says {entry}=.* no model has more than"):
        load(str(tmp_path / "m"))


@pytest.mark.parametrize("change", [{"n_embd": 64}, {"n_embd": 16}, {"vocab_size": 65}, {"n_inner": 7}])
def test_weights_of_another_shape_are_named(change, tmp_path):
    edit(save(tmp_path / "m") / "config.json", **change)
    with pytest.raises(
        UnsupportedModel, match=r"'m' has \d+ weights of another shape.*transformer\..* is \(.*should be"
    ):
        load(str(tmp_path / "m"))


def test_an_entry_of_the_wrong_type_is_named_with_what_is_wrong(tmp_path):
    edit(save(tmp_path / "m") / "config.json", n_embd="many")
    with pytest.raises(UnsupportedModel, match=r"'m' could not be loaded .*field 'n_embd': .*expected int, got str"):
        load(str(tmp_path / "m"))


# ---- the boundary ----


def test_foreign_errors_become_ours_with_their_cause(monkeypatch, tiny_models):
    class PanicException(BaseException):
        """What pyo3 raises when Rust code panics: no Exception."""

    for raised in (RuntimeError("odd"), AttributeError("odd"), RecursionError("odd"), PanicException("odd")):

        def fail(*_: object, raised: BaseException = raised) -> None:
            raise raised

        monkeypatch.setattr("workbench.models.loading._read", fail)
        for call in (load, read_module):
            with pytest.raises(
                UnsupportedModel, match=f"'gpt2' could not be loaded .{type(raised).__name__}: odd"
            ) as e:
                call(str(tiny_models["gpt2"]))
            assert e.value.__cause__ is raised


@pytest.mark.parametrize(
    "raised", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory")]
)
def test_running_out_of_memory_is_no_damage(raised):
    with pytest.raises(NoRoom, match="'m' ran out of memory while loading"), checkpoint.our_errors("m"):
        raise raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), ModelNotFound("as it is")])
def test_what_is_not_an_error_of_loading_passes(raised):
    with pytest.raises(type(raised)) as found, checkpoint.our_errors("m"):
        raise raised
    assert found.value is raised


# ---- a thousand damaged files of each kind ----

SIZES = [-1, 0, 1, 2, 3, 7, 64, 10_001, 2**31, 2**63, 10**30]
VALUES = [
    None,
    True,
    False,
    0.5,
    -1e30,
    float("nan"),
    float("inf"),
    "",
    "text",
    "../up",
    "\0",
    "gelu",
    "float99",
    *SIZES,
]
KEYS = ["a", "quant_method", "rope_type", "factor", "default", "0", "type", "version"]


def a_value(rng: random.Random, depth: int = 2) -> Any:
    kind = rng.randrange(6) if depth else 0
    if kind == 4:
        return [a_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {rng.choice(KEYS): a_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return rng.choice(VALUES)


def changed(found: Any, rng: random.Random, more: tuple[str, ...] = ()) -> Any:
    """JSON with an entry or two replaced, added, or left out, at any depth."""
    found = json.loads(json.dumps(found))
    for _ in range(rng.randrange(1, 3)):
        place, key = found, rng.choice([*found, *more])
        while isinstance(place.get(key), dict) and place[key] and rng.random() < 0.8:
            place = place[key]
            key = rng.choice([*place])
        if rng.random() < 0.15:
            place.pop(key, None)
        else:
            place[key] = a_value(rng)
        if not found:
            break
    return found


def bytes_changed(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or a byte of it another."""
    at = rng.randrange(len(content))
    return content[:at] if rng.random() < 0.3 else content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]


def with_header(content: bytes, header: bytes) -> bytes:
    n_header = struct.unpack("<Q", content[:8])[0]
    return struct.pack("<Q", len(header)) + header + content[8 + n_header :]


def a_config(content: bytes, rng: random.Random) -> bytes:
    more = ("architectures", "quantization_config", "auto_map", "rope_scaling", "num_labels", "text_config", "id2label")
    return json.dumps(changed(json.loads(content), rng, (*more, "dtype", "transformers_weights"))).encode()


def a_header(content: bytes, rng: random.Random) -> bytes:
    n_header = struct.unpack("<Q", content[:8])[0]
    if rng.random() < 0.2:
        return struct.pack("<Q", rng.choice([0, 1, n_header - 1, n_header + 1, 2**63])) + content[8:]
    return with_header(content, json.dumps(changed(json.loads(content[8 : 8 + n_header]), rng)).encode())


def plain_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(changed(json.loads(content), rng)).encode()


def save_with_tokenizer(folder: Path) -> Path:
    word_tokenizer(VOCABULARY, add_bos=True).save_pretrained(save(folder))
    return folder


DAMAGE: dict[str, tuple[Callable[[Path], Path], str, Callable[[bytes, random.Random], bytes]]] = {
    "config": (save, "config.json", a_config),
    "header": (save, checkpoint.WEIGHTS, a_header),
    "index": (sharded, checkpoint.INDEX, plain_json),
    "tokenizer": (save_with_tokenizer, "tokenizer.json", plain_json),
    "adapter config": (save_adapter, "adapter_config.json", plain_json),
    "adapter header": (save_adapter, "adapter_model.safetensors", a_header),
}


def refusals(kind: str, n: int, folder: Path) -> tuple[int, list[str]]:
    """How many of n damaged checkpoints were refused, and what else than a sentence of ours came."""
    make, file, damage = DAMAGE[kind]
    path = make(folder / "m") / file
    whole, n_refused, foreign = path.read_bytes(), 0, []
    for seed in range(n):
        rng = random.Random(seed)
        content = bytes_changed(whole, rng) if rng.random() < 0.25 else damage(whole, rng)
        path.write_bytes(content)
        try:
            load(str(path.parent))
        except WorkbenchError as found:
            n_refused += 1
            if len(str(found)) > 1200 or "\n" in str(found):
                foreign.append(f"seed {seed}: no sentence: {found}")
        except BaseException as found:
            if isinstance(found, KeyboardInterrupt):
                raise
            foreign.append(f"seed {seed}: {type(found).__name__}: {found}")
    return n_refused, foreign


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_give_a_model_or_a_sentence(kind, tmp_path):
    n_refused, foreign = refusals(kind, 12, tmp_path)
    assert not foreign and n_refused > 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_many_damaged_files_give_a_model_or_a_sentence(kind, tmp_path):
    n = 1000 if os.environ.get("WORKBENCH_LONG_TESTS") else 100
    n_refused, foreign = refusals(kind, n, tmp_path)
    assert not foreign and n_refused > n / 5


def test_the_damage_is_not_always_the_same(tmp_path):
    content = (save(tmp_path) / checkpoint.WEIGHTS).read_bytes()
    assert len({a_header(content, random.Random(seed)) for seed in range(20)}) > 15
    assert safetensors.torch.load(content)
