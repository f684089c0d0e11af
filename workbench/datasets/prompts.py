"""Prompts from files, data sets and lists, and their tokens, shown before they are used.

    prompts = read_prompts("questions.jsonl")                      # or .csv, .tsv, .parquet, .txt, a directory, a hub
    name, a list rows = prompts.with_chat_template(model).tokenise(model)       # a template only where it is asked for
    print(rows)                                                    # how many, how long, BOS or not, the first ones
    token by token

A prompt is a text, or a conversation: a list of {"role": ..., "content": ...}. Rows that cannot be used stop the
reading, with file and line; none is dropped. Empty lines of a text file are not rows.
Cost: the file in memory.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.core.errors import BadData

USUAL_COLUMNS = ("prompt", "text", "messages", "question", "instruction")
READERS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt")
Item = str | list[dict[str, str]]
Found = tuple[str, Any]  # where a row was found, and the row or the reason why it is none


@dataclass(frozen=True, eq=False)
class Tokenised:
    """Token ids per prompt, ready for `capture` and `write_store`; printing it shows what the model will read.

    rows: ids, unpadded. strings: {id: text}. columns: a row per prompt. source: where they came from. where: file and
    line.
    """

    rows: list[list[int]]
    strings: Mapping[int, str]
    columns: pd.DataFrame
    source: dict[str, Any]
    where: list[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def table(self, n: int | None = 20) -> pd.DataFrame:
        """One row per prompt: where it came from, how many tokens, the tokens between bars, and the other columns."""
        shown = self.rows[:n]
        frame = pd.DataFrame(
            {"where": self.where[:n], "n_tokens": [len(r) for r in shown], "tokens": [self._bars(r) for r in shown]}
        )
        return pd.concat([frame, self.columns[:n].reset_index(drop=True)], axis=1)

    def _bars(self, row: Sequence[int]) -> str:
        return "|".join(self.strings[i].replace("\n", "\\n") for i in row)

    def __str__(self) -> str:
        lengths = [len(r) for r in self.rows]
        head = f"{len(self.rows)} prompts, {sum(lengths):,} tokens ({min(lengths)} to {max(lengths)} a prompt)"
        first = [
            f"  {where}: {self._bars(row[:40])}{' ...' if len(row) > 40 else ''}"
            for where, row in zip(self.where[:3], self.rows, strict=False)
        ]
        return "\n".join([head, *self.notes, *first])


@dataclass(frozen=True, eq=False)
class Prompts:
    """Texts or conversations with their other columns, and where each came from. `is_templated`: texts of a chat
    template.
    """

    items: list[Item]
    columns: pd.DataFrame
    source: dict[str, Any]
    where: list[str]
    is_templated: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def with_chat_template(
        self, model: Any, *, system: str | None = None, add_generation_prompt: bool = True
    ) -> "Prompts":
        """Each conversation, or text as one turn of a user, in the model's own chat template.

        Args:
            model: a Model; its tokenizer's template is used.
            system: put in front as a system turn, where a conversation has none.
            add_generation_prompt: end where the assistant's answer begins.

        Raises:
            BadData: if the tokenizer has no template, or it refuses a conversation (the row is named).
        """
        if self.is_templated:
            raise BadData("these prompts are in a chat template already")
        tokenizer = model.tokenizer
        if getattr(tokenizer, "chat_template", None) is None:
            raise BadData(
                f"the tokenizer of {model.name} has no chat template: use the texts as they are, or set"
                " tokenizer.chat_template"
            )
        texts = []
        for item, where in zip(self.items, self.where, strict=True):
            turns = [{"role": "user", "content": item}] if isinstance(item, str) else item
            if system is not None and turns[0]["role"] != "system":
                turns = [{"role": "system", "content": system}, *turns]
            try:
                texts.append(
                    tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
                )
            except Exception as found:  # templates are programs and raise what they like
                raise BadData(
                    f"{where}: the chat template of {model.name} refuses it ({str(found).splitlines()[0]})"
                ) from None
        applied = {
            "chat_template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16],
            "system": system,
            "add_generation_prompt": add_generation_prompt,
        }
        return replace(self, items=texts, source=self.source | applied, is_templated=True)

    def tokenise(
        self,
        model: Any,
        *,
        bos: bool | None = None,
        max_tokens: int | None = None,
        cut: Literal["left", "right"] | None = None,
    ) -> Tokenised:
        """Token ids of every prompt.

        Args:
            model: a Model.
            bos: as for `Model.to_rows`; a chat template says itself whether there is a BOS, so it must be None there.
            max_tokens: most a prompt may have; the model's context if not given.
            cut: which end loses tokens where there are more; None refuses, naming the rows.

        Raises:
            BadData: on conversations without a template, prompts that are too long, or none at all.
        """
        if any(not isinstance(item, str) for item in self.items):
            raise BadData(
                "conversations have no tokens until a chat template is applied: call with_chat_template(model) first"
            )
        if self.is_templated:
            if bos is not None:
                raise BadData("the chat template decides about the BOS; leave bos out")
            spelled = model.tokenizer.bos_token
            bos = bool(spelled) and all(str(item).startswith(spelled) for item in self.items)
        rows = model.to_rows(self.items, bos=bos)
        limit = max_tokens or model.n_ctx
        self._refuse(
            {
                w: f"{len(r)} tokens"
                for w, r in zip(self.where, rows, strict=True)
                if limit and len(r) > limit and cut is None
            },
            f"more than {limit} tokens; give cut='left' or 'right', or shorten them",
        )
        self._refuse(
            {w: "no tokens" for w, r in zip(self.where, rows, strict=True) if not r},
            "nothing to run; give bos=True or remove them",
        )
        n_cut = sum(len(r) > limit for r in rows) if limit else 0
        if limit:
            rows = [r if len(r) <= limit else r[-limit:] if cut == "left" else r[:limit] for r in rows]
        ids = sorted({i for row in rows for i in row})
        strings = dict(zip(ids, model.to_strings(ids), strict=True))
        settings = {"bos": bos, "max_tokens": max_tokens, "cut": cut}
        return Tokenised(
            rows, strings, self.columns, self.source | settings, self.where, self._notes(model, rows, n_cut, limit, cut)
        )

    def _notes(self, model: Any, rows: list[list[int]], n_cut: int, limit: int | None, cut: str | None) -> list[str]:
        tokenizer = model.tokenizer
        first, unknown = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "unk_token_id", None)
        with_bos = sum(first is not None and row[0] == first for row in rows)
        some = "all" if with_bos == len(rows) else with_bos or "none"
        notes = [f"BOS in front of {some} of them; chat template {'applied' if self.is_templated else 'not applied'}"]
        if n_cut:
            notes.append(f"{n_cut} were cut to {limit} tokens on the {cut}")
        if unknown is not None and unknown != first and (n_unknown := sum(row.count(unknown) for row in rows)):
            notes.append(f"{n_unknown} tokens are unknown to the tokenizer")
        return notes

    @staticmethod
    def _refuse(bad: Mapping[str, str], why: str) -> None:
        if bad:
            raise BadData(f"{_listed([f'{w} ({r})' for w, r in bad.items()])}: {why}")


def read_prompts(
    source: str | Path | Sequence[Any],
    column: str | None = None,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    n: int | None = None,
    seed: int = 0,
) -> Prompts:
    """Prompts of a file, a data set or a list.

    Args:
        source: a JSONL, CSV, TSV, Parquet or text file; a directory or hub name that `datasets` reads; or a list of
            texts, conversations or dicts.
        column: which holds the prompt; found by itself if there is one of the usual names. The others become `columns`.
        split, config, revision: of a data set.
        n: only so many, drawn by `seed` and kept in their order.

    Raises:
        BadData: naming file and line of rows that cannot be used, or what the source lacks.
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.suffix.lower() in READERS:
            found, about = _from_file(path)
        else:
            found, about = _from_datasets(str(source), path, split, config, revision)
    else:
        found, about = [(f"item {i}", row) for i, row in enumerate(source)], {"name": "a list"}
    if not found:
        raise BadData(f"{about['name']} holds no prompts")
    if n is not None and n < len(found):
        found = [found[i] for i in sorted(np.random.default_rng(seed).permutation(len(found))[:n])]
        about |= {"n": n, "seed": seed}
    rows = [(where, row if isinstance(row, (Mapping, _Bad)) else {column or "prompt": row}) for where, row in found]
    column = column or _usual(rows, about["name"])
    bad = {where: reason for where, row in rows if (reason := _why_bad(row, column))}
    if bad:
        raise BadData(
            f"{len(bad)} of {len(rows)} rows cannot be used: {_listed([f'{w}: {r}' for w, r in bad.items()], '; ')}"
        )
    others = dict.fromkeys(key for _, row in rows for key in row if key != column)
    columns = pd.DataFrame({str(key): [row.get(key) for _, row in rows] for key in others}, index=range(len(rows)))
    if str(about["name"]).endswith((".csv", ".tsv")):  # whose cells are all text
        columns = columns.apply(_numbers)
    return Prompts([_item(row[column]) for _, row in rows], columns, about, [where for where, _ in rows])


