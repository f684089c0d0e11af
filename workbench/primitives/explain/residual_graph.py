"""The residual stream as a graph: who writes into it, who reads it, and how a single edge between them is changed.

The stream is a sum of writers (embeddings, heads, MLPs); each reader (a head's q, k or v input, an MLP, the final norm)
sees the sum of the writers before it, so an edge can be changed alone by adding to that one reader's input before its
norm. That a model's stream is such a sum, and that its readers read it through their norm and weights, is checked by
number on the given tokens before anything is measured; a model that fails (norms after attention as in Gemma 2, scaled
residuals) is refused with the place where it fails. Path patching, edge attribution and circuits are built on it.
Cost: `Graph.of` runs one forward of two rows; `read_run` one forward.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.core.errors import BadData, NotFired, UnknownName, UnsupportedModel
from workbench.models.inputs import Inputs, tokens_of
from workbench.models.model import Hook, Model

Sender = str | tuple[int, int]
Receiver = str | tuple[int, int, str]


@dataclass(frozen=True, eq=False)
class Port:
    """Readers that share one hook: the heads of a layer's q, k or v, one MLP, or the logits.

    readers: their places in `Graph.readers`. n_before: the first so many of `Graph.writers` feed them. stream: the hook
    that shows what they read. hook: where a change is made, behind the norm, so only this reader sees it. norm:
    what lies between the two (None: nothing). weight: [reader, d_model, d_head] between the norm and the hook.
    """

    readers: slice
    n_before: int
    stream: str
    hook: str
    norm: Any = None
    weight: torch.Tensor | None = None

    def change(self, stream: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """How the hook's tensor changes if `shift` is added to what each reader reads; exactly 0 where `shift` is 0.

        Args:
            stream: [batch, pos, d_model]. shift: [batch, pos, reader, d_model].

        Returns:
            [batch, pos, reader, d_head] for q, k, v, otherwise [batch, pos, d_model].
        """
        if self.norm is None:
            return shift.squeeze(2)
        moved = self.norm(stream.unsqueeze(2) + shift.to(stream.dtype)) - self.norm(stream.unsqueeze(2))
        return moved.squeeze(2) if self.weight is None else torch.einsum("bprd,rdh->bprh", moved, self.weight)

    def pull(self, stream: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """[batch, pos, reader, d_model] gradient at each reader's own input, from the gradient at the hook; float32."""
        n = 1 if self.weight is None else len(self.weight)
        with torch.enable_grad():
            shift = torch.zeros(
                *stream.shape[:2], n, stream.shape[-1], device=stream.device, dtype=stream.dtype, requires_grad=True
            )
            return torch.autograd.grad(self.change(stream.detach(), shift), shift, gradient)[0].float()


