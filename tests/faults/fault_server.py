"""A process that has imported aloop, runs no thread, and forks a child for each job.

So a trial begins in a millisecond. It talks over a socket whose descriptor it is given: an order
to start comes with the descriptor that the child tells its lines to.
"""

import json
import os
import socket
import sys
import traceback

from fault_jobs import do, tell_to


def serve(link: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(link, 1 << 16, 1)
        if not message:
            return
        order = json.loads(message)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            link.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        child = os.fork()
        if child == 0:
            link.close()
            work(order, descriptors[0])
        os.close(descriptors[0])
        link.send(json.dumps(child).encode())


def work(order: dict, descriptor: int) -> None:
    """Do a job and end this process, which is a child."""
    code = 1
    try:
        os.dup2(descriptor, 0)  # what is told to the child comes from there, too
        do(order["job"], order["arguments"], tell_to(descriptor))
        code = 0
    except BaseException:  # noqa: BLE001 - told to the test
        tell_to(descriptor)("error", traceback.format_exc())
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
