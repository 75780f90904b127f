"""Flags that several commands share."""

from __future__ import annotations

from typing import Annotated

import tyro

from mmllm.stages import StageChanges

StageFlags = Annotated[StageChanges, tyro.conf.arg(name="")]
"""The flags `--reducer` and `--path`; `name=""` leaves out the prefix `--stages.`."""
