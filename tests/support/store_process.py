"""A process that drives a study's store: `python -m tests.support.store_process OUT URL HANGING ...`.

Two trials run at a time. Those with a HANGING number never end.
"""

import sys
import time
from pathlib import Path

from optuna.trial import FrozenTrial

from prometar.errors import PrometarError
from tests.support.databases import open_store, report
from tune.store.storage import convert_db_errors


def drive(out: Path, url: str, hanging: set[int]) -> None:
    """Run trials until the store has no more, or only hanging ones are left.

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
            able = [trial for trial in running if trial.number not in hanging]
            if able:
                trial = able[0]
                store.report(trial.number, report(trial))
                running.remove(trial)
            else:
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
