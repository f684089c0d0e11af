"""ModelSpec: which checkpoint, in which number format, where. Holds words only, so it imports without torch."""

from dataclasses import dataclass

from workbench.core.spec import Spec, param

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ModelSpec(Spec):
    """What `load` needs to make the same model again."""

    name: str = param("organism:attention-sink", "hub id, local directory, PEFT adapter directory, or organism:NAME")
    revision: str | None = param(None, "branch, tag or commit on the hub")
    base: str | None = param(None, "base model of an adapter, where its own config names none that is here")
    dtype: str = param("float32", "number format of the weights", choices=DTYPES)
    device: str = param("auto", "auto, cpu, cuda, cuda:1, mps; ignored when device_map is given")
    device_map: str | None = param(None, "accelerate's placement over several devices: auto, balanced, sequential")
    n_devices: int | None = param(None, "spread over this many GPUs", ge=1)
    max_memory: tuple[str, ...] = param((), "most memory per device for placement, as 0=20GiB, cpu=60GiB")
    processing: str = param(
        "raw",
        "raw: weights as Hugging Face has them; folded: TransformerLens compatibility mode",
        choices=("raw", "folded"),
    )
    untrained_seed: int | None = param(
        None, "if given, the checkpoint's config with random weights of this seed: the untrained twin", ge=0
    )
    trust_remote_code: bool = param(False, "run Python that comes with the checkpoint; only for sources you trust")
