"""What happens when something on the page is used: sessions in, updates of the page's parts out."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from mmllm.app.engine import Engine, Reply
from mmllm.app.examples import Example
from mmllm.app.exports import export
from mmllm.app.markup import interval, readable, safe, seconds
from mmllm.app.safety import remove_upload
from mmllm.app.session import ChatTurn, Session, Visit
from mmllm.app.settings import Settings, cost_of
from mmllm.app.sight import comparison, cost_table, refusal, sight
from mmllm.app.timeline import bars, timeline
from mmllm.errors import InputError, MmllmError, is_out_of_memory
from mmllm.inference.answering import EncodedVideo
from mmllm.times.answers import Span
from mmllm.video.errors import VideoError

log = logging.getLogger(__name__)

_PACE_S = 0.1
"""The page is not told of words more often than this; the model need not wait for it."""

Update = dict[str, Any]
"""Name of a part of the page -> its new value or properties."""

_PLAYED = ("h264", "vp8", "vp9", "av1", "theora")
"""Codecs that browsers play."""
GENERAL_QUESTIONS = ["What happens in this video?", "When does the main event happen?"]
"""Suggested for videos of which nothing is known."""


class Handlers:
    """Everything that the page can do, for all visitors.

    Args:
        engine: answers.
        examples: clips to choose from.
        folder: where uploads lie and files are made.
        model: name of the model, for exports.
    """

    def __init__(self, engine: Engine, examples: Sequence[Example], folder: Path, model: str) -> None:
        self.engine, self.folder, self.model = engine, folder, model
        self.examples = {example.name: example for example in examples}
        self._stops: dict[str, threading.Event] = {}

    # --- choosing a video -----------------------------------------------------------------------------------

    def open_first(self) -> Update:
        """A new visitor's page: the first example."""
        if not self.examples:
            return {"session": Session(), "status": note("Upload a video to begin.")}
        return self.open_named(next(iter(self.examples)), Session())

    def open_named(self, name: str | None, session: Session | None) -> Update:
        """An example, or a video that this visitor has opened before."""
        session = session or Session()
        if name is None:
            return {"status": note("Upload a video, or choose a clip.")}
        try:
            if name in session.visits and session.visits[name].path.exists():
                visit = session.visits[name]
            elif name in session.visits:
                raise InputError(f"{name} is no longer here: files are removed after a while, upload it again")
            elif name in self.examples:
                example = self.examples[name]
                visit = self._opened(example.path, name, example.truths)
            else:
                raise InputError(f"there is no clip {name!r:.80}")
        except Exception as problem:
            return {"status": refusal(reason(problem))}
        session = session.with_visit(visit, self.engine.limits.visits)
        return {**self._shown(session), "video": gr.Video(value=str(visit.path), playback_position=0)}

    def open_upload(self, video: str | None, session: Session | None) -> Update:
        """A video that was just uploaded; one that cannot be read is removed at once."""
        session = session or Session()
        if video is None:
            return {"status": note("Upload a video, or choose a clip.")}
        path = Path(video)
        try:
            visit = self._opened(path, _free_name(path, session))
        except Exception as problem:
            told = reason(problem).replace(str(path), path.name)
            return {"video": None, "status": refusal(f"This file cannot be used. {told}")}
        return self._shown(session.with_visit(visit, self.engine.limits.visits))

    def close(self, session: Session | None) -> Update:
        """The player was emptied; what was asked about its video is kept."""
        session = replace(session or Session(), shown=None)
        return {**self._empty(), "session": session, "clip": gr.Dropdown(value=None)}

    def forget(self, session: Session | None) -> Update:
        """The chat was emptied: the turns about the shown video go, the encoded video stays."""
        if session is None or session.visit is None:
            return self._empty()
        return self._shown(session.with_visit(replace(session.visit, turns=()), self.engine.limits.visits))

    def _opened(self, path: Path, name: str, truths: Mapping[str, Span] | None = None) -> Visit:
        """A visit of a video that has been watched; an upload that cannot be used is removed at once."""
        try:
            encoded, _ = self.engine.encode_video(path, self.engine.own_settings)
        except Exception:
            remove_upload(path, self.folder)
            raise
        return Visit(name=name, path=path, duration_s=encoded.duration_s, truths=truths or {})

    def _shown(self, session: Session) -> Update:
        visit = session.visit
        assert visit is not None
        names = list(dict.fromkeys([*self.examples, *session.visits]))
        encoded = self._encoded(visit)
        return {
            **self._empty(),
            "session": session,
            "clip": gr.Dropdown(choices=names, value=visit.name),
            "chat": messages(visit),
            "timeline": timeline(visit, None if encoded is None else encoded.clip),
            "suggestions": gr.Dataset(samples=[[text] for text in visit.suggestions or GENERAL_QUESTIONS]),
            "status": note(_opened(visit, encoded)),
        }

    def _empty(self) -> Update:
        nothing = gr.DownloadButton(value=None, interactive=False)
        return {"chat": [], "timeline": "", "sight": "", "status": "", "json": nothing, "vtt": nothing, "png": nothing}

    def _encoded(self, visit: Visit) -> EncodedVideo | None:
        """The video as the model's own settings show it, if it is still kept or can be read again."""
        try:
            return self.engine.encode_video(visit.path, self.engine.own_settings)[0]
        except InputError:
            return None

    # --- asking ---------------------------------------------------------------------------------------------

    def ask(
        self,
        visitor: str,
        question: str,
        session: Session | None,
        reducer: str,
        share: float,
        path: str,
        frames: float,
        remember: bool,
    ) -> Generator[Update, None, None]:
        """The answer word by word, then the timeline, the panel and the session."""
        stop = self._stops[visitor] = threading.Event()
        visit = session.visit if session else None
        try:
            if session is None or visit is None:
                raise InputError("there is no video yet: choose a clip or upload one")
            settings = self.engine.settings(frames, reducer, share, path)
            question = self.engine.limits.question(question)
            reply, told = Reply(said=None), 0.0
            earlier = visit.turns if remember else ()
            truth = visit.truths.get(question)
            for reply in self.engine.ask(
                visit.path, question, settings, earlier=earlier, truth=truth, stopped=stop.is_set
            ):
                if reply.turn is None and (reply.said is None or time.monotonic() - told > _PACE_S):
                    told = time.monotonic()
                    yield {**_busy(True), **_so_far(visit, question, reply)}
            assert reply.turn is not None
            assert reply.encoded is not None
            visit = visit.asked(reply.turn, self.engine.limits.turns)
            session = session.with_visit(visit, self.engine.limits.visits)
            yield {
                **_busy(False),
                "session": session,
                "question": "",
                "chat": messages(visit),
                "timeline": timeline(visit, reply.encoded.clip),
                "sight": sight(reply.turn, reply.encoded),
                "status": note(self._told(reply.turn)),
            }
        except Exception as problem:
            chat = {} if visit is None else {"chat": messages(visit)}
            yield {**_busy(False), **chat, "status": refusal(_without_path(reason(problem), visit))}
        finally:
            self._stops.pop(visitor, None)

    def stop(self, visitor: str) -> None:
        """Ends the visitor's answer at its next token, because it is asked for or because the visitor has left."""
        if (event := self._stops.get(visitor)) is not None:
            event.set()

    def files(self, session: Session | None) -> Update:
        """Files of what was answered about the shown video."""
        visit = session.visit if session else None
        if visit is None or not visit.turns:
            return {}
        folder = self.folder / "exports" / secrets.token_hex(16)
        folder.mkdir(parents=True)
        encoded = self._encoded(visit)
        try:
            written = export(visit, None if encoded is None else encoded.clip, folder, self.model, self.engine.qa.note)
        except (MmllmError, OSError) as problem:
            return {"status": refusal(reason(problem))}
        return {path.suffix[1:]: gr.DownloadButton(value=str(path), interactive=True) for path in written}

    def _told(self, turn: ChatTurn) -> str:
        done = [name for name in ("decode", "encode") if name in turn.stage_s]
        kept = "" if done else ", nothing decoded or encoded again"
        told = f"First token after {turn.first_token_s:.2f} s, whole answer {turn.seconds:.2f} s{kept}."
        if turn.cut:
            told += {
                "tokens": f" The answer was cut after {turn.tokens} tokens.",
                "time": f" The answer was cut after {self.engine.limits.answer_s:.0f} s.",
                "stopped": " The answer was stopped.",
            }[turn.cut]
        unknown = self.engine.unknown_words(turn.question)
        return told + (f" Words that this model does not know: {', '.join(unknown)}." if unknown else "")

    # --- settings, comparing, the player --------------------------------------------------------------------

    def cost(self, reducer: str, share: float, path: str, frames: float) -> str:
        """HTML: what these settings cost, or why they are impossible."""
        try:
            return cost_table(cost_of(self.engine.qa, self.engine.settings(frames, reducer, share, path)))
        except Exception as problem:
            return refusal(reason(problem))

    def compare(self, question: str, session: Session | None, *chosen: Any) -> Update:
        """The same question under two settings; `chosen` are the four controls of A, then those of B."""
        visit = session.visit if session else None
        try:
            if visit is None:
                raise InputError("there is no video yet: choose a clip or upload one")
            if not question.strip() and visit.turns:
                question = visit.turns[-1].question
            both = [self._settings(*chosen[:4]), self._settings(*chosen[4:])]
            turns = self.engine.compare(visit.path, question, both, truth=visit.truths.get(question.strip()))
        except Exception as problem:
            return {"comparison": refusal(_without_path(reason(problem), visit))}
        lanes = [("A", turns[0].spans, "answer"), ("B", turns[1].spans, "other")]
        if turns[0].truth is not None:
            lanes.append(("truth", (turns[0].truth,), "truth"))
        told = f'<p class="mm-note">{safe(turns[0].question)}</p>'
        return {"comparison": told + bars(visit.duration_s, lanes) + comparison(turns)}

    def _settings(self, reducer: str, share: float, path: str, frames: float) -> Settings:
        return self.engine.settings(frames, reducer, share, path)

    # --- for programs ---------------------------------------------------------------------------------------

    def ask_api(
        self, video: str, question: str, reducer: str, share: float, path: str, frames: float
    ) -> Generator[dict[str, Any], None, None]:
        """Partial answers, `{"done": false, "text": ...}`, then the finished one with its spans, tokens and seconds."""
        try:
            if not video:
                raise InputError("video: upload a file")
            settings = self.engine.settings(frames, reducer, share, path)
            for reply in self.engine.ask(Path(video), question, settings):
                if reply.turn is not None and reply.encoded is not None:
                    yield {"done": True, "duration_s": reply.encoded.duration_s, **reply.turn.to_json()}
                elif reply.said is not None:
                    yield {"done": False, "text": reply.said.text}
        except Exception as problem:
            if isinstance(problem, VideoError):
                remove_upload(Path(video), self.folder)
            told = reason(problem).replace(video or "\0", Path(video or "").name)
            raise gr.Error(told, print_exception=False) from None

    def cost_api(self, reducer: str, share: float, path: str, frames: float) -> dict[str, Any]:
        """Tokens after each stage and bytes of the LLM's cache, before anything is run."""
        try:
            cost = cost_of(self.engine.qa, self._settings(reducer, share, path, frames))
        except Exception as problem:
            raise gr.Error(reason(problem), print_exception=False) from None
        return {"stages": list(cost.stages), "tokens": cost.tokens, "cache_bytes": cost.cache_bytes}


