"""load(): one way in for hub ids, local directories, PEFT adapters, organisms and modules already in memory.

Weights are read by transformers (safetensors only, no code from the checkpoint unless asked), run once on a fixed
probe, and then wrapped in place by TransformerLens; the largest difference between the two on the probe is the parity
kept in provenance. Wrapping in place means parity costs two short forwards and no second copy.
What came with the files is checked before it is read (`checkpoint`), weights and outputs are checked to be numbers
(`finite`), and adapters are merged and held against PEFT's own forward (`adapters`).
Cost: the weights once and a pass over them, plus two forwards of 24 tokens, or of as many as the context has.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from workbench.core import places
from workbench.core.errors import BadSpec, ModelNotFound, UnsupportedModel

from . import adapters, checkpoint, memory
from .checkpoint import first_sentence
from .finite import refuse_outputs, refuse_weights, watch_outputs
from .model import Kind, Model, hash_weights
from .probe import probe
from .spec import ModelSpec


def load(
    name: str | ModelSpec | nn.Module = "organism:attention-sink", *, tokenizer: Any = None, **options: Any
) -> Model:
    """Load a model for analysis.

    Args:
        name: hub id, local directory, PEFT adapter directory, `organism:NAME`, a ModelSpec, or a Hugging Face module
            (which is modified in place: its blocks become the hooked ones).
        tokenizer: used instead of the one beside the weights; `False` loads none.
        options: fields of ModelSpec (dtype, device, device_map, revision, untrained_seed, ...).

    Returns:
        A Model in eval mode, eager attention, raw weights unless `processing="folded"`.

    Raises:
        ModelNotFound: no such directory, organism or hub id, or files missing while offline.
        UnsupportedModel: if loading it would lose something (a head, pickled or quantised weights, an unknown
            architecture, keys of an adapter), if its files are damaged (other packages' errors become this one), if a
            block has no attention, or if wrapping or folding changes the outputs.
        NotFinite: if a weight, or the output on a short probe, is NaN, infinite or absurd.
        NoRoom: if the weights will not fit.
    """
    # Loading draws (heads that are never run), and must not move the caller's random state.
    with torch.random.fork_rng(), checkpoint.our_errors(_label(name)):
        return _load(name, tokenizer, options)


def read_module(name: str | ModelSpec, *, tokenizer: Any = None, **options: Any) -> tuple[Any, Any]:
    """The Hugging Face module and tokenizer that `load` would wrap, not wrapped: what training works on.

    Args and errors as for `load`. To analyse what came of it, `load(copy.deepcopy(module), tokenizer=tokenizer)`:
    wrapping changes the module it is given.

    Returns:
        (module in eval mode with eager attention, tokenizer or None).
    """
    with torch.random.fork_rng(), checkpoint.our_errors(_label(name)):
        spec = (name if isinstance(name, ModelSpec) else ModelSpec(name=name)).replace(**options)
        module, found, *_ = _unwrapped(spec, tokenizer)
        refuse_weights(module.named_parameters(), _label(name))
    return module.eval(), found


def _label(name: str | ModelSpec | nn.Module) -> str:
    """What an error calls a model: never a path of this machine."""
    if isinstance(name, nn.Module):
        return type(name).__name__
    return Path(name.name if isinstance(name, ModelSpec) else str(name)).name


def _load(name: str | ModelSpec | nn.Module, tokenizer: Any, options: dict[str, Any]) -> Model:
    if isinstance(name, nn.Module):
        return _from_memory(name, tokenizer, options)
    spec = (name if isinstance(name, ModelSpec) else ModelSpec(name=name)).replace(**options)
    module, tokenizer, spec, label, about = _unwrapped(spec, tokenizer)
    return _wrap(module, spec, label, tokenizer, about)


def _unwrapped(spec: ModelSpec, tokenizer: Any) -> tuple[nn.Module, Any, ModelSpec, str, dict[str, Any]]:
    """Module, tokenizer or None, spec with its device settled, label for people, and what provenance should keep."""
    spec = replace(spec, device=_resolve_device(spec.device))
    source, label, about = _locate(spec)
    if (folder := _folder(source, spec)) and (folder / adapters.CONFIG).is_file():
        module, tokenizer_source, about = _with_adapter(folder, spec, about)
    else:
        module, tokenizer_source = _read(source, spec), source
    if tokenizer is None:
        tokenizer = _read_tokenizer(tokenizer_source, spec)
    return module, tokenizer or None, spec, label, about


def _from_memory(module: Any, tokenizer: Any, options: dict[str, Any]) -> Model:
    spec = ModelSpec(name=getattr(module, "name_or_path", "") or type(module).__name__).replace(**options)
    for option in ("untrained_seed", "device_map", "n_devices", "base", "revision"):
        if getattr(spec, option) is not None:
            raise BadSpec(
                f"{option} is for models that load() reads itself; this {type(module).__name__} is in memory already"
            )
    if "dtype" in options:
        module = module.to(getattr(torch, spec.dtype))
    if "device" in options:
        module = module.to(_resolve_device(spec.device))
    return _wrap(module, spec, Path(spec.name).name, tokenizer or None, {})


# ---- where it is ----


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise BadSpec(f"device must be auto, cpu, mps, cuda or cuda:N, got {device!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadSpec(
            f"device {device!r} was asked for, and this PyTorch ({torch.__version__}) sees no CUDA GPU; use"
            " device='auto' or 'cpu'"
        )
    if device.startswith("cuda:") and int(device[5:]) >= torch.cuda.device_count():
        raise BadSpec(
            f"device {device!r} was asked for, and this machine has GPUs 0 to {torch.cuda.device_count() - 1}"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise BadSpec("device 'mps' was asked for, and this machine has none; use device='auto' or 'cpu'")
    return device


def _locate(spec: ModelSpec) -> tuple[str, str, dict[str, Any]]:
    """Source for transformers, label for people (never an absolute path), and what provenance should keep."""
    if spec.name.startswith("organism:"):
        folder = places.organism_folder(spec.name.removeprefix("organism:"))
        return str(folder), spec.name + _twin_label(spec), {}
    path = Path(spec.name).expanduser()
    if path.is_dir():
        if not any((path / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise ModelNotFound(
                f"{path.name!r} is a directory without config.json or adapter_config.json, so it is no saved model"
            )
        return str(path), path.resolve().name + _twin_label(spec), {}
    if path.is_absolute() or spec.name.startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec.name):
        raise ModelNotFound(
            f"no directory {spec.name!r}; give a directory saved with save_pretrained, a hub id like"
            " 'Qwen/Qwen2.5-0.5B', or organism:NAME"
        )
    folder = _folder(spec.name, spec)
    return spec.name, spec.name + _twin_label(spec), {"revision": spec.revision or (folder and folder.name)}


def _twin_label(spec: ModelSpec) -> str:
    return "" if spec.untrained_seed is None else f" (untrained, seed {spec.untrained_seed})"


def _folder(source: str, spec: ModelSpec) -> Path | None:
    """Where the files of a source lie: the directory itself, or what the cache has of a hub id."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", adapters.CONFIG):
        if isinstance(found := try_to_load_from_cache(source, name, revision=spec.revision), str):
            return Path(found).parent
    return None


