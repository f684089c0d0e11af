"""The parser of parameter names against modules: every matrix of a block has its role, and the role's shape and job."""

import re

import pytest
import torch
import transformers as tf
from models.families import FAMILIES

from workbench.weights.names import OUTSIDE, TRANSPOSED, WRITING, place

DECODERS = """
    gpt2 openai-gpt gpt_neo gptj gpt_neox opt bloom mpt falcon codegen gpt_bigcode xglm biogpt persimmon phi phi3 llama
    mistral mixtral qwen2 qwen3 qwen2_moe qwen3_moe gemma gemma2 gemma3_text olmo olmo2 olmoe stablelm starcoder2 cohere
    cohere2 granite granitemoe exaone4 glm glm4 deepseek_v2 gpt_oss smollm3 ernie4_5 apertus helium phimoe
""".split()
ENCODERS = "bert roberta electra distilbert deberta-v2 modernbert mpnet vit deit".split()
# Matrices of blocks that are no projection of a head or a neuron: routers and gates over experts, and the two halves of
# multi-head latent attention before its heads.
NO_ROLE = re.compile(r"router|\.gate\.weight$|shared_expert_gate|_a_proj|_b_proj")


def module_of(kind: str):
    config = tf.CONFIG_MAPPING[kind]()
    for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if hasattr(config, name):
            setattr(config, name, 2)
    with torch.device("meta"):
        return (tf.AutoModelForCausalLM if kind in DECODERS else tf.AutoModel).from_config(config)


@pytest.mark.parametrize("kind", DECODERS + ENCODERS)
def test_every_matrix_of_a_block_has_its_role_and_every_block_all_that_it_needs(kind):
    module = module_of(kind)
    hidden = module.config.get_text_config().hidden_size
    roles: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters():
        where = place(name)
        if parameter.ndim < 2 or where.layer == OUTSIDE or name.endswith("bias"):
            continue
        assert bool(where.role) != bool(NO_ROLE.search(name)), name
        roles.setdefault(where.layer, set()).add(where.role)
        assert where.is_expert == (parameter.ndim == 3) or "experts" in name
        if where.role and not where.is_expert:
            out, inn = parameter.shape[::-1] if kind in TRANSPOSED else parameter.shape
            assert (out if where.role in WRITING else inn) == hidden, name
    assert sorted(roles) == [0, 1]
    for found in roles.values():
        assert {"q", "k", "v"} <= found or "qkv" in found or kind == "deepseek_v2"
        assert {"o", "down"} <= found and found & {"up", "gate_up"}


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama", "opt", "qwen2", "bert"])
def test_blocks_whose_writing_projections_are_zero_add_nothing(kind):
    """The job of the roles, not only their shapes: with o and down at zero a block hands on what it got (BERT: but for
    its norms, which are put aside)."""
    torch.manual_seed(0)
    module = FAMILIES[kind]().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if place(name).role in WRITING:
                parameter.zero_()
    if kind == "bert":
        for block in module.encoder.layer:
            block.attention.output.LayerNorm = block.output.LayerNorm = torch.nn.Identity()
    with torch.no_grad():
        states = module(torch.arange(1, 9)[None], output_hidden_states=True).hidden_states
    first = states[0]
    middle = states[1:-1] if kind != "bert" else states[1:]  # a decoder's last state is normed
    assert middle and all(torch.equal(state, first) for state in middle)


@pytest.mark.parametrize(
    ("name", "layer", "part", "role", "projection"),
    [
        ("model.layers.11.self_attn.q_proj", 11, "attention", "q", "q_proj"),
        ("base_model.model.model.layers.2.mlp.down_proj.weight", 2, "mlp", "down", "down_proj"),
        ("transformer.h.0.mlp.c_proj.bias", 0, "mlp", "down", "c_proj"),
        ("bert.encoder.layer.1.output.dense.bias", 1, "mlp", "down", "output.dense"),
        ("bert.encoder.layer.1.output.dense.weight", 1, "mlp", "down", "output.dense"),
        ("bert.encoder.layer.1.attention.output.dense.weight", 1, "attention", "o", "dense"),
        ("bert.encoder.layer.1.attention.output.LayerNorm.weight", 1, "", "", "LayerNorm"),
        ("model.layers.0.self_attn.q_norm.weight", 0, "", "", "q_norm"),
        ("transformer.h.3.ln_1.weight", 3, "", "", "ln_1"),
        ("model.embed_tokens.weight", OUTSIDE, "", "", "embed_tokens"),
        ("lm_head.weight", OUTSIDE, "", "", "lm_head"),
        ("model.layers.0.mlp.experts.gate_up_proj", 0, "mlp", "gate_up", "gate_up_proj"),
    ],
)
def test_names_by_hand(name, layer, part, role, projection):
    found = place(name)
    assert (found.layer, found.part, found.role, found.projection) == (layer, part, role, projection)
