"""`latentgen train TASK`: the tasks are `training.command.TASKS`."""

from __future__ import annotations

import sys


def run(argv: list[str]) -> int:
    """Train the task that `argv` begins with and print the folder of the finished model.

    Raises:
        ValueError: There is no such task, or its settings make no sense.
    """
    from training.command import TASKS, train

    usage = f"usage: latentgen train {{{','.join(TASKS)}}} [--help] [--config RECIPE] [--resume] [--SETTING VALUE ...]"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    task, *rest = argv
    if task not in TASKS:
        raise ValueError(f"there is no training task {task!r}; choose one of {', '.join(TASKS)}")
    print(train(task, rest))
    return 0
