"""From a name to a causal language model in memory, or one sentence on why not.

The only module that knows how Hugging Face loading goes wrong. Two things are never done: code
that comes with a model is never run (no trust_remote_code, no pickled weights), and a model that
is only partly there is never used, since its scores would be noise. Importing this loads nothing;
torch and transformers are imported when a model is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spex_engine.wire import ModelError

# What a config may name as its attention; other names may mean compiled code from the Hub.
BUILT_IN_ATTENTION = ("eager", "sdpa", "flex_attention")


@dataclass(frozen=True)
class LoadedModel:
    """model and tokenizer are transformers' own objects, the model in eval mode on its device."""

    name: str
    model: Any
    tokenizer: Any


def load_causal_lm(name_or_path: str, device: str | None, dtype: str | None) -> LoadedModel:
    """Load a causal language model with its fast tokenizer; ModelError where that cannot be.

    device: a torch device such as "cuda:1", None: the best there is. dtype: "float32",
    "bfloat16" or "float16", None: see ``_choose_dtype``.
    """
    torch, transformers = _libraries()
    _be_quiet(transformers)
    source = _source(name_or_path)
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        _require_built_in_attention(name_or_path, config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if not tokenizer.is_fast:
            raise ModelError(
                f"{name_or_path} has only a slow tokenizer, which cannot say where its tokens lie "
                "in the text; use a model that comes with a tokenizer.json."
            )
        place = torch.device(device or _best_device(torch))
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
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
        raise ModelError(_reason(name_or_path, error)) from error
    _require_complete(name_or_path, report)
    _require_causal(torch, name_or_path, model)
    return LoadedModel(name_or_path, model, tokenizer)


def _libraries() -> tuple[Any, Any]:
    """torch and transformers, untyped from here on."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelError(
            f"Local models need torch and transformers ({error}); run pip install "
            "'spex-lsp[local]' in the Python that Spex uses."
        ) from error
    return torch, transformers


def _be_quiet(transformers: Any) -> None:
    """No progress bars and no log lines: the worker's output is a protocol channel."""
    import huggingface_hub.utils

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hub: Any = huggingface_hub.utils
    hub.disable_progress_bars()
    hub.logging.set_verbosity_error()
    # Otherwise a hub model without safetensors makes transformers ask a service to convert it.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")


def _source(name_or_path: str) -> str:
    """What to hand to from_pretrained: a checked folder, or a hub name as it is."""
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        looks_like_path = name_or_path.startswith((".", "~")) or folder.is_absolute()
        if looks_like_path or folder.is_file() or name_or_path.count("/") > 1:
            raise ModelError(
                f"There is no folder {name_or_path}; give the folder that holds the model's "
                "config.json, or a name from the Hugging Face hub."
            )
        return name_or_path
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name_or_path} is no model: it has no config.json; give the folder that "
            "save_pretrained wrote or that the model was downloaded to."
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{name_or_path} is an adapter, whose base model may come from anywhere; merge it into "
            "its base model (peft: merge_and_unload, then save_pretrained) and give that folder."
        )
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise ModelError(
            _only_pickled(name_or_path)
            if pickled
            else f"{name_or_path} has no weights: no .safetensors file lies beside its "
            "config.json; download the model again, or save it with save_pretrained."
        )
    return str(folder)


def _require_built_in_attention(name: str, config: Any) -> None:
    """A config may name a repository of the Hub whose compiled code computes the attention.

    Other names than torch's own are dropped for the default: they may mean such code as well.
    """
    parts = [config, *(getattr(config, key, None) for key in config.sub_configs)]
    wishes = [getattr(part, "_attn_implementation", None) for part in parts]
    for wish in wishes:
        if "/" in str(wish):
            raise ModelError(
                f"{name} asks for attention code from the Hub ({wish}), which Spex does not "
                "execute; remove attn_implementation from its config.json."
            )
    if any(wish not in (None, *BUILT_IN_ATTENTION) for wish in wishes):
        config._attn_implementation = None  # of its parts too


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _choose_dtype(torch: Any, config: Any, device: Any) -> Any:
    """The checkpoint's own type where the device is good at it, float32 otherwise.

    Small differences between masks are what is measured, so weights are never rounded to a
    smaller type than they were published in; and processors are slow at half precision.
    """
    own = getattr(config.get_text_config(), "dtype", None)
    if isinstance(own, str):  # as configs written by hand may have it
        own = getattr(torch, own, None)
    if device.type == "cpu" or own not in (torch.float16, torch.bfloat16):
        return torch.float32
    if device.type == "cuda" and own is torch.bfloat16 and not torch.cuda.is_bf16_supported():
        return torch.float32
    return own


