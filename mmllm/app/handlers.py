"""Handlers of the page's events: each takes the visitor's session and returns updates of the page's parts."""

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
from mmllm.app.private_folder import remove_upload
from mmllm.app.session import ChatTurn, Session, Visit
from mmllm.app.settings import CHAIN_OFF, EVERYTHING, ONE_BY_ONE, Settings, cost_of
from mmllm.app.sight import comparison, cost_table, refusal, sight
from mmllm.app.timeline import bars, timeline
from mmllm.errors import InputError, MmllmError, is_out_of_memory
from mmllm.inference.encoded import EncodedVideo
from mmllm.times.answers import Span, Step
from mmllm.video.errors import VideoError

log = logging.getLogger(__name__)

_PACE_S = 0.1
"""Least seconds between two updates of a partial answer, so that the model does not wait for the page."""

Update = dict[str, Any]
"""Name of a part of the page -> its new value or properties."""

_PLAYED = ("h264", "vp8", "vp9", "av1", "theora")
"""Codecs that most browsers play."""
GENERAL_QUESTIONS = ["What happens in this video?", "When does the main event happen?"]
"""Suggestions for videos without questions of their own."""
_NO_VIDEO = "there is no video yet: choose a clip or upload one"


class Handlers:
    """Everything that the page can do, for all visitors.

    Args:
        engine: answers the questions.
        examples: clips to choose from.
        folder: folder of uploads and of exported files.
        model: name of the model, for exports.
    """

    def __init__(self, engine: Engine, examples: Sequence[Example], folder: Path, model: str) -> None:
        self.engine, self.folder, self.model = engine, folder, model
        self.examples = {example.name: example for example in examples}
        self._stops: dict[str, threading.Event] = {}

    # --- choosing a video -----------------------------------------------------------------------------------

    def open_first(self) -> Update:
        """Opens the first example for a new visitor."""
        if not self.examples:
            return {"session": Session(), "status": note("Upload a video to begin.")}
        return self.open_named(next(iter(self.examples)), Session())

    def open_named(self, name: str | None, session: Session | None) -> Update:
        """Opens an example, or a video that this visitor has opened before."""
        session = session or Session()
        if name is None:
            return {"status": note("Upload a video, or choose a clip.")}
        try:
            if name in session.visits and session.visits[name].path.exists():
                visit = session.visits[name]
            elif name in session.visits:
                raise InputError(f"{name} is no longer on the server: files are removed after a while, upload it again")
            elif name in self.examples:
                example = self.examples[name]
                visit = self._open_video(example.path, name, example.truths)
            else:
                raise InputError(f"there is no clip {name!r:.80}: choose one from the list")
        except Exception as problem:
            return {"status": refusal(reason(problem))}
        session = session.with_visit(visit, self.engine.limits.visits)
        return {**self._video_parts(session), "video": gr.Video(value=str(visit.path), playback_position=0)}

    def open_upload(self, video: str | None, session: Session | None) -> Update:
        """Opens an uploaded video; the file is removed if it cannot be read."""
        session = session or Session()
        if video is None:
            return {"status": note("Upload a video, or choose a clip.")}
        path = Path(video)
        try:
            visit = self._open_video(path, _free_name(path, session))
        except Exception as problem:
            message = reason(problem).replace(str(path), path.name)
            return {"video": None, "status": refusal(f"This file cannot be used. {message}")}
        return self._video_parts(session.with_visit(visit, self.engine.limits.visits))

    def close(self, session: Session | None) -> Update:
        """Called when the visitor empties the player; the turns about its video are kept."""
        session = replace(session or Session(), selected=None)
        return {**self._empty_parts(), "session": session, "clip": gr.Dropdown(value=None)}

    def forget(self, session: Session | None) -> Update:
        """Called when the visitor empties the chat: removes the selected video's turns, keeps the encoded video."""
        if session is None or session.visit is None:
            return self._empty_parts()
        return self._video_parts(session.with_visit(replace(session.visit, turns=()), self.engine.limits.visits))

    def _open_video(self, path: Path, name: str, truths: Mapping[str, Span] | None = None) -> Visit:
        """Encodes a video and returns a visit of it; an upload that cannot be used is removed."""
        try:
            encoded, _ = self.engine.encode_video(path, self.engine.own_settings)
        except Exception:
            remove_upload(path, self.folder)
            raise
        return Visit(name=name, path=path, duration_s=encoded.duration_s, truths=truths or {})

    def _video_parts(self, session: Session) -> Update:
        """The page's parts for the selected video of a session."""
        visit = session.visit
        assert visit is not None
        names = list(dict.fromkeys([*self.examples, *session.visits]))
        encoded = self._encoded(visit)
        return {
            **self._empty_parts(),
            "session": session,
            "clip": gr.Dropdown(choices=names, value=visit.name),
            "chat": messages(visit),
            "timeline": timeline(visit, None if encoded is None else encoded.clip),
            "suggestions": gr.Dataset(samples=[[text] for text in visit.suggestions or GENERAL_QUESTIONS]),
            "status": note(_video_status(visit, encoded)),
        }

    def _empty_parts(self) -> Update:
        """The page's parts without a video."""
        return {"chat": [], "timeline": "", "sight": "", "status": "", **self.no_files()}

    def _encoded(self, visit: Visit) -> EncodedVideo | None:
        """The video encoded under the model's own settings; None if the file can no longer be read."""
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
        chain: str = CHAIN_OFF,
        decoding: str = ONE_BY_ONE,
        context: str = EVERYTHING,
    ) -> Generator[Update, None, None]:
        """The answer word by word, then the timeline, the panel and the session."""
        stop = self._stops[visitor] = threading.Event()
        visit = session.visit if session else None
        try:
            if session is None or visit is None:
                raise InputError(_NO_VIDEO)
            settings, in_chain = self._settings(reducer, share, path, frames, context), self.engine.chain(chain)
            question, method = self.engine.limits.question(question), self.engine.decoding(decoding)
            reply, updated_s = Reply(partial=None), 0.0
            earlier = visit.turns if remember else ()
            truth = visit.truths.get(question)
            for reply in self.engine.ask(
                visit.path,
                question,
                settings,
                earlier=earlier,
                truth=truth,
                chain=in_chain,
                decoding=method,
                stopped=stop.is_set,
            ):
                if reply.turn is None and (reply.partial is None or time.monotonic() - updated_s > _PACE_S):
                    updated_s = time.monotonic()
                    yield {**_button_parts(True), **_partial_parts(visit, question, reply)}
            assert reply.turn is not None
            assert reply.encoded is not None
            visit = visit.asked(reply.turn, self.engine.limits.turns)
            session = session.with_visit(visit, self.engine.limits.visits)
            yield {
                **_button_parts(False),
                "session": session,
                "question": "",
                "chat": messages(visit),
                "timeline": timeline(visit, reply.encoded.clip),
                "sight": sight(reply.turn, reply.encoded),
                "status": note(self._answer_status(reply.turn)),
            }
        except Exception as problem:
            chat = {} if visit is None else {"chat": messages(visit)}
            yield {**_button_parts(False), **chat, "status": refusal(_without_path(reason(problem), visit))}
        finally:
            self._stops.pop(visitor, None)

    def stop(self, visitor: str) -> None:
        """Ends the visitor's answer at its next token: the visitor has pressed stop or left the page."""
        if (event := self._stops.get(visitor)) is not None:
            event.set()

    def no_files(self) -> Update:
        """Nothing to download: files of earlier answers are not taken for those of the answer being written."""
        return {ending: gr.DownloadButton(value=None, interactive=False) for ending in ("json", "vtt", "png")}

    def files(self, session: Session | None) -> Update:
        """Exports the turns about the selected video as files to download."""
        visit = session.visit if session else None
        if visit is None or not visit.turns:
            return {}
        folder = self.folder / "exports" / secrets.token_hex(16)
        folder.mkdir(parents=True)
        encoded = self._encoded(visit)
        try:
            paths = export(visit, None if encoded is None else encoded.clip, folder, self.model, self.engine.qa.note)
        except (MmllmError, OSError) as problem:
            return {"status": refusal(reason(problem))}
        return {path.suffix[1:]: gr.DownloadButton(value=str(path), interactive=True) for path in paths}

    def _answer_status(self, turn: ChatTurn) -> str:
        """The status line below an answer: seconds, why it was cut, and words that the model does not know."""
        encoded_now = any(stage in turn.stage_s for stage in ("decode", "encode"))
        reuse = "" if encoded_now else ", nothing decoded or encoded again"
        status = f"First token after {turn.first_token_s:.2f} s, whole answer {turn.seconds:.2f} s{reuse}."
        if turn.cut:
            status += {
                "tokens": f" The answer was cut after {turn.tokens} tokens.",
                "time": f" The answer was cut after {self.engine.limits.answer_s:.0f} s.",
                "stopped": " The answer was stopped.",
            }[turn.cut]
        unknown = self.engine.unknown_words(turn.question)
        return status + (f" Words that this model does not know: {', '.join(unknown)}." if unknown else "")

    # --- settings, comparing, the player --------------------------------------------------------------------

    def cost(self, reducer: str, share: float, path: str, frames: float, context: str = EVERYTHING) -> str:
        """HTML of what these settings cost, or of the reason why they are impossible."""
        try:
            return cost_table(cost_of(self.engine.qa, self._settings(reducer, share, path, frames, context)))
        except Exception as problem:
            return refusal(reason(problem))

    def compare(self, question: str, session: Session | None, *chosen: Any) -> Update:
        """Asks the same question under two settings.

        Args:
            question: the question; if empty, the last one about this video.
            session: the visitor's session.
            chosen: values of the five controls of A, then of B.
        """
        visit = session.visit if session else None
        try:
            if visit is None:
                raise InputError(_NO_VIDEO)
            if not question.strip() and visit.turns:
                question = visit.turns[-1].question
            choices = [self._settings(*chosen[:5]), self._settings(*chosen[5:])]
            turns = self.engine.compare(visit.path, question, choices, truth=visit.truths.get(question.strip()))
        except Exception as problem:
            return {"comparison": refusal(_without_path(reason(problem), visit))}
        lanes = [("A", turns[0].spans, "answer"), ("B", turns[1].spans, "other")]
        if turns[0].truth is not None:
            lanes.append(("truth", (turns[0].truth,), "truth"))
        heading = f'<p class="mm-note">{safe(turns[0].question)}</p>'
        return {"comparison": heading + bars(visit.duration_s, lanes) + comparison(turns)}

    def _settings(self, reducer: str, share: float, path: str, frames: float, context: str = EVERYTHING) -> Settings:
        return self.engine.settings(frames, reducer, share, path, context)

    # --- for programs ---------------------------------------------------------------------------------------

    def ask_api(
        self, video: str, question: str, reducer: str, share: float, path: str, frames: float
    ) -> Generator[dict[str, Any], None, None]:
        """Partial answers, `{"done": false, "text": ...}`, then the whole answer with its spans, tokens and seconds."""
        yield from self.ask_in_chain_api(video, question, reducer, share, path, frames, CHAIN_OFF)

    def ask_in_chain_api(
        self, video: str, question: str, reducer: str, share: float, path: str, frames: float, chain: str
    ) -> Generator[dict[str, Any], None, None]:
        """As `ask_api`, after the parts of the video: off, auto or a number. The answer has what was said of them."""
        try:
            if not video:
                raise InputError("video: no file was given; upload one")
            settings = self.engine.settings(frames, reducer, share, path)
            for reply in self.engine.ask(Path(video), question, settings, chain=self.engine.chain(chain)):
                if reply.turn is not None and reply.encoded is not None:
                    yield {"done": True, "duration_s": reply.encoded.duration_s, **reply.turn.to_json()}
                elif reply.partial is not None:
                    yield {"done": False, "text": reply.partial.text}
        except Exception as problem:
            if isinstance(problem, VideoError):
                remove_upload(Path(video), self.folder)
            message = reason(problem).replace(video or "\0", Path(video or "").name)
            raise gr.Error(message, print_exception=False) from None

    def cost_api(self, reducer: str, share: float, path: str, frames: float) -> dict[str, Any]:
        """Tokens after each stage and bytes of the LLM's cache; computed without running the model on a video."""
        try:
            cost = cost_of(self.engine.qa, self._settings(reducer, share, path, frames))
        except Exception as problem:
            raise gr.Error(reason(problem), print_exception=False) from None
        return {"stages": list(cost.stages), "tokens": cost.tokens, "cache_bytes": cost.cache_bytes}


