"""Prompts of every kind of source; each bad row is named by file and line; templates only where asked; tokens shown
as they are.
"""

import json

import pandas as pd
import pytest

from workbench.core.errors import BadData
from workbench.datasets.prompts import read_prompts
from workbench.models import load

TEXTS = ["river stone lamp", "salt sand"]


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


SOURCES = {
    "jsonl objects": ("p.jsonl", '{"prompt": "river stone lamp", "label": 1}\n\n{"prompt": "salt sand", "label": 0}\n'),
    "csv": ("p.csv", "prompt,label\r\nriver stone lamp,1\r\n\r\nsalt sand,0\r\n"),
    "csv quoted": ("p.csv", 'label,prompt\n1,"river stone lamp"\n0,salt sand\n'),
    "csv of excel": ("p.csv", "\ufeffprompt,label\nriver stone lamp,1\nsalt sand,0\n"),
    "tsv": ("p.tsv", "prompt\tlabel\nriver stone lamp\t1\nsalt sand\t0\n"),
}


@pytest.mark.parametrize(("name", "text"), SOURCES.values(), ids=SOURCES)
def test_files(name, text, tmp_path):
    prompts = read_prompts(written(tmp_path, name, text))
    assert prompts.items == TEXTS and prompts.columns["label"].tolist() == [1, 0]
    assert (
        prompts.source["name"] == name
        and len(prompts.source["sha256"]) == 16
        and prompts.where[0].startswith(f"{name} line ")
    )


def test_lines_without_columns(tmp_path):
    assert read_prompts(written(tmp_path, "p.jsonl", '"river stone lamp"\n"salt sand"')).items == TEXTS
    assert read_prompts(written(tmp_path, "p.txt", "river stone lamp\n\n  salt sand \n")).items == TEXTS


def test_parquet_lists_and_data_sets(tmp_path):
    import datasets

    frame = pd.DataFrame({"prompt": TEXTS, "label": [1, 0]})
    frame.to_parquet(tmp_path / "p.parquet")
    table = datasets.Dataset.from_pandas(frame)
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "both")
    (tmp_path / "files").mkdir()
    frame.to_json(tmp_path / "files" / "train.jsonl", orient="records", lines=True)
    sources = [
        tmp_path / "p.parquet",
        str(tmp_path / "saved"),
        tmp_path / "both",
        tmp_path / "files",
        frame.to_dict("records"),
    ]
    for source in sources:
        prompts = read_prompts(source)
        assert prompts.items == TEXTS and prompts.columns["label"].tolist() == [1, 0], source
    assert read_prompts(tmp_path / "both", split="test").items == TEXTS[1:]
    assert read_prompts(tmp_path / "saved").source["fingerprint"] and str(tmp_path) not in json.dumps(
        read_prompts(tmp_path / "saved").source
    )
    assert read_prompts(TEXTS).items == TEXTS


def test_a_csv_cell_may_hold_lines_and_errors_still_name_the_right_one(tmp_path):
    path = written(tmp_path, "p.csv", 'prompt,label\n"two\nlines",1\nsalt sand,0\n')
    assert read_prompts(path).items == ["two\nlines", "salt sand"] and read_prompts(path).where == [
        "p.csv line 2",
        "p.csv line 4",
    ]


def test_a_json_string_may_hold_any_line_separator(tmp_path):
    assert read_prompts(written(tmp_path, "p.jsonl", '{"prompt": "a\u2028b"}\n')).items == ["a\u2028b"]


def test_some_of_them_drawn_by_a_seed_in_their_order():
    texts = [f"t{i}" for i in range(50)]
    some = read_prompts(texts, n=5, seed=1)
    assert some.items == read_prompts(texts, n=5, seed=1).items != read_prompts(texts, n=5, seed=2).items
    assert [int(t[1:]) for t in some.items] == sorted(int(t[1:]) for t in some.items) and some.where[
        0
    ] == f"item {some.items[0][1:]}"