def read_answered(source: str | Path) -> pd.DataFrame:
    """Prompts with their answers, of a file or data set: columns prompt, answer and the other ones, all text.

    Raises:
        BadData: naming file and line of a prompt that cannot be used, or that has no answer.
    """
    found = read_prompts(source, "prompt")
    table = found.columns.assign(prompt=found.items)
    answers = table["answer"] if "answer" in table else pd.Series([None] * len(table))
    if missing := [
        w for w, answer in zip(found.where, answers, strict=True) if not isinstance(answer, str) or not answer
    ]:
        raise BadData(f'{missing[0]} has no "answer"; every row needs a prompt and an answer')
    return table


# ---- where rows come from ----


class _Bad(str):
    """The reason why a row could not be read."""


def _from_file(path: Path) -> tuple[list[Found], dict[str, Any]]:
    if not path.is_file():
        raise BadData(
            f"no file {path.name!r}; give a {', '.join(READERS)} file, a directory or hub name for `datasets`, or a"
            " list"
        )
    about = {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as found:
            raise BadData(f"{path.name} is no readable parquet file ({type(found).__name__})") from None
        return [(f"{path.name} row {i}", row) for i, row in enumerate(rows, 1)], about
    try:
        text = path.read_bytes().decode("utf-8-sig")  # as it stands: a cell or a string may hold any line end
    except UnicodeDecodeError as found:
        raise BadData(f"{path.name} is not UTF-8 text (byte {found.start}); save it as UTF-8") from None
    read = (
        _csv_rows(text, "\t" if suffix == ".tsv" else ",", path.name)
        if suffix in (".csv", ".tsv")
        else _line_rows(text, suffix != ".txt")
    )
    return [(f"{path.name} line {line}", row) for line, row in read], about


def _line_rows(text: str, is_json: bool) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold other separators
        if not line.strip():
            continue
        if not is_json:
            yield number, line.strip()
            continue
        try:
            yield number, json.loads(line)
        except ValueError as found:
            yield number, _Bad(f"no JSON ({found})")


def _csv_rows(text: str, delimiter: str, name: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a prompt may be longer than its 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as found:
            yield line, _Bad(f"no CSV ({found})")
            return
        if not row:
            continue
        if header is None:
            header = [cell.strip() for cell in row]
            if len(set(header)) < len(header):
                raise BadData(f"{name} line {line}: two columns have one name; its first line must name every column")
        elif len(row) != len(header):
            yield line, _Bad(f"{len(row)} cells where the first line names {len(header)} columns")
        else:
            yield line, dict(zip(header, row, strict=True))


def _from_datasets(
    name: str, path: Path, split: str, config: str | None, revision: str | None
) -> tuple[list[Found], dict[str, Any]]:
    import datasets

    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            table: Any = datasets.load_from_disk(str(path))
            table = table[split] if isinstance(table, datasets.DatasetDict) else table
        else:
            table = datasets.load_dataset(str(path) if path.is_dir() else name, config, split=split, revision=revision)
    except Exception as found:  # datasets raises a different class for each way a source can be missing
        raise BadData(
            f"{name!r} is no file, and `datasets` cannot read it ({config or 'no config'}, split {split}):"
            f" {str(found).splitlines()[0]}"
        ) from found
    label = path.name if path.is_dir() else name
    about = {
        "name": label,
        "config": config,
        "split": split,
        "revision": revision or str(getattr(table.info, "version", "") or ""),
        "fingerprint": table._fingerprint,
    }
    return [(f"{label} row {i}", row) for i, row in enumerate(table, 1)], about


# ---- which rows can be used ----


def _usual(rows: list[Found], name: str) -> str:
    keys = list(dict.fromkeys(key for _, row in rows if not isinstance(row, _Bad) for key in row))
    usual = [key for key in USUAL_COLUMNS if key in keys]
    if len(usual) == 1 or (len(keys) == 1 and not usual) or not keys:
        return (usual or keys or ["prompt"])[0]
    raise BadData(f"{name} has columns {', '.join(map(str, keys))}: say which holds the prompt, column='...'")


def _why_bad(row: Any, column: str) -> str:
    if isinstance(row, _Bad):
        return str(row)
    if column not in row:
        return f"no {column!r}; it has {', '.join(map(str, row)) or 'nothing'}"
    value = row[column]
    if isinstance(value, str):
        return "" if value.strip() else f"{column!r} is empty"
    if isinstance(value, list):
        if not value:
            return f"{column!r} is a conversation without turns"
        wrong = [
            t
            for t in value
            if not (isinstance(t, Mapping) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str))
        ]
        return f"a turn must be {{'role': text, 'content': text}}, got {str(wrong[0])[:60]}" if wrong else ""
    return f"{column!r} must be a text or a conversation, got {str(value)[:60]}"


def _item(value: Any) -> Item:
    return [{"role": t["role"], "content": t["content"]} for t in value] if isinstance(value, list) else value


# A number as a program writes it: 007, +1 and 1e5 are what names look like, and would not come back as they were.
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]\d+)?")


def _numbers(cells: pd.Series) -> pd.Series:
    """Numbers if every cell is one and none loses a digit, so that labels are and names are not; empty ones are nan."""
    written = [cell.strip() for cell in cells if cell.strip()]
    if not all(_NUMBER.fullmatch(cell) for cell in written):
        return cells
    found = pd.to_numeric(cells)
    whole = [cell.lstrip("-").isdigit() for cell in cells]
    lost = any(int(value) != int(cell) for value, cell in zip(found[whole], cells[whole], strict=True))
    return cells if lost or found.dtype == object else found


def _listed(texts: list[str], between: str = ", ", most: int = 3) -> str:
    return between.join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