def messages(visit: Visit) -> list[dict[str, str]]:
    """The turns about a video as messages of the chat."""
    chat = []
    for turn in visit.turns:
        chat += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": spoken(turn)}]
    return chat


def spoken(turn: ChatTurn) -> str:
    """An answer as the chat shows it: its spans, then its text."""
    when = "; ".join(map(interval, turn.spans)) or turn.without_spans
    text = readable(turn.answer.text)
    return f"{_said(turn.answer.steps)}{when}\n{text}{' …' if turn.cut else ''}"


def _said(steps: Sequence[Step]) -> str:
    """A line for each part of the video that was looked at first."""
    return "".join(f"[{interval(step.span)}] {readable(step.text)}\n" for step in steps)


def question_at(question: str, time_s: float) -> str:
    """A question that ends with "at 12.4 s?"; an empty question becomes "What happens at 12.4 s?"."""
    text = question.strip().rstrip("?.! ")
    return f"{text or 'What happens'} at {time_s:.1f} s?"


def note(text: str) -> str:
    """HTML of a message that is no error."""
    return f'<p class="mm-note" role="status">{safe(text)}</p>'


def reason(problem: Exception) -> str:
    """An error as a message for the visitor; the details of an unexpected error go to the log only."""
    if isinstance(problem, MmllmError):
        return str(problem)
    if is_out_of_memory(problem):
        log.warning("out of memory: %s", problem)
        return "There is not enough memory: choose fewer frames or a smaller share of the tokens."
    log.error("the demo failed", exc_info=problem)
    return "Something went wrong on the server, and the error is in its log. You can go on."


