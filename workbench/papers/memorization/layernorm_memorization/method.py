"""What the analysis depends on (`Spec`) and how it runs (`run`)."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from workbench.core import files
from workbench.core import spec as core_spec
from workbench.core.errors import BadData, BadSpec
from workbench.core.progress import SILENT, Progress
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.datasets import classification
from workbench.models import ModelSpec
from workbench.models.model import Model
from workbench.papers.memorization.layernorm_memorization.arms import ARMS
from workbench.papers.memorization.layernorm_memorization.runs import Case, make_case, text_tables, train_run
from workbench.papers.memorization.layernorm_memorization.scores import SCORES, combine, runs_of, tables_of, with_scores
from workbench.runs.stored import load_runs
from workbench.runs.study import Part, Steps, Tables, Unit, study
from workbench.training.classifier import ClassifierSpec
from workbench.training.pretrained_classifier import image_shape, locate

STEM = "layernorm_memorization"
ORGANISMS = tuple(f"organism:{data}-{place}" for data in ("digits", "feelings") for place in ("postln", "preln"))
LEADERS = {arm.follows for arm in ARMS.values()} - {None}
NOT_RECIPE = ("model", "beside", "arms", "seeds", "once", "n_gradient", "stored", "checkpoints")


@dataclass(frozen=True)
class Spec(core_spec.Spec):
    """Everything the analysis depends on."""

    model: ModelSpec = param(ModelSpec(name=ORGANISMS[0]), "the pretrained model that is fine-tuned")
    beside: tuple[str, ...] = param((), "further pretrained models, fine-tuned with the same settings")
    data: str | None = param(None, "digits, feelings, a file, directory or `datasets` id; an organism's own if none")
    test: str | None = param(None, "file of the test set; a fifth of every class is held out if not given")
    config: str | None = param(None, "configuration of a `datasets` id")
    text_column: str = param("text", "column of the texts (or images)")
    label_column: str = param("label", "column of the labels")
    n_train: int | None = param(None, "at most so many training samples", unit="samples", ge=2)
    n_test: int | None = param(None, "at most so many test samples", unit="samples", ge=1)
    length: int = param(128, "texts are cut to so many tokens", unit="tokens", ge=2)
    noise_rate: float = param(0.05, "noisy samples, as a share of the training set", ge=0, le=1)
    noisy_class: int | None = param(5, "class whose samples get wrong labels; the largest if none", ge=0)
    arms: tuple[str, ...] = param(tuple(ARMS), "what is run", choices=tuple(ARMS))
    seeds: tuple[int, ...] = param((0, 1, 2), "each draws the noise, the head and the order of samples", ge=0)
    once: tuple[str, ...] = param(("clean",), "arms that need one seed only", choices=tuple(ARMS))
    epochs: int = param(60, "at most so many passes over the training set", unit="epochs", ge=1)
    epochs_pre: int | None = param(None, "the same for Pre-LN models, where it differs", unit="epochs", ge=1)
    overtrain: float | None = param(
        0.25, "epochs after the kept arm fits all labels, as a share of those before; none runs all epochs", ge=0
    )
    batch_size: int = param(32, "samples a step", ge=1)
    lr: float = param(6e-4, "constant learning rate of Adam", ge=0)
    autocast: str = param(
        "auto", "bfloat16 on CUDA if auto; none is float32 everywhere", choices=("auto", "none", "bfloat16")
    )
    n_gradient: int = param(100, "samples a group for gradient norms; 0 leaves them out", ge=0)
    stored: bool = param(False, "also load the runs that ship, marked as stored")
    checkpoints: str | None = param(None, "folder for half-trained runs, to go on from after a kill")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.arms or not self.seeds:
            raise BadSpec(f"{STEM} needs at least one of arms ({', '.join(ARMS)}) and one of seeds")
        for name in ("arms", "seeds", "beside"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise BadSpec(f"{STEM}.{name} names something twice: {getattr(self, name)}")

    @classmethod
    def tiny(cls) -> "Spec":
        """The stored runs of all four organisms, and one arm trained now: well under a minute."""
        return cls(arms=("early",), seeds=(0,), stored=True)

    @classmethod
    def full(cls) -> "Spec":
        """Everything that ships, trained again: all arms and seeds of the organisms, about half an hour on one core."""
        return cls(beside=ORGANISMS[1:])

    @classmethod
    def small(cls, model: str) -> "Spec":
        """One model of your own: kept, removed, thirds and placebo; give `data`, else it learns the embedded sets."""
        return cls(
            model=ModelSpec(name=model), arms=("kept", "removed", "early", "middle", "late", "placebo"),
            lr=2e-5, batch_size=16, n_train=2000, n_test=1000, noisy_class=None,
        )  # fmt: skip

    @classmethod
    def paper(cls) -> "Spec":
        """BERT against GPT-Neo on Emotions, 2 % noise: the paper's settings, an hour or two a run on a GPU of 8 GB."""
        return cls(
            model=ModelSpec(name="google-bert/bert-base-uncased"), beside=("EleutherAI/gpt-neo-125m",),
            data="dair-ai/emotion", config="split", noise_rate=0.02, epochs=40, epochs_pre=70, overtrain=None,
            batch_size=16, lr=2e-5, arms=("kept", "removed", "early", "middle", "late", "placebo"),
        )  # fmt: skip

    def models(self) -> dict[str, ModelSpec]:
        """{name without a path of this machine: `model` and those beside it, with its number format and device}."""
        return {locate(m)[1]: m for m in (self.model, *(self.model.replace(name=name) for name in self.beside))}


