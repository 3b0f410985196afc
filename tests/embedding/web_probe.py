"""What the servers of the tests serve: an app of the page, with a look at it from outside.

Each thing that happens is a line on stdout, JSON after an ``@``, with the time by the monotonic
clock, which all processes of the machine share. How it is to go is in the environment.
"""

import asyncio
import importlib
import json
import os
import signal
import time

if os.environ["PROBE_APP"] != "bare":
    from aloop import FinishAfter


def say(event: str, **facts: object) -> None:
    line = json.dumps({"event": event, "at": time.monotonic(), "pid": os.getpid(), **facts})
    print(f"@ {line}", flush=True)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


class Probe:
    """An ASGI app around another: it tells of its lifespan and of the signal handlers in it."""

    def __init__(self, app) -> None:
        self.app = app
        self.before: list[object] = []

    def are_back(self) -> bool:
        return all(old is new for old, new in zip(self.before, handlers(), strict=True))

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.live(scope, receive, send)
        elif scope["path"] == "/after-the-run":
            while self.app.state.loop.state != "closed":
                await asyncio.sleep(0.01)  # which nobody tells
            await answer(send, {"are_back": self.are_back()})
        elif scope["path"] == "/hang":
            say("hanging")
            await asyncio.Event().wait()
        else:
            await self.app(scope, receive, send)

    async def live(self, scope, receive, send) -> None:
        self.before = handlers()

        async def tell(message) -> None:
            if message["type"] == "lifespan.startup.complete":
                say("serving")
            if message["type"] == "lifespan.shutdown.complete":
                say("ended", are_back=self.are_back())
            await send(message)

        await self.app(scope, receive, tell)


async def answer(send, facts: dict[str, object]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(facts).encode()})


async def bare(scope, receive, send) -> None:
    """An app without a run, for what the server does on its own."""
    if scope["type"] != "lifespan":
        await answer(send, {})
        return
    for what in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{what}.complete"})


async def hang(_: object) -> None:
    say("step")
    await asyncio.Event().wait()


def hang_in_thread(_: object) -> None:
    say("step")
    time.sleep(60)


def slowly(train, step_s: float):
    """Make a step of a known length out of a short one."""

    async def step(batch: object):
        say("step", are_back=app.are_back())
        await asyncio.sleep(step_s)
        quantities = await train(batch)
        say("settled")
        return quantities

    return step


def load(name: str):
    """Import an app of the page and set in it what the environment says."""
    module = importlib.import_module(name)
    step = os.environ.get("PROBE_STEP", "0.3")
    for _ in range(int(os.environ.get("PROBE_BATCHES", "100")) if name == "service" else 0):
        module.arrived.put_nowait([1.0, 2.0])
    make = module.MainLoop

    def make_loop(train, stream, **arguments):
        train = {"hang": hang, "thread": hang_in_thread}.get(step) or slowly(train, float(step))
        if "PROBE_FINISH_AFTER" in os.environ:
            finish = FinishAfter(after_n_batches=int(os.environ["PROBE_FINISH_AFTER"]))
            arguments["extensions"].append(finish)
        return make(train, stream, **arguments)

    module.MainLoop = make_loop
    return module.app


name = os.environ["PROBE_APP"]
app = Probe(bare if name == "bare" else load(name))
