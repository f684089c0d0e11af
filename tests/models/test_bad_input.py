"""Wrong inputs give an error of the right class whose sentence says what to do, from load, forward, to_rows, capture
and ablate.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers as tf
from models.families import FAMILIES, SIZE
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from workbench.core.errors import (
    BadData,
    BadSpec,
    ModelNotFound,
    NoRoom,
    NoTokenizer,
    UnknownName,
    UnknownSite,
    UnsupportedModel,
    WorkbenchError,
)
from workbench.models import load
from workbench.models.inputs import batches, pad
from workbench.primitives.read.capture import capture
from workbench.primitives.replace.ablation import ablate, reference_mean

IDS = torch.randint(6, 64, (2, 5), generator=torch.Generator().manual_seed(0))


@dataclass
class World:
    """What a row may use: a scratch folder and the saved families."""

    tmp: Path
    families: dict[str, Path]

    def copy(self, family: str) -> Path:
        return Path(shutil.copytree(self.families[family], self.tmp / family, dirs_exist_ok=True))

    def model(self, family: str):
        return load(str(self.families[family]))


@pytest.fixture
def world(tmp_path, tiny_models) -> World:
    return World(tmp_path, tiny_models)


# ---- directories that cannot be loaded ----


def empty_directory(world):
    load(str(world.tmp))


def pickled_only(world):
    folder = world.copy("gpt2")
    torch.save(FAMILIES["gpt2"]().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    load(str(folder))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unknown_model_type(world):
    folder = world.copy("gpt2")
    edit_json(folder / "config.json", model_type="no-such-architecture")
    load(str(folder))


def broken_json(world):
    folder = world.copy("gpt2")
    (folder / "config.json").write_text('{"model_type": ')
    load(str(folder))


def seq2seq(world):
    config = tf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    tf.T5ForConditionalGeneration(config).save_pretrained(world.tmp)
    load(str(world.tmp))


def config_without_weights(world):
    folder = world.copy("gpt2")
    (folder / "model.safetensors").unlink()
    load(str(folder))


def truncated_weights(world):
    folder = world.copy("gpt2")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    load(str(folder))


def a_head_that_would_be_dropped(world):
    folder = world.copy("bert_classifier")
    edit_json(folder / "config.json", architectures=["BertForMaskedLM"])
    load(str(folder))


def without_weights_named(world, family: str, part: str):
    folder = world.copy(family)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    load(str(folder))


def adapter(world, settings=None) -> Path:
    settings = settings or LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    base = tf.LlamaForCausalLM.from_pretrained(world.families["llama"])
    get_peft_model(base, settings).save_pretrained(world.tmp / "adapter")
    return world.tmp / "adapter"


def adapter_without_base(world):
    folder = adapter(world)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=None)
    load(str(folder))


def adapter_with_missing_base(world):
    folder = adapter(world)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(world.tmp / "gone"))
    load(str(folder))


def pickled_adapter(world):
    folder = adapter(world)
    torch.save(safetensors.torch.load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    load(str(folder))


def adapter_that_cannot_be_merged(world):
    load(str(adapter(world, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))))


# ---- calls that cannot be run ----


def gpt2(call: Callable, world):
    call(world.model("gpt2"))


LOADING = [
    (
        "missing directory",
        lambda w: load(str(w.tmp / "absent")),
        ModelNotFound,
        "no directory .*absent.*save_pretrained",
    ),
    ("directory without config", empty_directory, ModelNotFound, "directory without config.json"),
    ("pickled weights only", pickled_only, UnsupportedModel, "only pickled weights .*safe_serialization=True"),
    (
        "unknown model_type",
        unknown_model_type,
        UnsupportedModel,
        "does not describe a model transformers knows.*no-such-architecture",
    ),
    ("config.json is no JSON", broken_json, UnsupportedModel, "config.json in 'gpt2'"),
    ("seq2seq", seq2seq, UnsupportedModel, "T5ForConditionalGeneration.*decoders"),
    ("config without weights", config_without_weights, ModelNotFound, "no \\*.safetensors.*untrained_seed"),
    ("truncated weights", truncated_weights, WorkbenchError, "gpt2"),
    (
        "head that would be dropped",
        a_head_that_would_be_dropped,
        UnsupportedModel,
        "would drop: .*classifier.*architectures",
    ),
    (
        "weights missing",
        partial(without_weights_named, family="gpt2", part="h.1.mlp.c_fc.weight"),
        UnsupportedModel,
        "lacks weights .*c_fc.weight",
    ),
    (
        "head missing",
        partial(without_weights_named, family="bert_classifier", part="classifier"),
        UnsupportedModel,
        "lacks weights .*classifier",
    ),
    (
        "pooler of a classifier missing",
        partial(without_weights_named, family="bert_classifier", part="pooler"),
        UnsupportedModel,
        "lacks weights .*pooler",
    ),
    ("adapter without base", adapter_without_base, ModelNotFound, "names no base model; pass base="),
    ("adapter whose base is gone", adapter_with_missing_base, ModelNotFound, "wants a base that is not here"),
    ("adapter pickled", pickled_adapter, UnsupportedModel, "no adapter_model.safetensors .*pickled"),
    ("adapter that cannot be merged", adapter_that_cannot_be_merged, UnsupportedModel, "merge|PROMPT_TUNING"),
    (
        "unknown organism",
        lambda w: load("organism:atention-sink"),
        UnknownName,
        "no organism called 'atention-sink'. Closest: attention-sink",
    ),
    (
        "unknown option",
        lambda w: load(str(w.families["gpt2"]), dtyp="float32"),
        UnknownName,
        "no field called 'dtyp'. Closest: dtype",
    ),
    (
        "bad device",
        lambda w: load(str(w.families["gpt2"]), device="gpu"),
        BadSpec,
        "device must be auto, cpu, mps, cuda or cuda:N, got 'gpu'",
    ),
    (
        "bad dtype",
        lambda w: load(str(w.families["gpt2"]), dtype="fp32"),
        BadSpec,
        "dtype must be one of float32, .*'fp32'",
    ),
    (
        "bad seed",
        lambda w: load(str(w.families["gpt2"]), untrained_seed=-1),
        BadSpec,
        "untrained_seed must be at least 0",
    ),
    ("not a model at all", lambda w: load("what is this?"), ModelNotFound, "give a directory .* a hub id like"),
]

RUNNING = [
    (
        "text without tokenizer",
        lambda w: w.model("gemma2").to_rows("lamp"),
        NoTokenizer,
        "gemma2 came without a tokenizer: pass token ids",
    ),
    ("empty prompt", lambda w: pad([[1, 2], []], 0), BadData, "empty prompt .*at least one token"),
    ("no prompts", lambda w: pad([], 0), BadData, "empty prompt"),
    ("empty prompt in batches", lambda w: list(batches([[]], 4)), BadData, "empty prompt"),
    (
        "empty tensor",
        partial(gpt2, lambda m: m.forward(torch.zeros(1, 0, dtype=torch.long))),
        BadData,
        "reads token ids \\[batch, pos\\]",
    ),
    (
        "token id too large",
        partial(gpt2, lambda m: m.forward(torch.tensor([[3, 64]]))),
        BadData,
        "token id 64 is outside the vocabulary of gpt2, 0 to 63",
    ),
    (
        "token id negative",
        partial(gpt2, lambda m: m.forward(torch.tensor([[3, -1]]))),
        BadData,
        "token id -1 is outside",
    ),
    (
        "too many tokens",
        partial(gpt2, lambda m: m.forward(torch.ones(1, 49, dtype=torch.long))),
        BadData,
        "49 tokens are more than the context of gpt2 \\(48\\)",
    ),
    (
        "one dimension",
        partial(gpt2, lambda m: m.forward(torch.tensor([3, 4]))),
        BadData,
        "reads token ids \\[batch, pos\\].*shape \\(2,\\)",
    ),
    ("floats", partial(gpt2, lambda m: m.forward(torch.ones(1, 3))), BadData, "got torch.float32"),
    (
        "mask of another shape",
        partial(gpt2, lambda m: m.forward(IDS, mask=torch.tensor([[True, False]]))),
        BadData,
        "mask",
    ),
    (
        "ids to an image model",
        lambda w: w.model("vit").forward(IDS),
        BadData,
        "reads images \\[batch, channel, height, width\\]",
    ),
    ("rows to an image model", lambda w: capture(w.model("vit"), [[1, 2]], ["z"]), BadData, "reads images"),
    (
        "BOS that the tokenizer lacks",
        lambda w: no_bos(w).to_rows("lamp", bos=True),
        BadData,
        "has no BOS token; pass bos=False",
    ),
    (
        "unknown hook",
        partial(gpt2, lambda m: m.forward(IDS, hook_fns=[("blocks.0.hook_resid_prr", print)])),
        WorkbenchError,
        "blocks.0.hook_resid_prr",
    ),
    (
        "unknown site",
        partial(gpt2, lambda m: capture(m, [[1, 2]], ["resid_prf"])),
        UnknownSite,
        "'resid_prf'. Closest: resid_pre",
    ),
    (
        "layer too large",
        partial(gpt2, lambda m: capture(m, [[1, 2]], ["z"], layers=[2])),
        UnknownSite,
        "gpt2 has layers 0 to 1, so there is no z at layer 2",
    ),
    ("layer negative", partial(gpt2, lambda m: capture(m, [[1, 2]], ["z"], layers=[-1])), UnknownSite, "layers 0 to 1"),
    ("layer missing", partial(gpt2, lambda m: m.hook_name("z")), UnknownSite, "once per layer: say which"),
    ("layer superfluous", partial(gpt2, lambda m: m.hook_name("logits", 0)), UnknownSite, "takes no layer"),
    (
        "neurons of fused experts",
        lambda w: capture(w.model("mixtral"), [[1, 2]], ["mlp_post"]),
        UnknownSite,
        "mixtral has no site 'mlp_post': its experts run as one fused",
    ),
    (
        "resid_mid of parallel blocks",
        lambda w: capture(w.model("neox"), [[1, 2]], ["resid_mid"]),
        UnknownSite,
        "neox has no site 'resid_mid': .*parallel residual",
    ),
    (
        "ragged rows kept whole",
        partial(gpt2, lambda m: capture(m, [[1, 2], [1, 2, 3]], ["z"])),
        WorkbenchError,
        "2 different lengths .*reduce='mean' or 'last'",
    ),
    (
        "no rows",
        partial(gpt2, lambda m: capture(m, [], ["z"])),
        WorkbenchError,
        "there are no prompts; give at least one",
    ),
    (
        "budget too small",
        partial(gpt2, lambda m: capture(m, [[1, 2]], ["z"], budget_bytes=10)),
        NoRoom,
        "budget is .*name fewer sites",
    ),
    (
        "unknown reduction",
        partial(gpt2, lambda m: capture(m, [[1, 2]], ["z"], reduce="median")),
        WorkbenchError,
        "reduce must be .*'median'",
    ),
    (
        "position outside",
        partial(gpt2, lambda m: capture(m, [[1, 2]], ["z"], positions=[5])),
        WorkbenchError,
        "position",
    ),
    (
        "position outside a shorter row",
        partial(gpt2, lambda m: capture(m, [[1, 2, 3, 4], [1, 2]], ["z"], positions=[3], reduce="mean")),
        WorkbenchError,
        "position",
    ),
    (
        "more tokens than RoBERTa has positions",
        lambda w: roberta().forward(torch.full((1, 48), 9)),
        BadData,
        "48 tokens are more than the context",
    ),
    (
        "activation not captured",
        partial(gpt2, lambda m: capture(m, [[1, 2]], ["z"], layers=[0])["z", 1]),
        UnknownSite,
        "z of layer 1.*z of layer 0",
    ),
    (
        "mask of too few layers",
        partial(gpt2, lambda m: ablate(m, IDS, torch.ones(1, 4))),
        WorkbenchError,
        "with 2 layers, got shape \\(1, 4\\)",
    ),
    (
        "mask of too many heads",
        partial(gpt2, lambda m: ablate(m, IDS, torch.ones(2, 5))),
        WorkbenchError,
        "where z has 4 units for 2 inputs",
    ),
    (
        "mask for other inputs",
        partial(gpt2, lambda m: ablate(m, IDS, torch.ones(3, 2, 4))),
        WorkbenchError,
        "where z has 4 units for 2 inputs",
    ),
    (
        "query heads at v",
        lambda w: ablate(w.model("llama"), IDS, torch.ones(2, 4), site="v"),
        WorkbenchError,
        "where v has 2 units",
    ),
    (
        "one-dimensional mask",
        partial(gpt2, lambda m: ablate(m, IDS, torch.ones(2))),
        WorkbenchError,
        "mask must be \\[layer, unit\\]",
    ),
    (
        "mean without reference",
        partial(gpt2, lambda m: ablate(m, IDS, torch.ones(2, 4), value="mean")),
        WorkbenchError,
        "needs reference=",
    ),
    (
        "reference lacks a layer",
        partial(
            gpt2, lambda m: ablate(m, IDS, torch.ones(2, 4), value="mean", reference=reference_mean(m, IDS, layers=[0]))
        ),
        WorkbenchError,
        "reference has layers",
    ),
    (
        "unknown value",
        partial(gpt2, lambda m: ablate(m, IDS, torch.ones(2, 4), value="median")),
        WorkbenchError,
        "value must be zero, mean or resample",
    ),
    (
        "unknown ablation site",
        partial(gpt2, lambda m: ablate(m, IDS, torch.ones(2, 4), site="zz")),
        UnknownSite,
        "'zz'",
    ),
    (
        "mean of patterns",
        partial(gpt2, lambda m: reference_mean(m, IDS, "pattern")),
        WorkbenchError,
        "ablate z, or give your own reference",
    ),
    (
        "resampling other lengths",
        partial(
            gpt2, lambda m: ablate(m, IDS, torch.ones(2, 4), value="resample", reference={0: torch.zeros(2, 9, 4, 8)})
        ),
        WorkbenchError,
        "reference rows of shape",
    ),
]


def roberta():
    """48 rows of position embeddings, of which padding_idx + 1 are never used."""
    return load(tf.RobertaModel(tf.RobertaConfig(**SIZE | {"pad_token_id": 1})))


def no_bos(world):
    model = world.model("gpt2")
    model.tokenizer.bos_token = None
    return model


def explain(call, world, expected: type[WorkbenchError], phrase: str) -> None:
    with pytest.raises(expected) as found:
        call(world)
    assert issubclass(expected, WorkbenchError)
    assert re.search(phrase, str(found.value)), f"the sentence lacks {phrase!r}: {found.value}"


@pytest.mark.parametrize(("call", "expected", "phrase"), [row[1:] for row in LOADING], ids=[row[0] for row in LOADING])
def test_what_cannot_be_loaded(call, expected, phrase, world):
    explain(call, world, expected, phrase)


@pytest.mark.parametrize(("call", "expected", "phrase"), [row[1:] for row in RUNNING], ids=[row[0] for row in RUNNING])
def test_what_cannot_be_run(call, expected, phrase, world):
    explain(call, world, expected, phrase)


def test_cuda_where_there_is_none_says_what_to_pass(monkeypatch, tiny_models):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(BadSpec, match=f"device '{device}' was asked for.*no CUDA GPU; use device='auto' or 'cpu'"):
            load(str(tiny_models["gpt2"]), device=device)


def test_weights_that_will_not_fit_are_refused_before_they_are_read(monkeypatch, tiny_models):
    monkeypatch.setattr("workbench.models.memory.available_bytes", lambda device: 1000)
    with pytest.raises(NoRoom, match=r"'gpt2' in float32 needs about .* GB are free.*bfloat16"):
        load(str(tiny_models["gpt2"]))


def test_running_out_of_memory_in_a_forward_names_the_shape(tiny_models):
    def out_of_memory(tensor, hook):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = load(str(tiny_models["gpt2"]))
    with pytest.raises(NoRoom, match=r"ran out of memory on cpu in a forward of shape \(2, 5\).*smaller batch_size"):
        model.forward(IDS, hook_fns=[("blocks.0.hook_resid_pre", out_of_memory)])
