"""Small random models of the families that tests cover, saved as ordinary Hugging Face directories."""

from pathlib import Path

import torch
import transformers as tf

from workbench.datasets.bigram_backcopy import VOCABULARY
from workbench.organisms.tokenizer import word_tokenizer

SIZE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 48}
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
        tf.OPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, max_position_embeddings=48, word_embed_proj_dim=32, **NO_SPECIAL)
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**GQA | NO_SPECIAL | {"num_local_experts": 4})),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GQA | NO_SPECIAL)),
    "bert": lambda: tf.BertModel(tf.BertConfig(**SIZE)),
    "bert_mlm": lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZE)),
    "bert_classifier": lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZE, num_labels=3)),
    "llama_classifier": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**GQA | NO_SPECIAL | {"num_labels": 3})),
    "vit": lambda: tf.ViTForImageClassification(
        tf.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=2, num_channels=1, num_labels=10)
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


def save_all(root: Path) -> dict[str, Path]:
    return {family: save(family, root / family) for family in FAMILIES}