def _missing_on_hub(spec: ModelSpec, error: Exception) -> ModelNotFound:
    """Says which files are not here, and how to get them."""
    from huggingface_hub import try_to_load_from_cache

    wanted = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [f for f in wanted if not isinstance(try_to_load_from_cache(spec.name, f, revision=spec.revision), str)]
    offline = (
        "HF_HUB_OFFLINE is set"
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        else "the hub did not answer or does not know it"
    )
    return ModelNotFound(
        f"{spec.name!r} is no local directory, and as a hub id it could not be read ({offline};"
        f" {type(error).__name__}). Not in the cache:"
        f" {', '.join(missing) or 'nothing of the usual files, perhaps a shard'}. Where there is a network run `hf"
        f" download {spec.name}`, or give a local directory"
    )


# ---- reading it ----


def _read(source: str, spec: ModelSpec) -> nn.Module:
    """The Hugging Face module of a checkpoint, with the head its config names, or of its config with random weights."""
    from transformers import AutoConfig

    folder = _folder(source, spec)
    written = checkpoint.read_config(folder) if folder is not None else {}
    try:
        config = AutoConfig.from_pretrained(source, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError, KeyError) as found:
        if Path(source).is_dir():
            raise UnsupportedModel(
                f"config.json in {Path(source).name!r} does not describe a model transformers knows:"
                f" {first_sentence(found)}"
            ) from found
        raise _missing_on_hub(spec, found) from found
    auto, _ = _class_for(config)
    dtype = getattr(torch, spec.dtype)
    if spec.untrained_seed is not None:
        _require_room(lambda: auto.from_config(config), spec)
        return _random_twin(auto, config, spec)
    checkpoint.refuse_quantised(config.to_dict(), Path(source).name)
    if folder is not None:
        try:
            checkpoint.weight_files(folder, written.get("transformers_weights"))
        except ModelNotFound:
            if Path(source).is_dir():
                raise  # of a hub id, what the cache lacks may still come
    if spec.device_map is None and spec.n_devices is None:
        _require_room(lambda: auto.from_config(config, dtype=dtype), spec)
    placement = _placement(spec)
    try:
        module, info = auto.from_pretrained(
            source,
            revision=spec.revision,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below by their names, which the error does not give
            **placement,
        )
    except SafetensorError as found:
        raise UnsupportedModel(
            f"the weights of {Path(source).name!r} are damaged ({first_sentence(found)}); copy them again"
        ) from found
    except OSError as found:
        if Path(source).is_dir():
            raise ModelNotFound(f"{Path(source).name!r} could not be read: {first_sentence(found)}") from found
        raise _missing_on_hub(spec, found) from found
    _refuse_losses(module, info, source)
    return module if placement else module.to(spec.device)