@dataclass(frozen=True, eq=False)
class Graph:
    """Writers and readers in the order they meet the stream: "embed", "a0.h1", "m0" write; "a1.h0<q>", "m1", "logits"
    read. Under grouped-query attention k and v are read once per key/value head, "a1.kv0<k>"."""

    n_layers: int
    n_heads: int
    is_parallel: bool  # attention and MLP of a layer read the same stream, and neither feeds the other
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    ports: tuple[Port, ...]

    @classmethod
    def of(cls, model: Model, tokens: torch.Tensor) -> "Graph":
        """The graph of a model, checked by one forward of at most two rows of `tokens`.

        Raises:
            UnsupportedModel: if the stream is not the sum of its writers or a reader cannot be reached, saying where.
        """
        model.require("causal-lm", "edges of the residual stream")
        is_parallel, H = "resid_mid" not in model.sites(), model.n_heads
        writers, readers, ports = ["embed"], [], []

        def add(
            names: Sequence[str],
            n_before: int,
            stream: str,
            hook: str,
            norm: Any = None,
            weight: torch.Tensor | None = None,
        ) -> None:
            if hook not in model.hook_names:
                raise UnsupportedModel(
                    f"{model.name} has no hook {hook}, so what {names[0]} reads cannot be changed alone"
                )
            ports.append(
                Port(
                    slice(len(readers), len(readers) + len(names)),
                    n_before,
                    stream,
                    model.hook_names[hook],
                    norm,
                    weight,
                )
            )
            readers.extend(names)

        for layer in range(model.n_layers):
            block: Any = model.live.blocks[layer]
            if missing := [part for part in ("attn", "mlp", "ln1") if getattr(block, part, None) is None]:
                raise UnsupportedModel(
                    f"layer {layer} of {model.name} has no {missing[0]}, so it is no block of attention and MLP that"
                    " read through a norm"
                )
            norm, before = (
                block.ln1.original_component,
                len(writers),
            )  # the bare module: the bridge's would fire its hooks again
            stream = model.hook_name("resid_pre", layer)
            for kind in "qkv":
                try:
                    weight = getattr(block.attn, f"W_{kind.upper()}", None)
                except NotImplementedError:  # TransformerLens has no such weight of latent attention (DeepSeek)
                    weight = None
                if weight is None or weight.ndim != 3:
                    raise UnsupportedModel(
                        f"layer {layer} of {model.name} has no W_{kind.upper()} per head, so its heads' inputs cannot"
                        " be told apart"
                    )
                head = "h" if len(weight) == H else "kv"
                add(
                    [f"a{layer}.{head}{h}<{kind}>" for h in range(len(weight))],
                    before,
                    stream,
                    f"blocks.{layer}.attn.hook_{kind}",
                    norm,
                    weight.detach(),
                )
            norm = (
                block.ln2.original_component if hasattr(block, "ln2") else norm
            )  # GPT-J's MLP shares attention's norm
            stream = stream if is_parallel else model.hook_name("resid_mid", layer)
            add([f"m{layer}"], before + H * (not is_parallel), stream, f"blocks.{layer}.mlp.hook_in", norm)
            writers += [f"a{layer}.h{h}" for h in range(H)] + [f"m{layer}"]
        add(["logits"], len(writers), "ln_final.hook_in", "ln_final.hook_in")
        graph = cls(model.n_layers, H, is_parallel, tuple(writers), tuple(readers), tuple(ports))
        graph._check(model, tokens[:2])
        return graph

    def writer(self, sender: Sender) -> int:
        """Place of a writer given by name or as (layer, head)."""
        name = sender if isinstance(sender, str) else "a{}.h{}".format(*sender)
        if name not in self.writers:
            raise UnknownName.among("writer", name, self.writers)
        return self.writers.index(name)

    def reader(self, receiver: Receiver) -> int:
        """Place of a reader given by name or as (layer, head, "q" | "k" | "v"); for k and v `head` is the key/value
        head.
        """
        names = (
            [receiver]
            if isinstance(receiver, str)
            else ["a{}.{}{}<{}>".format(receiver[0], head, *receiver[1:]) for head in ("h", "kv")]
        )
        if not (found := [name for name in names if name in self.readers]):
            raise UnknownName.among("reader", names[0], self.readers)
        return self.readers.index(found[0])

    def readers_of(self, writer: int) -> list[int]:
        """Places of what the node of a writer reads: q, k and v of a head, the input of an MLP; nothing for the
        embeddings.
        """
        if writer == 0:
            return []
        layer, head = divmod(writer - 1, self.n_heads + 1)
        ports = self.ports[4 * layer : 4 * layer + 4]
        if head == self.n_heads:
            return [ports[3].readers.start]
        return [r.start + head * (r.stop - r.start) // self.n_heads for r in (port.readers for port in ports[:3])]

    def heads(self, layer: int) -> slice:
        """Places of a layer's heads among the writers; its MLP follows them."""
        return slice(1 + layer * (self.n_heads + 1), 1 + layer * (self.n_heads + 1) + self.n_heads)

    def exists(self) -> np.ndarray:
        """[writer, reader] bool: whether the writer comes before the reader."""
        return np.stack(
            [np.arange(len(self.writers)) < port.n_before for port in self.ports for _ in self.readers[port.readers]], 1
        )

    def _check(self, model: Model, tokens: torch.Tensor) -> None:
        attn_out = [model.hook_name("attn_out", layer) for layer in range(self.n_layers)]
        run = read_run(model, self, tokens, also=attn_out)
        tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 3e-2

        def same(found: torch.Tensor, expected: torch.Tensor, why: str) -> None:
            if (
                found.shape != expected.shape
                or float((found - expected).norm()) > tolerance * float(expected.norm()) + 1e-30
            ):
                raise UnsupportedModel(f"edges cannot be told apart in {model.name}: {why}")

        total = run.at[self.ports[0].stream].float()
        for layer, name in enumerate(attn_out):
            wrote, heads = run.at[name].float(), self.heads(layer)
            summed = run.writes(model, self, range(heads.start, heads.stop)).sum(1)
            # An output bias belongs to no head and is the same everywhere, so only what varies must be the heads' sum.
            same(
                wrote - wrote[:1, :1],
                summed - summed[:1, :1],
                f"its heads' outputs do not add up to what attention writes at layer {layer} (normed or scaled first)",
            )
            for port in self.ports[4 * layer : 4 * layer + 4]:
                x, found, n = run.at[port.stream], run.at[port.hook], 1 if port.weight is None else len(port.weight)
                same(
                    x.float(),
                    total + wrote if port.weight is None and not self.is_parallel else total,
                    f"{port.stream} is not the sum of what was written before",
                )
                first = x[:1, :1].expand_as(x)
                moved = port.change(first, (x - first).unsqueeze(2).expand(-1, -1, n, -1)).detach()
                same(
                    (found - found[:1, :1]).float(),
                    moved.float(),
                    f"{port.hook} does not follow from the stream by norm and weights",
                )
            total = total + wrote + run.mlp[layer].float()
        same(run.at[self.ports[-1].stream].float(), total, "the last stream is not the sum of what was written")


@dataclass(frozen=True, eq=False)
class Run:
    """One run: logits, z and MLP outputs by layer, and these and what arrived at the ports by canonical hook name."""

    logits: torch.Tensor
    z: list[torch.Tensor]
    mlp: list[torch.Tensor]
    at: dict[str, torch.Tensor]

    def writes(self, model: Model, graph: Graph, which: Iterable[int]) -> torch.Tensor:
        """[batch, writer, pos, d_model] what the chosen writers added to the stream, in float32 (z times W_O for
        heads).
        """
        which, embed = list(which), self.at[graph.ports[0].stream]
        out = torch.empty(len(embed), len(which), *embed.shape[1:], device=embed.device)
        for i, (layer, head) in enumerate(divmod(place - 1, graph.n_heads + 1) for place in which):
            if layer < 0:
                out[:, i] = embed
            elif head == graph.n_heads:
                out[:, i] = self.mlp[layer]
            else:
                out[:, i] = self.z[layer][:, :, head].float() @ model.W_O(layer)[head].detach().float()
        return out


def read_run(
    model: Model,
    graph: Graph,
    tokens: torch.Tensor,
    *,
    also: Sequence[str] = (),
    hook_fns: Sequence[Hook] = (),
    grad: bool = False,
) -> Run:
    """Run once, with `hook_fns` first, and keep (detached) what the graph's writers wrote and what arrived at its
    ports.
    """
    at: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Hook:
        def see(tensor: torch.Tensor, hook: object) -> None:
            at[name] = tensor.detach()

        return name, see

    layers = range(graph.n_layers)
    zs, mlps = ([model.hook_name(site, layer) for layer in layers] for site in ("z", "mlp_out"))
    names = dict.fromkeys([*zs, *mlps, *(name for port in graph.ports for name in (port.stream, port.hook)), *also])
    logits = model.forward(tokens, hook_fns=[*hook_fns, *map(keep, names)], grad=grad)
    if silent := [name for name in names if name not in at]:
        raise NotFired(f"{', '.join(silent[:3])} never fired in {model.name}, so nothing was read there")
    return Run(logits, [at[name] for name in zs], [at[name] for name in mlps], at)


def token_pair(model: Model, clean: Inputs, corrupted: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as [batch, pos] ids of one shape: activations are compared position by position.

    Raises:
        BadData: if they are not aligned; otherwise as `models.inputs.rows_of`.
    """
    one, other = tokens_of(model, clean), tokens_of(model, corrupted)
    if one.shape != other.shape:
        raise BadData(
            f"clean and corrupted must be [batch, pos] of one shape, got {tuple(one.shape)} and {tuple(other.shape)}"
        )
    return one, other