BAD = {
    "broken json": (
        "p.jsonl",
        '{"prompt": "a"}\n\n{"prompt": \n',
        "1 of 2 rows cannot be used: p.jsonl line 3: no JSON",
    ),
    "column missing": ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n{"prompt": "c"}', "say which holds the prompt"),
    "key missing": (
        "p.jsonl",
        '{"prompt": "a", "label": 1}\n{"label": 1}\n',
        "p.jsonl line 2: no 'prompt'; it has label",
    ),
    "empty": ("p.jsonl", '{"prompt": "a"}\n{"prompt": "  "}\n', "p.jsonl line 2: 'prompt' is empty"),
    "a number": ("p.jsonl", '{"prompt": 3}\n', "must be a text or a conversation, got 3"),
    "bad turn": ("p.jsonl", '{"messages": [{"role": "user"}]}\n', "a turn must be"),
    "no turns": ("p.jsonl", '{"messages": []}\n', "conversation without turns"),
    "too many cells": (
        "p.csv",
        "prompt,label\na,1\nb,2,3\n",
        "p.csv line 3: 3 cells where the first line names 2 columns",
    ),
    "too few cells": ("p.csv", "prompt,label\na\n", "line 2: 1 cells"),
    "open quote": ("p.csv", 'prompt,label\n"a,1\n', "p.csv line 2: no CSV"),
    "two of a name": ("p.csv", "prompt,prompt\na,b\n", "two columns have one name"),
    "which column": ("p.csv", "prompt,text\na,b\n", "has columns prompt, text: say which holds the prompt"),
    "no usual column": ("p.csv", "x,y\na,b\n", "has columns x, y: say which"),
    "nothing": ("p.csv", "prompt\n", "p.csv holds no prompts"),
    "not parquet": ("p.parquet", "hello", "p.parquet is no readable parquet file"),
    "many": ("p.jsonl", '{"prompt": ""}\n' * 9, "9 of 9 rows cannot be used: .* and 6 more"),
}


@pytest.mark.parametrize(("name", "text", "says"), BAD.values(), ids=BAD)
def test_rows_that_cannot_be_used_are_named(name, text, says, tmp_path):
    with pytest.raises(BadData, match=says):
        read_prompts(written(tmp_path, name, text))


