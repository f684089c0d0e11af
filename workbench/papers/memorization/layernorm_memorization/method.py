"""What the analysis depends on (`Spec`) and how it runs (`run`)."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core import files
from workbench.core import spec as core_spec
from workbench.core.errors import BadData, BadSpec
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.datasets import classification
from workbench.models import ModelSpec
from workbench.models.model import Model
from workbench.papers.memorization.layernorm_memorization.runs import ARMS, HERE, SCORES, Case, combine, make_case, text_tables, train_run, with_scores
from workbench.papers.memorization.layernorm_memorization.summary import runs_table, summary
from workbench.runs import stored as stored_runs
from workbench.runs.stored import STORED
from workbench.training.classifier import FineTuneSpec
from workbench.training.pretrained_classifier import image_shape, locate

STEM = "layernorm_memorization"
ORGANISMS = ("organism:digits-postln", "organism:digits-preln", "organism:feelings-postln", "organism:feelings-preln")
SAME_RECIPE = ("noise_rate", "noisy_class", "batch_size", "lr", "overtrain", "epochs", "epochs_pre", "autocast", "length", "n_train", "n_test", "data")


@dataclass(frozen=True)
class Spec(core_spec.Spec):
    """Everything the analysis depends on."""

    model: ModelSpec = param(ModelSpec(name=ORGANISMS[0]), "the pretrained model that is fine-tuned")
    beside: tuple[str, ...] = param((), "further pretrained models, fine-tuned with the same settings: a Pre-LN model beside a Post-LN one")
    data: str | None = param(None, "digits, feelings, a CSV or JSONL file, a directory or id for `datasets`; an organism's own if not given")
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
    epochs_pre: int | None = param(None, "the same for Pre-LN models, where it is another number", unit="epochs", ge=1)
    overtrain: float | None = param(0.25, "epochs after the kept arm fits all labels, as a share of those before; none runs all epochs", ge=0)
    batch_size: int = param(32, "samples a step", ge=1)
    lr: float = param(6e-4, "constant learning rate of Adam", ge=0)
    autocast: str = param("auto", "bfloat16 on CUDA if auto; none is float32 everywhere", choices=("auto", "none", "bfloat16"))
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
        """Everything that ships, trained again: all arms and seeds of the four organisms, about half an hour on one core."""
        return cls(beside=ORGANISMS[1:])

    @classmethod
    def small(cls, model: str) -> "Spec":
        """One model of your own: kept, removed, the thirds and the placebo; give `data`, else it learns the embedded sets."""
        return cls(model=ModelSpec(name=model), arms=("kept", "removed", "early", "middle", "late", "placebo"), lr=2e-5, batch_size=16, n_train=2000, n_test=1000, noisy_class=None)

    @classmethod
    def paper(cls) -> "Spec":
        """BERT against GPT-Neo on Emotions with 2 % noise: the paper's settings, one or two hours a run on one GPU of 8 GB."""
        return cls(
            model=ModelSpec(name="google-bert/bert-base-uncased"), beside=("EleutherAI/gpt-neo-125m",), data="dair-ai/emotion", config="split", noise_rate=0.02,
            epochs=40, epochs_pre=70, overtrain=None, batch_size=16, lr=2e-5, arms=("kept", "removed", "early", "middle", "late", "placebo"),
        )  # fmt: skip

    def models(self) -> list[ModelSpec]:
        """`model` and those beside it, with its number format and device."""
        return [self.model, *(self.model.replace(name=name) for name in self.beside)]


# ---- running ----


