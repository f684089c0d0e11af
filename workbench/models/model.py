"""Model: one loaded transformer, its lock, its tokenizer and what is known of where it came from.

Every forward of the project goes through `Model.forward`, which holds one re-entrant lock. JupyterLab runs widget
callbacks in another thread beside the running cell (ipykernel 7 subshells), and two threads on one TransformerBridge
corrupt each other's hooks without an exception; with the lock they do not (tests/models/test_threads.py).
"""

import gc
import hashlib
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import Cache

from workbench.core import hooks
from workbench.core.errors import BadData, NoRoom, NoTokenizer, UnknownSite, UnsupportedModel, WorkbenchError

from .inputs import Batch, token_words
from .probe import first_position, probe_input
from .sites import Hook, Sites, in_place, measured
from .spec import ModelSpec

Kind = Literal["causal-lm", "masked-lm", "encoder", "classifier", "image-classifier"]
HASH_ALL_BELOW = 500_000_000  # parameters; above it each tensor is sampled, and the hash says so


@dataclass(eq=False)
class Model:
    """A TransformerBridge with its lock. Made by `load`; usable as a context manager that unloads on exit.

    `runner` is the module that gives this kind's output: the bridge for language models, the Hugging Face module (whose
    blocks are the bridged ones, so hooks fire) for encoders and classifiers, whose heads the bridge alone would lose.
    """

    spec: ModelSpec
    name: str
    kind: Kind
    bridge: TransformerBridge | None
    runner: nn.Module | None
    tokenizer: Any = None
    about: dict[str, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __repr__(self) -> str:
        if self.bridge is None:
            return f"Model({self.name}, unloaded)"
        parity, folding = (self.about.get(f"{name}_max_abs_diff") for name in ("parity", "folding"))
        parity_text = "parity not measured" if parity is None else f"parity with Hugging Face {parity:.1e}"
        if folding is not None:
            parity_text = f"log-probabilities within {folding:.1e} of Hugging Face's"
        size = (
            f"{self.n_layers} layers x {self.n_heads} heads, d_model {self.d_model}, {self.n_parameters / 1e6:.2f} M"
            " parameters"
        )
        return (
            f"Model({self.name}: {self.kind}, {size}, {self.dtype_name} on {self.device}, {self.spec.processing}"
            f" weights, {parity_text})"
        )

    # ---- what it is ----

    @property
    def live(self) -> TransformerBridge:
        """The bridge.

        Raises:
            WorkbenchError: after `unload()`.
        """
        if self.bridge is None:
            raise WorkbenchError(f"{self.name} was unloaded; load it again to run it")
        return self.bridge

    @property
    def n_layers(self) -> int:
        return self.live.cfg.n_layers

    @property
    def n_heads(self) -> int:
        return self.live.cfg.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads; fewer than `n_heads` under grouped-query attention."""
        return getattr(self.live.cfg, "n_key_value_heads", None) or self.n_heads

    @property
    def d_model(self) -> int:
        return self.live.cfg.d_model

    @property
    def d_head(self) -> int:
        return self.live.cfg.d_head

    @property
    def d_vocab(self) -> int:
        return self.live.cfg.d_vocab

    @property
    def n_ctx(self) -> int:
        return self.live.cfg.n_ctx

    @property
    def is_causal(self) -> bool:
        return self.kind == "causal-lm" or (
            self.kind != "image-classifier" and getattr(self.live.cfg, "attention_dir", "causal") == "causal"
        )

    @property
    def device(self) -> str:
        return str(self.live.cfg.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.live.original_model.parameters() if p.is_floating_point())

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def n_parameters(self) -> int:
        return self.about["n_parameters"]

    @property
    def weights_hash(self) -> str:
        """Of all parameters, as they were before wrapping; see `hash_weights`."""
        return self.about["weights"]

    @property
    def hook_names(self) -> Mapping[str, str]:
        """{any hook name of this model: its canonical name}; aliases map to one canonical name each.

        Classic names stand for the hooks that mean what the words of core.hooks.SITES say, found by measuring
        (models/sites.py); where no hook of this model does, the word is left out, and `hook_name` says why.
        """
        return self._sites.names

    @property
    def pattern_is_live(self) -> bool:
        """Whether editing the pattern re-weights the output. Where TransformerLens runs Hugging Face's own attention
        (OPT, BERT, ViT), the pattern is shown after the fact: it can be read, and editing it would change nothing."""
        return self._sites.pattern_is_live

    @cached_property
    def _sites(self) -> Sites:
        """Measured on the first use of any site."""

        def run(inputs: torch.Tensor, hook_fns: Sequence[Hook]) -> None:
            with torch.no_grad(), warnings.catch_warnings(), self.live.hooks(fwd_hooks=list(hook_fns)):
                warnings.simplefilter("ignore")  # TransformerLens says which edits it drops; that is what is measured
                self._call(inputs, None, None, None)

        config: Any = self.live.original_model.config
        n_pos = next(n for n in (5, 6, 7) if n not in (self.n_heads, self.n_kv_heads))  # no dim is taken for another
        inputs = probe_input(config, self.live.original_model, self.kind == "image-classifier", 2, n_pos)
        sizes = {"head": self.n_heads, "kv_head": self.n_kv_heads, "d_model": self.d_model}
        with self.lock:
            return measured(self._bridged_names(), run, inputs, self.n_layers, sizes)

    def _bridged_names(self) -> dict[str, str]:
        """The hooks as TransformerLens names them, without those that lie outside the module that is run, such as the
        unembedding of an encoder without a head; without "mlp_post" where it is another name of the MLP's output, as
        on fused mixtures of experts."""
        reachable = (
            {id(m) for m in self.runner.modules()}
            if self.runner is not None and self.runner is not self.bridge
            else None
        )
        points = {n: p for n, p in self.live.hook_dict.items() if reachable is None or id(p) in reachable}
        known = {name: point.name or name for name, point in points.items()}
        for name, canonical in list(known.items()):
            if name.endswith(("mlp.hook_pre", "mlp.hook_post")) and canonical.endswith(("mlp.hook_in", "mlp.hook_out")):
                del known[name]
        return known

    def hook_name(self, site: str, layer: int | None = None) -> str:
        """Canonical hook name of a site here; UnknownSite with the closest names or the reason otherwise."""
        if site in self._sites.refused:
            raise UnknownSite(
                f"{self.name} has no site {site!r}: {self._sites.refused[site]}. It has: {', '.join(self.sites())}."
            )
        return hooks.resolve(site, layer, self.hook_names, self.name)

    def sites(self) -> list[str]:
        """Words of `core.hooks.SITES` that this model has in every layer."""
        layers = range(self.n_layers)
        return [s for s, e in hooks.SITES.items() if all(e.template.format(layer=n) in self.hook_names for n in layers)]

    def provenance(self) -> dict[str, Any]:
        """What a Result keeps of its model."""
        known = {
            "name": self.name,
            "kind": self.kind,
            "processing": self.spec.processing,
            "dtype": self.dtype_name,
            "device": self.device,
        }
        return known | self.about

    # ---- running it ----

    def forward(
        self,
        tokens: torch.Tensor | Batch,
        *,
        mask: torch.Tensor | None = None,
        hook_fns: Sequence[Hook] = (),
        grad: bool = False,
        stop_at_layer: int | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Run the model under its lock.

        Args:
            tokens: [batch, pos] ids, a Batch (tokens and mask), or [batch, channel, height, width] pixels.
            mask: [batch, pos] True at real tokens; positions follow from it.
            hook_fns: (canonical or classic hook name, fn(tensor, hook) -> tensor or None), removed afterwards.
            grad: keep the graph for a backward pass.
            stop_at_layer: run blocks 0..k-1 only and return the residual stream there (language models).
            cache: keys and values of the positions before `tokens`, extended in place; the mask then spans both. For
                causal language models that `models.generate.can_cache` allows.

        Returns:
            [batch, pos, d_vocab] logits for language models, [batch, pos, d_model] for encoders without a head,
            [batch, class] for classifiers.

        Raises:
            NoRoom: if the device runs out of memory, with the batch shape that did.
        """
        if isinstance(tokens, Batch):
            tokens, mask = tokens.tokens, tokens.mask
        tokens = tokens.to(self.device)
        if mask is not None and mask.ndim == 2 and mask.shape[1] >= tokens.shape[1] and len(mask) == len(tokens):
            # What stands in the padding must not matter; RoBERTa counts positions by it, and embeddings may lack it.
            tokens = tokens.masked_fill(~mask[:, -tokens.shape[1] :].to(self.device, torch.bool), self._own_pad_id)
        self._refuse_bad_tokens(tokens)
        if mask is not None:
            n_before = 0 if cache is None else cache.get_seq_length()
            if mask.shape != (len(tokens), n_before + tokens.shape[1]):
                before = f" after {n_before} cached ones" if n_before else ""
                raise BadData(
                    f"mask has shape {tuple(mask.shape)} and the tokens {tuple(tokens.shape)}{before}; they must agree"
                )
            mask = None if bool(mask.all()) else mask.to(self.device, torch.long)
        if mask is not None and self._pools and not self.is_causal and not bool(mask[:, 0].all()):
            raise BadData(
                f"{self.name} classifies by its first token, and the batch is padded on the left; pad on the right"
            )
        with self.lock, torch.set_grad_enabled(grad), self.hooked(hook_fns):
            try:
                return self._call(tokens, mask, stop_at_layer, cache)
            except torch.OutOfMemoryError as found:
                raise NoRoom(
                    f"{self.name} ran out of memory on {self.device} in a forward of shape {tuple(tokens.shape)}, whose"
                    f" logits alone are {tokens.numel() * self.d_vocab * self.dtype.itemsize / 1e9:.2f} GB; use a"
                    " smaller batch_size"
                ) from found

    @contextmanager
    def hooked(self, hook_fns: Sequence[Hook]) -> Iterator[None]:
        """Attach hooks for the length of a block; hold the lock around it. Names are resolved here, UnknownSite if
        wrong.
        """
        named = [(self._canonical(name), fn) for name, fn in hook_fns]
        if not named:  # the bridge takes milliseconds to attach nothing, which counts in a short forward
            yield
            return
        with self.live.hooks(
            fwd_hooks=[(name, in_place(fn) if name in self._stream_inputs else fn) for name, fn in named]
        ):
            yield

    @cached_property
    def _stream_inputs(self) -> frozenset[str]:
        """Hooks that stand for "resid_mid": what they return may reach the MLP alone, so it is written in place."""
        mids = (self.hook_names.get(f"blocks.{layer}.hook_resid_mid") for layer in range(self.n_layers))
        return frozenset(name for name in mids if name)

    def _call(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, stop_at_layer: int | None, cache: Cache | None
    ) -> torch.Tensor:
        if self.runner is self.bridge or stop_at_layer is not None:
            # Unless asked for, no keys and values are kept: they are as large as the residual streams of all layers.
            kept: dict[str, Any] = {"use_cache": False} if self.kind == "causal-lm" else {}
            if cache is not None:
                kept = {"past_key_values": cache}
            return self.live(tokens, attention_mask=mask, stop_at_layer=stop_at_layer, **kept)
        runner: Any = self.runner
        if self.kind == "image-classifier":
            return runner(pixel_values=tokens).logits
        given: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        if mask is not None:
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0) + self._first_position
        if self._pools and self.is_causal:
            # Hugging Face finds the last token by comparing ids with the padding id, which a real token may equal; the
            # mask is what says which tokens are real.
            hidden = getattr(runner, runner.base_model_prefix)(**given).last_hidden_state
            last = -1 if mask is None else tokens.shape[1] - 1 - mask.flip(1).argmax(1)
            return runner.score(hidden[torch.arange(len(tokens)), last])
        out = runner(**given)
        return out.last_hidden_state if self.kind == "encoder" else out.logits

    @property
    def _pools(self) -> bool:
        """Whether the head reads one token of the sequence."""
        return type(self.runner).__name__.endswith("ForSequenceClassification")

    @cached_property
    def _own_pad_id(self) -> int:
        """The id that the network itself takes for padding; 0 where it has none or none that can be embedded."""
        config: Any = self.live.original_model.config
        found = getattr(config.get_text_config(), "pad_token_id", None)
        return found if isinstance(found, int) and 0 <= found < self.d_vocab else 0

    @cached_property
    def _first_position(self) -> int:
        return first_position(self.runner)

    def _canonical(self, name: str) -> str:
        if name not in self.hook_names:
            raise UnknownSite.among("hook", name, self.hook_names, f"{self.name} has {len(self.hook_names)}.")
        return self.hook_names[name]

    def _refuse_bad_tokens(self, tokens: torch.Tensor) -> None:
        if self.kind == "image-classifier":
            if tokens.ndim != 4:
                raise BadData(
                    f"{self.name} reads images [batch, channel, height, width], got a tensor of shape"
                    f" {tuple(tokens.shape)}"
                )
            return
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.is_floating_point():
            raise BadData(
                f"{self.name} reads token ids [batch, pos], got {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        top = int(tokens.max())
        if top >= self.d_vocab or int(tokens.min()) < 0:
            raise BadData(
                f"token id {top if top >= self.d_vocab else int(tokens.min())} is outside the vocabulary of"
                f" {self.name}, 0 to {self.d_vocab - 1}"
            )
        if self.n_ctx and tokens.shape[1] > self.n_ctx:
            raise BadData(
                f"{tokens.shape[1]} tokens are more than the context of {self.name} ({self.n_ctx}); shorten the prompt"
                " or split it"
            )

    # ---- text ----

    def to_rows(self, texts: str | Sequence[str], *, bos: bool | None = None) -> list[list[int]]:
        """Token ids of each text, unpadded.

        Args:
            texts: one text or several.
            bos: True puts exactly one BOS in front, False none; None leaves it to the tokenizer's own settings.

        Raises:
            NoTokenizer: if the model came without one. BadData: if BOS is asked for and the tokenizer has none.
        """
        tokenizer = self._tokenizer()
        texts = [texts] if isinstance(texts, str) else list(texts)
        if bos is None:
            return [tokenizer(text)["input_ids"] for text in texts]
        if bos and tokenizer.bos_token_id is None:
            raise BadData(f"the tokenizer of {self.name} has no BOS token; pass bos=False or bos=None")
        front = [tokenizer.bos_token_id]
        bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        bare = [
            row[1:] if row[:1] == front else row for row in bare
        ]  # the text may spell its BOS out, as chat templates do
        return [front + row for row in bare] if bos else bare

    def to_strings(self, ids: Sequence[int]) -> list[str]:
        """One readable string per token id, for labels; ids as text where there is no tokenizer."""
        if self.tokenizer is None:
            return [str(int(i)) for i in ids]
        return token_words(self.tokenizer, ids)

    @property
    def pad_id(self) -> int:
        """An id to pad with; any will do, because `forward` puts the network's own in the places that are masked."""
        return getattr(self.tokenizer, "pad_token_id", None) or 0

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise NoTokenizer(
                f"{self.name} came without a tokenizer: pass token ids, or load(...,"
                " tokenizer=AutoTokenizer.from_pretrained(DIR))"
            )
        return self.tokenizer

    # ---- weights ----

    def W_O(self, layer: int) -> torch.Tensor:
        """[head, d_head, d_model] output projection of a layer's attention."""
        weight = self.live.blocks[layer].attn.W_O
        return weight.reshape(self.n_heads, -1, self.d_model)

    # ---- giving memory back ----

    @contextmanager
    def alone(self) -> Iterator["Model"]:
        """Hold the lock over several forwards that belong together."""
        with self.lock:
            yield self

    def unload(self) -> None:
        """Drop the weights and give the memory back; the Model remains as a name. Safe to call twice."""
        with self.lock:
            self.bridge = self.runner = None
            self.__dict__.pop("_sites", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()

    def require(self, kind: Kind, for_what: str) -> None:
        """UnsupportedModel unless this is a `kind`."""
        if self.kind != kind:
            raise UnsupportedModel(f"{for_what} needs a {kind}, and {self.name} is a {self.kind}")


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of a module's parameters; of a sample of each, marked '~', for large
    models.
    """
    sampled = sum(p.numel() for p in module.parameters()) > HASH_ALL_BELOW
    digest = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters(), key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        values = tensor.detach().flatten()
        values = values[:: max(1, values.numel() // 4096)] if sampled else values
        digest.update(values.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return ("~" if sampled else "") + digest.hexdigest()[:32]
