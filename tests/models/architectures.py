"""A tiny random model of each architecture that the guide page lists: two layers, four heads, width 32.

`python tests/models/architectures.py` writes that page, notebooks/guides/families.md; a test holds it up to date.
"""

import re
import warnings
from pathlib import Path

import torch
import transformers as tf

from workbench.core.errors import WorkbenchError
from workbench.core.hooks import SITES
from workbench.models import load
from workbench.models.model import Model

START = """# Architectures, and what each has of the sites

Written by `python tests/models/architectures.py`; a test holds it up to date.

{n} architectures are loaded below as tiny random models with the pinned versions, and each site is measured, not
believed by its name: the stream at a site decides what follows, what a sublayer writes is what the stream gains, an
edit is heard by all that read there, shapes are those of the word (`workbench/models/sites.py` says how). The same
measurement is made of your own model on the first use of a site, and one that fails is refused with the reason.

Sites: {sites}. `model.sites()` lists those of a loaded model.

A parallel block has no `resid_mid`, a fused mixture of experts no neurons, and a head kept outside TransformerLens no
`logits`. Where the pattern is "read only", attention is Hugging Face's own: its weights can be read, and editing them
would change nothing. An architecture that is not listed may load as well.

| architecture | class | sites it has not | pattern can be edited |
|---|---|---|---|
"""
PAGE = Path(__file__).parents[2] / "notebooks" / "guides" / "families.md"
SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = SIZE | {"num_key_value_heads": 2}
HEAD = GQA | {"head_dim": 8}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "bos_token_id": 1} | {
    "eos_token_id": 2
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
DEEPSEEK = SIZE | EXPERTS | LATENT | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
OPT = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | {
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VIT = {k: SIZE[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")} | {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "num_labels": 10,
}
FALCON = {k: SIZE[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")} | {
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOOM = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
GPT_OSS = HEAD | {"num_local_experts": 4, "layer_types": ["full_attention"] * 2}
NEO = {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 48} | {
    "attention_types": [[["global", "local"], 1]],
    "window_size": 5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# name on the page: class, its config's class, the config
ARCHITECTURES: dict[str, tuple[str, str, dict]] = {
    "Apertus": ("ApertusForCausalLM", "ApertusConfig", GQA),
    "Arcee": ("ArceeForCausalLM", "ArceeConfig", GQA),
    "BERT": ("BertForMaskedLM", "BertConfig", SIZE),
    "BERT, sequence classifier": ("BertForSequenceClassification", "BertConfig", SIZE),
    "Bloom": ("BloomForCausalLM", "BloomConfig", BLOOM),
    "CodeGen": ("CodeGenForCausalLM", "CodeGenConfig", GPT | {"rotary_dim": 4}),
    "Cohere": ("CohereForCausalLM", "CohereConfig", GQA),
    "Cohere 2": ("Cohere2ForCausalLM", "Cohere2Config", GQA),
    "DeepSeek V2": ("DeepseekV2ForCausalLM", "DeepseekV2Config", DEEPSEEK | {"q_lora_rank": None}),
    "DeepSeek V3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", DEEPSEEK | {"q_lora_rank": 16}),
    "Ernie 4.5": ("Ernie4_5ForCausalLM", "Ernie4_5Config", HEAD),
    "EXAONE 4": ("Exaone4ForCausalLM", "Exaone4Config", GQA),
    "Falcon": ("FalconForCausalLM", "FalconConfig", FALCON | {"multi_query": True}),
    "Falcon with ALiBi": (
        "FalconForCausalLM",
        "FalconConfig",
        FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False},
    ),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", HEAD),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", HEAD),
    "Gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", HEAD),
    "GLM": ("GlmForCausalLM", "GlmConfig", HEAD),
    "GLM 4": ("Glm4ForCausalLM", "Glm4Config", HEAD),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "GPT-BigCode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT),
    "GPT-J": ("GPTJForCausalLM", "GPTJConfig", GPT | {"rotary_dim": 4}),
    "GPT-Neo": ("GPTNeoForCausalLM", "GPTNeoConfig", NEO),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZE),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", GPT_OSS),
    "Granite": ("GraniteForCausalLM", "GraniteConfig", GQA | {"residual_multiplier": 0.3}),
    "Granite MoE": (
        "GraniteMoeForCausalLM",
        "GraniteMoeConfig",
        GQA | {"residual_multiplier": 0.3, "num_local_experts": 4},
    ),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", GQA),
    "Llama, sequence classifier": ("LlamaForSequenceClassification", "LlamaConfig", GQA),
    "Mistral": ("MistralForCausalLM", "MistralConfig", GQA),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", GQA | {"num_local_experts": 4}),
    "MPT": (
        "MptForCausalLM",
        "MptConfig",
        {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 48},
    ),
    "Nemotron": ("NemotronForCausalLM", "NemotronConfig", GQA),
    "OLMo": ("OlmoForCausalLM", "OlmoConfig", GQA),
    "OLMo 2": ("Olmo2ForCausalLM", "Olmo2Config", GQA),
    "OLMo 3": ("Olmo3ForCausalLM", "Olmo3Config", GQA),
    "OLMoE": ("OlmoeForCausalLM", "OlmoeConfig", GQA | {"num_experts": 4, "num_experts_per_tok": 2}),
    "OpenAI GPT": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", GPT),
    "OPT": ("OPTForCausalLM", "OPTConfig", OPT | {"word_embed_proj_dim": 32}),
    "OPT-350m": ("OPTForCausalLM", "OPTConfig", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "Phi": ("PhiForCausalLM", "PhiConfig", SIZE),
    "Phi 3": ("Phi3ForCausalLM", "Phi3Config", GQA),
    "Qwen 2": ("Qwen2ForCausalLM", "Qwen2Config", GQA),
    "Qwen 2 MoE": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", GQA | EXPERTS | {"num_experts": 4}),
    "Qwen 3": ("Qwen3ForCausalLM", "Qwen3Config", HEAD),
    "Qwen 3 MoE": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", HEAD | EXPERTS | {"num_experts": 4}),
    "RoBERTa": ("RobertaForMaskedLM", "RobertaConfig", SIZE),
    "SmolLM 3": ("SmolLM3ForCausalLM", "SmolLM3Config", GQA),
    "StableLM": ("StableLmForCausalLM", "StableLmConfig", GQA),
    "StableLM, parallel": ("StableLmForCausalLM", "StableLmConfig", GQA | {"use_parallel_residual": True}),
    "Starcoder 2": ("Starcoder2ForCausalLM", "Starcoder2Config", GQA),
    "ViT": ("ViTForImageClassification", "ViTConfig", VIT),
    "XGLM": (
        "XGLMForCausalLM",
        "XGLMConfig",
        {"vocab_size": 64, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    ),
    # what load() refuses
    "ALBERT": ("AlbertForMaskedLM", "AlbertConfig", SIZE | {"embedding_size": 16}),
    "Jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        GQA | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False},
    ),
    "Mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
}


def network(name: str) -> torch.nn.Module:
    """A random network of an architecture in eval mode, its parameters away from where initialisation puts them."""
    model, config, settings = ARCHITECTURES[name]
    torch.manual_seed(0)
    module = getattr(tf, model)(getattr(tf, config)(**settings)).eval()
    module.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def loaded(name: str) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(network(name), tokenizer=False)


def row(name: str, model: Model | WorkbenchError) -> str:
    """One line of the page's table; model: the loaded one, or the error it was refused with."""
    start = f"| {name} | `{ARCHITECTURES[name][0]}` |"
    if isinstance(model, WorkbenchError):
        return f"{start} refused: {re.sub(r' [0-9.]+ away', ' away', str(model))} | |"
    have = model.sites()
    lacks = ", ".join(f"`{site}`" for site in SITES if site not in have)
    return f"{start} {lacks or 'none'} | {'yes' if model.pattern_is_live else 'read only'} |"


def page(rows: list[str]) -> str:
    """The guide page; rows: of every architecture, in order."""
    n_refused = sum("| refused:" in line for line in rows)
    return START.format(n=len(rows) - n_refused, sites=", ".join(f"`{s}`" for s in SITES)) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    found = []
    for architecture in ARCHITECTURES:
        try:
            found.append(row(architecture, loaded(architecture)))
        except WorkbenchError as error:
            found.append(row(architecture, error))
    PAGE.write_text(page(found), encoding="utf-8")
