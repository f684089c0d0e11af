"""A pretrained checkpoint as a classifier to be trained: its body, a new head, its tokenizer.

`workbench.load` is for looking into models and wraps them; training wants the plain Hugging Face module, with a head of
as many classes as the data has. Safetensors only. Cost: the weights once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.core.errors import BadSpec, ModelNotFound, UnsupportedModel
from workbench.core.places import organism_folder
from workbench.models import ModelSpec
from workbench.models.checkpoint import our_errors, refuse_quantised, weight_files
from workbench.models.finite import refuse_weights


def load_classifier(spec: ModelSpec, n_classes: int, *, seed: int, from_scratch: bool = False) -> tuple[nn.Module, Any]:
    """A checkpoint with a new classification head (its own head if that has as many classes), for training.

    Args:
        spec: organism, local directory or hub id; safetensors only. Weights are float32, autocast does the rest.
        n_classes: size of the head.
        seed: draws the head (and, from scratch, all weights).
        from_scratch: the checkpoint's configuration with random weights.

    Returns:
        The module on its device, and its tokenizer (None for images or where there is none).

    Raises:
        ModelNotFound: if it cannot be read. UnsupportedModel: if more than a head would be new, or it cannot classify.
        NotFinite: if it has weights that are no numbers.
    """
    source, label = locate(spec)
    with our_errors(Path(label).name):
        return _load(spec, source, label, n_classes, seed, from_scratch)


def _load(
    spec: ModelSpec, source: str, label: str, n_classes: int, seed: int, from_scratch: bool
) -> tuple[nn.Module, Any]:
    import transformers as tf

    known = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    config = _config(spec, num_labels=n_classes)
    auto = _classifier_class(config, label)
    tokenizer = None if auto is tf.AutoModelForImageClassification else _tokenizer(source, known)
    if tokenizer is not None and tokenizer.pad_token_id is not None and config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id  # decoders find their last token by it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if from_scratch:
            module = auto.from_config(config)
        else:
            refuse_quantised(config.to_dict(), Path(label).name)
            if Path(source).is_dir():
                weight_files(Path(source), getattr(config, "transformers_weights", None))
            try:
                module, info = auto.from_pretrained(
                    source,
                    config=config,
                    **known,
                    dtype=torch.float32,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
            except OSError as found:
                raise ModelNotFound(
                    f"the weights of {label!r} could not be read ({str(found).splitlines()[0][:200]}); safetensors are"
                    " needed"
                ) from None
            _refuse_new_body(module, info, label)
    refuse_weights(module.named_parameters(), Path(label).name)
    return module.to(_device(spec.device)).float(), tokenizer


def image_shape(spec: ModelSpec) -> tuple[int, int, int] | None:
    """(channels, height, width) that an image classifier reads; None for models of text. Reads the configuration
    only.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = _config(spec)
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or not hasattr(config, "num_channels"):
        return None
    size = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size, config.image_size)
    return config.num_channels, int(size[0]), int(size[1])


def locate(spec: ModelSpec) -> tuple[str, str]:
    """Where transformers finds a model (folder or hub id), and its name without a path of this machine."""
    if spec.name.startswith("organism:"):
        return str(organism_folder(spec.name.removeprefix("organism:"))), spec.name
    path = Path(spec.name).expanduser()
    return (str(path), path.resolve().name) if path.is_dir() else (spec.name, spec.name)


def _config(spec: ModelSpec, **changes: Any) -> Any:
    from transformers import AutoConfig

    source, label = locate(spec)
    try:
        return AutoConfig.from_pretrained(
            source, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **changes
        )
    except (OSError, ValueError, KeyError) as found:
        why = str(found).strip().splitlines()[0][:200]
        raise ModelNotFound(
            f"{Path(label).name!r} could not be read as a model ({why}); give organism:NAME, a directory saved with"
            " save_pretrained, or a hub id"
        ) from None


def _classifier_class(config: Any, label: str) -> Any:
    import transformers as tf

    if type(config) in tf.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return tf.AutoModelForSequenceClassification
    if type(config) in tf.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return tf.AutoModelForImageClassification
    raise UnsupportedModel(
        f"{label!r} ({config.model_type}) has no sequence or image classification class in transformers"
    )


def _tokenizer(source: str, known: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab.*", "spiece.model")):
        return None  # transformers would make one that knows no words
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **known)
    except (OSError, ValueError):
        return None
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _refuse_new_body(module: Any, info: Mapping[str, Any], label: str) -> None:
    """A head may be new, and so may a pooler in front of it; a body with random weights is no pretrained model."""
    new = [*info["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])]
    body = [key for key in new if key.startswith(f"{module.base_model_prefix}.") and "pooler" not in key]
    if body:
        raise UnsupportedModel(
            f"{label!r} lacks weights of the body of {type(module).__name__}: {', '.join(sorted(body)[:3])}; it would"
            " be trained from random values"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadSpec(f"device {name!r} was asked for, and this PyTorch sees no CUDA GPU; use device='auto' or 'cpu'")
    return torch.device(name)
