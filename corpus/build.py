"""Build the corpus: authored text and cards in, labelled dialogues out; the same files give the same bytes.

    python corpus/build.py                        write corpus/dialogues/zh.jsonl and en.jsonl
    python corpus/build.py --check FILE...        read authored files, lint them, and say what is wrong

An authored file (`corpus/dialogues/zh/*.txt`) holds dialogues for the cards of `corpus/plan/zh.jsonl`:

    = zh-friends-001                              the card; `emotion=hurt outcome=left` may follow where the talk went elsewhere
    孩子3：他不跟我玩了。                         the child, with its distress from 0 (at ease) to 4 (overwhelmed)
    七巧板[NOTICE, INVITE]：…                      the companion, with its acts

English uses `child3:` and `companion[NOTICE]:`. A line that begins with `#` is a remark.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qiaoban.collect.card import Card, read_plan
from qiaoban.conversation import EMOTION_FAMILIES, Act, Conversation, Lang, Meta, Provenance, Turn, explain, write_conversations
from qiaoban.curate.lint import lint
from qiaoban.errors import DataError, QiaobanError

ROOT = Path(__file__).resolve().parent
PAINFUL = {emotion for family in ("sadness", "anger", "fear", "shame") for emotion in EMOTION_FAMILIES[family]}
LICENCE = "CC-BY-4.0"
TEACHER = "written by a language model under the protocol of corpus/README.md"
_HEAD = re.compile(r"=\s*(?P<id>\S+)(?P<changes>(?:\s+\w+=\S+)*)\s*\Z")
_TURN = re.compile(r"(?P<who>孩子|child|七巧板|companion)\s*(?P<d>\d)?\s*(?:\[(?P<acts>[A-Z, ]*)\])?\s*[:：]\s*(?P<text>.+)\Z")
_ROLES: dict[str, Any] = {"孩子": "user", "child": "user", "七巧板": "assistant", "companion": "assistant"}


def cards(lang: Lang) -> dict[str, Card]:
    """The cards of one language by id."""
    return {card.id: card for card in read_plan(ROOT / "plan" / f"{lang}.jsonl")}


def parse(path: Path, known: dict[str, Card]) -> Iterator[Conversation]:
    """The dialogues of an authored file. `DataError` names the line."""
    card, changes, turns = None, dict[str, str](), list[Turn]()
    seen: set[str] = set()
    for number, row in enumerate(read_text(path).splitlines(), start=1):
        line = row.strip()
        if not line or line.startswith("#"):
            continue
        if head := _HEAD.match(line):
            if card:
                yield dialogue(card, changes, turns, path)
            if head["id"] not in known:
                raise DataError(f"there is no card {head['id']!r}", path=path, line=number)
            if head["id"] in seen:
                raise DataError(f"card {head['id']!r} is written twice", path=path, line=number)
            seen.add(head["id"])
            card, turns = known[head["id"]], []
            changes = dict(pair.split("=", 1) for pair in head["changes"].split())
        elif (turn := _TURN.match(line)) and card:
            turns.append(read_turn(turn, path, number))
        else:
            raise DataError(f"neither a card nor a turn: {line[:40]!r}", path=path, line=number)
    if card:
        yield dialogue(card, changes, turns, path)


def read_text(path: Path) -> str:
    """A file in UTF-8. `DataError` where it is none."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", path=path, hint="give a text file in UTF-8") from None


def read_turn(found: re.Match[str], path: Path, number: int) -> Turn:
    """One line as a turn."""
    role = _ROLES[found["who"]]
    acts = [act.strip() for act in (found["acts"] or "").split(",") if act.strip()]
    if (role == "assistant") != bool(acts):
        raise DataError("a companion's turn carries acts, and a child's none", path=path, line=number)
    distress = int(found["d"]) if found["d"] else None
    try:
        return Turn(role=role, content=found["text"].strip(), acts=tuple(acts), distress=distress)  # type: ignore[arg-type]
    except ValueError as error:
        raise DataError(str(error).splitlines()[2].strip(), path=path, line=number) from None


