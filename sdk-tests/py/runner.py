"""Runs checks of the Python SDK, and says which of its public methods none of them has called.

A line of output is {"name", "ok", "ms", "error"?, "skipped"?}; the exit code is 1 if one is not ok. The checks are
coroutines; with the synchronous SDK each of them has a thread to itself. A group's run one after the other.
"""
import argparse
import asyncio
import concurrent.futures
import functools
import importlib
import inspect
import json
import os
import re
import sys
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))

parser = argparse.ArgumentParser()
parser.add_argument("--async", dest="is_async", action="store_true", help="the asynchronous SDK")
parser.add_argument("--list", action="store_true", help="print the names and do nothing")
parser.add_argument("--lacks", default="", help="capabilities that the server under test does not have")
parser.add_argument("--desktop", default="", help="a snapshot that has a desktop")
parser.add_argument("--image", default="debian:12-slim", help="an image of a registry, for what is built")
parser.add_argument("--only", default="", help="a regular expression of names")
options = parser.parse_args()
lacks = set(filter(None, options.lacks.split(",")))


class Surface:
    """What the SDK has: every public method of every class of its modules."""

    def __init__(self) -> None:
        self.all: set[str] = set()
        self.called: set[str] = set()
        kind = "_async" if options.is_async else "_sync"
        names = "daytona sandbox filesystem process git lsp_server code_interpreter computer_use snapshot volume secret warm_pool object_storage"
        modules = [f"daytona.{kind}.{m}" for m in names.split()]
        modules += ["daytona.handle." + ("async_pty_handle" if options.is_async else "pty_handle"), "daytona.common.image"]
        for m in modules:
            module = importlib.import_module(m)
            for name, c in list(vars(module).items()):
                if inspect.isclass(c) and c.__module__ == m and not name.startswith("_") and name.removeprefix("Async") not in ("Context", "PipOptions"):
                    for method, value in list(vars(c).items()):
                        self._watch(c, name, method, value)

    def _watch(self, c: type, class_name: str, method: str, value: object) -> None:
        static = isinstance(value, (staticmethod, classmethod))
        f = value.__func__ if static else value
        if not inspect.isfunction(f) or (method.startswith("_") and not method.startswith("_experimental")) or method == "model_post_init":
            return
        key = f"{class_name.removeprefix('Async')}.{method}"
        self.all.add(key)

        @functools.wraps(f)
        def wrapped(*args, **kwargs):
            if sys._getframe(1).f_code.co_filename.startswith(HERE):
                self.called.add(key)
            return f(*args, **kwargs)

        setattr(c, method, type(value)(wrapped) if static else wrapped)


groups: dict[str, list] = {}


def check(group: str, name: str, limit: float = 120, needs: str | None = None):
    """Declares a check. Those of a group share a sandbox and run one after the other."""

    def declare(run):
        groups.setdefault(group, []).append((f"{group}/{name}", limit, needs, run))
        return run

    return declare


_output = threading.Lock()
_failed: list[str] = []


def _say(line: dict) -> None:
    with _output:
        print(json.dumps(line), flush=True)


async def _one(name: str, limit: float, run) -> None:
    began = time.monotonic()
    line: dict = {"name": name, "ok": True}
    try:
        skipped = await asyncio.wait_for(run(), limit)
        if isinstance(skipped, str):
            line["skipped"] = skipped
    except BaseException as e:  # also what the SDK throws that is no Exception
        if isinstance(e, KeyboardInterrupt):
            raise
        where = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in traceback.extract_tb(e.__traceback__) if f.filename.startswith(HERE)]
        line.update(ok=False, error=f"{type(e).__name__}: {e} at {' '.join(where[-2:])}"[:2000])
        _failed.append(name)
    line["ms"] = round((time.monotonic() - began) * 1000)
    _say(line)


async def _group(name: str, checks: list, start) -> None:
    context = start(name)
    for check_name, limit, needs, run in checks:
        if needs in lacks:
            _say({"name": check_name, "ok": True, "ms": 0, "skipped": f"lacks {needs}"})
        else:
            await _one(check_name, limit, _apart(functools.partial(run, context)))


def _apart(run):
    """What blocks must not block the others, nor outlast its time limit: its thread is left behind then."""
    return run if options.is_async else lambda: asyncio.to_thread(lambda: asyncio.run(run()))


def main(surface: Surface, start, end) -> int:
    """Runs all. start makes what a group's checks are given; end cleans up after all of them."""
    if options.list:
        for checks in groups.values():
            for c in checks:
                print(c[0])
        print("coverage")
        return 0
    only = re.compile(options.only) if options.only else None
    work = {g: [c for c in checks if not only or only.search(c[0])] for g, checks in groups.items()}
    work = {g: checks for g, checks in work.items() if checks}

    async def together() -> None:
        free = asyncio.Semaphore(6)

        async def one(g: str, checks: list) -> None:
            async with free:
                await _group(g, checks, start)

        asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(64))
        await asyncio.gather(*(one(g, checks) for g, checks in work.items()))
        await _one("cleanup", 120, _apart(end))
        if only is None:
            await _one("coverage", 10, covered)

    async def covered() -> None:
        with open(os.path.join(HERE, "..", "uncovered.json"), encoding="utf-8") as f:
            reasons = json.load(f).get("py-async" if options.is_async else "py", {})

        def about(exception: str) -> set[str]:
            """The methods of an exception, which is a name or the beginning of names."""
            return {m for m in surface.all if m == exception or exception.endswith("*") and m.startswith(exception[:-1])}

        excused = {m for e, r in reasons.items() if r.get("why") and (not r.get("lacks") or r["lacks"] in lacks) for m in about(e)}
        missing = sorted(surface.all - surface.called - excused)
        assert not missing, f"{len(missing)} of {len(surface.all)} public methods were never called: {', '.join(missing)}"
        stale = sorted(e for e, r in reasons.items() if not about(e) or (not r.get("lacks") and about(e) <= surface.called))
        assert not stale, f"uncovered.json excuses what is called, or is not there: {', '.join(stale)}"

    async def whole() -> None:
        await together()
        sys.stdout.flush()
        os._exit(1 if _failed else 0)  # threads that hang are not waited for

    asyncio.run(whole())
    return 1
