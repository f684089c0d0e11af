"""Which hooks of one model mean what the words of core.hooks.SITES say, found by measuring.

TransformerLens names a hook for every word, and on some families the name lies: the hook sits behind a norm, beside the
residual connection, or after the fact. So nothing is believed by its name. On two short inputs A and B:

- The stream determines what follows: with `resid_pre` (or `resid_mid`) of A put into the run of B, the block's MLP and
  output must be those of A. A hook that only the norm hears, or that lies behind the MLP, fails this.
- What is written is what is added: with the stream moved by d and `attn_out` (or `mlp_out`) by -d, what comes after is
  as before. This holds for norms before the sublayers, after them, and around the sum.
- A head's output makes the sublayer's: with `z` of A in the run of B, `attn_out` is A's; so for neurons and `mlp_out`.
- Queries, keys and values are heard: moved, they move `z`. And every tensor has the dims of its word.

Where several hooks could be what a word means, the first that passes is taken; where none does, the word is refused and
the reason kept. Each hypothesis is one row of a batch, all layers at once.
Cost: three forwards of a few tokens, once a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from workbench.core.hooks import SITES

Hook = tuple[str, Callable[..., torch.Tensor | None]]
Key = tuple[str, int]  # a candidate's template and a layer
TOLERANCE = 0.05  # share of the difference between A and B; wrong hooks miss by about 1, half precision by 0.01
LOUD = 100.0  # how far queries, keys and values are moved at least, so that small weights show it too
# Where else a word's place may be, tried in order after TransformerLens's own name for it.
ELSEWHERE = {
    "resid_mid": ("blocks.{layer}.ln1.hook_out", "blocks.{layer}.attn.hook_out"),
    "attn_out": ("blocks.{layer}.attn.o.hook_out", "blocks.{layer}.attn.hook_out"),
    "mlp_out": ("blocks.{layer}.mlp.out.hook_out", "blocks.{layer}.mlp.hook_out"),
}
MISSED = {
    "resid_pre": "replacing it does not decide what the block does",
    "resid_mid": "no hook there is read by both the MLP and the residual connection",
    "attn_out": "no hook there holds what is added to the stream",
    "mlp_out": "no hook there holds what is added to the stream",
    "z": "replacing it does not decide what attention writes",
    "mlp_post": "replacing it does not decide what the MLP writes",
    "q": "editing it changes no head's output",
    "k": "editing it changes no head's output",
    "v": "editing it changes no head's output",
    "mlp_pre": "editing it changes no neuron",
    "attn_scores": "it is shown after the fact, so editing it would change nothing",
}


@dataclass(frozen=True)
class Sites:
    """names: {any hook name: canonical name}, the refused words left out. refused: {word: why}. pattern_is_live:
    whether editing the pattern re-weights the output; where it is shown after the fact, it can be read only.
    """

    names: Mapping[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)
    pattern_is_live: bool = True


def in_place(fn: Callable[..., torch.Tensor | None]) -> Callable[..., torch.Tensor]:
    """A hook whose replacement is written into the tensor it was shown.

    What a hook on a sublayer's input RETURNS reaches the sublayer alone, and the residual connection around it keeps
    the old values; written into the tensor, the replacement reaches both, which is what editing the stream means.
    """

    def write(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        before = tensor.clone()
        new = fn(before, hook=hook)
        return tensor if new is None else tensor.copy_(new)

    return write


def measured(
    known: Mapping[str, str],
    run: Callable[[torch.Tensor, Sequence[Hook]], None],
    inputs: torch.Tensor,
    n_layers: int,
    sizes: Mapping[str, int],
) -> Sites:
    """The sites of a model.

    Args:
        known: {any hook name: canonical name}, as TransformerLens has them.
        run: a forward of inputs with hooks of canonical names.
        inputs: [2, ...] the runs A and B.
        sizes: {dim of SITES: its size}, for dims of known size.
    """
    return _Measurement(known, run, inputs, n_layers, sizes).sites()


class _Measurement:
    """One model's runs A and B, and trials against them."""

    def __init__(self, known: Mapping[str, str], run: Any, inputs: torch.Tensor, n_layers: int, sizes: Any):
        self.known, self.run, self.inputs, self.sizes = known, run, inputs, dict(sizes)
        self.layers = range(n_layers)
        self.refused: dict[str, str] = {}
        self.chosen: dict[str, str] = {}  # word -> template of the hook that means it
        self.candidates = {
            word: [
                t
                for t in dict.fromkeys([SITES[word].template, *ELSEWHERE.get(word, ())])
                if all(t.format(layer=layer) in known for layer in self.layers)
            ]
            for word, site in SITES.items()
            if site.per_layer
        }
        self.base = self._capture(inputs, [t for found in self.candidates.values() for t in found])
        stream = self.base.get((SITES["resid_pre"].template, 0))
        if stream is not None and stream.ndim == 3:
            self.sizes |= dict.fromkeys(("pos", "query_pos", "key_pos"), stream.shape[1])

    def sites(self) -> Sites:
        for word, found in self.candidates.items():
            found[:] = [t for t in found if self._has_dims(word, t)]
        self.chosen = {word: found[0] for word, found in self.candidates.items() if found and word not in ELSEWHERE}
        mids = self.candidates["resid_mid"]
        rows = {("resid_mid", t): {t: self._other} for t in mids}
        rows |= {(word, t): {t: self._other} for word in ("resid_pre", "z", "mlp_post") if (t := self.chosen.get(word))}
        rows |= {
            (word, t): {t: self._louder}
            for word in ("q", "k", "v", "mlp_pre", "attn_scores", "pattern")
            if (t := self.chosen.get(word))
        }
        seen = self._try(rows)
        self._choose("resid_mid", seen)
        self._judge("resid_pre", seen)
        self._written()
        for word in ("z", "mlp_post", "q", "k", "v", "mlp_pre", "attn_scores"):
            self._judge(word, seen)
        pattern = self.chosen.get("pattern")
        is_live = pattern is not None and self._moves(seen.get(("pattern", pattern)), "z")
        if not is_live and "attn_scores" in self.chosen:
            self._refuse("attn_scores", MISSED["attn_scores"])
        return self._named(is_live)

    # ---- the trials ----

    def _other(self, key: Key) -> torch.Tensor:
        """A's values, for the run of B."""
        return self.base[key][0]

    def _same(self, key: Key) -> torch.Tensor:
        return self.base[key][1]

    def _louder(self, key: Key) -> torch.Tensor:
        a, b = self.base[key]
        off = torch.where(torch.isfinite(a) & torch.isfinite(b), a - b, torch.zeros_like(a))
        return b + off * (LOUD / off.float().pow(2).mean().sqrt().clamp(1e-12, 1)).to(off.dtype)

    def _written(self) -> None:
        """attn_out and mlp_out: the stream moved by d and they by -d."""
        pre, mid = SITES["resid_pre"].template, self.chosen.get("resid_mid")
        attns, mlps = self.candidates["attn_out"], self.candidates["mlp_out"]
        stream = mid or pre
        if stream == pre and "resid_pre" not in self.chosen:
            return
        rows: dict[tuple[str, str], Any] = {}
        for t in attns:  # in a parallel block the MLP reads the moved stream too, and is held
            held = {} if mid else {mlps[0]: self._same} if mlps else {}
            rows["attn_out", t] = {pre: self._other, t: self._minus(pre, t), **held}
        for t in mlps:
            held = {} if mid else {attns[0]: self._same} if attns else {}
            rows["mlp_out", t] = {stream: self._other, t: self._minus(stream, t), **held}
        seen = self._try(rows)
        self._choose("attn_out", seen)
        self._choose("mlp_out", seen)

    def _minus(self, stream: str, template: str) -> Callable[[Key], torch.Tensor]:
        def values(key: Key) -> torch.Tensor:
            a, b = self.base[stream, key[1]]
            return self.base[template, key[1]][1] + b - a

        return values

    def _passes(self, word: str, template: str, row: dict[Key, torch.Tensor]) -> bool:
        attn, mlp = (self.candidates[w][0] if self.candidates[w] else None for w in ("attn_out", "mlp_out"))
        post, mid = self.chosen.get("resid_post"), self.chosen.get("resid_mid")
        after = {
            "resid_pre": (attn, mlp, post),
            "resid_mid": (mlp, post),
            "attn_out": (mid or post,),
            "mlp_out": (post,),
            "z": (self.chosen.get("attn_out", attn),),
            "mlp_post": (self.chosen.get("mlp_out", mlp),),
        }
        if word in after:
            seen = [t for t in after[word] if t is not None]
            return bool(seen) and all(self._is(row, t, int(word in ("attn_out", "mlp_out"))) for t in seen)
        return self._moves(row, {"mlp_pre": "mlp_post", "attn_scores": "pattern"}.get(word, "z"))

    def _is(self, row: dict[Key, torch.Tensor], template: str, which: int) -> bool:
        """Whether the row has the values of A (0) or B (1) at a hook, in every layer. Most positions decide, because a
        mixture of experts may choose another expert where two are nearly equal."""
        for layer in self.layers:
            a, b = (values.flatten(1).float() for values in self.base[template, layer])
            found = row[template, layer].flatten(1).float()
            rounding = 64 * torch.finfo(self.base[template, layer].dtype).eps * (a.norm(dim=1) + b.norm(dim=1))
            off = (found - (a, b)[which]).norm(dim=1) - TOLERANCE * (a - b).norm(dim=1) - rounding
            if not float(off.median()) <= 0:
                return False
        return True

    def _moves(self, row: dict[Key, torch.Tensor] | None, word: str) -> bool:
        """Whether the row has other values than B at a site, in every layer."""
        if row is None or word not in self.chosen:
            return row is not None
        for layer in self.layers:
            found, before = row[self.chosen[word], layer].float(), self.base[self.chosen[word], layer][1]
            rounding = 16 * torch.finfo(before.dtype).eps * float(before.float().norm())
            if not float((found - before.float()).nan_to_num(0.0, 0.0, 0.0).norm()) > rounding:
                return False
        return True

    # ---- running them ----

    def _capture(self, inputs: torch.Tensor, templates: Sequence[str], edits: Sequence[Hook] = ()) -> dict[Key, Any]:
        """{(template, layer): [row, ...] tensor} of one forward; a hook that shows no tensor gives nothing."""
        taken: dict[Key, torch.Tensor] = {}
        by_name: dict[str, list[Key]] = {}
        for template in dict.fromkeys(templates):
            for layer in self.layers:
                by_name.setdefault(self.known[template.format(layer=layer)], []).append((template, layer))

        def keeper(keys: list[Key]) -> Callable[..., None]:
            def keep(tensor: Any, hook: object) -> None:
                if isinstance(tensor, torch.Tensor):
                    taken.update(dict.fromkeys(keys, tensor.detach().clone()))

            return keep

        self.run(inputs, [*edits, *((name, keeper(keys)) for name, keys in by_name.items())])
        return taken

    def _try(self, rows: Mapping[tuple[str, str], Mapping[str, Callable[[Key], torch.Tensor]]]) -> dict[Any, Any]:
        """{trial: what the row shows}: each trial is a copy of B in one batch, with its own edits. A trial that breaks
        the forward has no row."""
        if not rows:
            return {}
        by_name: dict[str, list[tuple[int, Key, Any]]] = {}
        for i, edits in enumerate(rows.values()):
            for template, values in edits.items():
                for layer in self.layers:
                    by_name.setdefault(self.known[template.format(layer=layer)], []).append(
                        (i, (template, layer), values)
                    )

        def editor(name: str, edits: list[tuple[int, Key, Any]]) -> Hook:
            def edit(tensor: torch.Tensor, hook: object) -> torch.Tensor:
                tensor = tensor.clone()
                for i, key, values in edits:
                    tensor[i] = values(key)
                return tensor

            through = any(key[0] in self.candidates["resid_mid"] for _, key, _ in edits)
            return name, in_place(edit) if through else edit

        everything = [t for found in self.candidates.values() for t in found]
        batch = self.inputs[1:].expand(len(rows), *self.inputs.shape[1:]).contiguous()
        try:
            taken = self._capture(batch, everything, [editor(*pair) for pair in by_name.items()])
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            if len(rows) == 1:
                return {}
            items = list(rows.items())
            half = len(items) // 2
            return self._try(dict(items[:half])) | self._try(dict(items[half:]))
        return {trial: {key: values[i] for key, values in taken.items()} for i, trial in enumerate(rows)}

    # ---- the verdicts ----

    def _has_dims(self, word: str, template: str) -> bool:
        """Whether a hook fired in every layer with the dims of its word."""
        dims = SITES[word].dims
        shapes = {tuple(self.base[template, n].shape[1:]) for n in self.layers if (template, n) in self.base}
        fired = all((template, layer) in self.base for layer in self.layers)
        if not fired:
            self.refused.setdefault(word, "its hook never fires")
        wrong = [
            s
            for s in shapes
            if len(s) != len(dims) or any(n != self.sizes.get(d, n) for n, d in zip(s, dims, strict=True))
        ]
        if wrong and word not in self.refused:
            shown = tuple(f"{d} {self.sizes[d]}" if d in self.sizes else d for d in dims)
            self.refused[word] = f"its hook shows {list(wrong[0])} after the batch, not [{', '.join(shown)}]"
        return fired and not wrong

    def _choose(self, word: str, seen: Mapping[Any, Any]) -> None:
        """The first candidate that passes."""
        found = self.candidates[word]
        passed = [t for t in found if (word, t) in seen and self._passes(word, t, seen[word, t])]
        if passed:
            self.chosen[word] = passed[0]
            self.refused.pop(word, None)
        elif SITES[word].template.format(layer=0) in self.known:
            self.refused.setdefault(word, MISSED[word])

    def _judge(self, word: str, seen: Mapping[Any, Any]) -> None:
        template = self.chosen.get(word)
        if template and not ((word, template) in seen and self._passes(word, template, seen[word, template])):
            self._refuse(word, MISSED[word])

    def _refuse(self, word: str, why: str) -> None:
        self.chosen.pop(word, None)
        self.refused[word] = why

    def _named(self, pattern_is_live: bool) -> Sites:
        """The names with each word at the hook that means it."""
        names = dict(self.known)
        for word, site in SITES.items():
            for layer in self.layers if site.per_layer else ():
                if word in self.refused:
                    names.pop(site.template.format(layer=layer), None)
                elif word in self.chosen:
                    names[site.template.format(layer=layer)] = self.known[self.chosen[word].format(layer=layer)]
        return Sites(names, self.refused, pattern_is_live)