def messages(visit: Visit) -> list[dict[str, str]]:
    """The chat about a video."""
    told = []
    for turn in visit.turns:
        told += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": spoken(turn)}]
    return told


def spoken(turn: ChatTurn) -> str:
    """An answer as the chat shows it: when, then what."""
    when = "; ".join(map(interval, turn.spans)) or "no time was named"
    text = readable(turn.answer.text)
    return f"{when}\n{text}{' …' if turn.cut else ''}"


def question_at(question: str, time_s: float) -> str:
    """A question with an instant put in: at its end, or into a new one."""
    text = question.strip().rstrip("?.! ")
    return f"{text or 'What happens'} at {time_s:.1f} s?"


def note(text: str) -> str:
    """HTML of a quiet message."""
    return f'<p class="mm-note" role="status">{safe(text)}</p>'


def reason(problem: Exception) -> str:
    """What went wrong, in words for a visitor; what nobody foresaw is logged and not shown."""
    if isinstance(problem, MmllmError):
        return str(problem)
    if is_out_of_memory(problem):
        log.warning("out of memory: %s", problem)
        return "There is not enough memory for this: choose fewer frames or a smaller share of the tokens."
    log.error("the demo failed", exc_info=problem)
    return "Something went wrong on the server; it has been logged. You can go on."


def _opened(visit: Visit, encoded: EncodedVideo | None) -> str:
    told = f"{visit.name}: {seconds(visit.duration_s)} long, ready for questions."
    codec = None if encoded is None else encoded.clip.metadata.get("codec")
    if codec in (None, *_PLAYED):
        return told
    return f"{told} Many browsers cannot play {codec}; the timeline and the answers do without."


def _so_far(visit: Visit, question: str, reply: Reply) -> Update:
    said = reply.said.text if reply.said else "…"
    chat = [*messages(visit), {"role": "user", "content": question}, {"role": "assistant", "content": said}]
    if reply.said is None:
        return {"chat": chat, "status": note("Watching the video." if reply.encoded is None else "Reading.")}
    return {"chat": chat}


def _busy(busy: bool) -> Update:
    return {"send": gr.Button(interactive=not busy), "halt": gr.Button(interactive=busy)}


def _without_path(told: str, visit: Visit | None) -> str:
    return told if visit is None else told.replace(str(visit.path), visit.name)


def _free_name(path: Path, session: Session) -> str:
    """The file's name, with a number where another open video has it."""
    taken = {name for name, visit in session.visits.items() if visit.path != path}
    names = (path.name if n == 1 else f"{path.stem} ({n}){path.suffix}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)
