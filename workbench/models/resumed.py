"""Forwards that start in the middle: at a chosen block, and only for the positions from a chosen one on.

A patch at (layer, pos) changes nothing before that layer and, in a causal model, nothing before that position.
`BaseRun` keeps what the unpatched run computed there - the residual stream entering every block, keys and values - and
`run` goes on from it: each row joins the batch at its own block with its own residual, and the cache gives attention
its past, so a block's weights are read once for the cells of all layers before it. TransformerLens's `start_at_layer`
does not do this: it executes the earlier blocks and throws their work away.
Blocks keep their places in the model's list, because some families choose the attention mask by a block's index.
Cost of `run`: for every row (n_layers - layer) blocks over n_pos - start tokens. Memory of a BaseRun: (n_layers + 2 x
n_layers x n_kv_heads x d_head / d_model) residual streams of its tokens.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from workbench.core.errors import UnsupportedModel

from .model import Hook, Model

PER_HEAD = ("alibi", "position_bias")  # [row x head, 1, key] in Bloom and Falcon, [head, 1, key] in MPT


class _Stage(nn.Module):
    """Stands where a block was, and runs it on the rows that have entered by then.

    Rows are sorted by the block they enter at, so the ones in flight are the first `n`. The others' hidden states pass
    through untouched, and so do all when no row has entered yet, in the form that the block would return them in: some
    families read `block(...)[0]`. Attributes are forwarded to the block.
    """

    def __init__(
        self, block: nn.Module, entered: int, n: int, residual: torch.Tensor | None, width: int | None, n_heads: int
    ):
        super().__init__()
        self.__dict__.update(
            _block=block, _entered=entered, _n=n, _residual=residual, _width=width, _n_heads=n_heads
        )  # not a submodule: it must not be found twice

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        block, entered, n, residual = (self.__dict__[key] for key in ("_block", "_entered", "_n", "_residual"))
        if n == 0:
            width = self.__dict__["_width"]
            return hidden_states if width is None else (hidden_states, *[None] * (width - 1))
        rows = len(hidden_states)
        parts = [hidden_states[:entered], *([] if residual is None else [residual])]
        active = (
            torch.cat(parts) if entered and residual is not None else parts[-1] if residual is not None else parts[0]
        )
        if n < rows:
            n_heads = self.__dict__["_n_heads"]
            args, kwargs = _first_rows(args, rows, n, n_heads), _first_rows(kwargs, rows, n, n_heads)
        out = block(active, *args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        whole = first if n == rows else torch.cat([first, hidden_states[n:]])
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)


def _first_rows(value: Any, rows: int, n: int, n_heads: int, per_head: bool = False) -> Any:
    """Masks, positions and rotations of the first `n` rows; what is the same for all rows stays as it is."""
    if isinstance(value, torch.Tensor):
        each = n_heads if per_head else 1
        return value[: n * each] if value.ndim > 1 and len(value) == rows * each else value
    if isinstance(value, tuple):
        return tuple(_first_rows(v, rows, n, n_heads) for v in value)
    if type(value) is dict:
        return {k: _first_rows(v, rows, n, n_heads, k in PER_HEAD) for k, v in value.items()}
    return value


class BaseRun:
    """The unpatched run of [example, pos] tokens, and forwards that go on from within it.

    Attributes:
        tokens: [example, pos]. resid_pre: per layer [example, pos, d_model]. logits: [example, pos, d_vocab].

    Raises:
        UnsupportedModel: if this architecture has no cache or block list that allows it; the sentence says what.
    """

    def __init__(self, model: Model, tokens: torch.Tensor):
        model.require("causal-lm", "resuming a forward")
        self.model, self.tokens = model, tokens.to(model.device)
        self.blocks = _block_list(model)
        self.resid_pre: list[torch.Tensor] = [torch.empty(0)] * model.n_layers
        self.widths: list[int | None] = [None] * model.n_layers  # of the tuple a block returns; None for a tensor
        hooks = [(model.hook_name("resid_pre", layer), self._keeper(layer)) for layer in range(model.n_layers)]
        with model.lock, torch.no_grad(), model.hooked(hooks):
            handles = [block.register_forward_hook(self._measurer(layer)) for layer, block in enumerate(self.blocks)]
            try:
                self.logits, cache = model.live(self.tokens, return_type="logits_and_cache", use_cache=True)
            finally:
                for handle in handles:
                    handle.remove()
        self.keys_values = _read_cache(cache, model, self.tokens.shape[1])

    def _keeper(self, layer: int) -> Any:
        def keep(tensor: torch.Tensor, hook: object) -> None:
            self.resid_pre[layer] = tensor.detach()

        return keep

    def _measurer(self, layer: int) -> Any:
        def measure(_: nn.Module, __: tuple, output: Any) -> None:
            self.widths[layer] = len(output) if isinstance(output, tuple) else None

        return measure

    @property
    def n_pos(self) -> int:
        return self.tokens.shape[1]

    def run(
        self,
        layer: int | Sequence[int],
        start: int,
        example: torch.Tensor,
        *,
        residual: Callable[[int, slice], torch.Tensor] | None = None,
        hook_fns: Sequence[Hook] = (),
        read: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Go on from block `layer` and position `start`.

        Args:
            layer: first block that is executed, for all rows or for each; then in increasing order. Rows that enter
                later join the batch at their block, so one forward serves a whole sweep over layers.
            start: first position that is computed.
            example: [row] which example each row is; examples may repeat.
            residual: (layer, rows) -> [row, pos - start, d_model] entering that block; the unpatched one if not given.
            hook_fns: on blocks that run; their tensors have the rows that have entered, and positions from `start` on.
            read: positions (absolute, from `start` on) whose logits are wanted; all from `start` if not given. No
                others reach the unembedding.

        Returns:
            [row, read_pos, d_vocab] logits.
        """
        model, example = self.model, example.to(self.tokens.device)
        entry = [layer] * len(example) if isinstance(layer, int) else list(layer)
        if entry != sorted(entry) or len(entry) != len(example):
            raise ValueError("rows must be sorted by the block they enter at, one block a row")
        bounds = [
            bisect_left(entry, block) for block in range(model.n_layers + 1)
        ]  # rows bounds[k]:bounds[k + 1] enter at block k
        fns = list(hook_fns)
        if read is not None:
            wanted = [p - start for p in read]
            fns.append(("unembed.hook_in", lambda tensor, hook: tensor[:, wanted]))
        given = (
            {"past_key_values": self._cache(example, start, bounds), "use_cache": True}
            if start
            else {"use_cache": False}
        )

        def entering(block: int) -> torch.Tensor | None:
            rows = slice(bounds[block], bounds[block + 1])
            if rows.start == rows.stop:
                return None
            return self.resid_pre[block][example[rows], start:] if residual is None else residual(block, rows)

        with model.lock, torch.no_grad():
            originals = list(self.blocks)
            handles: list[Any] = []
            if read is not None and not any(
                model.hook_names[name].startswith(f"blocks.{model.n_layers - 1}.mlp") for name, _ in hook_fns
            ):
                handles = _only_there(model, [p - start for p in read])
            try:
                for block, original in enumerate(originals):
                    n_before, n_here = bounds[block : block + 2]
                    self.blocks[block] = _Stage(
                        original, n_before, n_here, entering(block), self.widths[block], model.n_heads
                    )
                with model.hooked(fns):
                    return model.live(self.tokens[example, start:], **given)
            finally:
                for handle in handles:
                    handle.remove()
                for block, original in enumerate(originals):
                    self.blocks[block] = original

    def _cache(self, example: torch.Tensor, start: int, bounds: list[int]) -> DynamicCache:
        """Keys and values of the positions before `start`, in each layer for the rows that have entered by then (one,
        where none has: the cache's length is read off the first layer)."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.keys_values):
            rows = example[: max(1, bounds[layer + 1])]
            cache.update(keys[rows, :, :start], values[rows, :, :start], layer)
        return cache


def _only_there(model: Model, wanted: list[int]) -> list[Any]:
    """Hooks by which the last block's MLP, two thirds of its work, computes the wanted positions only.

    An MLP works on each position by itself, and after the last block no other position is read. The rest are left at
    zero. Architectures without an MLP module of its own simply never call these.
    """
    mlp: Any = getattr(model.live.blocks[model.n_layers - 1], "mlp", None)
    if mlp is None or model.kind != "causal-lm":
        return []
    shape: list[torch.Size] = []

    def narrow(_: nn.Module, args: tuple) -> tuple:
        shape[:] = [args[0].shape]
        return tuple(  # Bloom and MPT hand their MLP the residual stream too, which it adds
            a[:, wanted] if isinstance(a, torch.Tensor) and a.shape[:2] == shape[0][:2] else a for a in args
        )

    def widen(_: nn.Module, args: tuple, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        full = first.new_zeros(shape[0])
        full[:, wanted] = first
        return (full, *output[1:]) if isinstance(output, tuple) else full

    return [mlp.register_forward_pre_hook(narrow), mlp.register_forward_hook(widen)]


def _block_list(model: Model) -> nn.ModuleList:
    mapping: Any = model.live.adapter.component_mapping or {}
    if "blocks" not in mapping:
        raise UnsupportedModel(f"{model.name} has no single stack of blocks, so a forward cannot start in its middle")
    found = model.live.original_model.get_submodule(mapping["blocks"].name)
    if not isinstance(found, nn.ModuleList):
        raise UnsupportedModel(
            f"the blocks of {model.name} are a {type(found).__name__} and not a list that can be stood in for"
        )
    return found


def _read_cache(cache: Any, model: Model, n_pos: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values [example, kv_head, pos, d_head] per layer, complete, or UnsupportedModel."""
    layers = getattr(cache, "layers", None)
    if layers is None or len(layers) != model.n_layers:
        raise UnsupportedModel(
            f"{model.name} keeps its past in a {type(cache).__name__}, not in keys and values per layer"
        )
    pairs = [(getattr(entry, "keys", None), getattr(entry, "values", None)) for entry in layers]
    whole = [(k, v) for k, v in pairs if k is not None and v is not None and k.shape[-2] == n_pos == v.shape[-2]]
    if len(whole) != model.n_layers:
        raise UnsupportedModel(
            f"{model.name} does not keep the keys and values of all {n_pos} positions in every layer (a sliding window,"
            " or another kind of layer)"
        )
    return whole
