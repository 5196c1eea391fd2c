"""The processes of a launch: joining them, and doing on one what all need."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def join_processes() -> PartialState:
    """This process among those of the launch; on CPUs they communicate over gloo, which accelerate must be told."""
    requested = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return PartialState(cpu=requested or not torch.accelerator.is_available())


def on_main_process(work: Callable[[], T]) -> T:
    """The result of work that the main process does, or its error, on every process.

    >>> on_main_process(lambda: 1 + 1)
    2
    """
    outcome: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            outcome = [(work(), None)]
        except (ValueError, OSError) as error:
            outcome = [(None, error)]
    broadcast_object_list(outcome)
    result, raised = outcome[0]
    if raised is not None:
        raise raised
    return result
