"""Checks a server with the official Python SDK: main.py [--async] [--list] [--lacks a,b] [--desktop SNAPSHOT]
[--image IMAGE] [--only REGEXP], with DAYTONA_API_URL and DAYTONA_API_KEY in the environment."""
import asyncio
import base64
import contextlib
import hashlib
import http.client
import inspect
import io
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
import urllib.parse
import uuid
from datetime import datetime, timedelta, timezone

from runner import Surface, check, lacks, main, options

surface = Surface()

import daytona as lib  # noqa: E402  (Surface must come first)
from daytona import (  # noqa: E402
    CodeRunParams,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    CreateSecretParams,
    CreateSnapshotParams,
    DaytonaConfig,
    DaytonaError,
    FileDownloadRequest,
    FileUpload,
    Image,
    ListSandboxesQuery,
    LspCompletionPosition,
    PtySize,
    Resources,
    ScreenshotOptions,
    ScreenshotRegion,
    SessionExecuteRequest,
    UpdateSecretParams,
    VolumeMount,
)

IS_ASYNC = options.is_async
kind = "_async" if IS_ASYNC else "_sync"
Client = lib.AsyncDaytona if IS_ASYNC else lib.Daytona
run_id = secrets.token_hex(4)
mark = {"sdk-test": run_id}
tmp = tempfile.mkdtemp(prefix="sdk-test-")
made: dict[str, list] = {"snapshots": [], "volumes": [], "secrets": [], "pools": []}
_client = None


def client():
    global _client
    if _client is None:
        _client = Client()
    return _client


def unique(what: str) -> str:
    return f"sdk-py{'a' if IS_ASYNC else ''}-{run_id}-{what}"


async def do(value):
    """The value of a call, of either SDK."""
    return await value if inspect.isawaitable(value) else value


async def away(method, *args, **kwargs):
    """What a method returns that has an event loop of its own in the sync SDK: it can't be called within another one."""
    return await method(*args, **kwargs) if IS_ASYNC else await asyncio.to_thread(method, *args, **kwargs)


async def collect(items) -> list:
    items = await do(items)
    if hasattr(items, "__aiter__"):
        return [x async for x in items]
    return list(items)


async def until(what: str, test, seconds: float = 60):
    end = time.monotonic() + seconds
    while True:
        got = await do(test())
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"not after {seconds} s: {what}")
        await asyncio.sleep(0.1)


async def refused(statuses, classes, call):
    """Expects an error of the SDK's, of one of the statuses and all the classes. Some methods let the errors of the
    generated clients through, which have a status and no class of the SDK's."""
    try:
        await do(call())
    except Exception as e:
        status = e.status_code if isinstance(e, DaytonaError) else getattr(e, "status", None)
        assert isinstance(e, DaytonaError) or status, f"is no DaytonaError: {type(e).__name__}: {e}"
        assert not statuses or status in statuses, f"status {status}, want {statuses}: {e}"
        for c in [classes] if isinstance(classes, str) else classes:
            assert isinstance(e, getattr(lib, c)), f"{type(e).__name__} is no {c}: {e}"
        assert str(e)
        return e
    raise AssertionError("was not refused")


async def can(capability: str, run):
    """Does run where the server has the capability, and otherwise expects it to be refused."""
    if capability not in lacks:
        return await run()
    await refused([400, 404, 422, 501, 503, None], [], run)  # None is what failed later on
    return f"lacks {capability}: it was refused"


def gone(e: Exception) -> bool:
    return 404 in (getattr(e, "status_code", None), getattr(e, "status", None))


async def is_gone(call) -> bool:
    try:
        await do(call())
        return False
    except Exception as e:
        if gone(e):
            return True
        raise


def get(url: str, headers: dict | None = None) -> tuple[int, str]:
    """Asks a URL as a browser or curl would. Names below localhost are this machine."""
    u = urllib.parse.urlsplit(url)
    cls = http.client.HTTPSConnection if u.scheme == "https" else http.client.HTTPConnection
    c = cls(u.hostname, u.port, timeout=15)
    if (u.hostname or "").endswith("localhost"):
        c._create_connection = lambda address, *rest: socket.create_connection(("127.0.0.1", address[1]), *rest)
    try:
        c.request("GET", (u.path or "/") + ("?" + u.query if u.query else ""), headers={"Host": u.netloc, **(headers or {})})
        r = c.getresponse()
        return r.status, r.read().decode(errors="replace")
    finally:
        c.close()


async def fetch(url: str, headers: dict | None = None) -> tuple[int, str]:
    return await asyncio.to_thread(get, url, headers)