def dialogue(card: Card, changes: dict[str, str], turns: list[Turn], path: Path) -> Conversation:
    """The finished dialogue of a card."""
    if not turns:
        raise DataError(f"card {card.id!r} has no turns", path=path)
    meta = {
        "lang": card.lang,
        "topic": card.scenario or card.scene,
        "domain": card.domain,
        "age_band": card.child.band,
        "emotion": card.emotion,
        "outcome": card.outcome,
        "risk": card.risk,
        "relation": "companion",
    } | changes
    try:
        about = Meta.model_validate(meta)
    except ValidationError as error:
        raise DataError(f"card {card.id!r}: {explain(error, Meta)}", path=path) from None
    if turns[0].role == "user":
        turns[0] = turns[0].model_copy(update={"emotion": about.emotion})
    provenance = Provenance(
        source=f"qiaoban-corpus-1/{path.stem}",
        teacher=TEACHER,
        mode="authored",
        card_sha=card.sha,
        licence=LICENCE,
        synthetic=True,
    )
    return Conversation(id=card.id, turns=tuple(turns), meta=about, provenance=provenance)


def gathered(lang: Lang) -> list[Conversation]:
    """All dialogues of a language in the order of the plan. `DataError` where a card was written twice."""
    known = cards(lang)
    found: dict[str, Conversation] = {}
    for path in sorted((ROOT / "dialogues" / lang).glob("*.txt")):
        for talk in parse(path, known):
            if talk.id in found:
                raise DataError(f"card {talk.id!r} is written twice", path=path)
            found[talk.id] = talk
    return [found[name] for name in known if name in found]


def figures(talks: list[Conversation]) -> dict[str, Any]:
    """What the corpus is to reach, by share or count: labels, order of acts, openers, repeated turns, coverage."""
    painful = [talk for talk in talks if talk.meta.emotion in PAINFUL]
    said = [turn.content for talk in talks for turn in replies(talk)]
    openers = Counter(map(opener, said))
    return {
        "dialogues": len(talks),
        "companion_turns": len(said),
        "painful": len(painful),
        "label_in_two_turns": sum(any(Act.LABEL in turn.acts for turn in replies(talk)[:2]) for talk in painful),
        "advice_first": [talk.id for talk in painful if advises_first(talk)],
        "commonest_opener": openers.most_common(1)[0] if openers else None,
        "repeated_turns": [text for text, count in Counter(said).items() if count > 1],
        "lengths": dict(sorted(Counter(len(talk.turns) for talk in talks).items())),
        "outcomes": dict(Counter(str(talk.meta.outcome) for talk in talks).most_common()),
        "emotions": dict(Counter(str(talk.meta.emotion) for talk in talks).most_common()),
        "risks": dict(Counter(str(talk.meta.risk) for talk in talks if talk.meta.risk).most_common()),
    }


def replies(talk: Conversation) -> list[Turn]:
    """The companion's turns."""
    return [turn for turn in talk.turns if turn.role == "assistant"]


def opener(text: str) -> str:
    """How a turn begins: four characters, or two words."""
    return text[:4] if re.match(r"[\u3400-\u9fff]", text) else " ".join(text.lower().split()[:2])


def advises_first(talk: Conversation) -> bool:
    """Whether the companion explores or plans before it has accepted or empathised."""
    for turn in replies(talk):
        if {Act.ACCEPT, Act.EMPATHISE} & set(turn.acts):
            return False
        if {Act.EXPLORE, Act.PLAN} & set(turn.acts):
            return True
    return False


def check(paths: Iterable[Path]) -> int:
    """Lint authored files and print what is wrong, with lengths and openers; returns how many errors there are."""
    errors = 0
    for path in paths:
        talks = list(parse(path, cards("zh") | cards("en")))
        turns = {talk.id: talk.turns for talk in talks}
        for finding in lint(talks):
            words = "" if finding.turn is None else turns[finding.id][finding.turn].content
            print(f"{finding.severity:<7}{finding.id} {finding.rule}: {finding.message} | {words[:80]}")
            errors += finding.severity != "tag"
        said = [turn.content for talk in talks for turn in talk.turns if turn.role == "assistant"]
        openers = Counter(map(opener, said))
        print(f"{path.name}: {len(talks)} dialogues, {len(said)} companion turns; openers {openers.most_common(6)}")
        for text, count in Counter(said).items():
            if count > 1:
                print(f"said {count} times: {text}")
                errors += 1
    return errors


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Build or check the corpus.")
    parser.add_argument("--check", nargs="+", type=Path, metavar="FILE", help="read and lint these authored files only")
    given = parser.parse_args()
    try:
        if given.check:
            return 1 if check(given.check) else 0
        for lang in ("zh", "en"):
            talks = gathered(lang)
            write_conversations(ROOT / "dialogues" / f"{lang}.jsonl", talks)
            print(json.dumps({"lang": lang, **figures(talks)}, ensure_ascii=False))
    except QiaobanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
