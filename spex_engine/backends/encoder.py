"""Encoders: how sure a classifier is of a label, or how like a text the prompt is.

A model with a classification head scores its labels: a column for each, the log-probability in
nats, so that the difference of two columns is the margin of their logits. Any other model turns a
text into a vector, and scores the cosine of its angle to the vector of each text asked for. The
messages' texts are read one after the other; segments are dropped as token ids, and what the
tokenizer puts around a text always stays. It must not know designs, estimators, files or editors.
Importing it loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from spex_engine.backends.base import Scale, ScoredTarget, Scores, ShouldStop, Tier
from spex_engine.backends.causal import Ids, TokenisedPrompt, answer_changed, compared_answers
from spex_engine.backends.encoder_forward import EncoderForward
from spex_engine.backends.encoder_loading import LoadedEncoder, load_encoder
from spex_engine.backends.rendering import render_plain
from spex_engine.backends.tokens import tokenise_pieces
from spex_engine.noise import noise_of_company
from spex_engine.wire import InputError, ModelError, Piece, Prompt, Question


def load(name_or_path: str, *, device: str | None = None, dtype: str | None = None) -> EncoderModel:
    """The encoder of a hub name or local folder, or the packaged one; ModelError says why not.

    device: a torch device such as "cuda:1", None: the best there is. dtype: "float32", "bfloat16"
    or "float16"; None: the checkpoint's own on accelerators, float32 on the processor.
    """
    return EncoderModel(load_encoder(name_or_path, device, dtype))


class EncoderModel:
    """A loaded encoder as a Model (backends/base.py)."""

    def __init__(self, loaded: LoadedEncoder) -> None:
        self.uri = f"encoder:{loaded.name}"
        self.labels = loaded.labels
        self.forward = EncoderForward(loaded)
        self._name = loaded.name
        self._reading = loaded.reading

    @property
    def scale(self) -> Scale:
        """What its columns are: of labels, of the one output of a regression, or cosines."""
        if not self.labels:
            return "similarity"
        return "log-probability" if len(self.labels) > 1 else "number"

    def open(self, prompt: Prompt, question: Question, should_stop: ShouldStop) -> EncoderScorer:
        tokenised = self.tokenise(prompt)
        if self.labels:
            return self._open_labels(tokenised, question)
        return self._open_similarity(tokenised, question)

    def tokenise(self, prompt: Prompt) -> TokenisedPrompt:
        """The messages' texts, an empty line apart; InputError where they are empty or too long."""
        if not any(message.text.strip() for message in prompt.messages):
            raise InputError("The prompt is empty; write something to explain.")
        rendered = render_plain(prompt.messages)
        pieces = [Piece(self._reading.prefix), *rendered.pieces]
        found = tokenise_pieces(pieces, self.forward.around.encode, prompt.n_segments)
        length, limit = len(found.ids), self.forward.context_length
        if limit is not None and length > limit:
            raise InputError(
                f"The prompt is {length:,} tokens long, but {self.uri} reads {limit:,} at most: "
                "shorten the prompt or choose a model with a longer context."
            )
        notes = [*rendered.notes, *self._reading.notes]
        if self._reading.advised is not None and length > self._reading.advised:
            notes.append(
                f"The prompt is {length:,} tokens long; {self._name} was made for up to "
                f"{self._reading.advised:,}. All of it was read."
            )
        return TokenisedPrompt(found.ids, found.segments, found.n_segments, found.text, (*notes,))

    def _open_labels(self, prompt: TokenisedPrompt, question: Question) -> EncoderScorer:
        choices = tuple(self._label(choice) for choice in question.choices)
        contrast = None if question.contrast is None else self._label(question.contrast)
        notes: list[str] = []
        if question.target is not None:
            target = self._label(question.target)
        else:
            target = self._predicted(prompt, choices)
            pinned = target if question.pinned is None else self._label(question.pinned)
            if pinned != target and (not choices or pinned in choices):
                notes.append(answer_changed(target, pinned))
                target = pinned
        asked = Question(target=target, contrast=contrast, choices=choices)
        own = question.target is None
        targets = tuple(
            ScoredTarget(label, self.labels.index(label), ((0, len(label)),), own and i == 0)
            for i, label in enumerate([target, *compared_answers(asked, target)])
        )
        return EncoderScorer(self, prompt, targets, notes=tuple(notes))

    def _open_similarity(self, prompt: TokenisedPrompt, question: Question) -> EncoderScorer:
        if question.target is None:
            raise InputError(
                f"{self.uri} writes nothing: it measures how like a text the prompt is. Give that "
                "text as the target."
            )
        texts = [question.target, *compared_answers(question, question.target)]
        rows = [self._text_ids(text) for text in texts]
        anchors = np.empty((len(rows), self.forward.width))
        for places, vectors in self.forward.outputs(rows):
            anchors[places] = vectors
        targets = tuple(ScoredTarget(t, i, ((0, len(t)),)) for i, t in enumerate(texts))
        return EncoderScorer(self, prompt, targets, rows, anchors)

    def _label(self, name: str) -> str:
        """The label that a person means; upper and lower case are all the same, if need be."""
        name = name.strip()
        alike = [label for label in self.labels if label.casefold() == name.casefold()]
        if name in self.labels:
            return name
        if len(alike) != 1:
            listed = ", ".join(map(repr, self.labels[:20])) + (" ..." * (len(self.labels) > 20))
            raise InputError(
                f"{self.uri} has no label {name!r}; its labels are {listed}."
                if not alike
                else f"{self.uri} has several labels like {name!r}: write it as in {listed}."
            )
        return alike[0]

    def _predicted(self, prompt: TokenisedPrompt, choices: Sequence[str]) -> str:
        [(_, scores)] = self.forward.outputs([prompt.ids])
        if np.isnan(scores).any():
            raise ModelError(
                f"{self._name} gives NaN for the full prompt: its weights are damaged, or "
                "too large for their type; try another model."
            )
        allowed = choices or self.labels
        return max(allowed, key=lambda label: float(scores[0, self.labels.index(label)]))

    def _text_ids(self, text: str) -> Ids:
        if not text.strip():
            raise InputError("The target is empty; give the text that the prompt is compared with.")
        pieces = [Piece(self._reading.prefix), Piece(text)]
        ids = tokenise_pieces(pieces, self.forward.around.encode, 0).ids
        if self.forward.context_length is not None and len(ids) > self.forward.context_length:
            raise InputError(
                f"The text that the prompt is compared with is {len(ids):,} tokens long, but "
                f"{self.uri} reads {self.forward.context_length:,} at most: shorten the target."
            )
        return ids


