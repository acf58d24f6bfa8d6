"""A small curated folder, made by the real stages from talks that were written for it, each to one end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from qiaoban.conversation import Act, AgeBand, Category, Conversation, Emotion, Meta, Provenance, Turn, read_conversations
from qiaoban.conversation import write_conversations as write
from qiaoban.curate.decontaminate import HeldOut
from qiaoban.curate.pipeline import CurateOptions, curate

HOSTILE = "</td></table><script>alert(1)</script>"
HELD = "火车模型少了一节车厢找了三天"
WRITTEN = Provenance(synthetic=True, teacher="teacher-a", licence="Apache-2.0", created_at="2026-11-02T08:00:00Z")
BY_PEOPLE = Provenance(synthetic=False, licence="CC-BY-NC-4.0", source="volunteers")


def talk(name: str, *lines: str, provenance: Provenance = WRITTEN, **meta: object) -> Conversation:
    """Child and companion in turn; the first reply empathises, the others invite and explore."""
    acts = ((Act.EMPATHISE,), (Act.INVITE, Act.EXPLORE), ())
    turns = tuple(
        Turn(role="assistant", content=line, acts=acts[min(n // 2, 2)]) if n % 2 else Turn(role="user", content=line)
        for n, line in enumerate(lines)
    )
    about = Meta.model_validate({"lang": "zh", "age_band": AgeBand.B9_11, **meta})
    return Conversation(id=name, turns=turns, meta=about, provenance=provenance)


TOWER = talk(
    "tower",
    "积木塔倒了",
    "搭了一下午，哗啦一声就没了。",
    "我妹撞的",
    "又心疼又气，两样挤在一起。",
    "嗯",
    "想先歇会儿也行。",
    domain="siblings",
    emotion=Emotion.ANGRY,
    outcome="calmed",
    risk=Category.BENIGN,
)
STORY = talk(
    "story",
    "明天轮到我讲故事",
    "站到前面去的那几步，腿会不会发软？",
    "会",
    "好多人走那几步都会。",
    "那我带上小熊",
    "带着它，手里有个东西抓着。",
    age_band=AgeBand.B6_8,
    domain="class_life",
    emotion=Emotion.NERVOUS,
    outcome="partly",
    provenance=Provenance(),
)
BELT = talk(
    "belt",
    "爸爸喝醉了就打我",
    "被打不是你的错。你现在安全吗？",
    "他睡了",
    "请告诉一个你信得过、没有伤害过你的大人，比如班主任。",
    domain="family_adversity",
    emotion=Emotion.AFRAID,
    outcome="referred",
    risk=Category.PHYSICAL_ABUSE,
)
ALONE = talk("alone", "爸爸喝醉了就打我", "那一定很疼，很害怕。", "嗯", "我在听，你慢慢说。", risk=Category.PHYSICAL_ABUSE)
MUM = talk("mum", "妈妈，我考了一百分！", "好高兴呀。", "谢谢妈妈！", "想先告诉谁？")
PHONE = talk("phone", "我的号码是13912345678", "号码不用写在这儿。", "哦", "刚才说到哪儿了，接着讲。")
TESTED = talk("tested", HELD, "三天都惦记着那一节。", "嗯", "它要是会说话，会说自己在哪儿？")
KITE = talk(
    "kite",
    "my kite got stuck up the big tree",
    "all that string and it just stays up there.",
    "yeah and it was new",
    "new, and gone on the first day.",
    lang="en",
    emotion=Emotion.SAD,
    provenance=BY_PEOPLE,
)
BAD_WORDS = talk(
    "<img src=x onerror=alert(1)>",
    f"我画了一只恐龙 {HOSTILE}",
    "恐龙呀，它的尾巴有多长？",
    "比桌子还长\u202e",
    "那得把两张纸接起来才画得下。",
    domain=HOSTILE,
    emotion=Emotion.PROUD,
)
TALKS = [TOWER, TOWER.model_copy(update={"id": "copy"}), STORY, BELT, ALONE, MUM, PHONE, TESTED, KITE, BAD_WORDS]
KEPT = [TOWER, STORY, BELT, KITE, BAD_WORDS]


def make(folder: Path, talks: list[Conversation] | None = None, *, redact: bool = False) -> Path:
    """Curate `talks` into `folder/curated`; returns that."""
    raw, out = folder / "raw.jsonl", folder / "curated"
    write(raw, TALKS if talks is None else talks)
    curate(partial(read_conversations, raw), out, CurateOptions(against=(HeldOut("exam", (HELD,)),), redact=redact))
    return out