def test_sources_that_are_not_there(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadData, match=r"not UTF-8 text \(byte 3\)"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(BadData, match=r"no file 'q.jsonl'"):
        read_prompts(tmp_path / "q.jsonl")
    with pytest.raises(BadData, match="is no file, and `datasets` cannot read it"):
        read_prompts("no-one/no-data")
    with pytest.raises(BadData, match="a list holds no prompts"):
        read_prompts([])


def test_the_column_is_named_where_several_could_be(tmp_path):
    path = written(tmp_path, "p.csv", "prompt,text\na,b\n")
    assert read_prompts(path, "text").items == ["b"] and read_prompts(path, "text").columns["prompt"].tolist() == ["a"]


# ---- tokens ----


def test_tokens_are_the_models_own_and_are_shown(organism):
    tokens = read_prompts(TEXTS).tokenise(organism)
    assert tokens.rows == organism.to_rows(TEXTS)
    assert str(tokens).startswith(
        f"2 prompts, {sum(map(len, tokens.rows))} tokens ({len(tokens.rows[1])} to {len(tokens.rows[0])} a prompt)\nBOS"
        " in front of all of them; chat template not applied\n  item 0: "
    )
    table = tokens.table()
    assert (
        table["n_tokens"].tolist() == [len(r) for r in tokens.rows]
        and table["tokens"][1].split("|")[-1].strip() == "sand"
    )
    bare = read_prompts(TEXTS).tokenise(organism, bos=False)
    assert [len(r) for r in bare.rows] == [3, 2] and "BOS in front of none" in str(bare)


def test_unknown_words_are_counted(organism):
    assert "2 tokens are unknown to the tokenizer" in str(read_prompts(["river xyzzy plugh"]).tokenise(organism))


def test_long_prompts_are_refused_or_cut_as_asked(organism):
    prompts = read_prompts([*TEXTS, "river stone lamp salt sand"])
    with pytest.raises(BadData, match=r"item 2 \(6 tokens\): more than 4 tokens; give cut="):
        prompts.tokenise(organism, max_tokens=4)
    whole = prompts.tokenise(organism).rows[2]
    assert prompts.tokenise(organism, max_tokens=4, cut="right").rows[2] == whole[:4]
    left = prompts.tokenise(organism, max_tokens=4, cut="left")
    assert left.rows[2] == whole[-4:] and "1 were cut to 4 tokens on the left" in str(left)
    with pytest.raises(BadData, match="more than"):
        read_prompts([" ".join(["river"] * (organism.n_ctx + 1))]).tokenise(organism)


TEMPLATE = (
    "{% if with_bos %}<bos>{% endif %}{% for m in messages %}{% if m.content == 'sand' %}{{ raise_exception('no sand')"
    " }}{% endif %} {{ 'lamp' if m.role == 'user' else 'snow' }} {{ m.content }}{% endfor %}{% if add_generation_prompt"
    " %} ship{% endif %}"
)


@pytest.fixture(params=[True, False], ids=["template with BOS", "template without BOS"])
def chatty(request, tiny_models):
    model = load(str(tiny_models["llama"]))
    model.tokenizer.chat_template = TEMPLATE.replace("with_bos", "true" if request.param else "false")
    return model, request.param


def test_a_template_is_applied_where_it_is_asked_for_and_decides_about_the_bos(chatty):
    model, with_bos = chatty
    plain = read_prompts([[{"role": "system", "content": "river"}, {"role": "user", "content": "stone"}]])
    with pytest.raises(BadData, match="call with_chat_template"):
        plain.tokenise(model)
    said = plain.with_chat_template(model)
    words = [model.tokenizer.decode([i]) for i in said.tokenise(model).rows[0]]
    assert words == (["<bos>"] if with_bos else []) + [
        "snow",
        "river",
        "lamp",
        "stone",
        "ship",
    ], "one BOS, where the template has one"
    assert said.source["chat_template"] and "chat template applied" in str(said.tokenise(model))
    short = read_prompts(["stone"]).with_chat_template(model, system="river", add_generation_prompt=False)
    assert short.items == [("<bos>" if with_bos else "") + " snow river lamp stone"]
    with pytest.raises(BadData, match="already"):
        said.with_chat_template(model)
    with pytest.raises(BadData, match="decides about the BOS"):
        said.tokenise(model, bos=True)


def test_a_conversation_the_template_refuses_is_named(chatty):
    with pytest.raises(BadData, match=r"item 1: the chat template of llama refuses it .no sand"):
        read_prompts(["stone", "sand"]).with_chat_template(chatty[0])


def test_no_template(organism):
    with pytest.raises(BadData, match="has no chat template"):
        read_prompts(TEXTS).with_chat_template(organism)


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["007", "010"], ["007", "010"]),
        (["1", "+2"], ["1", "+2"]),
        (["1e5", "2e7"], ["1e5", "2e7"]),
        (["1", "-0.5", "1e-05", ""], [1, -0.5, 1e-05, None]),
        (["0", "10"], [0, 10]),
        (["9007199254740993", ""], ["9007199254740993", ""]),
        (["123456789012345678901234567890", "1"], ["123456789012345678901234567890", "1"]),
        (["nan", "1"], ["nan", "1"]),
    ],
    ids=lambda cells: " ".join(map(str, cells)),
)
def test_a_column_of_a_csv_becomes_numbers_only_where_nothing_is_lost(tmp_path, cells, read):
    path = written(tmp_path, "p.csv", "prompt,id\n" + "".join(f"p{i},{cell}\n" for i, cell in enumerate(cells)))
    column = read_prompts(path).columns["id"]
    assert [None if pd.isna(value) else value for value in column] == read


def test_a_cell_of_a_csv_may_be_as_long_as_a_book(tmp_path):
    words = "word " * 40_000
    assert read_prompts(written(tmp_path, "p.csv", f"prompt,label\n{words},1\n")).items == [words]
