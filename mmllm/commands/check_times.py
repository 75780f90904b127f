"""`mmllm check-times`: whether a model is told the right times of frames, and answers with them."""

from __future__ import annotations

import json as json_text
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mmllm.commands.flags import StageFlags, checked_count
from mmllm.errors import InputError
from mmllm.hub.sources import DEFAULT
from mmllm.stages import NO_CHANGES

if TYPE_CHECKING:
    from mmllm.evaluation.clock_backends import ClockBackend
    from mmllm.evaluation.clock_check import ClockReport

FOUND = 1
"""Exit code if times are wrong."""


def check_times(
    model: Annotated[str, tyro.conf.Positional] = DEFAULT,
    through: Literal["mmllm", "transformers"] = "mmllm",
    api_model: str | None = None,
    media: Literal["video", "frames"] = "video",
    stages: StageFlags = NO_CHANGES,
    clips: int = 6,
    ask: bool = True,
    json: bool = False,
) -> int:
    """Say whether the times of a model's frames are right: rendered clips, late, uneven, cut, and as lists of frames.

    Two things are looked at. What is fed: the times of the frames, those written in the prompt, and those in positions,
    compared exactly. What is answered: when events happen, compared with noise and blunders left aside. Exit code 1 if
    times are wrong.

    Args:
        model: folder or hub id of a model, or the address of an OpenAI-compatible server, such as
            http://localhost:8000/v1; by default the model that comes with mmllm.
        through: mmllm, or transformers with the model's own processor.
        api_model: at an address, the name of the model.
        media: at an address, whether files are sent as video_url, or pictures as image_url with their times as text.
        stages: stages that replace the model's own.
        clips: clips of each kind; more make answers tell more.
        ask: ask the model, too; --no-ask looks only at what it is fed, which needs no trained model.
        json: print everything as one JSON object.
    """
    checked_count("--clips", clips)
    address = model.startswith(("http://", "https://"))
    _check_flags(address, through, api_model, media, ask, stages is not NO_CHANGES and bool(stages.by_slot))
    from mmllm.evaluation.clock_check import check_backend
    from mmllm.evaluation.clock_requests import CASES, requests

    with tempfile.TemporaryDirectory(prefix="mmllm-times-") as folder:
        if address:
            backend = _at_address(model, str(api_model), media, Path(folder))
        else:
            backend = _loaded(model, through, stages, ask)
        report = check_backend(backend, requests(Path(folder), clips), count=clips * len(CASES), ask=ask)
    if json:
        print(json_text.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _print(report)
    return 0 if report.healthy else FOUND


def _check_flags(address: bool, through: str, api_model: str | None, media: str, ask: bool, staged: bool) -> None:
    """Refuses flags that do not fit each other.

    Raises:
        InputError: naming the flag.
    """
    if address:
        if not api_model:
            raise InputError("--api-model is missing: an address needs the name of one of its models")
        if through != "mmllm":
            raise InputError(f"--through {through} is for models that are loaded here, not for an address")
        if staged:
            raise InputError("stages can be changed in models that are loaded here, not behind an address")
        if not ask:
            raise InputError("--no-ask: of an address, nothing but answers can be seen")
        return
    if api_model is not None:
        raise InputError(f"--api-model {api_model} is the name of a model at an address, and no address is given")
    if media != "video":
        raise InputError(f"--media {media} is for addresses; a model that is loaded here is given both")
    if through == "transformers" and staged:
        raise InputError("--through transformers: it has none of our stages")


def _at_address(url: str, name: str, media: Literal["video", "frames"], folder: Path) -> ClockBackend:
    from mmllm.evaluation.clock_address import AddressBackend
    from mmllm.evaluation.endpoint import EndpointConfig

    return AddressBackend(
        EndpointConfig(url=url, model=name, temperature=0.0, max_tokens=256), media, folder / "replies"
    )


def _loaded(model: str, through: str, stages: StageFlags, ask: bool) -> ClockBackend:
    if through == "transformers":
        from mmllm.evaluation.clock_transformers import transformers_backend

        return transformers_backend(model, ask=ask)
    from mmllm.evaluation.clock_own import OwnBackend
    from mmllm.inference.answering import VideoQA

    return OwnBackend(VideoQA.from_pretrained(model, **stages.by_slot), model)


def _print(report: ClockReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("case", "times fed", "off by at most", "answers", "median late", box=box.SIMPLE_HEAD)
    table.title, table.title_justify = report.backend, "left"
    for case in report.to_json()["cases"]:
        kinds = {fed["kind"]: [each for each in case["fed"] if each["kind"] == fed["kind"]] for fed in case["fed"]}
        worst = [max(each, key=lambda fed: abs(fed["largest_error_s"])) for each in kinds.values()]
        late = "" if case["median_late_s"] is None else f"{case['median_late_s']:+.2f} s"
        table.add_row(
            case["case"],
            "\n".join(kinds) or "-",
            "\n".join(f"{abs(fed['largest_error_s']):.3f} s at {fed['true_s']:.1f}" for fed in worst),
            f"{case['answered']} of {case['asked']}" if case["asked"] else "-",
            late,
        )
    console.print(table)
    for line in verdict(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def verdict(report: ClockReport) -> list[str]:
    """What was found, in sentences."""
    content = report.to_json()
    lines = [f"{case['case']}: {case['remark']}" for case in content["cases"] if case["remark"]]
    for kind, fed in content["fed"].items():
        named = ", ".join(f"{name} ({form})" if form else name for name, form in fed["faults"].items())
        right = "not all right" if fed["unexplained"] else "right"
        lines.append(f"{kind}: {named or right}")
        for wrong in fed["unexplained"]:
            error = f"off by {wrong['largest_error_s']:+.3f} s at {wrong['true_s']:.2f} s"
            lines.append(f"{kind}, {wrong['case']}: {error}, and no known fault fits")
    if not content["fed"]:
        lines.append("fed times: none can be seen")
    answers = content["answers"]
    if answers is None:
        lines.append("answers: not asked")
    elif not answers["sees_clock"]:
        lines.append(f"answers: cannot tell: {answers['reason']}")
    else:
        named = ", ".join(answers["faults"])
        lines.append(f"answers: {named or 'right'}, to {answers['noise_s']:.2f} s, {answers['offset_s']:+.2f} s late")
        if answers["undecided"]:
            lines.append(f"answers: too noisy to tell: {', '.join(answers['undecided'])}")
    lines += [f"{fault['name']}: {fault['meaning']}" for fault in content["faults"]]
    return lines
