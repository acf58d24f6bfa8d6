"""The page of a curation: its figures are right, texts stay texts, and what was not measured is said to be so."""

from __future__ import annotations

import math
import random
import re
import shutil
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qiaoban.cli.main import run as qiaoban
from qiaoban.conversation import Act, Category, Turn, read_conversations
from qiaoban.conversation import write_conversations as write
from qiaoban.curate.pipeline import CurateOptions, curate
from qiaoban.errors import DataError
from qiaoban.judge.talks import Judgement, Level
from qiaoban.report import charts
from qiaoban.report.diversity import (
    SAMPLE_UNITS,
    Reservoir,
    compression_ratio,
    distinct,
    diversity,
    opener_entropy,
    self_bleu,
    self_repetition,
)
from qiaoban.report.figures import gather
from qiaoban.report.page import render_page, write_report
from qiaoban.report.safety import Personal, load_gaps

from .curated import BAD_WORDS, BELT, HOSTILE, KEPT, PHONE, TALKS, TOWER, make

_VOID = {"meta", "br", "rect", "circle"}


class Page(HTMLParser):
    """Reads a page and complains where tags do not close; keeps ids, tags, links and texts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value or "" for _, each, value in self.attributes if each == name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("report"))


def drawn(folder: Path) -> str:
    return write_report(folder).read_text("utf-8")


class TestFigures:
    def test_the_funnel_is_the_one_of_the_stages(self, folder: Path) -> None:
        figures = gather(folder)
        assert (figures.read, figures.left, figures.talks.talks) == (10, 5, 5)
        assert [stage.kept for stage in figures.stages] == [8, 7, 6, 5]
        assert figures.read_from == {"synthetic": 8, "people": 1, "unknown": 1}
        assert figures.options is not None
        assert figures.options.against == ("exam",)

    def test_turns_and_labels_are_those_counted_by_hand(self, folder: Path) -> None:
        talks = gather(folder).talks
        assert talks.turns == 6 + 6 + 4 + 4 + 4
        assert dict(talks.per_talk) == {6: 2, 4: 3}
        assert talks.labels("lang") == {"zh": 4, "en": 1}
        assert talks.labels("outcome") == {"(none)": 2, "calmed": 1, "partly": 1, "referred": 1}
        assert talks.labels("licence") == {"Apache-2.0": 3, "(none)": 1, "CC-BY-NC-4.0": 1}
        assert dict(talks.origin) == {"synthetic": 3, "people": 1, "unknown": 1}
        assert talks.days == ("2026-11-02", "2026-11-02")
        assert sum(talks.heat.values()) == 5

    def test_acts_are_counted_and_chained(self, folder: Path) -> None:
        acts = gather(folder).talks.acts
        assert (acts.turns, acts.labelled) == (12, 10)  # the third reply of two talks has none
        assert acts.counts == {Act.EMPATHISE: 5, Act.INVITE: 5, Act.EXPLORE: 5}
        assert acts.bigrams == {(Act.EMPATHISE, Act.INVITE): 5, (Act.INVITE, Act.EXPLORE): 5}

    def test_a_turn_without_acts_breaks_the_chain(self, tmp_path: Path) -> None:
        turns = [turn.model_copy(update={"acts": ()}) if n == 3 else turn for n, turn in enumerate(TOWER.turns)]
        turns[5] = turns[5].model_copy(update={"acts": (Act.CLOSE,)})
        assert gather(make(tmp_path, [TOWER.model_copy(update={"turns": tuple(turns)})])).talks.acts.bigrams == {}

    def test_lengths_by_band_are_in_characters_or_words(self, folder: Path) -> None:
        rows = {(row.who, row.band, row.unit): row for row in gather(folder).talks.lengths()}
        child = rows["child", "6-8", "characters"]  # 明天轮到我讲故事 8, 会 1, 那我带上小熊 6
        assert (child.turns, child.median, child.p95) == (3, 6, 8)
        kite = rows["companion", "9-11", "words"]  # nine words, seven words
        assert (kite.turns, kite.median, kite.p95) == (2, 7, 9)

    def test_rule_hits_have_counts_dialogues_and_three_examples(self, folder: Path) -> None:
        hits = gather(folder).hits
        kin = hits.of("kinship_vocative")
        assert (kin.count, kin.dialogues, [each.id for each in kin.examples]) == (2, 1, ["mum", "mum"])
        assert hits.of("missing_referral").dialogues == 1
        assert hits.of("no_such_rule").count == 0
        severities = [severity for _, severity, _, _ in hits.rows()]
        assert severities == sorted(severities, key=["drop", "repair", "tag"].index)


class TestSafety:
    def test_talks_that_people_wrote_are_left_out_and_unknown_ones_are_not(self, folder: Path) -> None:
        assert gather(folder).safety.talks == 4

    def test_risks_and_referrals(self, folder: Path) -> None:
        rows = {row.risk: (row.talks, row.unreferred) for row in gather(folder).safety.risks}
        assert rows == {Category.PHYSICAL_ABUSE: (1, 0), Category.BENIGN: (1, None), None: (2, 0)}

    def test_rules_before_and_after(self, folder: Path) -> None:
        rows = {row.rule.id: (row.before.count, row.after.count) for row in gather(folder).safety.rules}
        assert rows["missing_referral"] == (1, 0)
        assert rows["kinship_vocative"] == (2, 0)
        assert rows["secrecy"] == (0, 0)

    def test_after_means_the_file_as_it_is_now(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        secret = Turn(role="assistant", content="放心，我不会告诉任何人。")
        write(copy / "kept.jsonl", [BELT.model_copy(update={"turns": (*BELT.turns[:3], secret)})])
        figures = gather(copy)
        assert {row.rule.id: row.after.count for row in figures.safety.rules}["secrecy"] == 1
        assert [(row.risk, row.unreferred) for row in figures.safety.risks] == [(Category.PHYSICAL_ABUSE, 1)]
        assert "it was changed since" in drawn(copy)

    def test_personal_data_left_out(self, folder: Path) -> None:
        assert gather(folder).safety.personal == Personal(1, 0, {"phone": 1})

    def test_personal_data_redacted(self, tmp_path: Path) -> None:
        folder = make(tmp_path, redact=True)
        assert gather(folder).safety.personal == Personal(0, 1, {"phone": 1})
        assert "13912345678" not in drawn(folder)

    def test_personal_data_is_not_assessed_without_its_stage(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        shutil.rmtree(copy / "4-personal-data")
        figures = gather(copy)
        assert figures.safety.personal is None
        assert "personal" in {gap.id for gap in figures.safety.gaps}
        assert "Not assessed: the search for personal data" in render_page(figures)

    def test_gaps_close_when_something_was_done(self, folder: Path, tmp_path: Path) -> None:
        assert {gap.id for gap in load_gaps()} - {gap.id for gap in gather(folder).safety.gaps} == {
            "judge_part",
            "held_out",
            "personal",
        }
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / "judge").mkdir()
        levels = {"accept": Level(level=2, turn=2, quote="q", proved=True), "limit": Level(level=None)}
        said = [Judgement(id=name, judge="strict-model", rubric="r", levels=levels) for name in ("tower", "belt", "gone")]
        said.insert(1, Judgement(id="tower", judge="mild-model", rubric="r", levels={"accept": Level(level=2, proved=False)}))
        (copy / "judge" / "judgements.jsonl").write_text("".join(each.to_json() + "\n" for each in said), "utf-8")
        figures = gather(copy)
        assert figures.safety.judged == 2
        assert figures.judged is not None
        assert figures.judged.by_judge == {"strict-model": 3, "mild-model": 1}
        assert figures.judged.level_rows == [["accept", 3, 0, 0, 0, 1], ["limit", 0, 0, 0, 3, 0]]
        assert figures.judged.agreement == [], "a level without evidence agrees with nobody"
        assert {"judge_part"} == {gap.id for gap in figures.safety.gaps if gap.id.startswith("judge")}
        assert "2 of 4 talks (50.0%)" in Page(render_page(figures)).text

    def test_old_folders_say_that_options_are_not_on_record(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        stats = copy / "stats.json"
        stats.write_text(re.sub(r',\s*"options".*', "\n}", stats.read_text("utf-8"), flags=re.DOTALL), "utf-8")
        figures = gather(copy)
        assert figures.options is None
        assert "held_out" in {gap.id for gap in figures.safety.gaps}
        assert "not on record" in render_page(figures)


class TestPage:
    def test_it_is_whole_and_needs_nothing_else(self, folder: Path) -> None:
        html = drawn(folder)
        page = Page(html)
        assert page.tags["script"] == page.tags["img"] == page.tags["link"] == 0
        assert all(link.startswith("#") for link in page.values("href"))
        assert page.values("src") == []
        assert "url(" not in html
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        assert {link[1:] for link in page.values("href")} <= set(ids)

    def test_charts_have_names_and_tables_beside_them(self, folder: Path) -> None:
        page = Page(drawn(folder))
        assert page.tags["svg"] >= 8
        assert (
            sum(1 for tag, name, value in page.attributes if tag == "svg" and name == "aria-label" and value)
            == page.tags["svg"]
        )
        assert page.tags["table"] == page.tags["caption"] >= page.tags["svg"]
        assert page.tags["h1"] == 1

    def test_hostile_text_stays_text(self, folder: Path) -> None:
        html = drawn(folder)
        page = Page(html)
        assert HOSTILE in page.text
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]
        assert "\u202e" not in html
        assert "default-src 'none'" in html

    def test_hostile_findings_stay_text(self, tmp_path: Path) -> None:
        bad = BAD_WORDS.model_copy(update={"id": '"><script>x</script>'})
        turns = (Turn(role="user", content=f"妈妈，{HOSTILE}"), *bad.turns[1:])
        page = Page(drawn(make(tmp_path, [bad.model_copy(update={"turns": turns})])))
        assert page.tags["script"] == 0
        assert bad.id in page.text

    def test_the_same_folder_gives_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        first = write_report(folder).read_bytes()
        again = make(tmp_path)
        assert write_report(again).read_bytes() == first == write_report(again).read_bytes()

    def test_an_empty_set_claims_nothing(self, tmp_path: Path) -> None:
        text = Page(drawn(make(tmp_path, []))).text
        assert "There is no talk to assess." in text
        assert "There is no text to measure." in text
        assert "No rule found anything." in text
        assert text.count("not assessed") >= 16  # a rule that ran over nothing has assessed nothing

    @pytest.mark.parametrize("name", ["stats.json", "findings.jsonl", "kept.jsonl"])
    def test_a_missing_file_is_named(self, name: str, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / name).unlink()
        with pytest.raises(DataError, match=rf"there is no {name} in it") as caught:
            write_report(copy)
        assert "qiaoban curate" in caught.value.hint
        assert not (copy / "report.html.tmp").exists()

    @pytest.mark.parametrize("text", ['{"read": 3, "kept": 3}', "[]", "\x80", "{"])
    def test_counts_of_something_else_are_refused(self, text: str, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / "stats.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match=r"stats\.json: these are not the counts of a curation"):
            gather(copy)

    def test_a_broken_line_is_named(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder, tmp_path / "copy")
        with (copy / "findings.jsonl").open("a", encoding="utf-8") as file:
            file.write("oops\n")
        with pytest.raises(DataError, match=r"findings\.jsonl:\d+: "):
            gather(copy)

    def test_the_commands_write_it(self, tmp_path: Path) -> None:
        write(tmp_path / "raw.jsonl", TALKS)
        assert qiaoban(["curate", str(tmp_path / "raw.jsonl"), str(tmp_path / "out"), "--json"]) == 0
        page = tmp_path / "out" / "report.html"
        first = page.read_bytes()
        page.unlink()
        assert qiaoban(["data", "report", str(tmp_path / "out")]) == 0
        assert page.read_bytes() == first
        assert qiaoban(["data", "report", str(tmp_path)]) == 1


class TestCharts:
    def test_a_histogram_puts_what_is_long_into_its_last_bar(self) -> None:
        svg = charts.histogram("t", {2: 1, 300: 5, 400: 5})
        assert "41 and more" in svg
        assert "most: 10" in svg
        assert svg.count("<rect") == 40

    def test_nothing_to_draw_is_drawn(self) -> None:
        for empty in (charts.bars("t", []), charts.histogram("t", {}), charts.ranges("t", []), charts.heat("t", [], [], {})):
            assert Page(str(empty)).tags["svg"] == 1

    def test_labels_are_escaped(self) -> None:
        svg = charts.bars(HOSTILE, [(HOSTILE, 0)])
        assert "<script" not in svg


def letters(*words: str) -> list[tuple[str, ...]]:
    return [tuple(word) for word in words]


class TestDiversity:
    def test_distinct(self) -> None:
        turns = letters("aba", "ab")
        assert distinct(turns, 1) == 2 / 5
        assert distinct(turns, 2) == 2 / 3  # ab ba ab: no run crosses from turn to turn
        assert distinct(turns, 3) == 1
        assert distinct(turns, 4) is None

    def test_self_repetition_counts_the_other_turns(self) -> None:
        turns = letters("abcdefg", "abcdefgh", "zyxwvut")
        assert self_repetition(turns, 7) == pytest.approx((math.log(2) + math.log(2) + 0) / 3)
        assert self_repetition([], 7) is None

    def test_self_bleu_by_hand(self) -> None:
        first = math.exp(1 - 5 / 4)  # all runs match, and the turn is too short
        second = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
        assert self_bleu(letters("abcd", "abcde")) == pytest.approx((first + second) / 2)
        assert self_bleu(letters("abcd", "abcd")) == pytest.approx(1)
        assert self_bleu(letters("abcd")) is None
        assert self_bleu(letters("ab", "cd")) is None

    def test_self_bleu_smooths_and_clips(self) -> None:
        apart = self_bleu(letters("abcd", "wxyz"))
        assert apart == pytest.approx((0.1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1) ** 0.25)
        clipped = self_bleu(letters("aaaa", "axyz"))
        one = (1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1) ** 0.25
        assert clipped == pytest.approx(one)

    def test_opener_entropy(self) -> None:
        assert opener_entropy(letters("abcx", "abcy", "defx", "defy"), 3) == 1
        assert opener_entropy(letters("ab", "ab"), 4) == 0
        assert opener_entropy([], 4) is None

    def test_compression(self) -> None:
        shuffled = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=2000))
        assert (compression_ratio("哈" * 2000) or 0) > 10 * (compression_ratio(shuffled) or 0)
        assert compression_ratio("") is None

    def test_a_longer_set_is_measured_on_as_much(self) -> None:
        """Distinct-2 of everything would fall by two thirds; of the sample it stays."""
        rng = random.Random(7)
        words = [f"w{n}" for n in range(60)]
        many = [" ".join(rng.choices(words, k=9)) for _ in range(8000)]
        few, all_ = (diversity(texts, lang="en", who="child", seen=len(texts)) for texts in (many[:500], many))
        assert few.units == all_.units == SAMPLE_UNITS["en"]
        assert few.full
        assert few.distinct[1] == pytest.approx(all_.distinct[1], rel=0.03)

    def test_turns_of_dots_take_no_place_in_a_sample(self) -> None:
        found = diversity(["……", "你好呀真好", "。"], lang="zh", who="child", seen=3)
        assert (found.turns, found.units, found.full) == (1, 5, False)

    def test_a_reservoir_is_fair_bounded_and_the_same_again(self) -> None:
        def sample(seed: str) -> list[str]:
            reservoir = Reservoir(seed, size=20)
            for n in range(400):
                reservoir.add(str(n))
            assert reservoir.seen == 400
            return reservoir.drawn()

        assert sample("a") == sample("a") != sample("b")
        assert len(set(sample("a"))) == 20
        late = sum(int(each) >= 200 for seed in range(200) for each in sample(str(seed)))
        assert late / (200 * 20) == pytest.approx(0.5, abs=0.04)


def test_the_folder_is_what_this_file_thinks(folder: Path) -> None:
    assert list(read_conversations(folder / "kept.jsonl")) == KEPT


def test_curation_records_what_it_was_told(tmp_path: Path) -> None:
    write(tmp_path / "raw.jsonl", [PHONE])
    read = partial(read_conversations, tmp_path / "raw.jsonl")
    curate(read, tmp_path / "out", CurateOptions(redact=True, drop_repairable=True))
    figures = gather(tmp_path / "out")
    assert figures.options is not None
    assert (figures.options.redact, figures.options.drop_repairable, figures.options.deny) == (True, True, False)