def write(name: str, content: bytes | str) -> str:
    path = os.path.join(tmp, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(content if isinstance(content, bytes) else content.encode())
    return path


class Context:
    """What a group's checks are given: a sandbox, made when it is first asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._shared = None

    async def create(self, params=None, **o):
        params = params or CreateSandboxFromSnapshotParams()
        params.labels = {**mark, **(params.labels or {})}
        return await away(client().create, params, **o)

    async def sandbox(self):
        if self._shared is None:
            self._shared = await self.create(CreateSandboxFromSnapshotParams(auto_stop_interval=30, env_vars={"FROM_CREATE": "yes"}))
        return self._shared

    async def run(self, command: str, sandbox=None) -> str:
        return (await do((sandbox or await self.sandbox()).process.exec(command))).result


async def end() -> None:
    errors = []

    async def quietly(call, *also):
        try:
            await do(call())
        except Exception as e:
            if not gone(e) and getattr(e, "status_code", None) not in also:
                errors.append(e)

    for p in made["pools"]:
        await quietly(lambda: client().warm_pool.delete(p))
    async def none_left():
        left = [s for s in await collect(client().list(ListSandboxesQuery(labels=mark))) if str(getattr(s.state, "value", s.state)) not in ("destroyed", "destroying")]
        for s in left:  # what is on its way can't be deleted yet
            await quietly(lambda: client().delete(s), 409)
        return not left

    await until("all sandboxes are gone", none_left)

    async def remove(service, name):
        await do(service.delete(await do(service.get(name))))

    for s in made["snapshots"]:
        await quietly(lambda: remove(client().snapshot, s))
    for v in made["volumes"]:
        await quietly(lambda: remove(client().volume, v))
    for s in made["secrets"]:
        await quietly(lambda: client().secret.delete(s))
    if IS_ASYNC:
        await client().close()
    shutil.rmtree(tmp)
    if errors:
        raise errors[0]


def state(s) -> str:
    return str(getattr(s.state, "value", s.state))


def stamp(text) -> datetime:
    return text if isinstance(text, datetime) else datetime.fromisoformat(str(text).replace("Z", "+00:00"))


# -- sandbox


@check("sandbox", "create")
async def _(t):
    s = await t.sandbox()
    assert state(s) == "started" and uuid.UUID(s.id)
    assert s.labels["sdk-test"] == run_id and s.labels["code-toolbox-language"] == "python" and s.auto_stop_interval == 30
    assert s.toolbox_proxy_url and s.organization_id and s.target and s.user and s.cpu > 0 and s.memory > 0 and s.disk > 0
    assert (await t.run("echo $FROM_CREATE")).strip() == "yes"


@check("sandbox", "get")
async def _(t):
    s = await t.sandbox()
    for by in (s.id, s.name):
        assert (await do(client().get(by))).id == s.id
    await do(s.refresh_data())
    assert state(s) == "started" and s.env["FROM_CREATE"] == "yes"


@check("sandbox", "directories")
async def _(t):
    s = await t.sandbox()
    home = await do(s.get_user_home_dir())
    assert home.startswith("/") and await do(s.get_user_root_dir()) == home
    assert (await do(s.get_work_dir())).startswith("/")


@check("sandbox", "labels")
async def _(t):
    s = await t.sandbox()
    labels = {**s.labels, "colour": "red"}
    assert await do(s.set_labels(labels)) == labels
    await do(s.refresh_data())
    assert s.labels == labels


@check("sandbox", "intervals")
async def _(t):
    s = await t.sandbox()
    await do(s.set_autostop_interval(0))
    await do(s.set_autostop_interval(60))
    await do(s.set_auto_archive_interval(120))
    await do(s.set_auto_delete_interval(180))
    await do(s.refresh_data())
    assert (s.auto_stop_interval, s.auto_archive_interval, s.auto_delete_interval) == (60, 120, 180)
    await do(s.set_auto_delete_interval(-1))
    await do(s.refresh_data())
    assert s.auto_delete_interval == -1
    for f in (s.set_autostop_interval, s.set_auto_archive_interval):
        await refused([], [], lambda: f(-1))
    await do(s.set_ttl(600))
    await do(s.refresh_data())
    left = stamp(s.auto_destroy_at) - datetime.now(timezone.utc)
    assert timedelta(minutes=500) < left <= timedelta(minutes=601), s.auto_destroy_at
    await do(s.set_ttl(0))
    if "pause" in lacks:
        with contextlib.suppress(DaytonaError):
            await do(s.set_auto_pause_interval(45))
        return
    await do(s.set_auto_pause_interval(45))
    await do(s.refresh_data())
    assert s.auto_pause_interval == 45
    await do(s.set_auto_pause_interval(0))


@check("sandbox", "activity")
async def _(t):
    s = await t.sandbox()
    await do(s.refresh_data())
    before = stamp(s.last_activity_at)
    await do(s.refresh_activity())

    async def seen():
        await do(s.refresh_data())
        return stamp(s.last_activity_at) >= before

    await until("the activity is seen", seen)


@check("sandbox", "public")
async def _(t):
    s = await t.sandbox()
    await do(s.set_public(True))
    await do(s.refresh_data())
    assert s.public is True
    await do(s.set_public(False))
    await do(s.refresh_data())
    assert s.public is False


@check("sandbox", "network", limit=180)
async def _(t):
    s = await t.sandbox()

    async def alone(x):
        out = await t.run("python3 -c \"import socket; socket.create_connection(('1.1.1.1', 53), 5)\" 2>/dev/null && echo out || echo in", x)
        assert out.strip() == "in"

    blocked = await t.create(CreateSandboxFromSnapshotParams(network_block_all=True))
    assert blocked.network_block_all is True
    await alone(blocked)
    await do(blocked.delete())
    await refused([400], "DaytonaValidationError", lambda: s.update_network_settings(network_allow_list="not a network"))

    async def update():
        await do(s.update_network_settings(network_block_all=True))
        assert s.network_block_all is True
        await alone(s)
        await do(s.update_network_settings(network_allow_list="10.0.0.0/8,192.0.2.0/24"))
        assert (s.network_block_all, s.network_allow_list) == (False, "10.0.0.0/8,192.0.2.0/24")

        async def domains():
            await do(s.update_network_settings(domain_allow_list="example.com,*.example.org"))
            assert s.domain_allow_list == "example.com,*.example.org"

        await can("domains", domains)
        await do(s.update_network_settings(network_block_all=False, network_allow_list="", domain_allow_list=""))

    return await can("network", update)


@check("sandbox", "resize")
async def _(t):
    s = await t.sandbox()

    async def resize():
        cpu = int(s.cpu) + 1
        await do(s.resize(Resources(cpu=cpu)))
        await do(s.wait_for_resize_complete())
        await do(s.refresh_data())
        assert s.cpu == cpu and state(s) == "started"

    return await can("resize", resize)


@check("sandbox", "ssh access")
async def _(t):
    s = await t.sandbox()
    a = await do(s.create_ssh_access(10))
    assert a.sandbox_id == s.id and a.ssh_command.startswith("ssh ") and f"{a.token}@" in a.ssh_command
    left = stamp(a.expires_at) - datetime.now(timezone.utc)
    assert timedelta(minutes=8) < left < timedelta(minutes=11), a.expires_at
    # To validate is for gateways: a server may refuse it to others.
    try:
        v = await do(s.validate_ssh_access(a.token))
        assert v.valid and v.sandbox_id == s.id
    except DaytonaError as e:
        assert e.status_code == 403, e
    await do(s.revoke_ssh_access(a.token))
    try:
        assert not (await do(s.validate_ssh_access(a.token))).valid
    except DaytonaError as e:  # some releases cannot read that there is no sandbox
        assert e.status_code in (403, None), e


@check("sandbox", "list")
async def _(t):
    s = await t.sandbox()
    now = datetime.now(timezone.utc)

    async def ids(**q):
        return [x.id for x in await collect(client().list(ListSandboxesQuery(**{"labels": mark, **q})))]

    epoch = datetime.fromtimestamp(0, timezone.utc)
    snapshots = [{"snapshots": [s.snapshot]}] if s.snapshot else []
    for q in [
        {}, {"id": s.id[:13]}, {"name": s.name[:13]}, {"states": [lib.SandboxState.STARTED]}, {"targets": [s.target]}, {"min_cpu": int(s.cpu), "max_cpu": int(s.cpu)},
        {"min_memory_gib": int(s.memory), "max_memory_gib": int(s.memory)}, {"min_disk_gib": int(s.disk), "max_disk_gib": int(s.disk)}, {"is_public": False},
        {"created_at_after": epoch, "created_at_before": now + timedelta(days=1)}, {"sort": lib.SandboxListSortField.CREATEDAT, "order": lib.SandboxListSortDirection.ASC}, *snapshots,
    ]:
        assert s.id in await ids(**q), f"not among {q}"
    for q in [{"states": [lib.SandboxState.ARCHIVED]}, {"created_at_before": epoch}, {"is_public": True}, {"min_cpu": 9999}, {"labels": {"sdk-test": "none"}}]:
        assert s.id not in await ids(**q), f"among {q}"


@check("sandbox", "metrics")
async def _(t):
    s = await t.sandbox()
    m = await do(s.get_metrics_latest())
    assert m.mem_total > 0 and m.cpu_count > 0 and m.disk_total > 0
    # Past ones come from a service that a server need not have.
    with contextlib.suppress(DaytonaError):
        assert isinstance(await do(s.get_metrics(datetime.now(timezone.utc) - timedelta(minutes=1), datetime.now(timezone.utc))), list)


@check("sandbox", "environment")
async def _(t):
    s = await t.sandbox()
    await do(s.update_env({"LATER": "here"}, unset=["FROM_CREATE"]))
    assert (await t.run('echo "$LATER,$FROM_CREATE"')).strip() == "here,"


@check("sandbox", "signed file URLs")
async def _(t):
    s = await t.sandbox()
    file = f"{await do(s.get_work_dir())}/signed.txt"
    await do(s.fs.upload_file(b"signed", file))
    down = await do(s.download_url(file, 60))
    assert await fetch(down) == (200, "signed")
    assert "signature=" in await do(s.upload_url(file, 60))
    await do(s.rotate_signing_key())
    assert (await fetch(down))[0] != 200


@check("sandbox", "archive refuses a started one")
async def _(t):
    s = await t.sandbox()
    await refused([400], "DaytonaValidationError", lambda: s.archive())


@check("sandbox", "recover refuses a sound one")
async def _(t):
    s = await t.sandbox()
    await refused([400], "DaytonaValidationError", lambda: s.recover(20))


# -- lifecycle


@check("lifecycle", "stop and start", limit=180)
async def _(t):
    s = await t.sandbox()
    await t.run("echo kept > kept.txt")
    await do(s.stop(60))
    assert state(s) == "stopped"
    await do(s.wait_for_sandbox_stop(10))
    await refused([], [], lambda: s.process.exec("true"))
    await do(s.start(60))
    await do(s.wait_for_sandbox_start(10))
    assert (await t.run("cat kept.txt")).strip() == "kept"
    await do(s.stop(60, force=True))
    await do(client().start(s, 60))
    await do(client().stop(s))
    assert state(s) == "stopped"
    await do(s.start())


@check("lifecycle", "pause", limit=180)
async def _(t):
    s = await t.sandbox()

    async def pause():
        await do(s.pause(60))
        assert state(s) == "paused"
        await do(s.start(60))
        assert state(s) == "started"

    return await can("pause", pause)


@check("lifecycle", "fork", limit=180)
async def _(t):
    s = await t.sandbox()
    await t.run("echo shared > shared.txt")

    async def fork():
        for f in [await do(s.fork(unique("fork"))), await do(s._experimental_fork())]:
            assert state(f) == "started" and f.id != s.id
            assert (await t.run("cat shared.txt", f)).strip() == "shared"
            await do(f.delete(60))

    return await can("fork", fork)


@check("lifecycle", "snapshot of a sandbox", limit=180)
async def _(t):
    s = await t.sandbox()
    await t.run("echo snapped > snapped.txt")

    async def snapshot():
        names = [unique("of-sandbox"), unique("of-sandbox-2")]
        made["snapshots"] += names
        await do(s.create_snapshot(names[0], 90))
        await do(s._experimental_create_snapshot(names[1], 90))

        async def active():
            x = await do(client().snapshot.get(names[0]))
            return x if state(x) == "active" else None

        x = await until("the snapshot is active", active)
        assert x.size > 0
        child = await t.create(CreateSandboxFromSnapshotParams(snapshot=names[0]))
        assert (await t.run("cat snapped.txt", child)).strip() == "snapped"
        await do(child.delete())

    return await can("sandbox-snapshot", snapshot)


@check("lifecycle", "archive", limit=180)
async def _(t):
    s = await t.create()
    await t.run("echo archived > archived.txt", s)
    await do(s.stop())

    async def archive():
        await do(s.archive())

        async def archived():
            await do(s.refresh_data())
            return state(s) == "archived"

        await until("it is archived", archived, 60)
        await do(s.start(90))
        assert (await t.run("cat archived.txt", s)).strip() == "archived"

    return await can("archive", archive)


@check("lifecycle", "ephemeral")
async def _(t):
    s = await t.create(CreateSandboxFromSnapshotParams(ephemeral=True))
    assert s.auto_delete_interval == 0
    await do(s.stop())
    assert state(s) == "destroyed"


@check("lifecycle", "delete")
async def _(t):
    s = await t.create()
    await do(s.delete(60, wait=True))
    await until("it is gone", lambda: is_gone(lambda: client().get(s.id)))
    await do(client().delete(await t.create()))


# A minute is the least there is: a group of its own, beside all others.
@check("timers", "auto-stop", limit=180, needs="timers")
async def _(t):
    s = await t.create(CreateSandboxFromSnapshotParams(auto_stop_interval=1))

    async def stopped():
        await asyncio.sleep(1)
        await do(s.refresh_data())
        return state(s) == "stopped"

    await until("it stops by itself", stopped, 150)


# -- exec


@check("exec", "command")
async def _(t):
    p = (await t.sandbox()).process
    assert (await do(p.exec("echo out; echo err >&2; exit 3"))).exit_code == 3
    r = await do(p.exec('echo "$A"; pwd', "/tmp", {"A": "it's"}))
    assert (r.exit_code, r.result, r.artifacts.stdout) == (0, "it's\n/tmp\n", "it's\n/tmp\n")


@check("exec", "time limit")
async def _(t):
    p = (await t.sandbox()).process
    e = await refused([408], "DaytonaTimeoutError", lambda: p.exec("sleep 30", timeout=1))
    assert "timeout" in str(e).lower()


@check("exec", "code")
async def _(t):
    p = (await t.sandbox()).process
    r = await do(p.code_run('import os, sys\nprint(os.environ["A"], *sys.argv[1:])', CodeRunParams(argv=["x", "y"], env={"A": "a"})))
    assert (r.exit_code, r.result.strip()) == (0, "a x y")
    assert (await do(p.code_run("not python"))).exit_code != 0
    await refused([408], [], lambda: p.code_run("import time; time.sleep(30)", timeout=1))


@check("exec", "javascript", needs="javascript")
async def _(t):
    s = await t.create(CreateSandboxFromSnapshotParams(language="javascript"))
    assert (await do(s.process.code_run("console.log(6 * 7)"))).result.strip() == "42"
    await do(s.delete())


@check("exec", "charts", limit=180, needs="charts")
async def _(t):
    p = (await t.sandbox()).process
    r = await do(p.code_run("\n".join([
        "import matplotlib.pyplot as plt", "plt.plot([1, 2, 3], [2, 4, 8])", 'plt.title("growth")', 'plt.xlabel("x")', "plt.show()",
        'plt.bar(["a", "b"], [1, 2])', "plt.show()", "plt.scatter([1], [2])", "plt.show()", "plt.boxplot([1, 2, 9])", "plt.show()",
        "fig, (l, r) = plt.subplots(1, 2)", "l.plot([1]); r.pie([1, 2])", "plt.show()", 'print("done")',
    ])))
    assert r.result.strip().split("\n")[-1] == "done"  # a slow machine is told that a cache of fonts is being made
    charts = r.artifacts.charts
    want = [lib.LineChart, lib.BarChart, lib.ScatterChart, lib.BoxAndWhiskerChart, lib.CompositeChart]
    assert [type(c) for c in charts] == want, charts
    assert charts[0].title == "growth" and charts[0].x_label == "x" and base64.b64decode(charts[0].png)[1:4] == b"PNG"


@check("exec", "sessions")
async def _(t):
    p = (await t.sandbox()).process
    await do(p.create_session("one"))
    await refused([409], "DaytonaConflictError", lambda: p.create_session("one"))
    await do(p.execute_session_command("one", SessionExecuteRequest(command="export KEPT=yes; cd /tmp")))
    r = await do(p.execute_session_command("one", SessionExecuteRequest(command="echo $KEPT; pwd; echo err >&2")))
    assert (r.exit_code, r.stdout, r.stderr) == (0, "yes\n/tmp\n", "err\n")
    logs = await do(p.get_session_command_logs("one", r.cmd_id))
    assert (logs.stdout, logs.stderr) == ("yes\n/tmp\n", "err\n")
    c = await do(p.get_session_command("one", r.cmd_id))
    assert (c.id, c.exit_code) == (r.cmd_id, 0)
    assert len((await do(p.get_session("one"))).commands) == 2
    assert "one" in [s.session_id for s in await do(p.list_sessions())]
    await do(p.delete_session("one"))
    await refused([404], "DaytonaNotFoundError", lambda: p.get_session("one"))


@check("exec", "streamed logs and input")
async def _(t):
    p = (await t.sandbox()).process
    await do(p.create_session("streamed"))
    r = await do(p.execute_session_command("streamed", SessionExecuteRequest(
        command='for i in 1 2 3; do echo o$i; echo e$i >&2; sleep 0.2; done; read line; echo "got $line"', run_async=True)))
    out: list[str] = []
    err: list[str] = []
    logs = asyncio.ensure_future(p.get_session_command_logs_async("streamed", r.cmd_id, out.append, err.append))
    await until("the first line comes", lambda: "o1" in "".join(out))
    await do(p.send_session_command_input("streamed", r.cmd_id, "hello\n"))
    await logs
    assert "".join(out).replace("hello\n", "", 1 if "".join(out).count("hello") > 1 else 0) == "o1\no2\no3\ngot hello\n", out
    assert "".join(err) == "e1\ne2\ne3\n"
    assert len(out) > 1, "it came at once"
    await do(p.delete_session("streamed"))


@check("exec", "entrypoint")
async def _(t):
    p = (await t.sandbox()).process
    for f in (lambda: entrypoint(p), p.get_entrypoint_logs):
        try:
            await do(f())
        except DaytonaError as e:
            assert gone(e), e  # the default snapshot may have none
    with contextlib.suppress(asyncio.TimeoutError, DaytonaError):
        await asyncio.wait_for(p.get_entrypoint_logs_async(lambda _: None, lambda _: None), 0.5)


async def entrypoint(process) -> None:
    assert (await do(process.get_entrypoint_session())).session_id == "entrypoint"
    assert (await do(process.get_entrypoint_logs())) is not None


@check("exec", "interpreter")
async def _(t):
    ci = (await t.sandbox()).code_interpreter
    await do(ci.run_code("x = 41"))
    live: list[str] = []
    r = await do(ci.run_code('import sys\nprint(x + 1); print("e", file=sys.stderr)', on_stdout=lambda m: live.append(m.output), on_stderr=lambda m: None))
    assert (r.stdout, r.stderr, "".join(live), r.error) == ("42\n", "e\n", "42\n", None)
    names: list[str] = []
    r = await do(ci.run_code("1 / 0", on_error=lambda e: names.append(e.name)))
    assert r.error.name == "ZeroDivisionError" and names == ["ZeroDivisionError"]
    await refused([], "DaytonaTimeoutError", lambda: ci.run_code("while True: pass", timeout=1))
    c = await do(ci.create_context("/tmp"))
    r = await do(ci.run_code('import os; print(os.getcwd(), "x" in globals(), os.environ["E"])', context=c, envs={"E": "v"}))
    assert r.stdout == "/tmp False v\n"
    assert [x.id for x in await do(ci.list_contexts())] == [c.id]
    await do(ci.delete_context(c))
    assert await do(ci.list_contexts()) == []


@check("exec", "terminal", limit=180)
async def _(t):
    p = (await t.sandbox()).process
    seen = bytearray()
    extra = {"on_data": lambda d: seen.extend(d)} if IS_ASYNC else {}
    pty = await do(p.create_pty_session("pty", cwd="/tmp", envs={"A": "b"}, pty_size=PtySize(rows=30, cols=100), **extra))
    await do(pty.wait_for_connection())
    assert await do(pty.is_connected())

    async def reads(what: bytes):
        if IS_ASYNC:
            return await until(f"the terminal says {what!r}", lambda: what in seen)
        for data in pty:
            seen.extend(data)
            if what in seen:
                return

    await do(pty.send_input('stty size; echo "<$A>"; pwd; echo e""nd\n'))
    await reads(b"\nend")
    for part in (b"30 100", b"<b>", b"/tmp"):
        assert part in seen, bytes(seen)
    info = await do(pty.resize(PtySize(rows=40, cols=120)))
    assert (info.rows, info.cols) == (40, 120)
    await do(pty.send_input("stty size\n"))
    await reads(b"40 120")
    assert (await do(p.resize_pty_session("pty", PtySize(rows=25, cols=90)))).cols == 90
    assert "pty" in [x.id for x in await do(p.list_pty_sessions())]
    assert (await do(p.get_pty_session_info("pty"))).active
    await do(pty.disconnect())
    again = await do(p.connect_pty_session("pty", **extra))
    await do(again.wait_for_connection())
    await do(again.send_input(b"exit 7\n"))
    assert (await do(again.wait())).exit_code == 7
    second = await do(p.create_pty_session("pty-2", **extra))
    await do(second.wait_for_connection())
    await do(second.kill())
    third = await do(p.create_pty_session("pty-3", **extra))
    await do(third.wait_for_connection())
    await do(p.kill_pty_session("pty-3"))

    async def none_left():
        return not await do(p.list_pty_sessions())

    await until("no terminal is left", none_left)


# -- files


@check("files", "up and down")
async def _(t):
    f = (await t.sandbox()).fs
    await do(f.upload_file("text ü".encode(), "a/b/c.txt"))
    assert (await do(f.download_file("a/b/c.txt"))).decode() == "text ü"
    local = write("local.txt", "local")
    await do(f.upload_file(local, "/tmp/local.txt"))
    await do(f.download_file("/tmp/local.txt", local + ".back"))
    with open(local + ".back", "rb") as back:
        assert back.read() == b"local"
    await do(f.upload_files([FileUpload(source=b"1", destination="many/1"), FileUpload(source=local, destination="many/2 ü")]))
    got = await do(f.download_files([FileDownloadRequest("many/1"), FileDownloadRequest("many/2 ü", os.path.join(tmp, "two")), FileDownloadRequest("many/none")]))
    assert got[0].result == b"1" and got[2].error and got[2].error_details.status_code == 404, got
    with open(os.path.join(tmp, "two"), "rb") as two:
        assert two.read() == b"local"
    await refused([404], "DaytonaNotFoundError", lambda: f.download_file("many/none"))


@check("files", "100 MiB streamed", limit=180)
async def _(t):
    f = (await t.sandbox()).fs
    block, blocks = secrets.token_bytes(1 << 20), 100
    want = hashlib.sha256()
    for _ in range(blocks):
        want.update(block)

    class Blocks(io.RawIOBase):
        left = blocks << 20

        def readable(self):
            return True

        def readinto(self, b):
            at = (blocks << 20) - self.left
            part = block[at % len(block):][: min(len(b), self.left)]
            b[: len(part)] = part
            self.left -= len(part)
            return len(part)

    sent: list[int] = [0]
    await do(f.upload_file_stream(io.BufferedReader(Blocks()), "large.bin", on_progress=lambda p: sent.append(p.bytes_sent)))
    assert sent[-1] == blocks << 20, sent[-1]
    back = hashlib.sha256()
    progress: list = []
    stream = await do(f.download_file_stream("large.bin", on_progress=progress.append))
    if hasattr(stream, "__aiter__"):
        async for chunk in stream:
            back.update(chunk)
    else:
        for chunk in stream:
            back.update(chunk)
    assert back.digest() == want.digest()
    assert (progress[-1].bytes_received, progress[-1].total_bytes) == (blocks << 20, blocks << 20)
    await do(f.delete_file("large.bin"))


@check("files", "tree")
async def _(t):
    f = (await t.sandbox()).fs
    await do(f.create_folder("dir/deep", "755"))
    await do(f.upload_file(b"needle\nhay\n", "dir/deep/one.txt"))
    await do(f.upload_file(b"hay\n", "dir/two.md"))
    assert sorted((x.name, x.is_dir) for x in await do(f.list_files("dir"))) == [("deep", True), ("two.md", False)]
    await do(f.set_file_permissions("dir/two.md", mode="600"))
    info = await do(f.get_file_info("dir/two.md"))
    assert (info.name, info.size, info.permissions, info.is_dir) == ("two.md", 4, "0600", False)
    found = await do(f.find_files("dir", "needle"))
    assert [(os.path.basename(m.file), m.line, m.content) for m in found] == [("one.txt", 1, "needle")]
    assert [os.path.basename(x) for x in (await do(f.search_files("dir", "*.md"))).files] == ["two.md"]
    replaced = await do(f.replace_in_files(["dir/deep/one.txt", "dir/none"], "needle", "pin"))
    assert [bool(r.success) for r in replaced] == [True, False]
    await do(f.move_files("dir/two.md", "dir/three.md"))
    await refused([404], "DaytonaNotFoundError", lambda: f.get_file_info("dir/two.md"))
    await refused([400], "DaytonaValidationError", lambda: f.delete_file("dir"))
    await do(f.delete_file("dir", recursive=True))
    await refused([404], "DaytonaNotFoundError", lambda: f.list_files("dir"))


# -- git and language servers


async def git_server(t, process) -> str:
    """Serves origin.git by HTTP inside of the sandbox, for everybody to push to."""
    cgi = "GIT_PROJECT_ROOT=$(cd .. && pwd) GIT_HTTP_EXPORT_ALL=1; export GIT_PROJECT_ROOT GIT_HTTP_EXPORT_ALL; exec git http-backend"
    await t.run("git init -q --bare -b main origin.git && git -C origin.git config http.receivepack true && mkdir -p git-web/cgi-bin"
                f" && echo '#!/bin/sh\n{cgi}' > git-web/cgi-bin/git && chmod +x git-web/cgi-bin/git"
                " && cd origin.git && export GIT_AUTHOR_NAME=O GIT_AUTHOR_EMAIL=o@example.com GIT_COMMITTER_NAME=O GIT_COMMITTER_EMAIL=o@example.com && git update-ref refs/heads/main $(git commit-tree -m origin $(git mktree </dev/null))")
    await do(process.create_session("git-web"))
    await do(process.execute_session_command("git-web", SessionExecuteRequest(
        command="cd git-web && exec python3 -m http.server --cgi 8418 2>/dev/null", run_async=True)))
    origin = "http://localhost:8418/cgi-bin/git/origin.git"

    async def answers():
        return (await do(process.exec(f"git ls-remote {origin}"))).exit_code == 0

    await until("the server of repositories answers", answers)
    return origin


@check("git", "repository", needs="git")
async def _(t):
    s = await t.sandbox()
    g = s.git
    origin = await git_server(t, s.process)
    await do(g.clone(origin, "r"))
    await do(s.fs.upload_file(b"one\n", "r/a.txt"))
    st = await do(g.status("r"))
    assert st.current_branch == "main" and [f.name for f in st.file_status] == ["a.txt"]
    await do(g.add("r", ["a.txt"]))
    sha = (await do(g.commit("r", "first", "Ada", "ada@example.com"))).sha
    assert len(sha) == 40
    await do(g.push("r"))
    await do(g.create_branch("r", "side"))
    await refused([409], "DaytonaConflictError", lambda: g.create_branch("r", "side"))
    await do(g.checkout_branch("r", "main"))
    assert sorted((await do(g.branches("r"))).branches) == ["main", "side"]
    await do(g.delete_branch("r", "side"))
    await t.run("git clone -q origin.git other && cd other && git config user.name B && git config user.email b@example.com && git commit -q --allow-empty -m second && git push -q")
    await do(g.pull("r"))
    st = await do(g.status("r"))
    assert (st.file_status, st.ahead, st.behind) == ([], 0, 0)
    await refused([404], "DaytonaNotFoundError", lambda: g.clone("nothing.git", "none"))


@check("git", "the newer half", needs="git")
async def _(t):
    s = await t.sandbox()
    g = s.git
    await do(g.init("n", initial_branch="trunk"))
    await do(g.configure_user("Ada", "ada@example.com"))
    await do(g.set_config("core.abbrev", "12", "local", "n"))
    assert await do(g.get_config("core.abbrev", "local", "n")) == "12"
    await do(s.fs.upload_file(b"1", "n/f"))
    await do(g.add("n", ["f"]))
    await do(g.commit("n", "one", "Ada", "ada@example.com"))
    await do(s.fs.upload_file(b"2", "n/f"))
    await do(g.restore("n", ["f"]))
    assert await do(s.fs.download_file("n/f")) == b"1"
    await do(s.fs.upload_file(b"3", "n/f"))
    await do(g.reset("n", "hard"))
    assert await do(s.fs.download_file("n/f")) == b"1"
    await do(g.remote_add("n", "up", "https://example.com/x.git"))
    assert await do(g.remote_get("n", "up")) == "https://example.com/x.git"
    assert [r.name for r in (await do(g.remotes("n"))).remotes] == ["up"]
    await do(g.dangerously_authenticate("someone", "secret", "example.com"))


@check("git", "language server", limit=180)
async def _(t):
    s = await t.sandbox()
    work = f"{await do(s.get_work_dir())}/lsp"
    await do(s.fs.create_folder("lsp", "755"))
    await do(s.fs.upload_file(b"class Greeter:\n    def hello(self):\n        return 1\n\n\nGreeter().\n", "lsp/a.py"))
    lsp = await do(s.create_lsp_server("python", work))
    file = f"{work}/a.py"
    at = LspCompletionPosition(line=5, character=10)
    if "lsp" in lacks:
        for f in (lambda: lsp.start(), lambda: lsp.did_open(file), lambda: lsp.document_symbols(file), lambda: lsp.sandbox_symbols("G"),
                  lambda: lsp.workspace_symbols("G"), lambda: lsp.completions(file, at), lambda: lsp.did_close(file), lambda: lsp.stop()):
            with contextlib.suppress(DaytonaError):
                await do(f())
        return "lacks lsp"
    await do(lsp.start())
    await do(lsp.did_open(file))

    async def symbols():
        return await do(lsp.document_symbols(file))

    assert "Greeter" in [x.name for x in await until("symbols", symbols)]
    assert any(i.label.startswith("hello") for i in (await do(lsp.completions(file, at))).items)
    for f in (lambda: lsp.sandbox_symbols("Greeter"), lambda: lsp.workspace_symbols("Greeter")):
        with contextlib.suppress(DaytonaError):  # not every server has them
            await do(f())
    await do(lsp.did_close(file))
    await do(lsp.stop())


# -- previews


@check("previews", "plain, signed and expired", limit=180)
async def _(t):
    s = await t.sandbox()
    await do(s.process.create_session("web"))
    await do(s.process.execute_session_command("web", SessionExecuteRequest(
        command='mkdir -p /tmp/web && cd /tmp/web && echo "it works" > index.html && exec python3 -m http.server 8123', run_async=True)))
    link = await do(s.get_preview_link(8123))
    headers = {"x-daytona-preview-token": link.token, "x-daytona-skip-preview-warning": "true"}

    async def works():
        return (await fetch(link.url, headers))[1].strip() == "it works"

    await until("the server answers", works)
    assert (await fetch(link.url))[0] != 200
    assert (await fetch(link.url, {"x-daytona-preview-token": "wrong"}))[0] != 200
    signed = await do(s.create_signed_preview_url(8123, 600))
    assert (signed.sandbox_id, signed.port) == (s.id, 8123)
    assert (await fetch(signed.url))[1].strip() == "it works"
    await do(s.expire_signed_preview_url(8123, signed.token))

    async def expired(url):
        return (await fetch(url))[0] != 200

    await until("it has expired", lambda: expired(signed.url))
    short = await do(s.create_signed_preview_url(8123, 1))
    await asyncio.sleep(1.5)
    await until("it expires by itself", lambda: expired(short.url))
    await refused([400], "DaytonaValidationError", lambda: s.get_preview_link(70000))


# -- volumes and secrets


@check("volumes", "shared by two sandboxes", limit=180)
async def _(t):
    async def run():
        volume = client().volume
        name = unique("volume")
        made["volumes"].append(name)
        await refused([404], "DaytonaNotFoundError", lambda: volume.get(name))
        await do(volume.get(name, create=True))

        async def ready():
            x = await do(volume.get(name))
            return x if state(x) == "ready" else None

        v = await until("it is ready", ready)
        assert v.id in [x.id for x in await do(volume.list())]
        await refused([400], "DaytonaValidationError", lambda: volume.create(name))
        a = await t.create(CreateSandboxFromSnapshotParams(volumes=[VolumeMount(volume_id=v.id, mount_path="/mnt/v")]))
        await t.run("mkdir -p /mnt/v/sub && echo shared > /mnt/v/sub/f && sync", a)
        b = await t.create(CreateSandboxFromSnapshotParams(volumes=[VolumeMount(volume_id=v.id, mount_path="/mnt/w", subpath="sub")]))

        async def seen():
            return (await t.run("cat /mnt/w/f", b)).strip() == "shared"

        await until("the file is seen", seen)
        await refused([409], "DaytonaConflictError", lambda: volume.delete(v))
        await do(a.delete(wait=True))
        await do(b.delete(wait=True))

        async def deleted():
            try:
                await do(volume.delete(v))
                return True
            except DaytonaError as e:
                if e.status_code != 409:
                    raise
                return False

        await until("it can be deleted", deleted)

    return await can("volumes", run)


@check("volumes", "secrets")
async def _(t):
    async def run():
        secret = client().secret
        name = f"SDK_{run_id.upper()}"
        s = await do(secret.create(CreateSecretParams(name=name, value="hidden", description="of a test")))
        made["secrets"].append(s.id)
        assert "hidden" not in str(s)
        assert (await do(secret.get(s.id))).name == name
        assert s.id in [x.id for x in (await do(secret.list(name=name))).items]
        assert (await do(secret.update(s.id, UpdateSecretParams(description="changed")))).description == "changed"
        box = await t.create()

        async def attach():
            await do(box.update_secrets({"TOKEN": name}))

        await can("sandbox-secrets", attach)
        await do(box.delete())
        await do(secret.delete(s.id))
        await refused([404], [], lambda: secret.get(s.id))

    return await can("secrets", run)


# -- snapshots


@check("snapshots", "from an image", limit=300)
async def _(t):
    async def run():
        snapshot = client().snapshot
        name = unique("image")
        made["snapshots"].append(name)
        s = await do(snapshot.create(CreateSnapshotParams(name=name, image=options.image, resources=Resources(cpu=1, memory=1, disk=3), entrypoint=["sleep", "infinity"]), timeout=120))
        assert (state(s), s.name, s.cpu, s.mem, s.disk) == ("active", name, 1, 1, 3)
        assert (await do(snapshot.get(name))).id == s.id
        page = await do(snapshot.list(1, 100))
        assert s.id in [x.id for x in page.items] and page.total >= 1 and page.page == 1 and page.total_pages >= 1
        await refused([409], "DaytonaConflictError", lambda: snapshot.create(CreateSnapshotParams(name=name, image=options.image)))
        await refused([400], [], lambda: snapshot.activate(s))  # it lets the error of the generated client through
        box = await t.create(CreateSandboxFromSnapshotParams(snapshot=name))
        assert (await t.run("echo up", box)).strip() == "up"
        await do(box.delete(wait=True))
        await do(snapshot.delete(s))
        await until("it is gone", lambda: is_gone(lambda: snapshot.get(name)))

    return await can("images", run)


@check("snapshots", "refusals")
async def _(t):
    await refused([400], "DaytonaValidationError", lambda: t.create(CreateSandboxFromSnapshotParams(snapshot=unique("none"))))
    await refused([404], "DaytonaNotFoundError", lambda: client().snapshot.get(unique("none")))
    await refused([400], "DaytonaValidationError", lambda: client().snapshot.create(CreateSnapshotParams(name=unique("latest"), image="debian:latest")))


async def plain_storage() -> bool:
    """Whether the object storage has no TLS: what this SDK uploads with refuses that."""
    return (await do(client()._object_storage_api.get_push_access())).storage_url.startswith("http:")


@check("snapshots", "declarative build", limit=300)
async def _(t):
    image = Image.base(options.image)
    if "build" in lacks or await plain_storage():
        image = image.dockerfile_commands(["USER root"]).run_commands(f"mkdir -p /opt/context/deep && printf 'one {run_id}' > /opt/one.txt && printf {run_id} > /opt/context/deep/file")
    else:
        write("context/deep/file", run_id)
        image = image.add_local_file(write("one.txt", f"one {run_id}"), "/opt/one.txt").add_local_dir(os.path.join(tmp, "context"), "/opt/context")
    image = image.run_commands(f"echo built {run_id} && cat /opt/one.txt").env({"BUILT": "yes"}).workdir("/opt").entrypoint(["sleep", "infinity"])

    async def run():
        logs: list[str] = []
        s = await t.create(CreateSandboxFromImageParams(image=image, resources=Resources(cpu=1, memory=1, disk=3)), timeout=250, on_snapshot_create_logs=logs.append)
        assert (await t.run('cat /opt/one.txt /opt/context/deep/file; echo " $BUILT"', s)).strip() == f"one {run_id}{run_id} yes"
        assert "".join(logs).strip(), "there is no log"
        assert "FROM" in s.build_info.dockerfile_content
        await entrypoint(s.process)
        await do(s.delete())
        name = unique("built")
        made["snapshots"].append(name)
        logs.clear()
        built = await away(client().snapshot.create, CreateSnapshotParams(name=name, image=Image.base(options.image).run_commands(f"echo of {name}")), on_logs=logs.append, timeout=250)
        assert state(built) == "active" and "".join(logs).strip()
        await refused([], [], lambda: t.create(CreateSandboxFromImageParams(image=Image.base(options.image).run_commands("exit 3")), timeout=60))

    return await can("build", run)


@check("snapshots", "contexts in object storage", needs="build")
async def _(t):
    module = __import__(f"daytona.{kind}.snapshot", fromlist=["x"])
    service = module.AsyncSnapshotService if IS_ASYNC else module.SnapshotService
    storage_module = __import__(f"daytona.{kind}.object_storage", fromlist=["x"])
    storage_class = storage_module.AsyncObjectStorage if IS_ASYNC else storage_module.ObjectStorage
    write("upload/x", secrets.token_bytes(100))
    directory = os.path.join(tmp, "upload")
    base = storage_class.compute_archive_base_path(directory)
    image = Image.base(options.image).add_local_dir(directory, "/x")
    api = client()._object_storage_api
    a = await do(api.get_push_access())
    wanted = {"endpoint_url": a.storage_url, "aws_access_key_id": a.access_key, "aws_secret_access_key": a.secret, "aws_session_token": a.session_token,
              "bucket_name": a.bucket, "region": getattr(a, "region", None) or "us-east-1"}
    known = inspect.signature(storage_class.__init__).parameters
    storage = storage_class(**{k: v for k, v in wanted.items() if k in known})

    async def contexts():
        return await do(service.process_image_context(api, image))

    async def upload():
        return await do(storage.upload(directory, a.organization_id, base))

    if await plain_storage():
        for f in (contexts, upload):
            try:
                await f()
            except Exception as e:
                assert "builder error" in str(e), e
            else:
                raise AssertionError("the SDK uploads by http now: expect it to")
        return "the object storage speaks http, which this SDK refuses"
    hashes = await contexts()
    assert len(hashes[0]) == 32 and await contexts() == hashes
    assert await upload() == await upload()


@check("snapshots", "warm pools", limit=180)
async def _(t):
    async def run():
        pools = client().warm_pool
        base = next(s for s in (await do(client().snapshot.list(1, 100))).items if state(s) == "active")
        p = await do(pools.create(base.name, 1))
        made["pools"].append(p.id)
        assert p.id in [x.id for x in await do(pools.list())]
        assert (await do(pools.update(p.id, 0))).pool == 0
        await do(pools.delete(p.id))

    return await can("warm-pools", run)


@check("snapshots", "images")
async def _(t):
    requirements = write("requirements.txt", "requests\n")
    pyproject = write("pyproject.toml", '[project]\nname = "x"\nversion = "1"\ndependencies = ["flask"]\n')
    i = (Image.debian_slim("3.12").pip_install(["b", "a"]).pip_install_from_requirements(requirements).pip_install_from_pyproject(pyproject, [])
         .cmd(["python"]).dockerfile_commands(["LABEL a=b"]))
    assert "/x" in Image.base("x").add_local_file(requirements, "/x").add_local_dir(tmp, "/y").dockerfile()
    for part in ("FROM python:3.12", "pip install a b", "flask", 'CMD ["python"]', "LABEL a=b"):
        assert part in i.dockerfile(), f"no {part} in {i.dockerfile()}"
    assert "RUN true" in Image.from_dockerfile(write("Dockerfile", "FROM debian:12\nRUN true\n")).dockerfile()


# -- desktop. Its methods are called in any sandbox, where they may be refused; that they do what they say takes a
# snapshot with a desktop.


def desktop_calls(cu):
    square = ScreenshotRegion(x=0, y=0, width=20, height=20)
    return [
        lambda: cu.get_status(), lambda: cu.get_process_status("xvfb"), lambda: cu.get_process_logs("xvfb"), lambda: cu.get_process_errors("xvfb"), lambda: cu.restart_process("novnc"),
        lambda: cu.mouse.move(50, 60), lambda: cu.mouse.get_position(), lambda: cu.mouse.click(50, 60), lambda: cu.mouse.drag(10, 10, 40, 40), lambda: cu.mouse.scroll(50, 50, "down", 1),
        lambda: cu.keyboard.type("hi", 1), lambda: cu.keyboard.press("a", ["ctrl"]), lambda: cu.keyboard.hotkey("ctrl+a"),
        lambda: cu.screenshot.take_full_screen(True), lambda: cu.screenshot.take_region(square), lambda: cu.screenshot.take_compressed(ScreenshotOptions(fmt="jpeg", quality=40, scale=0.5)),
        lambda: cu.screenshot.take_compressed_region(square, ScreenshotOptions(fmt="png")), lambda: cu.display.get_info(), lambda: cu.display.get_windows(), lambda: cu.recording.list(),
    ]


@check("desktop", "every method", limit=180)
async def _(t):
    cu = (await t.sandbox()).computer_use
    there = True
    try:
        await do(cu.start())
    except DaytonaError:
        there = False

    async def film():
        r = await do(cu.recording.start("film"))
        await do(cu.recording.stop(r.id))
        await do(cu.recording.delete(r.id))

    calls = desktop_calls(cu) + [
        # Newer than both generations of the wire that are alive.
        lambda: cu.mouse.down(), lambda: cu.mouse.up(), lambda: cu.keyboard.down("a"), lambda: cu.keyboard.up("a"),
        lambda: cu.accessibility.get_tree(scope="all", max_depth=1), lambda: cu.accessibility.find_nodes(scope="all", role="window"), lambda: cu.accessibility.focus_node("none"),
        lambda: cu.accessibility.invoke_node("none"), lambda: cu.accessibility.set_node_value("none", "x"),
        lambda: cu.recording.get("none"), lambda: cu.recording.stop("none"), lambda: cu.recording.delete("none"), lambda: cu.recording.download("none", os.path.join(tmp, "none.mp4")), film,
        lambda: cu.stop(),
    ]
    for call in calls:
        try:
            await do(call())
        except DaytonaError as e:
            assert e.status_code not in (401, 403), e
    return None if there else "has no desktop; all was refused in the SDK's words"


@check("desktop", "with a desktop", limit=300)
async def _(t):
    if not options.desktop:
        return "no --desktop snapshot"
    cu = (await t.create(CreateSandboxFromSnapshotParams(snapshot=options.desktop))).computer_use
    assert (await do(cu.start())).status

    async def active():
        return (await do(cu.get_status())).status == "active"

    await until("it is active", active, 60)
    for call in desktop_calls(cu):
        await do(call())
    p = await do(cu.mouse.move(5, 6))
    assert (p.x, p.y) == (5, 6)
    assert base64.b64decode((await do(cu.screenshot.take_full_screen())).screenshot)[1:4] == b"PNG"
    film = await do(cu.recording.start("film"))
    await asyncio.sleep(1.5)
    assert (await do(cu.recording.stop(film.id))).status == "completed"
    file = os.path.join(tmp, "film.mp4")
    await do(cu.recording.download(film.id, file))
    assert os.path.getsize(file) > 0
    await do(cu.recording.delete(film.id))
    assert (await do(cu.accessibility.get_tree(scope="all", max_depth=1))).root
    await do(cu.stop())


# -- errors


@contextlib.asynccontextmanager
async def another(key: str, url: str = ""):
    c = Client(DaytonaConfig(api_key=key, api_url=url or os.environ["DAYTONA_API_URL"]))
    try:
        yield c
    finally:
        if IS_ASYNC:
            await c.close()


@check("errors", "401")
async def _(t):
    async with another("dtn_" + "0" * 64) as bad:
        await refused([401], "DaytonaAuthenticationError", lambda: bad.get("x"))


@check("errors", "403")
async def _(t):
    key = os.environ.get("DAYTONA_TEST_RESTRICTED_KEY")  # one without permissions; only who signs in can make it
    if not key:
        return "no DAYTONA_TEST_RESTRICTED_KEY"
    async with another(key) as poor:
        await refused([403], "DaytonaAuthorizationError", lambda: poor.create(CreateSandboxFromSnapshotParams(labels=mark)))


@check("errors", "404")
async def _(t):
    for name in (unique("nobody"), str(uuid.uuid4())):
        await refused([404], "DaytonaNotFoundError", lambda: client().get(name))


@check("errors", "409")
async def _(t):
    name = unique("twice")
    s = await t.create(CreateSandboxFromSnapshotParams(name=name))
    assert s.name == name
    e = await refused([409], "DaytonaConflictError", lambda: t.create(CreateSandboxFromSnapshotParams(name=name)))
    assert "already exists" in str(e)
    await do(s.delete())


@check("errors", "400")
async def _(t):
    await refused([400], "DaytonaValidationError", lambda: t.create(CreateSandboxFromSnapshotParams(network_allow_list="300.0.0.0/8")))
    await refused([400], "DaytonaValidationError", lambda: t.create(CreateSandboxFromSnapshotParams(name="<b>x</b>")))


@check("errors", "429")
async def _(t):
    url = os.environ.get("DAYTONA_TEST_LIMITED_API_URL")  # a server that is asked too much by this
    if not url:
        return "no DAYTONA_TEST_LIMITED_API_URL"
    limit = json.loads((await fetch(url + "/config"))[1])["rateLimit"]["authenticated"]["limit"]
    async with another(os.environ["DAYTONA_TEST_LIMITED_API_KEY"], url) as limited:
        for _ in range(limit):
            with contextlib.suppress(DaytonaError):
                await do(limited.get(unique("nobody")))
        e = await refused([429], "DaytonaRateLimitError", lambda: limited.get(unique("nobody")))
        headers = {k.lower(): v for k, v in e.headers.items()}
        assert int(headers["retry-after-authenticated"]) > 0 and headers["x-ratelimit-remaining-authenticated"] == "0", headers


@check("errors", "bad arguments")
async def _(t):
    await refused([], [], lambda: client().create(CreateSandboxFromSnapshotParams(labels=mark), timeout=-1))


if __name__ == "__main__":
    if not options.list and not (os.environ.get("DAYTONA_API_URL") and os.environ.get("DAYTONA_API_KEY")):
        sys.exit("DAYTONA_API_URL and DAYTONA_API_KEY must be set")
    sys.exit(main(surface, Context, end))
