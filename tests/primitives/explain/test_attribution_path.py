"""Integrated gradients from Hugging Face's own module, inputs interpolated by hand: k/steps for k = 0 .. steps-1."""

import pytest
import torch
from models.families import load_scaled, network

from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.score.metrics import logit_diff

HEADS, D_HEAD, LAYERS = 4, 8, 2
ANSWERS, OTHERS = [3, 4, 5], [6, 7, 8]


@pytest.fixture(scope="module")
def module_and_model(tmp_path_factory):
    """GPT-2 as Hugging Face runs it, without dropout, and the same weights as a Model."""
    torch.manual_seed(0)
    module = network("gpt2").eval()
    return module, load_scaled(module, tmp_path_factory.mktemp("gpt2"))


def run(module, embeds, replace=None):
    """One run of [row, pos, d_model] token embeddings, with the metric's gradients at every norm's input.

    replace: {module: tensor} put in place of the input of a c_proj of attention, or of the output of an MLP.

    Returns:
        {place: z or output there}, {norm: gradient of the summed metric at what this norm alone reads}. A zero is added
        before each norm, so that its gradient holds only the path through that norm.
    """
    blocks, replace = module.transformer.h, replace or {}
    written, zeros, handles = {"embed": embeds.detach()}, {}, []

    def read(name):
        def add(part, args):
            zeros[name] = torch.zeros_like(args[0], requires_grad=True)
            return (args[0] + zeros[name],)

        return add

    def put_z(name):
        def put(part, args):
            z = replace.get(name, args[0])
            written[name] = z.detach()
            return (z,)

        return put

    def put_mlp(name):
        def put(part, args, out):
            out = replace.get(name, out)
            written[name] = out.detach()
            return out

        return put

    for i, block in enumerate(blocks):
        handles.append(block.ln_1.register_forward_pre_hook(read(f"a{i}")))
        handles.append(block.ln_2.register_forward_pre_hook(read(f"m{i}")))
        handles.append(block.attn.c_proj.register_forward_pre_hook(put_z(f"a{i}")))
        handles.append(block.mlp.register_forward_hook(put_mlp(f"m{i}")))
    handles.append(module.transformer.ln_f.register_forward_pre_hook(read("logits")))
    last = module(inputs_embeds=embeds).logits[:, -1]
    for handle in handles:
        handle.remove()
    rows = torch.arange(len(last))
    total = (last[rows, ANSWERS] - last[rows, OTHERS]).sum()
    gradients = torch.autograd.grad(total, list(zeros.values()), materialize_grads=True)  # 0 before a replacement
    return written, dict(zip(zeros, gradients, strict=True))


def by_writer(module, written):
    """{writer: [row, pos, d_model]}: a head's part of the stream is its slice of z times its rows of c_proj."""
    parts = {}
    for name, value in written.items():
        if name[0] != "a":
            parts[name] = value
            continue
        weight = module.transformer.h[int(name[1:])].attn.c_proj.weight.detach()
        for head in range(HEADS):
            own = slice(head * D_HEAD, (head + 1) * D_HEAD)
            parts[f"{name}.h{head}"] = value[..., own] @ weight[own]
    return parts


def expected(module, clean, corrupted, steps, mode):
    """{(writer, place of the reader): score}, the mean over rows, summed over the readers of one norm."""
    ends = [module.transformer.wte(tokens).detach() for tokens in (corrupted, clean)]
    (base, _), (source, _) = (run(module, embeds) for embeds in ends)
    moves = {"embed": ends} | {name: [base[name], source[name]] for name in base if name != "embed"}
    before, after = by_writer(module, base), by_writer(module, source)
    scores = {}
    for group in ["embed"] if mode == "inputs" else moves:
        for k in range(steps):
            at = moves[group][0] + (k / steps) * (moves[group][1] - moves[group][0])
            _, gradients = run(module, at) if group == "embed" else run(module, ends[0], {group: at})
            for writer in before if mode == "inputs" else [w for w in before if w.split(".")[0] == group]:
                for reader, gradient in gradients.items():
                    moved = ((after[writer] - before[writer]) * gradient).sum() / len(clean) / steps
                    scores[writer, reader] = scores.get((writer, reader), 0.0) + float(moved)
    return scores


@pytest.mark.parametrize("mode", ["inputs", "activations"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_scores_average_the_gradients_at_k_of_steps_from_zero(module_and_model, pair, steps, mode):
    module, model = module_and_model
    table = attribute_edges(model, *pair, logit_diff(ANSWERS, OTHERS), steps=steps, mode=mode).tables["edges"]
    found = table.assign(reader=table["reader"].str.split(".").str[0]).groupby(["writer", "reader"])["score"].sum()
    wanted = expected(module, *pair, steps, mode)
    assert len(found) == 33  # every writer with every norm after it
    for edge, score in found.items():
        assert score == pytest.approx(wanted[edge], rel=1e-3, abs=2e-5), edge
    if steps > 1:  # otherwise the points would not matter, and this test would say nothing
        fewer = expected(module, *pair, steps - 1, mode)
        assert max(abs(wanted[edge] - fewer[edge]) for edge in found.index) > 1e-2
