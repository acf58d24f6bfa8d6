"""A talk as a person sees it: in colour at a terminal, plain in a pipe."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from qiaoban.companion.events import EndEvent, NoticeEvent, SafetyEvent, TextEvent
from qiaoban.companion.session import Companion, Session
from qiaoban.conversation import Lang
from qiaoban.engine.protocol import EngineInfo
from qiaoban.safety.signals import Severity

_HELP = """\
/new          a new talk
/age NUMBER   the child's age, 3 to 17
/lang zh|en   language of the replies; /lang auto follows the child
/quit         leave
Ctrl-C stops a reply, and leaves when nothing is being said."""
_LANGUAGES: dict[str, Lang | None] = {"zh": "zh", "en": "en", "auto": None}
_COMMANDS = frozenset(("/quit", "/exit", "/q", "/new", "/age", "/lang", "/help"))
_WHO = {"zh": ("孩子", "七巧板"), "en": ("child", "Qiaoban")}


class PlainTalk:
    """Prints turns as they happen. `failed` collects what went wrong in the engine."""

    def __init__(self, companion: Companion, session: Session, *, echo: bool, console: Console | None = None) -> None:
        self._companion = companion
        self._echo = echo
        self._console = console or Console(highlight=False, soft_wrap=True)
        self.session = session
        self.failed: list[str] = []

    async def turn(self, message: str) -> EndEvent:
        """One message and its reply, sentence by sentence."""
        child, companion = _WHO[self.session.language(message)]
        if self._echo:
            self._console.print(Text.assemble((f"{child}: ", "bold"), message))
        self._console.print(Text(f"{companion}: ", style="bold magenta"), end="")
        end = EndEvent()
        first = True
        async for event in self._companion.reply(self.session, message):
            match event:
                case NoticeEvent(text=text):
                    self._say(text, first=first, style="cyan")
                    first = False
                case TextEvent(text=text):
                    self._say(text.strip("\n"), first=first)
                    first = False
                case SafetyEvent() if self._console.is_terminal:
                    self._flag(event)
                case EndEvent():
                    end = event
                case _:
                    pass
        self._console.print("\n" if self._echo else "")
        if end.failed:
            self.failed.append(end.failed)
        return end

    def _say(self, text: str, *, first: bool, style: str = "") -> None:
        gap = "" if first or self.session.last_lang == "zh" else " "
        self._console.print(Text(gap + text.strip(), style=style), end="")

    def _flag(self, event: SafetyEvent) -> None:
        """What the guard saw, in small grey: this command is for people who build and judge."""
        if event.severity is not Severity.NONE:
            told = f", to tell: {event.notify.to}, {event.notify.when}" if event.notify else ""
            self._console.print(Text(f"[{event.severity} · {event.category}{told}] ", style="dim"), end="")


def talk_at_terminal(runner: asyncio.Runner, companion: Companion, session: Session, info: EngineInfo) -> int:
    """Read, answer, until the child leaves. Reading is not asynchronous, so that Ctrl-C at the prompt leaves at once."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        Text.assemble(
            ("七巧板 Qiaoban", "bold magenta"),
            (f"  {info.model} · {info.engine} · /help\n", "dim"),
            ("一个电脑程序，不是真人，不是治疗，也不是急救。\n", "dim"),
            ("A computer program: no person, no therapy, no emergency service.\n", "dim"),
        )
    )
    talk = PlainTalk(companion, session, echo=False, console=console)
    while (message := _read(console)) is not None:
        if message.partition(" ")[0] in _COMMANDS:  # anything else is the child's, whatever it begins with
            if not _command(talk, message, console):
                break
        elif message and _answer(runner, talk, message).farewell:
            break
    return 1 if talk.failed else 0


def _read(console: Console) -> str | None:
    """The next line, or None at the end of input or at Ctrl-C."""
    try:
        return console.input("[bold green]› [/]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _answer(runner: asyncio.Runner, talk: PlainTalk, message: str) -> EndEvent:
    """A turn that Ctrl-C stops without leaving the talk: the runner cancels it, and the engine stops with it."""
    try:
        return runner.run(talk.turn(message))
    except KeyboardInterrupt:
        print()
        return EndEvent()


def _command(talk: PlainTalk, line: str, console: Console) -> bool:
    """Do what a `/` line says; false leaves the talk."""
    name, _, value = line.partition(" ")
    value = value.strip()
    match name:
        case "/quit" | "/exit" | "/q":
            return False
        case "/new":
            old = talk.session
            talk.session = Session(age=old.age, lang=old.lang, jurisdiction=old.jurisdiction, seed=old.seed)
        case "/age" if value.isdecimal() and 3 <= int(value) <= 17:
            talk.session = replace(talk.session, age=int(value))
        case "/lang" if value in _LANGUAGES:
            talk.session = replace(talk.session, lang=_LANGUAGES[value])
        case _:
            console.print(Text(_HELP, style="dim"))
    return True
