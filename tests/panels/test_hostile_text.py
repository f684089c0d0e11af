"""Text that others wrote stays text: tokens, prompts and names full of markup give every view, panel and page the same
elements and attributes as plain words do.
"""

import string
from collections import Counter

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
import transformers
from bleach._vendor import html5lib  # the parser that browsers agree on
from nbformat import v4
from tokenizers import Tokenizer, models, pre_tokenizers

from workbench import panels
from workbench.core.claims import Claim, check
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models import load
from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.read.attention_patterns import attention_patterns, switch_heads_off
from workbench.primitives.read.capture import capture
from workbench.primitives.read.lenses import direct_logit_attribution, logit_lens
from workbench.primitives.read.predictions import predictions
from workbench.primitives.read.top_activations import top_activations
from workbench.primitives.replace import sweeps
from workbench.primitives.score import metrics
from workbench.reports import document, page, render, sections, slides
from workbench.views import attention, cache, figures
from workbench.views import predictions as prediction_views

HOSTILE = (
    "<s>",
    "</s>",
    "<b>x</b>",
    "<img/src=x/onerror=alert(1)>",
    "\"'/><img/src=x/onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "</title></style></textarea><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "'/onload='alert(1)",
    "\x1b[31m\x00\x7f\x08",
    "\u202edesrever\u200f",
    "&lt;i&gt;",
    "%{y}${x}{{x}}",
)
ROW, OTHER = list(range(14)), [13, *range(1, 14)]


def plain(word):
    """A word of letters for each hostile one, as long."""
    return string.ascii_lowercase[HOSTILE.index(word)] * len(word)


def small_model(words):
    """A random model whose tokens are these words, and whose name is one of them."""
    torch.manual_seed(0)
    known = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = transformers.GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=known)
    model = load(transformers.GPT2LMHeadModel(config), tokenizer=tokenizer)
    model.name = words[3]
    return model


@pytest.fixture(scope="module")
def both():
    """The same model twice: with hostile words, with plain ones."""
    return small_model(HOSTILE), small_model([plain(word) for word in HOSTILE])


def elements(*texts):
    """How often each element with its attributes is in texts of HTML."""
    found = Counter()
    for text in texts:
        tree = html5lib.parse(text, treebuilder="etree", namespaceHTMLElements=False)
        for element in tree.iter():
            if isinstance(element.tag, str):
                found[element.tag, tuple(sorted(map(str, element.attrib)))] += 1
    return found


def words_of(drawn):
    """Every text of a figure that plotly reads as HTML: all but alt text and provenance, which are plain."""
    if isinstance(drawn, dict):
        return [word for key, value in drawn.items() if key != "meta" for word in words_of(value)]
    if isinstance(drawn, (list, tuple, np.ndarray)):
        return [word for value in drawn for word in words_of(value)]
    return [drawn] if isinstance(drawn, str) else []


def results(model):
    clean, other = torch.tensor([ROW]), torch.tensor([OTHER])
    metric = metrics.logit_diff([5], [6])
    patterns = attention_patterns(model, ROW)
    expected = predictions(model, [ROW])
    held = pd.DataFrame(
        capture(model, [ROW], ["resid_post"])["resid_post", 0][0].numpy(),
        index=pd.Index(model.to_strings(ROW), name="pos"),
        columns=pd.RangeIndex(16, name="d_model"),
    )
    return {
        **figures(expected),
        "two": prediction_views.token_bars(expected, predictions(model, [OTHER]), quantity="change"),
        "two choices": prediction_views.next_tokens([expected, predictions(model, [OTHER])], [3, 3]),
        **figures(logit_lens(model, ROW)),
        "pattern": attention.pattern(patterns, 0, 0),
        **figures(patterns),
        **figures(switch_heads_off(model, ROW, [(0, 0)])),
        **figures(sweeps.denoise(model, clean, other, metric, site="resid_pre")),
        "one place": figures(sweeps.denoise(model, clean, other, metric, site="z", layers=[0], positions=[3]))[
            "patch_grid"
        ],
        **figures(direct_logit_attribution(model, [ROW], [5], [6])),
        **figures(attribute_edges(model, clean, other, metric)),
        **figures(top_activations(model, [ROW], "neuron", 1, 3, k=5)),
        "site": cache.site_map(held, model.name, "norm", expected.provenance),
    }


