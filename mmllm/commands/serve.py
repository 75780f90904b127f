"""`mmllm serve`: OpenAI's chat completions and responses about videos, with spans in seconds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import tyro

from mmllm.app.browser_rules import LOOPBACK
from mmllm.commands.flags import AS_STORED, AS_USUAL, ComputeFlags, HostedFlags, StageFlags
from mmllm.commands.serve_flags import LISTEN, LOAD, ListenFlags, LoadFlags
from mmllm.errors import InputError, require_extra
from mmllm.hub.sources import DEFAULT, checked_source
from mmllm.stages import NO_CHANGES

if TYPE_CHECKING:
    from mmllm.inference.asking import VideoAnswering


def serve(
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = (DEFAULT,),
    listen: ListenFlags = LISTEN,
    load: LoadFlags = LOAD,
    stages: StageFlags = NO_CHANGES,
    hosted: HostedFlags = AS_USUAL,
    compute: ComputeFlags = AS_STORED,
) -> None:
    """Answer questions about videos at an OpenAI-compatible address, with spans in seconds.

    Args:
        models: folders or hub ids, also NAME=FOLDER; by default the model that comes with mmllm. The first is loaded
            at once, others when they are asked.
        listen: where it listens, and whom it serves.
        load: how much it takes, and how much it does at once.
        stages: stages that replace the models' own; a request can choose reducer and path.
        hosted: settings of hosted models.
        compute: how numbers are stored and multiplied.
    """
    require_extra("serve", "the server")
    sources = named(models)
    options = {**listen.options, **load.options}
    from mmllm.serving.limits import ServeLimits
    from mmllm.serving.models import Models
    from mmllm.serving.running import ServeOptions, ready_server

    def loaded(source: str) -> VideoAnswering:
        from mmllm.inference.answering import VideoQA

        qa = VideoQA.from_pretrained(source, **stages.by_slot, **hosted.given, **compute.given)
        if qa.note:
            print(f"note: {source}: {qa.note}", file=sys.stderr)
        return qa

    limits = ServeLimits(**load.limits)
    served = Models(sources, loaded, int(limits.model_gb * 1e9))
    with ready_server(served, limits, ServeOptions(**options)) as ready:
        with served.use(next(iter(sources))):
            pass  # a model that cannot be loaded is told before anybody asks
        print(f"{', '.join(sources)} at {ready.url}/v1", flush=True)
        if listen.host not in LOOPBACK and listen.no_auth:
            print("everybody who can reach this address can ask questions", flush=True)
        ready.run()


def named(models: tuple[str, ...]) -> dict[str, str]:
    """Name -> folder or hub id, of `NAME=FOLDER` or a bare folder or id, which is its own name.

    Raises:
        InputError: if two have one name.
        CheckpointError: if there is no such model.
    """
    sources: dict[str, str] = {}
    for given in models:
        name, equals, source = given.partition("=")
        source = source if equals else name
        if not name or name in sources:
            raise InputError(f"{given}: {'two models have this name' if name else 'the name is missing'}")
        checked_source(source)
        sources[name] = source
    return sources