# ---- running ----


def run(spec: Spec, *, model: Model | None = None, progress: Progress = SILENT, resume: Result | None = None) -> Result:
    """Fine-tune every model, arm and seed, and count what became of the noisy labels.

    Args:
        spec: what to run.
        model: a loaded Model; a fresh copy of the checkpoint it came from is fine-tuned, the Model is not touched.
        progress: a hundred steps a run; cancelling gives a partial Result with the finished runs.
        resume: a partial Result of the same spec (seeds may differ) and weights, whose runs are not trained again.

    Returns:
        Result whose dimension `run` has model, data, placement, arm, seed and origin ("stored" or "run here") as
        coordinates; per run and epoch the predictions on every sample, the scores counted from them, gradient norms.

    Raises:
        BadData: if the labels cannot carry the noise asked for. BadSpec: if two models have one name.
        UnsupportedModel: if a model has no norms or no classifier.
    """
    spec = spec if model is None else spec.replace(model=_checkpoint_of(model))
    models = spec.models()
    if len(models) < 1 + len(spec.beside):
        raise BadSpec(f"two of the models are called the same ({', '.join(models)}); give their folders other names")
    starts = {name: _start(which) for name, which in models.items()}
    stored = load_stored() if spec.stored else None

    units = [
        Unit(seed, {"model": name, "arm": arm})
        for name in models
        for arm in sorted(spec.arms, key=lambda arm: ARMS[arm].follows is not None)  # those that others follow go first
        for seed in (spec.seeds[:1] if arm in spec.once else spec.seeds)
    ]

    @lru_cache(maxsize=1)
    def case(name: str) -> Case:
        return make_case(models[name], name, starts[name], _data(spec, models[name]), spec.length)

    def do(unit: Unit, steps: Steps) -> Part:
        name, arm = str(unit.axes["model"]), str(unit.axes["arm"])
        steps.at(0, "training", until=100)
        folder = f"{Path(name).name.replace(':', '-')}-{arm}-{unit.seed}"
        found = train_run(
            case(name), arm, _settings(spec, case(name), unit, steps, stored),
            rate=spec.noise_rate, noisy_class=spec.noisy_class, n_gradient=spec.n_gradient, on_step=steps.update,
            checkpoint=None if spec.checkpoints is None else Path(spec.checkpoints).expanduser() / folder,
        )  # fmt: skip
        return Part(found, shared=text_tables(case(name), found))

    def derive(data: xr.Dataset, tables: Tables) -> tuple[xr.Dataset, Tables]:
        data = with_scores(data)
        data.attrs["same_recipe"] = int(stored is not None and _same_recipe(spec, stored))
        return data, tables | tables_of(data)

    first, *others = dict.fromkeys([*models, *(stored.data["model"].values.tolist() if stored else [])])
    about = {"name": f"{first} and {len(others)} more" if others else first, "weights": ", ".join(starts.values())}
    about |= {"dtype": "float32", "device": spec.model.device}
    return study(
        STEM, spec, units, do, about=about, progress=progress, resume=resume, stored=stored,
        # `arms` does more than choose runs: how long one trains depends on whether the arm that it follows is there
        choosing=() if LEADERS & set(spec.once) else ("seeds",), join=combine, derive=derive, warn=_unfitted,
    )  # fmt: skip


