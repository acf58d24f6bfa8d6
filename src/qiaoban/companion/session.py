"""One talk with one child, and the `Companion` that answers it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import qiaoban
from qiaoban.companion.events import EndEvent, Event, NoticeEvent, OutputGuardReport, SafetyEvent, TextEvent
from qiaoban.companion.prompt import PromptBook, fit_history, language_of, load_prompt_book
from qiaoban.conversation import Act, AgeBand, Lang, Turn
from qiaoban.engine.protocol import Engine, Options, Usage
from qiaoban.errors import QiaobanError
from qiaoban.safety.output import OutputGuard, load_output_guard
from qiaoban.safety.policy import Action, Decision, Policy, default_classifier, load_policy
from qiaoban.safety.respond import Replies, VettedReply, load_hotlines, load_replies
from qiaoban.safety.sentences import SentenceSplitter, split_sentences
from qiaoban.safety.signals import (
    CONTEXT_TURNS,
    ChildMessage,
    Classifier,
    Severity,
    Verdict,
)

LANGUAGES: tuple[Lang, ...] = ("zh", "en")
REPLY_TOKENS = 160
_HELD_TURNS = 2  # after an urgent message, so many turns are answered with reviewed text whatever they say
_SHORT_ZH, _SHORT_EN = 8, 7  # characters, words
_OTHER_NAMES = {"UK": "GB", "USA": "US", "PRC": "CN"}
_HOME_OF: dict[Lang, str] = {"zh": "CN", "en": "*"}


@dataclass(kw_only=True)
class Session:
    """The state of one talk. `lang` None follows the child's words; `age` None means minors' mode in the middle band.

    `follow_up` names the family of the reviewed reply that a disclosure has just had: the short answer to it gets the next one.

    `jurisdiction` decides the help lines (an ISO 3166 code); None takes China for Chinese and no country for English.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    age: int | None = None
    lang: Lang | None = None
    jurisdiction: str | None = None
    seed: int | None = None
    turns: list[Turn] = field(default_factory=list)
    vetted: list[str] = field(default_factory=list)
    disclosed: bool = False
    guardian_suspected: bool = False
    follow_up: str = ""
    held: int = 0
    introduced: bool = False
    shown_from: int = 0
    last_lang: Lang = "zh"

    @property
    def band(self) -> AgeBand:
        """The age band that words and limits follow."""
        return AgeBand.B9_11 if self.age is None else AgeBand.of(self.age)

    def language(self, message: str) -> Lang:
        """The language of this turn."""
        self.last_lang = self.lang or language_of(message, self.last_lang)
        return self.last_lang

    def country(self, lang: Lang) -> str:
        """The jurisdiction whose help lines are named."""
        given = (self.jurisdiction or _HOME_OF[lang]).upper()
        return _OTHER_NAMES.get(given, given)


@dataclass(frozen=True)
class _Voice:
    """Everything that is said or checked in one language."""

    prompts: PromptBook
    replies: Replies
    guard: OutputGuard


