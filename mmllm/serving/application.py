"""The server's FastAPI app: OpenAI's paths, and those of health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.routing import Match

from mmllm.app.bodies import TooLarge
from mmllm.fields import shown
from mmllm.serving.answering import Answering
from mmllm.serving.chat_replies import ChatReply
from mmllm.serving.chat_requests import chat_question
from mmllm.serving.fields import Fields
from mmllm.serving.file_lists import file_list
from mmllm.serving.files import StoredFile
from mmllm.serving.guard import ENDPOINTS
from mmllm.serving.limits import ServeLimits
from mmllm.serving.question import Question
from mmllm.serving.refusals import Refused, refusal_of
from mmllm.serving.replies import Reply, content_of, streamed
from mmllm.serving.response_replies import ResponseReply
from mmllm.serving.response_requests import response_question

_LONG_JSON = 1 << 20
"""JSON of more bytes is parsed in a thread."""
_PATH_CODES = {404: "not_found", 405: "method_not_allowed"}
_PURPOSE = 60
"""Characters of an upload's purpose."""
_HALF_LETTER = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\x00")
"""What a body has that may hold half a letter: a half as an escape, as bytes, or two or four bytes for each letter."""

Parse = Callable[[Any, ServeLimits], Question]


def application(answering: Answering, *, ending: Callable[[], bool] = lambda: False) -> FastAPI:
    """The app.

    Args:
        answering: answers the questions.
        ending: whether the server is about to end.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_questions(app, answering)
    _add_files(app, answering)

    @app.exception_handler(Refused)
    async def refuse(_: Request, problem: Refused) -> JSONResponse:
        return JSONResponse(problem.body, problem.status, problem.headers)

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, problem: HTTPException) -> JSONResponse:
        refused = _refused_path(app, request, problem)
        return JSONResponse(refused.body, refused.status, problem.headers)

    @app.exception_handler(Exception)
    async def fail(_: Request, problem: Exception) -> JSONResponse:
        return JSONResponse((refused := refusal_of(problem, answering.folder)).body, refused.status)

    @app.get("/health")
    async def health() -> JSONResponse:
        if ending():
            return JSONResponse({"status": "draining"}, 503)
        alive = answering.llm.alive
        return JSONResponse({"status": "ok" if alive else "engine dead"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(answering.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_model(name) for name in answering.models.names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        answering.models.require(name)
        return JSONResponse(_model(name))

    return app


def _add_questions(app: FastAPI, answering: Answering) -> None:
    """Adds the two paths for questions."""

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answered(request, answering, chat_question, ChatReply)

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await _answered(request, answering, response_question, ResponseReply)


def _add_files(app: FastAPI, answering: Answering) -> None:
    """Adds the paths for uploads."""
    files = answering.addresses.files

    @app.post("/v1/files")
    async def upload(request: Request) -> JSONResponse:
        return JSONResponse((await _stored(request, answering)).to_json())

    @app.get("/v1/files")
    async def uploaded(request: Request) -> JSONResponse:
        return JSONResponse(file_list(files, request.query_params))

    @app.get("/v1/files/{name}")
    async def file(name: str) -> JSONResponse:
        return JSONResponse(files.find(name).to_json())

    @app.delete("/v1/files/{name}")
    async def remove(name: str) -> JSONResponse:
        files.remove(name)
        return JSONResponse({"id": name, "object": "file", "deleted": True})


async def _stored(request: Request, answering: Answering) -> StoredFile:
    """The file of an upload."""
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            fields = Fields(form)
            file, purpose = fields.any("file"), fields.text("purpose") or "user_data"
            if not isinstance(file, UploadFile):
                raise Refused(400, "an upload needs a field file with a file, and a purpose", "bad_request", "file")
            if len(purpose) > _PURPOSE:
                raise fields.refused("purpose", f"a text of at most {_PURPOSE} characters")
            fields.close()
            name = (file.filename or "file")[:200]
            return await asyncio.to_thread(answering.addresses.files.keep, file.file, name, purpose)
    except (HTTPException, MultiPartException) as problem:  # Starlette turns the second into the first
        reason = str(getattr(problem, "message", "") or getattr(problem, "detail", ""))
        if isinstance(problem, TooLarge) or isinstance(problem.__context__, TooLarge):
            raise Refused(413, reason, "too_large") from None
        raise Refused(400, reason, "bad_request") from None


async def _answered(request: Request, answering: Answering, parse: Parse, form: type[Reply]) -> Response:
    """The reply to a question, whole or streamed. Everything is checked before the first byte of a stream."""
    question = parse(await _json(request), answering.limits)
    gone = threading.Event()
    stack = contextlib.AsyncExitStack()
    watching = asyncio.create_task(_watched(request, gone))
    stack.callback(watching.cancel)
    try:
        job, events = await stack.enter_async_context(answering.asked(question, gone))
        reply = form(job)
        if not question.stream:
            try:
                content, ending = await content_of(events)
            except Exception as problem:
                raise refusal_of(problem, answering.folder) from problem
            return JSONResponse(reply.whole(content, ending))
        closing = stack.pop_all()
    finally:
        await stack.aclose()

    async def stream() -> AsyncIterator[str]:
        async with closing:
            async for line in streamed(reply, events, lambda problem: refusal_of(problem, answering.folder)):
                yield line

    return StreamingResponse(
        stream(),
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},
        background=BackgroundTask(closing.aclose),  # a client may leave before the first line is asked for
    )


async def _watched(request: Request, gone: threading.Event) -> None:
    """Waits until the client is no longer there, and says so."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _json(request: Request) -> Any:
    """The JSON value of a body.

    Raises:
        Refused: if it is none.
    """
    body = await request.body()
    return await asyncio.to_thread(_parsed, body) if len(body) > _LONG_JSON else _parsed(body)


def _parsed(body: bytes) -> Any:
    try:
        value = json.loads(body)
        if _HALF_LETTER.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as problem:
        half = problem.object[problem.start]
        message = f"the body holds {half!r}, half of a letter that JSON writes in two: give both, or leave it out"
        raise Refused(400, message, "bad_request") from None
    except (ValueError, RecursionError):
        raise Refused(400, "the body must be a JSON object", "bad_request") from None
    return value


def _refused_path(app: FastAPI, request: Request, problem: HTTPException) -> Refused:
    """Why a path is not answered: there is none of that name, or it takes other methods."""
    if problem.status_code not in _PATH_CODES:
        return Refused(problem.status_code, str(problem.detail), "bad_request")
    code, place = _PATH_CODES[problem.status_code], shown(request.url.path)
    routes = [route for route in app.routes if route.matches(request.scope)[0] != Match.NONE]
    methods = sorted({method for route in routes for method in getattr(route, "methods", ())})
    if methods:
        return Refused(problem.status_code, f"{place} takes {', '.join(methods)}, not {request.method}", code)
    return Refused(problem.status_code, f"there is nothing at {place}; there are {', '.join(ENDPOINTS)}", code)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "mmllm"}