class EncoderScorer:
    """A tokenised prompt with the labels or texts asked for, as a Scorer (backends/base.py).

    All labels have a column, whatever is asked, so that another label later costs no new call.
    """

    tier: Tier = "T1"

    def __init__(
        self,
        model: EncoderModel,
        prompt: TokenisedPrompt,
        targets: tuple[ScoredTarget, ...],
        texts: Sequence[Ids] = (),
        anchors: NDArray[np.float64] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """texts: ids of what the prompt is compared with; anchors: float (k, w), their vectors."""
        self.n_segments = prompt.n_segments
        self.targets = targets
        self.scale = model.scale
        self.notes = (*prompt.notes, *notes)
        self._forward = model.forward
        self._prompt = prompt
        self._texts = texts
        self._anchors = anchors

    def addresses(self, masks: NDArray[np.bool_]) -> list[bytes]:
        texts = (ids.astype("<i8").tobytes() for ids in self._texts)
        return self._prompt.addresses(masks, self.scale.encode(), self._forward.fingerprint, *texts)

    def score(
        self, masks: NDArray[np.bool_], should_stop: ShouldStop
    ) -> Iterator[tuple[NDArray[np.intp], Scores]]:
        rows = [self._prompt.masked(mask) for mask in masks]
        read = np.array([len(row) for row in rows], dtype=np.int64)
        for places, values in self._forward.outputs(rows, should_stop):
            if self._anchors is not None:
                values = np.clip(values @ self._anchors.T, -1.0, 1.0)
            yield places, Scores(values, read[places])

    def noise_floor(
        self, masks: NDArray[np.bool_], value: Callable[[Scores], NDArray[np.float64]]
    ) -> float | None:
        """See `base.MeasuresNoise`."""
        return noise_of_company(self, masks, value)