class _Clock:
    """Milliseconds since the child's message."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        return round((time.perf_counter() - self._start) * 1000, 1)


@dataclass(kw_only=True)
class _Spoken:
    """What happened while a reply was spoken; becomes the `EndEvent`."""

    clock: _Clock
    sentences: list[str] = field(default_factory=list)
    acts: tuple[Act, ...] = ()
    reasons: tuple[str, ...] = ()
    first_token_ms: float | None = None
    ttft_ms: float | None = None
    usage: Usage | None = None
    failed: str = ""

    def say(self, sentence: str) -> TextEvent:
        self.ttft_ms = self.ttft_ms or self.clock()
        self.sentences.append(sentence)
        return TextEvent(sentence)


def _is_short(message: str) -> bool:
    """Whether a message is an answer of a few words and no new story."""
    return len(message) <= _SHORT_ZH if language_of(message, "zh") == "zh" else len(message.split()) <= _SHORT_EN


class Companion:
    """Answers children: session → safety-in → prompt → engine → safety-out.

    One companion serves many sessions; a session takes one message at a time.
    """

    def __init__(self, engine: Engine, *, classifier: Classifier | None = None, policy: Policy | None = None) -> None:
        hotlines = self._hotlines = load_hotlines()
        self._engine = engine
        self._policy = policy or load_policy()
        self._classifier = classifier or default_classifier(self._policy)
        self._voices: Mapping[Lang, _Voice] = {
            lang: _Voice(load_prompt_book(lang), load_replies(lang, hotlines), load_output_guard(lang)) for lang in LANGUAGES
        }

    async def warm(self, session: Session) -> None:
        """Let the engine read the opening of a session's prompt before a child has said anything, once for every slot."""
        opening = self._voices[session.lang or session.last_lang].prompts.opening(session.band)
        for slot in range(self._engine.info.prefix_slots):
            async with aclosing(self._engine.stream(opening, Options(talk=f"warm {slot}", max_tokens=0))) as deltas:
                async for _ in deltas:
                    pass

    async def reply(self, session: Session, message: str) -> AsyncGenerator[Event]:
        """Answer one message. Closing the iterator stops the model; what the child has heard so far stays in the talk."""
        message = message.encode("utf-8", "replace").decode()  # half a surrogate pair, as a broken terminal sends it
        clock, lang = _Clock(), session.language(message)
        verdict, decision = self._judge(session, message, lang)
        session.disclosed = session.disclosed or verdict.severity.rank >= Severity.CONCERN.rank
        session.guardian_suspected = session.guardian_suspected or verdict.guardian_may_be_source
        session.turns.append(Turn(role="user", content=message))
        yield SafetyEvent(
            severity=verdict.severity,
            category=verdict.category,
            action=decision.action,
            guardian_may_be_source=verdict.guardian_may_be_source,
            notify=decision.notify,
            rules=tuple(evidence.rule for evidence in verdict.evidence),
        )
        spoken = _Spoken(clock=clock)
        try:
            async with aclosing(self._speak(session, lang, verdict, decision, spoken)) as events:
                async for event in events:
                    yield event
        finally:
            if heard := "".join(spoken.sentences).strip():
                session.turns.append(Turn(role="assistant", content=heard, acts=spoken.acts))
        yield self._end(verdict, lang, spoken)

    def _judge(self, session: Session, message: str, lang: Lang) -> tuple[Verdict, Decision]:
        seen = ChildMessage(text=message, context=tuple(session.turns[-CONTEXT_TURNS:]), lang=lang, band=session.band)
        verdict = self._classifier.assess(seen)
        if verdict.severity is not Severity.NONE and session.guardian_suspected:
            verdict = replace(verdict, guardian_may_be_source=True)  # whatever is told next, that home is not notified of it
        decision = self._policy.decide(verdict, band=session.band, jurisdiction=session.country(lang))
        if verdict.severity.rank >= Severity.CONCERN.rank:
            session.follow_up = verdict.reply or verdict.category.value
            session.held = _HELD_TURNS if verdict.severity is Severity.URGENT else 0
            return verdict, decision
        session.held -= 1
        if decision.action is Action.VETTED and verdict.reply != "goodbye":
            return verdict, decision  # "are you real?" has one true answer, whatever was told before
        if session.follow_up and (session.held >= 0 or verdict.reply == "goodbye" or _is_short(message)):
            # "不知道" or "bye" to "are you safe now?" is not small talk, and too much for a small model
            return replace(verdict, reply=session.follow_up), Decision(Action.VETTED, decision.notify)
        session.follow_up = ""
        return verdict, decision

    async def _speak(
        self, session: Session, lang: Lang, verdict: Verdict, decision: Decision, spoken: _Spoken
    ) -> AsyncGenerator[Event]:
        """Notice and text, in the order that suits: a child in trouble is answered first and told of the computer after."""
        introduce = not session.introduced
        notice = NoticeEvent("ai_disclosure", self._voices[lang].prompts.disclosure(session.band))
        vetted = decision.action is Action.VETTED
        if introduce and not vetted:
            session.introduced = True
            yield notice
        if vetted:
            for said in self._recite(session, lang, verdict.reply or verdict.category.value, spoken):
                yield said
        else:
            async with aclosing(self._generate(session, lang, verdict, decision, spoken)) as events:
                async for event in events:
                    yield event
        if introduce and vetted:
            session.introduced = True
            if verdict.reply != "are_you_human":
                yield notice

    def _recite(self, session: Session, lang: Lang, family: str, spoken: _Spoken) -> Iterator[TextEvent]:
        reply = self._choose(session, lang, family)
        spoken.acts = reply.acts
        for sentence in split_sentences(reply.text):
            yield spoken.say(sentence)

    def _choose(self, session: Session, lang: Lang, family: str) -> VettedReply:
        reply = self._voices[lang].replies.choose(
            family,
            band=session.band,
            jurisdiction=session.country(lang),
            used=session.vetted,
            salt=int.from_bytes(session.id.encode()[-2:]),
        )
        session.vetted.append(reply.text)
        return reply

    async def _generate(
        self, session: Session, lang: Lang, verdict: Verdict, decision: Decision, spoken: _Spoken
    ) -> AsyncGenerator[Event]:
        """The model's reply, sentence by sentence through the output guard; a reviewed reply where either fails."""
        guard, child = self._voices[lang].guard, session.turns[-1].content
        try:
            prompt = self._prompt(session, lang, verdict, decision)
            async with aclosing(self._sentences(session, prompt, spoken)) as sentences:
                async for sentence in sentences:
                    spoken.reasons = self._rejects(session, lang, sentence, spoken.sentences, child)
                    if spoken.reasons or guard.full(spoken.sentences, sentence, session.band):
                        break
                    yield spoken.say(sentence)
        except QiaobanError as error:  # the engine, or a chat template that refuses this talk
            spoken.failed = str(error)
        if spoken.failed and not spoken.sentences:
            for event in self._recite(session, lang, "engine_down", spoken):
                yield event
        elif spoken.reasons or not "".join(spoken.sentences).strip():
            for event in self._recite(session, lang, "output_fallback", spoken):
                yield event

    def _rejects(self, session: Session, lang: Lang, sentence: str, before: list[str], child: str) -> tuple[str, ...]:
        """Why a sentence may not be said, by the rules of every language: a small model changes its own in mid-talk."""
        numbers = self._hotlines.numbers(session.country(lang))
        return tuple(
            reason
            for voice in self._voices.values()
            for reason in voice.guard.check(
                sentence, before, child=child, guardian_suspected=session.guardian_suspected, numbers=numbers
            )
        )

    async def _sentences(self, session: Session, prompt: list[Turn], spoken: _Spoken) -> AsyncGenerator[str]:
        splitter, cut_short = SentenceSplitter(), False
        async with aclosing(self._engine.stream(prompt, self._options(session, max_tokens=REPLY_TOKENS))) as deltas:
            async for delta in deltas:
                spoken.usage = delta.usage or spoken.usage
                if delta.text and spoken.first_token_ms is None:
                    spoken.first_token_ms = spoken.clock()
                for sentence in splitter.feed(delta.text):
                    yield sentence
                cut_short = cut_short or delta.finish == "length"
        # A reply that ran into the limit ends with its last whole sentence; one without any is better than silence.
        if (rest := splitter.flush()).strip() and not (cut_short and spoken.sentences):
            yield rest

    def _prompt(self, session: Session, lang: Lang, verdict: Verdict, decision: Decision) -> list[Turn]:
        """Opening, history by whole turns, and guidance last: what changes comes after what the engine has cached."""
        book = self._voices[lang].prompts
        tail = []
        if decision.action is Action.STEER:
            tail = [Turn(role="system", content=book.guidance(verdict.category.value))]
        elif session.disclosed:
            tail = [Turn(role="system", content=book.guidance("after_disclosure"))]
        opening = book.opening(session.band)
        room = self._engine.info.context_tokens - REPLY_TOKENS - self._engine.count([*opening, *tail])
        session.shown_from = fit_history(session.turns, session.shown_from, count=self._engine.count, room=room)
        return [*opening, *session.turns[session.shown_from :], *tail]

    def _options(self, session: Session, *, max_tokens: int) -> Options:
        return Options(talk=session.id, max_tokens=max_tokens, sampling=self._engine.info.sampling, seed=session.seed)

    def _end(self, verdict: Verdict, lang: Lang, spoken: _Spoken) -> EndEvent:
        info = self._engine.info
        return EndEvent(
            farewell=verdict.reply == "goodbye",
            acts=spoken.acts,
            output_guard=OutputGuardReport(replaced=bool(spoken.reasons), reasons=spoken.reasons),
            first_token_ms=spoken.first_token_ms,
            ttft_ms=spoken.ttft_ms,
            total_ms=spoken.clock(),
            usage=spoken.usage,
            failed=spoken.failed,
            versions={
                "qiaoban": qiaoban.__version__,
                "engine": info.engine,
                "model": info.model,
                "policy": self._policy.version,
                "prompt": self._voices[lang].prompts.version,
                **info.versions,
            },
        )