def _video_status(visit: Visit, encoded: EncodedVideo | None) -> str:
    """The status line of an opened video; it warns of a codec that many browsers cannot play."""
    status = f"{visit.name}: {seconds(visit.duration_s)} long, ready for questions."
    codec = None if encoded is None else encoded.clip.metadata.get("codec")
    if codec in (None, *_PLAYED):
        return status
    return f"{status} Many browsers cannot play {codec}; the timeline and the answers work all the same."


def _partial_parts(visit: Visit, question: str, reply: Reply) -> Update:
    """The chat and the status while the answer to a question is incomplete."""
    text = reply.partial.text if reply.partial else f"{_said(reply.steps)}…"
    chat = [*messages(visit), {"role": "user", "content": question}, {"role": "assistant", "content": text}]
    if reply.partial is None:
        doing = "Watching the video." if reply.encoded is None else "Reading."
        return {"chat": chat, "status": note(f"Looked at part {len(reply.steps)}." if reply.steps else doing)}
    return {"chat": chat}


def _button_parts(busy: bool) -> Update:
    """The ask and stop buttons: stop can be pressed only while an answer is being written, ask only when none is."""
    return {"send": gr.Button(interactive=not busy), "halt": gr.Button(interactive=busy)}


def _without_path(message: str, visit: Visit | None) -> str:
    """The message with the server's path of the video replaced by the name that the visitor sees."""
    return message if visit is None else message.replace(str(visit.path), visit.name)


def _free_name(path: Path, session: Session) -> str:
    """The file's name, with a number if another open video has the same name."""
    taken = {name for name, visit in session.visits.items() if visit.path != path}
    names = (path.name if n == 1 else f"{path.stem} ({n}){path.suffix}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)
