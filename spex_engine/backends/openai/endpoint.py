"""A model behind OpenAI's protocol: opened with a question, it gives the best scorer it can have.

Decides the tier from what the endpoint was found to do and from what is asked: T1 where it scores
given answers, T2 where the first token decides, T3 otherwise. How requests are sent is for
`dispatch`, how answers are read for the scorers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from spex_engine.backends.base import Scorer, ShouldStop
from spex_engine.backends.causal import answer_changed, compared_answers
from spex_engine.backends.openai.asking import Connection, Reply, allowed, ask
from spex_engine.backends.openai.capabilities import Capabilities, capabilities, forget
from spex_engine.backends.openai.checking import check_question
from spex_engine.backends.openai.clients import addresses
from spex_engine.backends.openai.dispatch import Dispatcher, open_dispatcher
from spex_engine.backends.openai.failures import Failure
from spex_engine.backends.openai.label_scores import LabelScorer, first_tokens
from spex_engine.backends.openai.loop import Loop
from spex_engine.backends.openai.messages import (
    LEFT_EMPTY,
    Answer,
    can_be_empty,
    is_plain,
    masked_messages,
)
from spex_engine.backends.openai.prices import prices
from spex_engine.backends.openai.prompt_scores import TextScorer, TokenScorer
from spex_engine.backends.openai.regenerated import RegeneratingScorer
from spex_engine.backends.openai.server_tokens import ServerTokens
from spex_engine.wire import Access, InputError, ModelError, Prompt, Question

MAX_ANSWER_TOKENS = 64


class EndpointModel:
    """A model at the endpoints that serve it (see `base.Model`)."""

    def __init__(self, connection: Connection, repeats: int) -> None:
        self.uri = f"openai:{connection.model}"
        self.connection = connection
        self._repeats = repeats
        # Scorers outlive the model that opened them: the last who holds the connection ends it.
        ends = (connection.dispatcher, connection.loop)
        self._ending = weakref.finalize(connection, _end_aside, *ends)
        self._ending.atexit = False

    def open(self, prompt: Prompt, question: Question, should_stop: ShouldStop) -> Scorer:
        """The scorer of the lowest tier number that the endpoint and the question allow.

        Raises InputError or ModelError (Failure among them) where the full prompt already fails.
        """
        if not any(message.text.strip() for message in prompt.messages):
            raise InputError("The prompt is empty; write something to explain.")
        similar = question.value == "similarity"
        check_question(question, ("T3",) if similar else ("T1", "T2", "T3"))
        try:
            return self._open(prompt, question, should_stop)
        except Failure as failure:
            if failure.fatal and failure.kind != "budget":
                forget(self.connection)
            raise

    def _open(self, prompt: Prompt, question: Question, should_stop: ShouldStop) -> Scorer:
        able = capabilities(self.connection, should_stop)
        if able.text is None and not able.chat and able.labels is None:
            self._check_texts(able, question)  # before the own answer is paid for
        answers, reply, notes = self._answers(able, prompt, question, should_stop)
        notes = [*able.doubts, *notes]
        if can_be_empty(prompt):
            notes.append(LEFT_EMPTY)
        if question.value != "similarity":
            scorer = self._scored(able, prompt, answers, notes, should_stop)
            if scorer is not None:
                return scorer
            if able.labels is not None and self._first_decides(
                able, prompt, answers, reply, should_stop
            ):
                return LabelScorer(
                    self.connection,
                    able.labels,
                    able.top,
                    prompt,
                    answers,
                    tuple(notes),
                    should_stop,
                )
        if able.manner is None:
            raise ModelError(
                f"{self.uri} can score answers but not write them at these addresses; ask for "
                "another value than similarity."
            )
        return RegeneratingScorer(
            self.connection, able.manner, prompt, answers[0], self._repeats, tuple(notes)
        )

    def close(self) -> None:
        """Gives up what is in flight and the connections."""
        if self._ending.detach() is not None:
            _end(self.connection.dispatcher, self.connection.loop)

    def _check_texts(self, able: Capabilities, question: Question) -> None:
        """InputError where regenerated answers do not do; ModelError where more may be had soon."""
        try:
            check_question(question, ("T3",))
        except InputError:
            if not able.doubts:
                raise
            raise ModelError(f"{self.uri} cannot be asked this now: {able.doubts[0]}") from None

    def _answers(
        self, able: Capabilities, prompt: Prompt, question: Question, should_stop: ShouldStop
    ) -> tuple[list[Answer], Reply | None, list[str]]:
        """The answer that is explained and what it is compared with; the model's own, if asked."""
        notes: list[str] = []
        reply = None
        if question.target is not None:
            text = question.target
        else:
            reply = self._own(able, prompt, should_stop)
            own = reply.text.strip()
            if reply.cut:
                notes.append(f"the model's answer was cut at {MAX_ANSWER_TOKENS} tokens")
            if able.manner is not None and not able.manner.temperature:
                notes.append("this model takes no temperature: its own answer is a sampled one")
            text = own
            if question.pinned is not None and question.pinned != own:
                notes.append(answer_changed(own, question.pinned))
                text = question.pinned
        if not text.strip():
            if reply is not None and reply.cut and able.manner is not None:
                raise ModelError(
                    f"{self.uri} wrote nothing within {allowed(able.manner, MAX_ANSWER_TOKENS):,} "
                    "tokens, as a model that thinks for longer does: turn its thinking down, or "
                    "give the answer to be explained as the target."
                )
            if reply is not None:
                raise ModelError(
                    f"{self.uri} answers this prompt with nothing at all: give the answer to be "
                    "explained as the target."
                )
            raise InputError("The target is empty; give the answer whose probability to explain.")
        blank = "" if reply is None else reply.text[: -len(reply.text.lstrip()) or None]
        answers: list[Answer] = []
        for each in (text, *compared_answers(question, text)):
            if not each.strip():
                raise InputError("An answer to compare with is empty; give each some text.")
            written = each if each[0].isspace() else blank + each
            answers.append(Answer(each, reply is not None and not answers, written))
        return answers, reply, notes

    def _own(self, able: Capabilities, prompt: Prompt, should_stop: ShouldStop) -> Reply:
        if able.manner is None:
            raise ModelError(
                f"{self.uri} writes no answers at these addresses: give the answer to be explained "
                "as the target."
            )
        manner = able.labels or able.manner
        asked = ask(self.connection, manner, _full(prompt), MAX_ANSWER_TOKENS, top=able.top)
        return self.connection.loop.run(asked, should_stop)

    def _scored(
        self,
        able: Capabilities,
        prompt: Prompt,
        answers: list[Answer],
        notes: list[str],
        should_stop: ShouldStop,
    ) -> Scorer | None:
        """A scorer of tier T1; None where the endpoint has none for this prompt."""
        speaks = able.manner is not None and able.manner.api != "completions"
        if able.ids and able.text is not None and (able.template or is_plain(prompt) or not speaks):
            server = ServerTokens(self.connection, able.text, able.template, should_stop)
            how = "in the model's chat template" if able.template else "without a chat template"
            said = f"answers are scored by the server (tier T1): completions of token ids, {how}"
            try:
                return TokenScorer(
                    self.connection, able.text, server, prompt, answers, (*notes, said)
                )
            except (InputError, ModelError) as error:
                if isinstance(error, Failure) and (error.fatal or error.kind == "context"):
                    raise
                notes.append(f"the server's own tokens could not be used: {error}")
        if able.chat:
            said = "answers are scored by the server (tier T1): chat that continues them"
            found = (*notes, said)
            return TextScorer(self.connection, None, prompt, answers, found, should_stop)
        if able.text is not None and (is_plain(prompt) or not speaks):
            said = "answers are scored by the server (tier T1): completions of text"
            if speaks:
                said += (
                    ", without the model's chat template, which this endpoint cannot apply there"
                )
            found = (*notes, said)
            return TextScorer(self.connection, able.text, prompt, answers, found, should_stop)
        if able.text is not None:
            notes.append(
                "this endpoint scores answers only after text without roles, which this prompt has"
            )
        return None

    def _first_decides(
        self,
        able: Capabilities,
        prompt: Prompt,
        answers: list[Answer],
        reply: Reply | None,
        should_stop: ShouldStop,
    ) -> bool:
        """Whether the first token tells the answers apart, or is all of the only one."""
        if len(answers) > 1:
            return True
        text = answers[0].text
        if reply is not None and reply.length is not None and reply.text.strip() == text:
            return reply.length == 1
        if len(text.split()) > 1 or able.labels is None:
            return False
        asked = first_tokens(self.connection, able.labels, _full(prompt), able.top)
        listed, _ = self.connection.loop.run(asked, should_stop)
        return any(entry.token.strip() == text.strip() for entry in listed)


