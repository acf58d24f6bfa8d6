"""Rules that need a talk as a whole: what came before what, and what never came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache

import polars as pl

from qiaoban.bank import read_table
from qiaoban.conversation import EMOTION_FAMILIES, AgeBand, Category, Conversation, Lang
from qiaoban.curate.rules_echo import parrots, repeats_itself
from qiaoban.curate.rules_gate import likely_books
from qiaoban.curate.rules_shape import LONGEST, SHORTEST
from qiaoban.curate.rules_words import LANGS, rows_with
from qiaoban.curate.table import GENERAL, HAN, LATIN_WORD, lengths_of
from qiaoban.safety.policy import load_policy
from qiaoban.safety.signals import CONTEXT_TURNS, ChildMessage, RuleClassifier, Severity, Verdict

Hit = tuple[int, int | None, str, str]  # talk in the chunk, turn, rule, words

PAINFUL = frozenset(e.value for family in ("sadness", "anger", "fear", "shame") for e in EMOTION_FAMILIES[family])
GLAD = frozenset(e.value for family in ("joy", "love") for e in EMOTION_FAMILIES[family])
ACCEPTING = ("ACCEPT", "EMPATHISE", "LABEL")
ADVISING = ("EXPLORE", "PLAN")
TELLING = 7  # Han characters, or half as many words: a shorter turn ("嗯，好的。") gives nothing back
NEAR = 8  # turns after a disclosure in which a question for details belongs to it

# Kinds of harm for which words alone are not enough.
HARM = frozenset(
    {
        Category.SELF_HARM,
        Category.SUICIDE,
        Category.PHYSICAL_ABUSE,
        Category.SEXUAL_ABUSE,
        Category.GROOMING_ONLINE,
        Category.NEGLECT,
        Category.DOMESTIC_VIOLENCE,
        Category.BULLYING,
        Category.VIOLENCE_TO_OTHERS,
        Category.EATING_DISORDER,
        Category.RUNNING_AWAY,
        Category.DANGEROUS_ACT,
        Category.MEDICAL_EMERGENCY,
        Category.SUBSTANCE,
    }
)
# Kinds in which somebody does it to the child: asking for details does harm, and may spoil evidence.
DONE_TO_CHILD = frozenset(
    {
        Category.PHYSICAL_ABUSE,
        Category.SEXUAL_ABUSE,
        Category.GROOMING_ONLINE,
        Category.NEGLECT,
        Category.DOMESTIC_VIOLENCE,
        Category.BULLYING,
    }
)


def turn_count(talks: Sequence[Conversation]) -> list[Hit]:
    """Companion talks that are too short or too long."""
    return [
        (number, None, "turn_count", str(count))
        for number, (talk, count) in enumerate(zip(talks, lengths_of(talks), strict=True))
        if talk.meta.domain != GENERAL and not SHORTEST <= count <= LONGEST
    ]


def advice_before_acceptance(turns: pl.DataFrame) -> pl.DataFrame:
    """The first turn that advises in a painful talk in which nothing has been accepted, empathised with or named."""
    marked = _marked(turns.filter(pl.col("domain").ne_missing(GENERAL)), ("pain", "accept", "advice", "safety", "brush_off"))
    marked = marked.with_columns(
        labelled=(pl.col("acts").list.len() > 0).any().over("talk"),
        by_act=_any_act(ADVISING) & ~_any_act(("SAFEGUARD",)),
        accepts_by_act=_any_act(ACCEPTING),
    ).with_columns(
        advises=pl.when("labelled").then("by_act").otherwise(pl.col("advice") & ~pl.col("safety")),
        accepts=pl.when("labelled").then("accepts_by_act").otherwise(pl.col("accept") | _reflects()),
    )
    hurts = pl.col("emotion").is_in(PAINFUL) | (pl.col("distress") >= 2).any().over("talk")
    told = pl.col("pain").cum_max().over("talk") & pl.col("emotion").is_in(GLAD).ne_missing(other=True)
    early = marked.filter(
        pl.col("advises")
        & ~pl.col("accepts").cum_max().over("talk")
        & (hurts.fill_null(value=False) | told.fill_null(value=False))
    )
    return early.unique("talk", keep="first", maintain_order=True).select("row", words=pl.col("text").str.slice(0, 20))


def _reflects() -> pl.Expr:
    """A companion's turn that is a statement of some length, neither advises nor brushes off: it gives back what was heard."""
    size = pl.col("said").str.count_matches(HAN) + 2 * pl.col("said").str.count_matches(LATIN_WORD)
    asks = pl.col("said").str.contains(r"\?|吗[。,]?$")
    return (pl.col("role") == "assistant") & (size >= TELLING) & ~asks & ~pl.col("advice") & ~pl.col("brush_off")


def _any_act(acts: tuple[str, ...]) -> pl.Expr:
    return pl.col("acts").list.eval(pl.element().is_in(acts)).list.any().fill_null(value=False)


