"""A process that runs the trials of a study without training, two at a time.

The command is `python -m tests.support.store_process OUT URL HANGING ...`. Trials with the numbers HANGING
never end. When only these are left, the process prints "hanging" and their numbers, and waits to be killed.
"""

import sys
import time
from pathlib import Path

from optuna.trial import FrozenTrial

from prometar.errors import PrometarError
from tests.support.databases import open_store, report
from tune.store.storage import convert_db_errors


def drive(out: Path, url: str, hanging: set[int]) -> None:
    """Run trials until the store has no more. If only hanging ones are left, wait forever.

    Args:
        out: Parent of the study's folder.
        url: URL of the database.
        hanging: Numbers of trials that never end.
    """
    with convert_db_errors(url):
        store = open_store(out, url=url, trials=4)
        running: list[FrozenTrial] = []
        while True:
            while len(running) < 2:
                trial = store.ask()
                if trial is None:
                    break
                running.append(trial)
            if not running:
                return
            not_hanging = [trial for trial in running if trial.number not in hanging]
            if not not_hanging:
                break
            trial = not_hanging[0]
            store.report(trial.number, report(trial))
            running.remove(trial)

        print("hanging", *(trial.number for trial in running), flush=True)
        while True:  # until the test kills this process
            store.add_seconds(0.01)
            time.sleep(0.01)


if __name__ == "__main__":
    out, url, *numbers = sys.argv[1:]
    try:
        drive(Path(out), url, {int(number) for number in numbers})
    except PrometarError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