def _require_room(build: Callable[[], nn.Module], spec: ModelSpec) -> None:
    """Weights are made on the CPU and then moved, so both have to hold them."""
    need = memory.module_bytes(build, getattr(torch, spec.dtype))
    for device in dict.fromkeys(("cpu", spec.device)):
        memory.require(
            need,
            device,
            f"{Path(spec.name).name!r} in {spec.dtype}",
            "Use dtype='bfloat16', device_map='auto' or a smaller model.",
        )


def _placement(spec: ModelSpec) -> dict[str, Any]:
    """What accelerate is asked for; nothing where one device takes it all."""
    budget: dict[str | int, str | int] = {}
    for entry in spec.max_memory:
        device, sign, amount = entry.partition("=")
        if not sign or not re.fullmatch(r"\d+(\.\d+)?\s*[KMG]i?B", amount.strip()):
            raise BadSpec(f"max_memory wants DEVICE=AMOUNT like 0=20GiB or cpu=60GiB, got {entry!r}")
        budget[int(device) if device.strip().isdigit() else device.strip()] = amount.strip()
    if spec.device_map is None and spec.n_devices is None:
        if budget:
            raise BadSpec("max_memory limits a placement over devices; give device_map='auto' or n_devices with it")
        return {}
    from transformer_lens.utilities.multi_gpu import resolve_device_map

    device_map, max_memory = resolve_device_map(spec.n_devices, spec.device_map, None, budget or None)
    return {"device_map": device_map} | ({"max_memory": max_memory} if max_memory else {})


def _random_twin(auto: Any, config: Any, spec: ModelSpec) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(spec.untrained_seed or 0)
        module = auto.from_config(config, attn_implementation="eager")
    return module.to(device=spec.device, dtype=getattr(torch, spec.dtype))


def _class_for(config: Any) -> tuple[Any, Kind]:
    """The transformers Auto class that keeps the head this config names, and what kind of model that makes."""
    import transformers

    named = (getattr(config, "architectures", None) or [""])[0]
    if named.endswith("ForSequenceClassification"):
        return transformers.AutoModelForSequenceClassification, "classifier"
    if named.endswith("ForTokenClassification"):
        return transformers.AutoModelForTokenClassification, "classifier"
    if named.endswith("ForImageClassification"):
        return transformers.AutoModelForImageClassification, "image-classifier"
    if named.endswith(("ForMaskedLM", "ForPreTraining")):
        return transformers.AutoModelForMaskedLM, "masked-lm"
    if named.endswith(("ForCausalLM", "LMHeadModel")):
        return transformers.AutoModelForCausalLM, "causal-lm"
    if named.endswith("Model") and type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        return transformers.AutoModel, "encoder"
    if not named and type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM, "causal-lm"
    raise UnsupportedModel(
        f"architecture {named or type(config).__name__!r} is not one this workbench loads without losing its head. It"
        " loads decoders (…ForCausalLM), encoders (BERT-style, with or without a masked-LM or classification head) and"
        " ViT image classifiers"
    )