def load_model(
    name: str, access: Access, secrets: Mapping[str, str] | None = None
) -> EndpointModel:
    """The model of that name at the endpoints of ``access``; nothing is sent yet.

    secrets: keys by origin, from the server's secret store. InputError or ModelError say why not.
    """
    if not name:
        raise InputError("openai: names no model; write openai:NAME as the endpoint calls it.")
    if access.repeats < 1:
        raise InputError(
            f"repeats is {access.repeats}: at least one answer for each mask is needed."
        )
    urls: Sequence[str] = [address.url for address in addresses(access, secrets)]
    dispatcher = open_dispatcher(access, name, prices(name, access), secrets or {})
    connection = Connection(name, tuple(sorted(urls)), dispatcher, Loop())
    return EndpointModel(connection, access.repeats)


def _end(dispatcher: Dispatcher, loop: Loop) -> None:
    loop.run(dispatcher.close(), lambda: False)
    loop.close()


def _end_aside(dispatcher: Dispatcher, loop: Loop) -> None:
    """In a thread of its own: this may be called in the loop's, which cannot end itself."""
    threading.Thread(target=_end, args=(dispatcher, loop), daemon=True).start()


def _full(prompt: Prompt) -> list[dict[str, str]]:
    return masked_messages(prompt, np.ones(prompt.n_segments, dtype=np.bool_))