def _require_complete(name: str, report: dict[str, Any]) -> None:
    """Weights that the files lack would be drawn at random."""
    lacking = sorted(report["missing_keys"]) + [str(m) for m in report["mismatched_keys"]]
    if lacking:
        raise ModelError(
            f"{name} is not a complete causal language model: its files lack {lacking[0]} "
            f"({len(lacking)} in all); use one that was saved with its language-model head."
        )


def _require_causal(torch: Any, name: str, model: Any) -> None:
    """Masked language models load as causal ones, but would see the target they are to predict."""
    with torch.inference_mode():
        pairs = torch.tensor([[1, 2], [1, 3]], device=model.device)
        first = model(input_ids=pairs).logits[:, 0].float()
    tolerance = 1e-2 * float(first.std())  # the rows of a batch may differ in their last bits
    if not torch.allclose(first[0], first[1], rtol=0, atol=tolerance, equal_nan=True):
        raise ModelError(
            f"{name} is not a causal language model: what it says of a token depends on the "
            "tokens after it; use a model made to generate text."
        )


def _only_pickled(name: str) -> str:
    return (
        f"{name} has its weights only as pickled .bin files, which can run code and are not "
        'loaded; if you trust them, convert them once with: python -c "from transformers import '
        "AutoTokenizer as T, AutoModelForCausalLM as M; "
        f"[k.from_pretrained('{name}').save_pretrained('converted') for k in (T, M)]\" "
        "and use hf:converted."
    )


def _reason(name: str, error: Exception) -> str:
    """One sentence for what the libraries raised; their messages are the only thing to go by."""
    said = str(error)
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    kinds = {type(link).__name__ for link in chain}
    if "trust_remote_code" in said:
        return (
            f"{name} needs code of its own to run, which Spex does not execute; use a model whose "
            "architecture is part of transformers."
        )
    if "HFValidationError" in kinds:
        return (
            f"{name!r} is neither a folder nor a name of the form owner/model on the Hugging Face "
            "hub; check the spelling."
        )
    if "GatedRepoError" in kinds:
        return f"{name} is gated: accept its terms on huggingface.co, then run hf auth login."
    if "RepositoryNotFoundError" in kinds:
        return (
            f"The Hugging Face hub has no model {name}; check the spelling, or, if it is private, "
            "run hf auth login."
        )
    if "LocalEntryNotFoundError" in kinds or "OfflineModeIsEnabled" in kinds:
        return (
            f"{name} is not on this machine and the Hugging Face hub cannot be reached; check the "
            "name and the connection, or give the folder of a model you have."
        )
    if "file named config.json" in said:
        return f"{name} is no model that transformers can load: it has no config.json; use another."
    if "safetensors" in said and "file named" in said:
        return _only_pickled(name)
    if "for this kind of AutoModel" in said:
        return f"{name} is not a causal language model; use a model made to generate text."
    if "does not recognize this architecture" in said:
        return (
            f"The installed transformers does not know the architecture of {name}; run pip "
            "install --upgrade transformers, or use another model."
        )
    if "Unrecognized model" in said:
        return f"{name} is no model: its config.json names no model_type; give another folder."
    if "instantiate the backend tokenizer" in said:
        return (
            f"{name} comes without a tokenizer that can be loaded; add its tokenizer.json (saved "
            "by save_pretrained of a fast tokenizer)."
        )
    if is_out_of_memory(error):
        return f"{name} does not fit into memory; use a smaller model or a smaller type of weights."
    first_line = re.sub(r"\s+", " ", said.strip().partition("\n")[0])
    return f"{name} could not be loaded ({type(error).__name__}: {first_line}); check its files."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the processor's own memory, was too small for what was asked."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        phrase in said for phrase in ("out of memory", "not enough memory", "can't allocate memory")
    )