def test_labels_show_every_token_and_no_view_takes_one_for_markup(both):
    hostile, harmless = (results(model) for model in both)
    assert hostile.keys() == harmless.keys()
    for name, figure in hostile.items():
        there = words_of(figure.to_dict())
        assert elements(*there) == elements(*words_of(harmless[name].to_dict())), name
        assert not any(set("\x00\x08\x1b\x7f\u202e") & set(word) for word in there), name


def shown(panel):
    """What a panel has in HTML: its widgets, its static view, its page."""
    inside = [panel]
    for widget in inside:
        inside += getattr(widget, "children", ())
    live = [widget.value for widget in inside if isinstance(widget, (widgets.HTML, widgets.HTMLMath))]
    return [*live, panel._static_table(panel.table())]


def looked_at(model, name):
    """A panel that has run, with a cell chosen where there is one to choose."""
    prompt, other = (" ".join(model.tokenizer.convert_ids_to_tokens(row)) for row in (ROW, OTHER))
    words = model.tokenizer.convert_ids_to_tokens([5, 6])
    made = {
        "Tokens": lambda: panels.Tokens(model, prompt, other_prompt=other),
        "Lens": lambda: panels.Lens(model, prompt),
        "Attention": lambda: panels.Attention(model, prompt),
        "Attribution": lambda: panels.Attribution(model, prompt, *words),
        "Patching": lambda: panels.Patching(model, prompt, other, *words),
        "Steering": lambda: panels.Steering(model, [prompt], [other], [prompt]),
        "Ablation": lambda: panels.Ablation(model, [prompt]),
        "TwoCheckpoints": lambda: panels.TwoCheckpoints(model, model, prompts=[prompt]),
        "CircuitGraph": lambda: panels.CircuitGraph(model, prompt, other, *words),
    }[name]()
    made.run().wait(60)
    assert not made.state.error, made.state.error
    if made.has_trait("layer") or hasattr(made.state, "pos"):
        with made.state.hold_trait_notifications():
            for field in ("layer", "pos"):
                if made.state.has_trait(field):
                    setattr(made.state, field, 1)
    made.state.notice = model.name
    return made


PANELS = (
    "Tokens",
    "Lens",
    "Attention",
    "Attribution",
    "Patching",
    "Steering",
    "Ablation",
    "TwoCheckpoints",
    "CircuitGraph",
)


@pytest.mark.parametrize("name", PANELS)
def test_no_panel_nor_its_saved_page_takes_text_for_markup(name, both, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "get_plotlyjs", lambda: "")  # 5 MB to parse, and the same in each
    hostile, harmless = (looked_at(model, name) for model in both)
    assert elements(*shown(hostile)) == elements(*shown(harmless))
    pages = [made.save(tmp_path / f"{i}.html").read_text("utf-8") for i, made in enumerate((hostile, harmless))]
    assert elements(pages[0]) == elements(pages[1])
    assert "onerror" in pages[0] or "&lt;" in pages[0], "the hostile words are there, as text"


def written(word, tmp_path):
    """Pages of every kind whose every text is this word."""
    about = Result(Provenance(word, {"note": word}, 0, model={"name": word}), warnings=(word,), partial=True)
    table = check(None, [Claim(word, word, lambda _: 1.0, "<", 2.0, word)])
    drawn = {word: go.Figure(go.Bar(x=[word], y=[1.0]), {"title": word, "meta": {"alt": word, "provenance": word}})}
    outputs = [
        v4.new_output("stream", text=word),
        v4.new_output("error", ename=word, evalue=word, traceback=[word]),
        v4.new_output("display_data", data={"text/plain": word}),
        v4.new_output("display_data", data={"text/plain": word, "image/png": word}),
        v4.new_output("display_data", data={"text/plain": word, "image/svg+xml": word}),
        v4.new_output("display_data", data={"application/vnd.plotly.v1+json": drawn[word].to_dict()}),
    ]
    notebook = v4.new_notebook(cells=[v4.new_code_cell(f"# {word}", outputs=outputs, execution_count=1)])
    parts = [sections.notebook_section(notebook, word), sections.result_section(about, table, drawn)]
    return [
        page.write_page(tmp_path / "page.html", about, table, drawn).read_text("utf-8"),
        page.write_figure(tmp_path / "figure.html", word, drawn[word]).read_text("utf-8"),
        document.page_html(parts),
        document.page_html(parts[:1]),
        slides.slides_html(parts),
    ]


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_no_page_takes_text_for_markup(word, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "get_plotlyjs", lambda: "")
    for hostile, harmless in zip(written(word, tmp_path), written(plain(word), tmp_path), strict=True):
        assert elements(hostile) == elements(harmless)