def _refuse_losses(module: nn.Module, info: Mapping[str, Any], source: str) -> None:
    """A head that the checkpoint has and the module has not, or the reverse, is an error and not a warning."""
    name = Path(source).name
    unused = sorted(
        k
        for k in info["unexpected_keys"]
        if not re.search(r"(rotary_emb\.inv_freq|position_ids|\.attn\.(masked_)?bias|cls\.seq_relationship|pooler)", k)
    )
    if unused:
        raise UnsupportedModel(
            f"{name!r} has weights that {type(module).__name__} would drop: {', '.join(unused[:4])}; set"
            " `architectures` in its config.json to the class that has them"
        )
    if other := sorted(info["mismatched_keys"]):
        key, found, wanted = other[0]
        raise UnsupportedModel(
            f"{name!r} has {len(other)} weights of another shape than its config.json gives {type(module).__name__}:"
            f" {key} is {tuple(found)} and should be {tuple(wanted)}; the two are not of one checkpoint"
        )
    pooled = type(module).__name__.endswith("Classification")  # elsewhere the pooler is there and nothing reads it
    missing = sorted(k for k in info["missing_keys"] if pooled or "pooler" not in k)
    if missing:
        raise UnsupportedModel(
            f"{name!r} lacks weights that {type(module).__name__} needs, and random ones would be silent nonsense:"
            f" {', '.join(missing[:4])}"
        )


def _with_adapter(folder: Path, spec: ModelSpec, about: dict[str, Any]) -> tuple[nn.Module, str, dict[str, Any]]:
    """An adapter merged into its base, where the tokenizer lies, and what provenance should keep."""
    settings = checkpoint.read_json(folder / adapters.CONFIG)
    base = spec.base or settings.get("base_model_name_or_path")
    if not base:
        raise ModelNotFound(f"the adapter {folder.name!r} names no base model; pass base='DIR or hub id'")
    if not (folder / adapters.WEIGHTS).is_file():
        raise UnsupportedModel(f"the adapter {folder.name!r} has no {adapters.WEIGHTS} (pickled adapters are not read)")
    of_base = replace(spec, name=base, revision=settings.get("revision") if "revision" in about else spec.revision)
    try:
        source, label, _ = _locate(of_base)
    except ModelNotFound as found:
        raise ModelNotFound(
            f"the adapter {folder.name!r} wants a base that is not here: {found}. Pass base='DIR or hub id'"
        ) from None
    if (lies := _folder(source, of_base)) and (lies / adapters.CONFIG).is_file():
        raise UnsupportedModel(
            f"the base of the adapter {folder.name!r}, {label!r}, is an adapter itself; merge that into its own base"
            " with peft, save it and pass base='DIR'"
        )
    module = _read(source, of_base)
    if settings.get("task_type") in ("SEQ_CLS", "TOKEN_CLS") and not type(module).__name__.endswith("Classification"):
        raise UnsupportedModel(
            f"the adapter {folder.name!r} brings a classification head ({settings['task_type']}) and its base is a"
            f" {type(module).__name__}, so the head would be lost; merge it with peft into an"
            " AutoModelForSequenceClassification and save that"
        )
    merged, measured = adapters.merge(module, folder, _class_for(module.config)[1])
    tokenizer_source = str(folder) if (folder / "tokenizer_config.json").is_file() else source
    return merged, tokenizer_source, about | {"base": label} | measured


def _read_tokenizer(source: str, spec: ModelSpec) -> Any:
    """The tokenizer beside the weights, or None where there is none (text then raises NoTokenizer, ids still work)."""
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
    if Path(source).is_dir() and not any((Path(source) / f).is_file() for f in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError):
        return None


# ---- wrapping it ----


