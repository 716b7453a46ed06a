"""Models behind OpenAI's protocol: OpenAI and Azure, vLLM, SGLang, Together, Ollama, llama.cpp ...

What they can do differs and is found out (`capabilities`); requests are paid for, paced and retried
in one place (`dispatch`); each tier of scores is a module. Importing this loads no SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spex_engine.wire import Access

if TYPE_CHECKING:
    from spex_engine.backends.openai.endpoint import EndpointModel


def load(name: str, access: Access, secrets: Mapping[str, str] | None = None) -> EndpointModel:
    """The model that the endpoints of ``access`` call ``name`` (see `endpoint.load_model`)."""
    from spex_engine.backends.openai.endpoint import load_model

    return load_model(name, access, secrets)
