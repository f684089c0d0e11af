"""Small random models of the families that tests cover, saved as ordinary Hugging Face directories."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as tf

from workbench.datasets.bigram_backcopy import VOCABULARY
from workbench.models import load
from workbench.models.model import Model
from workbench.organisms.tokenizer import word_tokenizer

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
GQA = SIZE | {"num_key_value_heads": 2}
NO_SPECIAL = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}

DECODERS = ("gpt2", "neox", "llama", "gemma2", "opt", "mixtral", "qwen2")
FAMILIES = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2 | NO_SPECIAL)),
    "neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZE | NO_SPECIAL)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**GQA | NO_SPECIAL)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**GQA | NO_SPECIAL | {"head_dim": 8})),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=64,
            max_position_embeddings=48,
            word_embed_proj_dim=32,
            **NO_SPECIAL,
        )
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**GQA | NO_SPECIAL | {"num_local_experts": 4})),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GQA | NO_SPECIAL)),
    "bert": lambda: tf.BertModel(tf.BertConfig(**SIZE)),
    "bert_mlm": lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZE)),
    "bert_classifier": lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZE, num_labels=3)),
    "llama_classifier": lambda: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(**GQA | NO_SPECIAL | {"num_labels": 3})
    ),
    "vit": lambda: tf.ViTForImageClassification(
        tf.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
        )
    ),
}
WITH_TOKENIZER = ("gpt2", "neox", "llama", "bert", "mixtral")


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """One family as a directory; the same seed gives the same weights."""
    torch.manual_seed(seed)
    FAMILIES[family]().save_pretrained(folder)
    if family in WITH_TOKENIZER:
        word_tokenizer(VOCABULARY, add_bos=True).save_pretrained(folder)
    return folder


def moved(family: str, by: float = 0.3, matrices: bool = False) -> torch.nn.Module:
    """A module whose biases and norms (and matrices) are away from their initial values, so that a test on them says
    something.
    """
    torch.manual_seed(3)
    module = FAMILIES[family]().eval()
    module.set_attn_implementation("eager")
    for parameter in module.parameters():
        if matrices or parameter.ndim == 1:
            parameter.data += by * torch.randn_like(parameter)
    return module


def scaled(module: torch.nn.Module, by: float = 3.0) -> torch.nn.Module:
    """The module with matrices larger than at initialisation, so that effects are not tiny."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.mul_(by)
    return module


def network(family: str) -> torch.nn.Module:
    """A random network of a family, or of two that the other tests have no use for."""
    if family == "gptj":  # one norm for attention and MLP
        return tf.GPTJForCausalLM(tf.GPTJConfig(**GPT2 | NO_SPECIAL, rotary_dim=4))
    if family == "all experts":  # a mixture without a choice, so that its gradients hold along a path
        return tf.MixtralForCausalLM(
            tf.MixtralConfig(**GQA | NO_SPECIAL | {"num_local_experts": 4, "num_experts_per_tok": 4})
        )
    return FAMILIES[family]()


def load_scaled(module: torch.nn.Module, folder: Path) -> Model:
    """The module `scaled`, saved and loaded as a user would."""
    scaled(module).save_pretrained(folder)
    return load(str(folder))


def scaled_models(tmp_path_factory) -> Callable[[str], Model]:
    """family -> its network, `scaled`, made once."""

    @functools.cache
    def build(family: str) -> Model:
        torch.manual_seed(0)
        return load_scaled(network(family), tmp_path_factory.mktemp(family.replace(" ", "_")))

    return build


def save_all(root: Path) -> dict[str, Path]:
    return {family: save(family, root / family) for family in FAMILIES}