def _wrap(module: nn.Module, spec: ModelSpec, label: str, tokenizer: Any, about: dict[str, Any]) -> Model:
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.utilities.attn_implementation import force_eager_attention

    config: Any = module.config
    config.architectures = [type(module).__name__]
    _, kind = _class_for(config)
    if spec.processing == "folded" and kind not in ("causal-lm", "masked-lm"):
        raise UnsupportedModel(
            f"processing='folded' moves norms into weights, and the head of a {kind} is outside what TransformerLens"
            " folds; use 'raw'"
        )
    module.eval()
    force_eager_attention(module)  # fused attention has no pattern to read
    about = about | {"n_parameters": sum(p.numel() for p in module.parameters()), "weights": hash_weights(module)}
    refuse_weights(module.named_parameters(), label)
    reference = probe(module, kind)
    refuse_outputs(reference, label)
    body = _body(module, kind)
    architecture = type(body).__name__
    try:
        bridge = build_bridge_from_module(body, architecture, hf_config=body.config, model_name=label)
    except (ValueError, KeyError, AttributeError, NotImplementedError) as found:
        raise UnsupportedModel(
            f"TransformerLens has no adapter that takes {architecture}: {first_sentence(found)}"
        ) from found
    bridge.eval()
    _refuse_without_attention(bridge, label)
    _forget_patterns(bridge)
    _whole_heads(bridge)
    if spec.processing == "folded":
        bridge.enable_compatibility_mode()
    runner = bridge if kind in ("causal-lm", "masked-lm") else module
    about = about | _parity(reference, probe(runner, kind, config, module), spec, label)
    watch_outputs(runner, label, getattr(runner, "score", None))
    return Model(replace(spec, device=str(bridge.cfg.device)), label, kind, bridge, runner, tokenizer, about)


def _refuse_without_attention(bridge: Any, label: str) -> None:
    """Raises: UnsupportedModel, where there is no single stack of blocks that each have attention."""
    blocks = getattr(bridge, "blocks", None)
    if blocks is None:
        raise UnsupportedModel(f"{label} has no single stack of blocks, and sites are counted along one")
    others = [n for n, block in enumerate(blocks) if getattr(block, "attn", None) is None]
    if others:
        raise UnsupportedModel(
            f"{label} has no attention in {len(others)} of its {len(blocks)} blocks (the first is block {others[0]}):"
            " state-space and other recurrent layers have none of the sites of this workbench; load a model with"
            " attention in every block"
        )


def _whole_heads(bridge: Any) -> None:
    """TransformerLens cuts what enters the output projection into heads of `d_head`, which for latent attention
    (DeepSeek) is the rotated part of a query. A head's output is its share of the projection's input."""
    n_heads = bridge.cfg.n_heads
    for block in bridge.blocks:
        conversion: Any = getattr(getattr(getattr(block.attn, "o", None), "hook_in", None), "hook_conversion", None)
        width = getattr(conversion, "n_heads", 0) * getattr(conversion, "d_head", 0)
        if width and conversion.n_heads != n_heads and width % n_heads == 0:
            conversion.n_heads, conversion.d_head = n_heads, width // n_heads


def _parity(reference: torch.Tensor, found: torch.Tensor, spec: ModelSpec, label: str) -> dict[str, float]:
    """What provenance keeps of the difference to Hugging Face on the probe: of outputs, or for folded weights, which
    shift all logits alike, of log-probabilities. UnsupportedModel where it is more than rounding."""
    folded = spec.processing == "folded"
    a, b = (x.log_softmax(-1) if folded else x for x in (reference, found))
    apart = float((a - b).abs().max())
    if not apart <= (1e-3 if spec.dtype in ("float32", "float64") else 5e-2) * (1 + float(a.abs().max())):
        raise UnsupportedModel(
            f"folding the norms of {label} into its weights moves log-probabilities by {apart:.2g}: its architecture"
            " uses something that TransformerLens folds in another way; use processing='raw'"
            if folded
            else f"TransformerLens runs {label} with outputs {apart:.2g} away from Hugging Face's own, so its adapter"
            " computes something else than this architecture does"
        )
    return {"folding_max_abs_diff" if folded else "parity_max_abs_diff": apart}


def _forget_patterns(bridge: Any) -> None:
    """TransformerLens 4.3's joint-QKV attention stashes its last pattern in `_pattern`, which nothing reads: over all
    layers that is every pattern of the model, kept alive until the next forward. Dropped as each attention returns."""
    for module in bridge.modules():
        if hasattr(module, "_pattern"):
            module.register_forward_hook(lambda attention, *_: setattr(attention, "_pattern", None))


def _body(module: Any, kind: Kind) -> nn.Module:
    """What TransformerLens can wrap: the module itself, or for a head it has no adapter for, a language model that
    shares the module's blocks. Its own language-model head is never run."""
    if kind not in ("encoder", "classifier"):
        return module
    import transformers

    causal = (
        type(module.config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        and type(module.config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING
    )
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    parameter = next(module.parameters())
    body = auto.from_config(module.config, attn_implementation="eager")
    setattr(body, module.base_model_prefix, getattr(module, module.base_model_prefix, module))
    body.config.architectures = [type(body).__name__]
    return body.to(device=parameter.device, dtype=parameter.dtype).eval()
