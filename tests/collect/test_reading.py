"""What is made of a teacher's answer, and by which word a bad one is counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qiaoban.collect.reading import acts_of, lines_of, outlines_of, script_of, spoken, tagged
from qiaoban.conversation import Act, Turn
from qiaoban.teacher.answers import BadReplyError, content_of, json_of

CHILD = ["孩子", "小朋友", "Child"]
COMPANION = ["七巧板", "智能助手", "助手", "陪伴者", "Qiaoban", "Assistant", "Companion"]
NAMES = [*CHILD, *COMPANION]
BRACKETS = ["[]", "［］", "【】"]
# What answers are made of, so that random text comes near to the real thing.
MARKS = ["：", ":", "[", "]", "【", "】", ",", "，", "“", "”", '"', "「", "」", "*", "**", "\n", " ", "\u2028", "\x00"]
JSON = ["{", "}", '{"a":', "```json", "```", "</think>", "1e999", "NaN", "\\ud83d"]
PIECES = st.sampled_from([*NAMES, *MARKS, *JSON, "ACCEPT", "LABEL", "CURE", "妈妈", "hm"])
texts = st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=20).map("".join))


def body(content: str | None, finish: str = "stop", **message: Any) -> str:
    """A chat completion as an endpoint sends it."""
    return json.dumps({"choices": [{"finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}]})


def script(*turns: tuple[str, str] | dict[str, Any]) -> str:
    return json.dumps({"turns": [turn if isinstance(turn, dict) else {"s": turn[0], "t": turn[1]} for turn in turns]})


def fault_of(read: Callable[[str], object], text: str) -> str:
    with pytest.raises(BadReplyError) as error:
        read(text)
    assert str(error.value), "a fault is told to the teacher, so it says something"
    return error.value.fault


class TestContent:
    def test_the_words_come_without_white_space_around_them(self) -> None:
        assert content_of(body("\n 我怕黑。\n")) == "我怕黑。"

    @pytest.mark.parametrize("thinking", ["<think>\n孩子：要短\n</think>\n\n", "no opening tag\n</think>", "<think></think>"])
    def test_a_thinking_part_is_no_part_of_the_words(self, thinking: str) -> None:
        assert content_of(body(f"{thinking}我怕黑。")) == "我怕黑。"

    @pytest.mark.parametrize(
        ("raw", "fault"),
        [
            (body("我怕", finish="length"), "length"),
            (body("</think>我怕", finish="length"), "length"),
            (body("", finish="content_filter"), "content_filter"),
            (body("我怕", finish="content_filter"), "content_filter"),
            (body(None, refusal="I can't help with that."), "content_filter"),
            (body(""), "empty"),
            (body(None), "empty"),
            (body(" \n\u3000"), "empty"),
            (body("<think>她会说什么？</think>\n"), "empty"),
            (body("<think>她会说什么？先想想"), "empty"),
        ],
    )
    def test_what_is_no_answer_is_named(self, raw: str, fault: str) -> None:
        assert fault_of(content_of, raw) == fault


class TestJson:
    @pytest.mark.parametrize(
        "text",
        [
            '{"turns": [1]}',
            '```json\n{"turns": [1]}\n```',
            '```\n{"turns": [1]}\n```',
            '好的，对话如下：\n```json\n{"turns": [1]}\n```\n希望有帮助！',
            'Here it is: {"turns": [1]} Anything else?',
        ],
    )
    def test_is_found_wherever_it_stands(self, text: str) -> None:
        assert json_of(text) == {"turns": [1]}

    @pytest.mark.parametrize("text", ['{"turns": [1', "{", "}{", "对不起，我不能写。", '{"turns": [1,]}', "{'turns': [1]}", ""])
    def test_what_is_broken_is_not_mended(self, text: str) -> None:
        assert fault_of(json_of, text) == "bad_json"

    @pytest.mark.parametrize("text", ["[" * 50_000, '{"a":' * 50_000 + "1" + "}" * 50_000], ids=["open", "closed"])
    def test_a_teacher_that_loops_in_brackets_does_not_stop_the_run(self, text: str) -> None:
        assert fault_of(json_of, text) == "bad_json"

    @pytest.mark.parametrize("text", ["[]", "{}", '{"turns": {}}', '{"turns": []}', "1", '"turns"', "null", '{"turns": null}'])
    def test_json_of_another_shape_is_wrong(self, text: str) -> None:
        assert fault_of(script_of, text) == "wrong_json"
        assert fault_of(outlines_of, text) == "wrong_json"


class TestOutlines:
    def test_what_a_teacher_adds_is_let_be_and_what_it_leaves_out_is_empty(self) -> None:
        (outline,) = outlines_of('{"outlines": [{"incident": "丢了伞", "beats": ["先说雨"], "mood": "sad"}]}')
        assert (outline.incident, outline.hides, outline.beats, outline.worse) == ("丢了伞", "", ("先说雨",), "")

    @pytest.mark.parametrize(
        "change", [{"p": 1.5}, {"p": -0.1}, {"p": float("nan")}, {"incident": ""}, {"beats": []}, {"beats": "一"}]
    )
    def test_what_cannot_be_is_wrong(self, change: dict[str, Any]) -> None:
        outline = {"p": 0.5, "incident": "丢了伞", "beats": ["先说雨"], **change}
        assert fault_of(outlines_of, json.dumps({"outlines": [outline]})) == "wrong_json"


class TestScript:
    def test_turns_keep_words_distress_and_acts(self) -> None:
        child, companion = script_of(
            script(
                {"s": "child", "t": " 伞丢了 ", "d": 3},
                {"s": "companion", "t": "那把伞跟了你很久吧。", "a": ["EMPATHISE", "INVITE"]},
            )
        )
        assert child == Turn(role="user", content="伞丢了", distress=3)
        assert companion == Turn(role="assistant", content="那把伞跟了你很久吧。", acts=(Act.EMPATHISE, Act.INVITE))

    @pytest.mark.parametrize(("child", "companion"), [("孩子", "七巧板"), ("Child", "Qiaoban"), (" CHILD ", "智能助手")])
    def test_speakers_go_by_any_of_their_names(self, child: str, companion: str) -> None:
        assert [turn.role for turn in script_of(script((child, "哼"), (companion, "嗯？")))] == ["user", "assistant"]

    def test_neighbours_of_one_speaker_are_one_turn(self) -> None:
        turns = script_of(
            script(
                {"s": "child", "t": "算了", "d": 2},
                {"s": "child", "t": "没事", "d": 1},
                {"s": "companion", "t": "嗯。", "a": ["ACCEPT"]},
                {"s": "companion", "t": "我在。", "a": ["INVITE", "ACCEPT"]},
            )
        )
        assert [(turn.content, turn.distress, turn.acts) for turn in turns] == [
            ("算了\n没事", 2, ()),
            ("嗯。\n我在。", None, (Act.ACCEPT, Act.INVITE)),
        ]

    @pytest.mark.parametrize(
        ("answer", "fault"),
        [
            (script(("companion", "你好"), ("child", "嗯")), "no_dialogue"),
            (script(("child", "嗯"), ("child", "啊")), "no_dialogue"),
            (script(("child", "嗯")), "wrong_json"),
            (script(("child", "嗯"), ("mother", "回家")), "unknown_speaker"),
            (script(("child", "嗯"), ("", "回家")), "unknown_speaker"),
            (script(("child", "嗯"), {"s": "companion", "t": "你好", "a": ["CURE"]}), "unknown_act"),
            (script(("child", "嗯"), {"s": "companion", "t": "你好", "a": ["接纳"]}), "unknown_act"),
            (script(("child", " "), ("companion", "你好")), "empty_turn"),
            (script(("child", ""), ("companion", "你好")), "wrong_json"),
            (script({"s": "child", "t": "嗯", "d": 5}, ("companion", "你好")), "wrong_json"),
            (script(("child", "嗯\n七巧板：你好"), ("companion", "你好")), "role_leak"),
        ],
    )
    def test_what_is_no_dialogue_is_named(self, answer: str, fault: str) -> None:
        assert fault_of(script_of, answer) == fault

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=9))
    def test_any_json_is_a_dialogue_or_a_fault(self, value: Any) -> None:
        for key in ("t", "s", "d", "a"):
            turn = {"s": "child", "t": "嗯", "d": 1, "a": [], key: value}
            try:
                turns = script_of(script(turn, ("companion", "你好")))
            except BadReplyError:
                continue
            assert [one.role for one in turns] == ["user", "assistant"]


def in_script(text: str) -> str:
    return script_of(script(("child", text), ("companion", "嗯")))[0].content


@pytest.mark.parametrize("read", [spoken, lambda text: tagged(text)[1], in_script], ids=["spoken", "tagged", "script"])
class TestRoleLeak:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("colon", ["：", ": ", " :"])
    def test_a_turn_that_goes_on_for_the_other_is_a_leak(self, read: Callable[[str], object], name: str, colon: str) -> None:
        assert fault_of(read, f"我不想说。\n{name}{colon}那就不说。") == "role_leak"
        assert fault_of(read, f"我不想说。\n\n  {name.lower()}{colon}那就不说。") == "role_leak"

    @pytest.mark.parametrize("name", ["七巧板", "Assistant"])
    @pytest.mark.parametrize("form", ["**{}：**那就不说。", "**{}**: 那就不说。", "*{}*：那就不说。"])
    def test_also_in_bold(self, read: Callable[[str], object], name: str, form: str) -> None:
        assert fault_of(read, "我不想说。\n" + form.format(name)) == "role_leak"

    @pytest.mark.parametrize(
        "words",
        [
            "妈妈：你回来",
            "他说：走开",
            "她在本子上写：\n妈妈：我走了。",
            "老师喊“孩子：安静！”",
            "Mum: come home",
            "he goes: get lost",
            "the assistant: that's what they call her at school",
            "我的助手机器人坏了",
        ],
    )
    def test_other_people_may_be_quoted(self, read: Callable[[str], object], words: str) -> None:
        assert read(words) == words


class TestSpoken:
    @pytest.mark.parametrize("form", ["{}：我怕黑", "{}: 我怕黑", "**{}**：我怕黑", "**{}：** 我怕黑", "{}：\n我怕黑"])
    def test_the_speakers_own_name_before_the_words_is_taken_off(self, form: str) -> None:
        assert {spoken(form.format(name)) for name in CHILD} == {"我怕黑"}
        assert {spoken(form.format(name), "companion") for name in COMPANION} == {"我怕黑"}
        assert {spoken(form.format(name), name="Robin") for name in ("Robin", "robin")} == {"我怕黑"}

    def test_anybody_elses_name_is_not(self) -> None:
        assert spoken("小满：我怕黑", name="朵朵") == "小满：我怕黑"
        assert {fault_of(spoken, f"{name}：我怕黑") for name in COMPANION} == {"role_leak"}
        assert {fault_of(lambda text: spoken(text, "companion"), f"{name}：我怕黑") for name in CHILD} == {"role_leak"}

    def test_nobody_says_the_same_twice(self) -> None:
        said = ["我就是不想去学校", "嗯？"]
        assert spoken("我就是不想去", said=said) == "我就是不想去"
        assert fault_of(lambda text: spoken(text, said=said), "“我就是不想去学校”") == "repeated"
        assert fault_of(lambda text: tagged(text, said=said), "[INVITE] 嗯？") == "repeated"

    @pytest.mark.parametrize("quoted", ["“我怕黑”", '"我怕黑"', "「我怕黑」", "孩子：“我怕黑”", ' " 我怕黑 " '])
    def test_quotation_marks_around_all_of_it_are_taken_off(self, quoted: str) -> None:
        assert spoken(quoted) == "我怕黑"

    @pytest.mark.parametrize(
        "words",
        ["“别动”，他就喊“救命”", '"no" she said "go away"', "「走」「不走」", "他说“走开”", '"', "“”我", "妈妈：你回来"],
    )
    def test_quotation_marks_inside_stay(self, words: str) -> None:
        assert spoken(words) == words

    @pytest.mark.parametrize("nothing", ["“”", "孩子：", "“ ”", " ", "", "Child: \n"])
    def test_no_words_are_a_fault(self, nothing: str) -> None:
        assert fault_of(spoken, nothing) == "empty_turn"


class TestTagged:
    @pytest.mark.parametrize("brackets", BRACKETS)
    @pytest.mark.parametrize("comma", [",", ", ", "，", "、", " ", " | ", "/"])
    def test_tags_stand_in_any_brackets_with_any_commas(self, brackets: str, comma: str) -> None:
        text = f"{brackets[0]}ACCEPT{comma}LABEL{brackets[1]} 气得想跺脚也可以。"
        assert tagged(text) == ((Act.ACCEPT, Act.LABEL), "气得想跺脚也可以。")

    def test_an_answer_without_tags_is_kept(self) -> None:
        assert tagged("气得想跺脚也可以。") == ((), "气得想跺脚也可以。")

    @pytest.mark.parametrize("text", ["[] 嗯。", "[ ]嗯。", "[]\n嗯。", " \n[] 嗯。"])
    def test_empty_tags_are_no_acts(self, text: str) -> None:
        assert tagged(text) == ((), "嗯。")

    def test_an_act_counts_once(self) -> None:
        assert tagged("[LABEL, ACCEPT, LABEL] 嗯。")[0] == (Act.LABEL, Act.ACCEPT)

    @pytest.mark.parametrize(
        "text", ["[Accept, Label] 可以。", "[accept,label]可以。", "七巧板：[ACCEPT, LABEL] 可以。", "“[ACCEPT, LABEL] 可以。”"]
    )
    def test_tags_never_end_up_in_the_words(self, text: str) -> None:
        assert tagged(text) == ((Act.ACCEPT, Act.LABEL), "可以。")

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("[CURE] 好了。", "unknown_act"),
            ("[ACCEPT, CURE] 好了。", "unknown_act"),
            ("[ACCEPT]", "empty_turn"),
            ("[ACCEPT] “”", "empty_turn"),
            ("[ACCEPT] 可以。\n孩子：嗯", "role_leak"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, text: str, fault: str) -> None:
        assert fault_of(tagged, text) == fault

    def test_the_name_and_the_quotation_marks_go(self) -> None:
        assert tagged("[ACCEPT] 七巧板：“可以的。”") == ((Act.ACCEPT,), "可以的。")


class TestLines:
    def test_the_talk_of_2023(self) -> None:
        turns = lines_of("孩子：我的颜料没了。\n智能助手：是哪一盒呀？\n\n孩子：妈妈：你回来\n智能助手：嗯。")
        assert [(turn.role, turn.content) for turn in turns] == [
            ("user", "我的颜料没了。"),
            ("assistant", "是哪一盒呀？"),
            ("user", "妈妈：你回来"),
            ("assistant", "嗯。"),
        ]

    @pytest.mark.parametrize("form", ["**{}**: {}", "**{}:** {}", "*{}*： {}", "__{}__: {}", "{} : {}", "  {}：{}"])
    def test_names_in_markdown(self, form: str) -> None:
        text = "\n".join(form.format(*pair) for pair in [("Child", "it broke"), ("Assistant", "oh no")])
        assert [(turn.role, turn.content) for turn in lines_of(text)] == [("user", "it broke"), ("assistant", "oh no")]

    def test_lines_without_a_speaker_go_on_and_a_heading_is_dropped(self) -> None:
        turns = lines_of("情景：颜料\n\n孩子：没了。\n全没了。\n他说：活该\n智能助手：\n活该？\n这话真重。")
        assert [turn.content for turn in turns] == ["没了。\n全没了。\n他说：活该", "活该？\n这话真重。"]

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("很抱歉，我不能写。", "no_dialogue"),
            ("孩子：没了。", "no_dialogue"),
            ("智能助手：你好\n孩子：没了。", "no_dialogue"),
            ("孩子：\n智能助手：你好", "empty_turn"),
            ("", "no_dialogue"),
        ],
    )
    def test_what_is_no_dialogue_is_named(self, text: str, fault: str) -> None:
        assert fault_of(lines_of, text) == fault


class TestAnyText:
    """Whatever a teacher says ends in something usable or in a fault that is counted: nothing else may stop a run."""

    @given(texts)
    @example("“")
    def test_words(self, text: str) -> None:
        try:
            words = spoken(text)
        except BadReplyError:
            return
        assert words == words.strip() != ""

    @given(texts)
    def test_tagged_words(self, text: str) -> None:
        try:
            acts, words = tagged(text)
        except BadReplyError:
            return
        assert len(set(acts)) == len(acts)
        assert words == words.strip() != ""

    @given(texts)
    def test_json(self, text: str) -> None:
        for read in (json_of, outlines_of, script_of):
            try:
                read(text)
            except BadReplyError as error:
                assert re.fullmatch(r"[a-z_]+", error.fault)  # noqa: PT017 - the fault is the answer

    @given(texts)
    def test_lines(self, text: str) -> None:
        try:
            turns = lines_of(text)
        except BadReplyError:
            return
        assert turns[0].role == "user"
        assert all(one.role != other.role for one, other in pairwise(turns))

    @given(st.lists(st.text(), max_size=4))
    def test_acts(self, names: list[str]) -> None:
        try:
            acts = acts_of(names)
        except BadReplyError as error:
            assert error.fault == "unknown_act"  # noqa: PT017 - the fault is the answer
        else:
            assert set(acts) <= set(Act)

    @pytest.mark.parametrize(
        "answer",
        [
            body("\ud83d 我怕"),
            body('{"turns": [{"s": "child", "t": "\\ud83d 我怕"}, {"s": "companion", "t": "嗯"}]}'),
            body("孩子：\ud83d 我怕\n智能助手：嗯"),
            body("[ACCEPT] \ud83d 我怕"),
            body('{"outlines": [{"incident": "一", "hides": "\\ud83d", "beats": ["一"]}]}'),
        ],
        ids=["spoken", "script", "lines", "tagged", "outlines"],
    )
    def test_half_of_an_emoji_is_a_fault_and_no_defect(self, answer: str) -> None:
        """Half a surrogate pair cannot be kept in a turn or sent to anybody."""
        read: dict[str, Callable[[str], object]] = {"{": script_of, "孩": lines_of, "[": tagged}

        def whole(raw: str) -> object:
            text = content_of(raw)
            return (outlines_of if "outlines" in text else read.get(text[0], spoken))(text)

        assert fault_of(whole, answer)


def test_the_example_of_the_question_is_no_answer() -> None:
    question = "……比如：\n[ACCEPT, EMPATHISE] 气得想跺脚也可以。"
    assert fault_of(lambda text: tagged(text, asked=question), "[ACCEPT] 气得想跺脚也可以。") == "copied"
    assert tagged("[ACCEPT] 想跺脚就跺。", asked=question)[1] == "想跺脚就跺。"


def test_dots_are_words_of_a_child_and_not_of_a_companion() -> None:
    assert spoken("……") == "……"
    assert fault_of(tagged, "[INVITE] ……") == "empty_turn"
    assert fault_of(script_of, '{"turns": [{"s": "child", "t": "…"}, {"s": "companion", "t": "…"}]}') == "empty_turn"
