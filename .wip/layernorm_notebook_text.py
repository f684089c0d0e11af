cells = [
md("""
# LayerNorm and memorisation: do gain and bias decide what becomes of wrong labels?

Rishi Singhal and Jung-Eun Kim: *Impact of Layer Norm on Memorization and Generalization in Transformers* (NeurIPS 2025, [arXiv 2511.10566](https://arxiv.org/abs/2511.10566)).

**The claim under test:** taking away only LayerNorm's *learnable* parameters (the normalisation stays) during fine-tuning makes Post-LN models forget memorised wrong labels and keep their accuracy; it makes Pre-LN models lose accuracy and keep the wrong labels. Early layers matter most.
"""),
md("""
**What you need:** nothing but this checkout; no GPU, no network, under a minute.
**Which models:** two pairs that ship, `organism:digits-postln` / `-preln` (images as 16 words) and `organism:feelings-postln` / `-preln` (sentences), 0.18 M parameters each. A pair has the same blocks; only the place of the LayerNorm differs. Fine-tuning everything takes half an hour, so those runs are **stored** with their provenance, and one arm is **trained here**, now. Every figure and every line of the claims table says which of the two it shows.
**What you will have seen:** what became of every noisy label in 112 stored runs, thirds of the layers, gradients at every LayerNorm beside the comparison that explains them, four controls, and where our outcome differs from the paper's.
"""),
code("""
import os
import numpy as np
import torch
import workbench as wb

wb.start(seed=0)
""","setup","nbval-ignore-output"),
code("""
lnm = wb.method("layernorm_memorization")
MODEL = os.environ.get("WORKBENCH_MODEL", "")  # or write here: "google-bert/bert-base-uncased", a local directory, ...
scale = os.environ.get("WORKBENCH_SCALE", "tiny")
spec = lnm.Spec.small(MODEL) if MODEL else lnm.Spec.paper() if scale == "paper" else lnm.Spec.tiny()
""","parameters"),
md("""
## The question

A pretrained model is fine-tuned on labels of which 5 % are wrong, all in one class, until it fits every label, and a quarter as long again. Each wrong label then has one of three fates: **memorised** (the model says the wrong label), **recovered** (it says the true one), **random** (neither). *Removed* means that gain is 1 and bias 0 from the first step on.
If the claim holds, the bars of Post-LN turn from red (memorised) to green (recovered) when the parameters go, and those of Pre-LN do not. If it is false, both stay red.
"""),
code("""
model = wb.load(spec.model)
model
""","nbval-ignore-output"),
md("""
## Why the models must be pretrained

At initialisation gain is 1 and bias 0, so removing them changes nothing. Pretraining (next word, no labels) moves them; how far is what removal takes away.
"""),
code("""
from workbench.primitives.layer_norms import moved, norms

found = norms(model.live.original_model)
for norm in found[:4]:
    print(norm.name, "mean |gain - 1| and |bias|:", [round(x, 3) for x in moved([norm])])
print("all", len(found), "norms:", [round(x, 3) for x in moved(found)])
""","nbval-ignore-output"),
md("""
## A few samples

Digits are cut into sixteen 2x2 patches, a word a patch (`0222`: four grey levels); sentences come from a template and are read up to "looked". Wrong labels are drawn by the seed; the true ones are kept aside.
"""),
code("""
from workbench.datasets import digits, feelings
from workbench.datasets.noisy_labels import add_noise

some = digits.digits("training")
noise = add_noise(some.labels, 10, rate=0.05, noisy_class=5, seed=0)
for i in noise.noisy[:2]:
    print("true", noise.true[i], "trained on", noise.trained[i], "|", " ".join(digits.VOCABULARY[t] for t in digits.to_tokens(some.images[i : i + 1])[0][1:9]), "...")
for text, label in zip(feelings.feelings("training", 600).texts()[:2], feelings.feelings("training", 600).labels, strict=False):
    print(feelings.CLASSES[label], "|", text)
""","nbval-ignore-output"),
md("""
## One number by hand

The arm that is trained here removes gain and bias in the early third, blocks 0 and 1. How far does that move the logits before any training? A few lines without the method; we come back to the number after the run.
"""),
code("""
from workbench.datasets.classification import embedded
from workbench.training.pretrained_classifier import load_classifier

module, tokenizer = load_classifier(spec.model, 10, seed=spec.seeds[0])
rows = torch.tensor(tokenizer(list(embedded("digits").test.texts[:64]))["input_ids"])
with torch.no_grad():
    before = module(input_ids=rows).logits
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.LayerNorm) and name.startswith(("transformer.h.0.", "transformer.h.1.")):
            part.weight.fill_(1), part.bias.fill_(0)
    by_hand = float((module(input_ids=rows).logits - before).abs().max())
round(by_hand, 4)
""","nbval-ignore-output"),
md("""
## Run

Loads the stored runs, counts all scores again from their stored predictions (a difference is an error), and trains one arm: digits, Post-LN, early third, seed 0.
"""),
code("""
result = lnm.run(spec)
print(*result.warnings, sep="\\n")
""","nbval-ignore-output","timeout=170"),
code("""
here = result.tables["runs"].query("origin == @lnm.HERE")
np.testing.assert_allclose(here["effect"].iloc[0], by_hand, rtol=1e-3)
here[["model", "arm", "seed", "n_epochs", "seconds", "learning", "memorisation", "recovery", "random"]].round(1)
""","nbval-ignore-output"),
md("""
The hand-made number and the method's agree: the intervention happened, and it moved the output. Next, one score counted by hand from the predictions of a **stored** run, and how much has been stored.
"""),
code("""
data = result.data
run = data.isel(run=int(np.flatnonzero((data["origin"] == lnm.STORED) & (data["arm"] == "removed") & (data["seed"] == 1))[0]))
noisy = (run["trained_label"] != run["true_label"]).values
last = int(run["n_epochs"])
memorised = 100 * np.mean(run["predicted_train"].values[last, noisy] == run["trained_label"].values[noisy])
assert abs(memorised - float(run["memorisation"][last])) < 1e-3
result.tables["runs"].query("origin == @lnm.STORED").groupby(["model", "trained"]).size().groupby("model").agg(["sum"]).rename(columns={"sum": "stored runs"})
""","nbval-ignore-output"),
md("""
## What became of the noisy labels
"""),
code("""
from workbench.views import layernorm_memorization as views

views.outcome(result, "digits")
""","nbval-ignore-output"),
md("""READING_DIGITS"""),
code("""
views.outcome(result, "feelings")
""","nbval-ignore-output"),
md("""READING_FEELINGS"""),
code("""
views.epochs(result, "feelings", "post")
""","nbval-ignore-output"),
md("""READING_EPOCHS"""),
md("""
## Which layers matter
"""),
code("""
views.thirds(result, "feelings")
""","nbval-ignore-output"),
md("""READING_THIRDS"""),
md("""
## Gradients at the LayerNorms, and what explains them

The paper offers gradients as the reason: at the input of every LayerNorm the gradient norm of *test* samples (learn-norm) is at least that of the *noisy training* samples (mem-norm). After training, noisy samples are fitted and test samples are not, so any fitted sample would have small gradients. The comparison that tells the two apart, clean training samples, is drawn in green.
"""),
code("""
views.gradients(result, "digits")
""","nbval-ignore-output"),
md("""READING_GRADIENTS"""),
code("""
views.gradients_over_epochs(result, "digits")
""","nbval-ignore-output"),
md("""READING_CONFOUND"""),
md("""
## Controls

Four ways in which the comparison could deceive: a model **from scratch** (removal must change nothing before training), a **placebo** (as many random other parameters held still), **no noise** (the scores must be undefined, not zero), and the green line above. And the arm trained here against its stored twin.
"""),
code("""
table = result.tables["summary"].query("origin == @lnm.STORED and score == 'memorisation'")
table.pivot_table(index=["data", "placement"], columns="arm", values="mean", dropna=False)[["kept", "removed", "placebo", "scratch_kept", "scratch_removed", "clean"]].round(1)
""","nbval-ignore-output"),
code("""
from workbench.methods.memorization import _layernorm_claims as compare

print("equal predictions on noisy samples, all epochs: with its stored twin", round(compare.repeated(result, same_arm=True), 1), "%")
print("with the stored run of another arm at most", round(compare.repeated(result, same_arm=False), 1), "%")
""","nbval-ignore-output"),
md("""
## Claims

A *claim* should hold; a *control* should not. Lines that begin with "stored runs" are measured on stored runs only; lines that begin with "trained here" only on what this notebook trained, which is one arm, so that most of them cannot be tested in it. The next cell is compared with its stored output whenever the notebooks are tested.
"""),
code("""
table = wb.check(result, lnm.CLAIMS)
print(table.verdicts())
""","nbval-check-output"),
code("""
table
""","nbval-ignore-output"),
md("""WHAT_DOES_NOT_REPLICATE"""),
md("""
## The seeds behind the numbers

Means over three seeds with Student's 95 % interval. `at_first_fit` is the other reading of "until the kept run fits all labels": the epoch at which the kept run of the same seed first did, and no later.
"""),
code("""
seeds = result.tables["summary"].query("origin == @lnm.STORED and arm in ('kept', 'removed', 'whole') and score in ('learning', 'memorisation', 'recovery')")
seeds.drop(columns="origin").round(1).reset_index(drop=True)
""","nbval-ignore-output"),
md("""
## Explore

Move through the epochs, choose where gain and bias were removed, and click a row of the map: a sample, its true and noisy label, and what the model called it. The cells above are complete without it.
"""),
code("""
from workbench.panels.noisy_labels import NoisyLabels

panel = NoisyLabels(result)
panel
""","panel","nbval-ignore-output"),
md("""
## Your model

Any classifier that transformers can build on your checkpoint, with a CSV, JSONL or `datasets` set: `workbench run layernorm_memorization --model DIR --set data=FILE.csv --set text_column=text --set label_column=label --out OUT`. It shows progress, goes on after Ctrl-C or a kill with the same `--out` (and `--set checkpoints=DIR` within a run), stops when the labels are fitted, and uses bfloat16 on a GPU. Here a small Qwen2 with random weights, whose RMSNorm has only a gain to lose, shows that it runs.
"""),
code("""
import tempfile
from transformers import Qwen2Config, Qwen2ForCausalLM
from workbench.organisms.tokenizer import word_tokenizer

folder = tempfile.mkdtemp()
Qwen2ForCausalLM(Qwen2Config(vocab_size=len(feelings.VOCABULARY), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32)).save_pretrained(folder)
word_tokenizer(feelings.VOCABULARY, add_bos=True).save_pretrained(folder)
yours = lnm.run(lnm.Spec.small(folder).replace(arms=("kept", "removed"), seeds=(0,), epochs=2, n_train=100, n_test=50, lr=1e-3))
yours.tables["runs"][["placement", "arm", "n_removed", "learning", "memorisation", "recovery", "random"]].round(1)
""","nbval-ignore-output"),
md("""LIMITS"""),
]