def run(spec: Spec, *, model: Model | None = None, progress: Progress = SILENT, resume: Result | None = None) -> Result:
    """Fine-tune every model, arm and seed, and count what became of the noisy labels.

    Args:
        spec: what to run.
        model: a loaded Model; what is fine-tuned is a fresh copy of the checkpoint it came from, the Model is not touched.
        progress: per thousandth of a run; cancelling gives a partial Result with the finished runs.
        resume: a partial Result of the same spec and weights, whose finished runs are not trained again.

    Returns:
        Result whose dimension `run` has model, data, placement, arm, seed and origin ("stored" or "trained here") as
        coordinates; per run and epoch the predictions on every sample, the scores counted from them, and gradient norms.

    Raises:
        BadData: if the labels cannot carry the noise asked for. UnsupportedModel: if the model has no norms or no classifier.
    """
    started = time.monotonic()
    if model is not None:
        spec = spec.replace(model=_checkpoint_of(model))
    starts = {m.name: _start(m) for m in spec.models()}
    stored = load_stored() if spec.stored else None
    first, *others = dict.fromkeys([*(locate(m)[1] for m in spec.models()), *(stored.data["model"].values.tolist() if stored else [])])
    about = {"name": f"{first} and {len(others)} more" if others else first, "weights": next(iter(starts.values())), "dtype": "float32", "device": spec.model.device}
    provenance = Provenance.start(STEM, spec.to_dict(), min(spec.seeds), model=about, data={} if stored is None else {"stored": stored_runs.told(stored)})
    rows: list[xr.Dataset] = [] if stored is None else [stored.data.isel(run=[i]) for i in range(stored.data.sizes["run"])]
    n_stored = len(rows)
    texts = [] if stored is None else [(stored.tables["samples"], stored.tables["classes"])]
    if resume is not None:
        _refuse_other(resume, provenance)
    if resume is not None and resume.data.sizes.get("run"):
        mine = resume.data.isel(run=np.flatnonzero(resume.data["origin"].values == HERE))
        rows += [_trimmed(mine.isel(run=[i])) for i in range(mine.sizes["run"])]
        texts.append((resume.tables["samples"], resume.tables["classes"]))
    partial = False
    told: dict[str, str] = {}

    def result(partial: bool) -> Result:
        return _result(provenance.finish(started, data=provenance.data | told), rows, n_stored, texts, partial, spec)

    try:
        jobs = [(m, arm, seed) for m in spec.models() for arm in sorted(spec.arms, key=lambda a: ARMS[a].follows is not None) for seed in spec.seeds if arm not in spec.once or seed == spec.seeds[0]]
        case: Case | None = None
        for number, (which, arm, seed) in enumerate(jobs):
            progress.update(1000 * number, 1000 * len(jobs), f"{locate(which)[1]}, {arm}, seed {seed}")
            if any(_is(row, locate(which)[1], arm, seed) for row in rows[n_stored:]):
                continue
            if case is None or case.model != which:
                case = make_case(which, locate(which)[1], starts[which.name], _data(spec, which), spec.length)
                told |= {f"data of {case.name}": str(case.data.about)}
            settings = _settings(spec, case, arm, seed, rows)
            row = train_run(
                case, arm, settings, rate=spec.noise_rate, noisy_class=spec.noisy_class, n_gradient=spec.n_gradient,
                checkpoint=None if spec.checkpoints is None else Path(spec.checkpoints).expanduser() / f"{Path(case.name).name.replace(':', '-')}-{arm}-{seed}",
                on_step=lambda step, steps, number=number, text=f"{case.name}, {arm}, seed {seed}": progress.update(1000 * number + 1000 * step // steps, 1000 * len(jobs), text),
            )  # fmt: skip
            rows.append(row)
            texts.append(text_tables(case, row))
            progress.keep(lambda: result(True))
        progress.update(1000 * len(jobs), 1000 * len(jobs), "done")
    except Cancelled:
        partial = True
    return result(partial)


def load_stored() -> Result:
    """The runs that ship, every one marked "stored". Scores are counted again from the stored predictions and must agree.

    Raises:
        ModelNotFound: if they are not here. BrokenResult: if a file changed. BadData: if a stored score is not what its predictions say.
    """
    found = stored_runs.load_runs(STEM)
    counted = with_scores(found.data.drop_vars(SCORES))
    for name in SCORES:
        if not np.allclose(counted[name], found.data[name], atol=1e-3, equal_nan=True):
            raise BadData(f"stored {name} is not what the stored predictions say; make the runs again with Spec.full()")
    origin = found.data["origin"].copy(data=np.full(found.data.sizes["run"], STORED))
    now = {name: _start(ModelSpec(name=name)) for name in set(found.data["model"].values.tolist())}
    ships = [now[model] == start for model, start in zip(found.data["model"].values.tolist(), found.data["start"].values.tolist(), strict=True)]
    data = found.data.assign_coords(origin=origin).assign(start_ships=("run", np.array(ships, np.int8), {"long_name": "Started from the weights that ship", "unit": "1 is yes"}))
    return Result(found.provenance, data, found.tables)


def _checkpoint_of(model: Model) -> ModelSpec:
    """Where a loaded Model came from: training needs the plain module, and must not move the Model's weights."""
    source = Path(model.spec.name).expanduser()
    if model.spec.name.startswith("organism:") or source.is_dir() or "/" in model.spec.name:
        return model.spec.replace(device=model.device)
    raise BadSpec(f"{model.name} was given in memory; fine-tuning starts from a checkpoint, so save it with save_pretrained and name the directory in spec.model")


def _start(model: ModelSpec) -> str:
    """What identifies the weights a run starts from: the checksum of a local file, or the hub id and revision."""
    folder = Path(locate(model)[0])
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return files.sha256(weights[0])[:32] if weights else f"{model.name}@{model.revision or 'main'}"


def _data(spec: Spec, model: ModelSpec) -> classification.Classification:
    """The set of a run: the one asked for, else an organism's own, else the embedded one that the model can read."""
    shape = image_shape(model)
    own = model.name.removeprefix("organism:").split("-")[0] if model.name.startswith("organism:") else ""
    name = spec.data or (own if own in classification.EMBEDDED else "digits" if shape else "feelings")
    if name in classification.EMBEDDED:
        return classification.embedded(name, n_train=spec.n_train, n_test=spec.n_test, image_shape=shape)
    return classification.read(
        name, test=spec.test, config=spec.config, text_column=spec.text_column, label_column=spec.label_column, n_train=spec.n_train, n_test=spec.n_test, image_shape=shape
    )


def _settings(spec: Spec, case: Case, arm: str, seed: int, rows: Iterable[xr.Dataset]) -> FineTuneSpec:
    """How long this arm trains: until it has fitted and half as long again, or as long as the arm it follows did."""
    limit = spec.epochs_pre if case.placement == "pre" and spec.epochs_pre else spec.epochs
    settings = FineTuneSpec(epochs=limit, batch_size=spec.batch_size, lr=spec.lr, autocast=spec.autocast, seed=seed)
    leader = ARMS[arm].follows
    if leader is None and spec.overtrain is not None:
        return settings.replace(stop_at=1.0, overtrain=spec.overtrain)
    followed = [row["n_epochs"].item() for row in rows if leader and _is(row, case.name, leader, seed)]
    return settings.replace(epochs=followed[-1]) if followed else settings


def _is(row: xr.Dataset, model: str, arm: str, seed: int) -> bool:
    return (row["model"].item(), row["arm"].item(), row["seed"].item()) == (model, arm, seed)


def _trimmed(row: xr.Dataset) -> xr.Dataset:
    """One run without the padding it got from longer ones."""
    n_train, n_test = (int((row[name].values >= 0).sum()) for name in ("true_label", "test_label"))
    return row.drop_vars(SCORES).isel(epoch=slice(0, row["n_epochs"].item() + 1), train=slice(0, n_train), test=slice(0, n_test))


def _refuse_other(resume: Result, now: Provenance) -> None:
    before = resume.provenance
    if before.spec != now.spec or before.model.get("weights") != now.model.get("weights"):
        raise BadData("the partial result is of another spec or other weights, so its runs cannot be reused; give another output folder")


def _result(provenance: Provenance, rows: list[xr.Dataset], n_stored: int, texts: list[tuple[pd.DataFrame, pd.DataFrame]], partial: bool, spec: Spec) -> Result:
    if not rows:
        return Result(provenance, xr.Dataset(), {}, True)
    data = with_scores(combine([row.drop_vars(SCORES, errors="ignore") for row in rows]))
    data.attrs |= {"noise_rate": spec.noise_rate, "same_recipe": int(n_stored > 0 and _same_recipe(spec, provenance))}
    samples, classes = (pd.concat(tables).drop_duplicates(["data", "index"]).sort_values(["data", "index"], ignore_index=True) for tables in zip(*texts, strict=True))
    tables = {"samples": samples, "classes": classes, "runs": runs_table(data), "summary": summary(data)}
    return Result(provenance, data, tables, partial, tuple(_warnings(data, n_stored, provenance)))


def _same_recipe(spec: Spec, provenance: Provenance) -> bool:
    """Whether runs trained here were trained as the stored ones were, so that the two can be compared."""
    before = provenance.data["stored"]["spec"]
    now = spec.to_dict()
    return all(before[name] == now[name] for name in SAME_RECIPE)


def _warnings(data: xr.Dataset, n_stored: int, provenance: Provenance) -> Iterable[str]:
    if n_stored:
        yield stored_runs.sentence(provenance.data["stored"], data.sizes["run"])
    last = data.isel(run=np.flatnonzero(data["arm"].isin(["kept", "scratch_kept"]).values))
    unfit = [r for r in range(last.sizes["run"]) if float(last["train_accuracy"][r].max()) < 100]
    if unfit:
        yield f"{len(unfit)} of {last.sizes['run']} runs with LayerNorm kept never fitted all their labels within their epochs"