def load_stored() -> Result:
    """The runs that ship, every one marked "stored". Scores are counted again from the predictions and must agree.

    Raises:
        ModelNotFound: if they are not here. BrokenResult: if a file changed.
        BadData: if a stored score is not what its predictions say.
    """
    found = load_runs(STEM)
    data = with_scores(found.data)
    for name in SCORES:
        if not np.allclose(data[name], found.data[name], atol=1e-3, equal_nan=True):
            raise BadData(f"stored {name} is not what the stored predictions say; make the runs again with Spec.full()")
    names, starts = (data[name].values.tolist() for name in ("model", "start"))
    now = {name: _start(ModelSpec(name=name)) for name in set(names)}
    ships = np.array([now[name] == start for name, start in zip(names, starts, strict=True)], np.int8)
    about = {"long_name": "Started from the weights that ship", "unit": "1 is yes"}
    return Result(found.provenance, data.assign(start_ships=("run", ships, about)), found.tables | tables_of(data))


def _checkpoint_of(model: Model) -> ModelSpec:
    """Where a loaded Model came from: training needs the plain module, and must not move the Model's weights."""
    name = model.spec.name
    if name.startswith("organism:") or Path(name).expanduser().is_dir() or "/" in name:
        return model.spec.replace(device=model.device)
    raise BadSpec(
        f"{model.name} was given in memory; fine-tuning starts from a checkpoint, so save it with save_pretrained "
        "and name the directory in spec.model"
    )


def _start(model: ModelSpec) -> str:
    """What identifies the weights a run starts from: the checksum of the local files, or the hub id and revision."""
    folder = Path(locate(model)[0])
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not weights:
        return f"{model.name}@{model.revision or 'main'}"
    sums = [files.sha256(shard) for shard in weights]
    return (sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest())[:32]


def _data(spec: Spec, model: ModelSpec) -> classification.Classification:
    """The set of a run: the one asked for, else an organism's own, else the embedded one that the model can read."""
    shape = image_shape(model)
    own = model.name.removeprefix("organism:").split("-")[0] if model.name.startswith("organism:") else ""
    name = spec.data or (own if own in classification.EMBEDDED else "digits" if shape else "feelings")
    sizes = {"n_train": spec.n_train, "n_test": spec.n_test, "image_shape": shape}
    if name in classification.EMBEDDED:
        return classification.embedded(name, **sizes)
    columns = {"text_column": spec.text_column, "label_column": spec.label_column}
    return classification.read(name, test=spec.test, config=spec.config, **columns, **sizes)


def _settings(spec: Spec, case: Case, unit: Unit, steps: Steps, stored: Result | None) -> ClassifierSpec:
    """How long this arm trains: until it has fitted and a share longer, or as long as the arm it follows did."""
    limit = spec.epochs_pre if case.placement == "pre" and spec.epochs_pre else spec.epochs
    settings = ClassifierSpec(
        epochs=limit, batch_size=spec.batch_size, lr=spec.lr, autocast=spec.autocast, seed=unit.seed
    )
    leader = ARMS[str(unit.axes["arm"])].follows
    if leader is None:
        return settings if spec.overtrain is None else settings.replace(stop_at=1.0, overtrain=spec.overtrain)
    followed = steps.done_before(Unit(unit.seed, {"model": case.name, "arm": leader}))
    if followed is None and stored is not None:
        followed = runs_of(stored.data, model=case.name, arm=leader, seed=unit.seed)
    has_led = followed is not None and followed.sizes["run"] > 0
    return settings.replace(epochs=followed["n_epochs"].item()) if has_led else settings


def _same_recipe(spec: Spec, stored: Result) -> bool:
    """Whether runs made here are trained as the stored ones were, so that the two can be compared."""
    return all(stored.spec[name] == value for name, value in spec.to_dict().items() if name not in NOT_RECIPE)


def _unfitted(data: xr.Dataset, tables: Tables) -> Iterator[str]:
    kept = data.isel(run=np.flatnonzero(data["arm"].isin(sorted(LEADERS))))
    n_unfit = int((kept["train_accuracy"].max("epoch") < 100).sum())
    if n_unfit:
        yield f"{n_unfit} of {kept.sizes['run']} runs with LayerNorm kept never fitted all labels within their epochs"
