"""The command line for the process that started it: `python -m fastsurf.attended VERB ...`.

Each byte on stdin is a Ctrl-C; when stdin ends, which it also does when the other process is killed, this one is over at once.
"""

import os
import signal
import sys
import threading

from .cli import STOPPED, main


def _obey(orders: int) -> None:
    while os.read(orders, 1):
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(STOPPED)


if __name__ == "__main__":
    orders, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # for whatever is started from here
    if hasattr(signal, "pthread_sigmask"):  # Ray blocks it in all that it starts
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_obey, args=(orders,), daemon=True).start()
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before its handlers were in place
        sys.exit(STOPPED)