def _marked(turns: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    """The table with one boolean column a talk list."""
    for name in names:
        role = "user" if name in ("pain", "harm_done", "harm_self") else "assistant"
        turns = turns.with_columns(pl.col("row").is_in(rows_with(turns, name, role)["row"].implode()).alias(name))
    return turns


class Disclosures:
    """Reads children's turns for harm, each at most once; a gate of cheap words decides which are read at all."""

    def __init__(self, talks: Sequence[Conversation], turns: pl.DataFrame) -> None:
        self._talks = talks
        self._turns = turns
        self._verdicts: dict[tuple[int, int], Verdict] = {}

    def told(self, talks: Sequence[int], kinds: frozenset[Category], lists: Iterable[str]) -> dict[int, list[int]]:
        """For each of `talks` in which harm of these kinds is told, or found by the talk `lists`: the turns that tell it."""
        some = self._turns.filter(pl.col("talk").is_in(talks), pl.col("role") == "user")
        some = some.with_columns(play=pl.col("row").is_in(rows_with(some, "not_own", "user")["row"].implode()))
        some = some.with_columns(in_play=pl.col("play") | pl.col("play").shift(1, fill_value=False).over("talk"))
        gated = some.filter(~pl.col("in_play")).join(rows_with(some, "disclosure_gate", "user"), on="row", how="semi")
        told: dict[int, list[int]] = {}
        rows = list(gated.select("talk", "turn", "lang").iter_rows())
        self._read(rows)
        for number, turn, _ in rows:
            verdict = self._verdicts[number, turn]
            grave = {Category(kind) for kind, score in verdict.scores.items() if score > 0} | {verdict.category}
            if verdict.severity.rank >= Severity.CONCERN.rank and grave & kinds:
                told.setdefault(number, []).append(turn)
        for name in lists:
            listed = some.filter(~pl.col("play")).join(rows_with(some, name, "user"), on="row", how="semi")
            for number, turn in listed.select("talk", "turn").iter_rows():
                told.setdefault(number, []).append(turn)
        return told

    def _read(self, rows: Sequence[tuple[int, int, Lang]]) -> None:
        """Judge the turns (talk, turn, language) that were not judged before."""
        priority = load_policy().priority
        for lang in LANGS:
            new = [(number, turn) for number, turn, own in rows if own == lang and (number, turn) not in self._verdicts]
            books = likely_books([self._talks[number].turns[turn].content for number, turn in new], lang)
            for (number, turn), book in zip(new, books, strict=True):
                talk = self._talks[number]
                context = talk.turns[max(0, turn - CONTEXT_TURNS) : turn]
                band = talk.meta.age_band or AgeBand.B9_11
                message = ChildMessage(text=talk.turns[turn].content, context=context, lang=lang, band=band)
                self._verdicts[number, turn] = RuleClassifier([book], priority).assess(message)


def missing_referral(talks: Sequence[Conversation], turns: pl.DataFrame, disclosures: Disclosures) -> list[Hit]:
    """Talks of harm in which the companion names neither a grown-up to turn to nor a help line."""
    to_harm = {(number, turn) for number, turn, *_ in faces_harm(talks, turns, disclosures)}
    named = turns.join(rows_with(turns, "referral", "assistant"), on="row", how="semi").select("talk", "turn")
    safe = {number for number, turn in named.iter_rows() if (number, turn) not in to_harm}
    open_ended = [number for number in turns["talk"].unique().to_list() if number not in safe]
    by_meta = [n for n in open_ended if talks[n].meta.risk in HARM]
    by_words = disclosures.told([n for n in open_ended if talks[n].meta.risk is None], HARM, ("harm_done", "harm_self"))
    return [
        *((n, None, "missing_referral", str(talks[n].meta.risk)) for n in by_meta),
        *((n, None, "missing_referral", talks[n].turns[told[0]].content[:20]) for n, told in by_words.items()),
    ]


def interrogates_disclosure(talks: Sequence[Conversation], turns: pl.DataFrame, disclosures: Disclosures) -> list[Hit]:
    """Companion turns that ask for the course, the number or the proof after a child has told of being harmed."""
    asking = turns.select("row", "talk", "turn").join(rows_with(turns, "details", "assistant"), on="row")
    told = disclosures.told(asking["talk"].unique().to_list(), DONE_TO_CHILD, ("harm_done", "harm_peer", "harm_threat"))
    for number, turn in _hurt_by_adults(turns):
        told.setdefault(number, []).append(turn)
    return [
        (number, turn, "interrogates_disclosure", words)
        for number, turn, words in asking.select("talk", "turn", "words").iter_rows()
        if any(0 < turn - earlier <= NEAR for earlier in told.get(number, ()))
    ]


def _hurt_by_adults(turns: pl.DataFrame) -> Iterator[tuple[int, int]]:
    """Talk and turn of each child's turn that says, in few words, which grown-up hits, touches or threatens it."""
    adults = [word for person, words in _people().items() if person not in _CHILDREN for word in words]
    told = turns.select("talk", "turn", "row").join(rows_with(turns, "hurt_by", "user"), on="row")
    for number, turn, who in told.select("talk", "turn", "words").iter_rows():
        if any(word in who for word in adults):
            yield number, turn


def faces_harm(talks: Sequence[Conversation], turns: pl.DataFrame, disclosures: Disclosures) -> list[Hit]:
    """Companion turns that send a child, who has just told who hurts it, to talk things out with that person."""
    sends = turns.select("talk", "turn", "row").join(rows_with(turns, "face_them", "assistant"), on="row")
    told = turns.select("talk", "turn", "row").join(rows_with(turns, "hurt_by", "user"), on="row")
    pairs = sends.join(told, on="talk", suffix="_told").filter(pl.col("turn") > pl.col("turn_told"))
    return [
        (number, turn, "unsafe_advice", words)
        for number, turn, words, who in pairs.select("talk", "turn", "words", "words_told")
        .unique(maintain_order=True)
        .iter_rows()
        if _same_person(words, who)
    ]


def goes_along(talks: Sequence[Conversation], turns: pl.DataFrame, disclosures: Disclosures) -> list[Hit]:
    """Companion turns that wave through a danger the child has just named, or bid a hurt child be good and bear it."""
    told = {name: turns.join(rows_with(turns, name, "user"), on="row").select("talk", "turn") for name in _HURT}
    hurt = pl.concat([told[name] for name in _HURT])
    plans = turns.join(rows_with(turns, "danger_plan", "user"), on="row").select("talk", "turn")
    hits = []
    for child, name, near in ((plans, "goes_along", 1), (hurt, "bear_it", NEAR)):
        said = turns.select("talk", "turn", "row").join(rows_with(turns, name, "assistant"), on="row")
        gap = pl.col("turn").cast(pl.Int64) - pl.col("turn_told").cast(pl.Int64)
        pairs = said.join(child.unique(), on="talk", suffix="_told").filter(gap.is_between(1, near))
        hits += pairs.select("talk", "turn", "words").unique(maintain_order=True).rows()
    return [(number, turn, "unsafe_advice", words) for number, turn, words in hits]


_HURT = ("hurt_by", "harm_done", "harm_peer")


def unsafe_advice(talks: Sequence[Conversation], turns: pl.DataFrame, disclosures: Disclosures) -> list[Hit]:
    """What is unsafe only after what the child has said; each turn once."""
    hits = [*faces_harm(talks, turns, disclosures), *goes_along(talks, turns, disclosures)]
    return list({(number, turn): (number, turn, rule, words) for number, turn, rule, words in hits}.values())


def _same_person(sent: str, told: str) -> bool:
    """Whether the person whom the child is sent to can be the one who hurts it: a pronoun may be anybody."""
    people = [kin for kin in _people().values() if any(word in told for word in kin)]
    others = [kin for kin in _people().values() if kin not in people]
    return any(word in sent for kin in people for word in kin) or not any(word in sent for kin in others for word in kin)


@cache
def _people() -> Mapping[str, tuple[str, ...]]:
    """The words for each person that a child may speak of, in both languages."""
    tables = [read_table(f"curate/lexicon_{lang}.toml")["people"] for lang in LANGS]
    return {person: tuple(word for table in tables for word in table.get(person, ())) for person in tables[0]}


_CHILDREN = frozenset({"brother", "sister", "classmate"})

_BY_ROW: Mapping[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "advice_before_acceptance": advice_before_acceptance,
    "repeats_itself": repeats_itself,
    "parrots": parrots,
}
_BY_TALK: Mapping[str, Callable[[Sequence[Conversation], pl.DataFrame, Disclosures], list[Hit]]] = {
    "missing_referral": missing_referral,
    "unsafe_advice": unsafe_advice,
    "interrogates_disclosure": interrogates_disclosure,
}


def talk_rows(turns: pl.DataFrame, wanted: frozenset[str]) -> pl.DataFrame:
    """Every hit of the talk rules that point at a turn: columns `row`, `rule`, `words`."""
    none = pl.DataFrame(schema={"row": pl.UInt32, "rule": pl.String, "words": pl.String})
    found = [find(turns).with_columns(rule=pl.lit(rule)) for rule, find in _BY_ROW.items() if rule in wanted]
    return pl.concat([none, *(each.select("row", "rule", "words") for each in found)])


def talk_hits(talks: Sequence[Conversation], turns: pl.DataFrame, wanted: frozenset[str]) -> list[Hit]:
    """Every hit of the other talk rules."""
    hits = turn_count(talks) if "turn_count" in wanted else []
    disclosures = Disclosures(talks, turns)
    for rule, find in _BY_TALK.items():
        if rule in wanted:
            hits += find(talks, turns, disclosures)
    return hits
