"""`roleplay`: an outline, then child and companion as two agents (the default).

The child agent reads the card, the outline and a director's note; the companion reads only what the product would know: its
policy, the age band and the talk. Asymmetry of this kind is what keeps the companion from answering what nobody has said
(Interactive Agents, CCD-CBT). The controller is code: it decides how the child is and what may come next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial
from random import Random

from qiaoban.collect.card import Card
from qiaoban.collect.controller import Controller
from qiaoban.collect.prompts import Prompts, band_words
from qiaoban.collect.reading import Outline, outlines_of, spoken, tagged
from qiaoban.collect.rollouts.studio import Studio, assistant, system, user
from qiaoban.conversation import Act, Conversation, Emotion, Lang, Turn
from qiaoban.safety.output import load_output_guard
from qiaoban.safety.policy import default_classifier
from qiaoban.safety.respond import load_hotlines
from qiaoban.safety.sentences import split_sentences
from qiaoban.safety.signals import CONTEXT_TURNS, ChildMessage, RuleClassifier, Severity
from qiaoban.teacher.answers import BadReplyError

_OUTLINES = 5
_HOME: dict[Lang, str] = {"zh": "CN", "en": "*"}
_SHORT = {"zh": 6, "en": 20}  # characters
_OUTLINE_TOKENS, _CHILD_TOKENS, _COMPANION_TOKENS = 2500, 200, 300


async def rollout(card: Card, studio: Studio) -> Conversation:
    """See the module."""
    prompts, rng = studio.of(card), Random(card.seed + 1)  # noqa: S311 - choices that can be repeated
    outline = await _outline(card, studio, rng)
    scene = _Scene(
        card=card,
        studio=studio,
        outline=outline,
        controller=Controller(card=card, rng=rng),
        child=[system(prompts.text("child.system", prompts.facts(card) | _plot(outline, prompts)))],
        companion=[system(prompts.text("companion.system", band_words(card.child.band, prompts)))],
    )
    talk: list[Turn] = []
    for _ in range(card.turns):
        talk.append(await scene.child_speaks(talk))
        talk.append(await scene.companion_answers(talk))
    return studio.conversation(card, talk)


async def _outline(card: Card, studio: Studio, rng: Random) -> Outline:
    """One of several outlines, drawn with the unlikely ones favoured (verbalized sampling, 2025)."""
    prompts = studio.of(card)
    facts = prompts.facts(card) | {"count": str(_OUTLINES)}
    question = [system(prompts.text("outline.system", facts)), user(prompts.text("outline.user", facts))]
    outlines = await studio.ask(card, "outline", question, outlines_of, max_tokens=_OUTLINE_TOKENS, again="json")
    return rng.choices(outlines, weights=[1.05 - outline.p for outline in outlines])[0]


def _plot(outline: Outline, prompts: Prompts) -> dict[str, str]:
    none = prompts.line("words.none")
    return {
        "incident": outline.incident,
        "hides": outline.hides or none,
        "beats": "\n".join(f"{number}. {beat}" for number, beat in enumerate(outline.beats, start=1)),
        "worse": outline.worse or none,
        "detail": outline.detail or none,
    }


@dataclass(kw_only=True)
class _Scene:
    """The two agents' own views of one talk. A note stands only in an agent's latest message, so that prefixes stay cached;
    the child keeps its first, without which its first line would answer nobody.
    """

    card: Card
    studio: Studio
    outline: Outline
    controller: Controller
    child: list[Turn]
    companion: list[Turn]
    heard: list[Turn] = field(default_factory=list)
    suspected: bool = False

    async def child_speaks(self, talk: list[Turn]) -> Turn:
        """The child's next line."""
        prompts, controller = self.studio.of(self.card), self.controller
        if talk:
            note = user(prompts.text("child.turn", {"reply": talk[-1].content, **self._direction()}))
            kept = user(talk[-1].content)
        else:
            note = kept = user(prompts.text("child.start", prompts.facts(self.card) | self._direction()))
        words = await self.studio.ask(
            self.card,
            f"child/{controller.turn}",
            [*self.child, note],
            partial(spoken, name=self.card.child.name, said=self._said(talk, "user")),
            max_tokens=_CHILD_TOKENS,
            again="plain",
        )
        self.child += [kept, assistant(words)]
        return Turn(role="user", content=words, emotion=self._emotion(), distress=controller.distress)

    async def companion_answers(self, talk: list[Turn]) -> Turn:
        """The companion's answer to the child's line, and its effect on the child."""
        prompts, controller = self.studio.of(self.card), self.controller
        message = talk[-1].content
        note = prompts.text(
            "companion.turn",
            {"message": message, "allowed": _names(controller.allowed), "not_yet": _names(controller.not_yet)},
        )
        if extra := self._caution(talk):
            note += "\n" + extra
        self.heard = talk
        acts, words = await self.studio.ask(
            self.card,
            f"companion/{controller.turn}",
            [*self.companion, user(note)],
            self._read,
            max_tokens=_COMPANION_TOKENS,
            again="tags",
        )
        self.companion += [user(message), assistant(f"[{_names(acts)}] {words}")]
        controller.heard(acts)
        return Turn(role="assistant", content=words, acts=acts)

    def _read(self, text: str) -> tuple[tuple[Act, ...], str]:
        """The companion's words, if the product's own output guard would let a child hear them."""
        acts, words = tagged(text, said=self._said(self.heard, "assistant"), asked=self.companion[0].content)
        guard, before = load_output_guard(self.card.lang), list[str]()
        numbers = load_hotlines().numbers(_HOME[self.card.lang])
        for sentence in split_sentences(words):
            reasons = guard.check(
                sentence, before, child=self.heard[-1].content, guardian_suspected=self.suspected, numbers=numbers
            )
            if reasons:
                raise BadReplyError(f"guard_{reasons[0]}", f"a child must not hear it ({', '.join(reasons)})")
            before.append(sentence)
        return acts, words

    def _direction(self) -> dict[str, str]:
        """The director's note to the child."""
        prompts, controller, card = self.studio.of(self.card), self.controller, self.card
        good = card.distress == 0
        lines = [prompts.line("child.good") if good else prompts.line(f"child.state.{controller.distress}")]
        if controller.turn > 1 and not good:
            lines.append(prompts.line(f"child.{controller.effect}"))
        lines.append(prompts.line("child.reveal" if controller.may_reveal else "child.hold"))
        if controller.last:
            closing = "child.leave" if card.outcome == "left" else "child.closing"
            lines.append(prompts.text(closing, prompts.facts(card)))
        return {"state": "\n".join(lines), "beat": controller.beat(self.outline.beats)}

    def _said(self, talk: list[Turn], role: str) -> list[str]:
        """What one of the two has said that is long enough to be remembered: "嗯" may be said twice."""
        short = _SHORT[self.card.lang]
        return [turn.content for turn in talk if turn.role == role and len(turn.content) > short]

    def _emotion(self) -> Emotion | None:
        calm = self.card.distress > 0 and self.controller.distress == 0
        return None if calm else self.card.emotion

    def _caution(self, talk: list[Turn]) -> str:
        """What the product's own guard would add: a disclosure or a goodbye is seen in the child's words, not in the card."""
        prompts = self.studio.of(self.card)
        context = tuple(talk[:-1][-CONTEXT_TURNS:])
        verdict = _classifier().assess(
            ChildMessage(text=talk[-1].content, context=context, lang=self.card.lang, band=self.card.child.band)
        )
        self.suspected = self.suspected or verdict.guardian_may_be_source
        if verdict.severity.rank >= Severity.CONCERN.rank:
            note = prompts.text("companion.safeguard", {"lines": _lines(self.card)})
            return f"{note}\n{prompts.category(verdict.category)}".strip()
        return prompts.line("companion.farewell") if verdict.reply == "goodbye" else ""


def _names(acts: tuple[Act, ...]) -> str:
    return ", ".join(acts)


def _lines(card: Card) -> str:
    """The help lines that may be named; in English none, for the child's country is not known."""
    lines = (line for line in load_hotlines().lines if line.jurisdiction == _HOME[card.lang] and line.default and line.number)
    return ("、" if card.lang == "zh" else ", ").join(line.spoken(card.lang) for line in lines)


@cache
def _classifier() -> RuleClassifier:
    return default_classifier()
