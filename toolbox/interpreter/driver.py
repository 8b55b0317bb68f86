# The program behind a Python context: it runs the code that the agent sends
# over a descriptor of its own, one piece after the other, in one namespace.
#
# The code runs in this process and can do what it likes to it. What it does by
# chance (fork, close descriptors, replace standard streams or the handler of
# SIGINT, print from threads) must not break the next piece; what it does on
# purpose costs it this context and nothing else, which the agent sees to.
#
# start is called by what the agent gives to python3, with the descriptor and
# the source of the charts.
import builtins
import importlib.util
import json
import linecache
import os
import signal
import sys
import threading
import traceback
import types

import _ast
import fcntl

FILE = "<daytona>"
FRAME_LIMIT = 15 << 20  # the agent takes 16 MiB
TEXT_LIMIT = 1 << 20  # of the text form of a value
TRACEBACK_LIMIT = 256 << 10
CELLS = 1000  # whose source is kept for tracebacks
TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, since Python 3.8
COROUTINE = 0x80  # inspect.CO_COROUTINE

REPRS = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_latex_", "text/latex"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_json_", "application/json"),
)


def high(fd):
    """A duplicate of fd where code that closes descriptors seldom looks, and
    which its programs do not inherit."""
    for least in (3000, 900, 200, 10):
        try:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
        except OSError:
            pass
    return fd


class Channel:
    """The connection to the agent: frames of a length and JSON."""

    def __init__(self, fd):
        self.fd = fd
        self.pid = os.getpid()
        self.main = threading.get_ident()
        self.lock = threading.Lock()
        self.sending = False  # by the main thread
        self.interrupted = False  # meanwhile

    def leave(self):
        """Lets go of it in a child."""
        try:
            os.close(self.fd)
        except OSError:
            pass

    def read(self, n):
        parts = []
        while n > 0:
            part = os.read(self.fd, min(n, 1 << 20))
            if not part:
                sys.exit(0)  # the agent has let go
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def receive(self):
        return json.loads(self.read(int.from_bytes(self.read(4), "big")).decode("utf-8"))

    def send(self, message):
        if os.getpid() != self.pid:
            return  # a child speaks for nobody
        data = json.dumps(message).encode("ascii")
        if len(data) > FRAME_LIMIT:
            raise ValueError("%d bytes are more than a result may have: write it to a file" % len(data))
        data = memoryview(len(data).to_bytes(4, "big") + data)
        main = threading.get_ident() == self.main
        # An interrupt in the middle would leave half a frame.
        if main:
            self.sending = True
        try:
            with self.lock:
                while data:
                    data = data[os.write(self.fd, data) :]
        except OSError:
            os._exit(1)  # closed by the code: nobody hears us any more
        finally:
            if main:
                self.sending = False
        if main and self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt


class Session:
    def __init__(self, channel, charts):
        self.channel = channel
        self.charts = charts
        self.present = None  # what makes a chart of a figure
        self.cells = 0
        self.names = []
        self.running = False
        self.loop = None
        self.module = types.ModuleType("__main__")
        self.module.__builtins__ = builtins
        self.names_of_code = self.module.__dict__
        sys.modules["__main__"] = self.module
        sys.argv = [""]
        builtins.display = self.display
        self.kept = {1: high(1), 2: high(2)}
        os.environ.setdefault("MPLBACKEND", "Agg")
        sys.meta_path.insert(0, PyplotFinder(self))
        signal.signal(signal.SIGINT, self.on_interrupt)

    def on_interrupt(self, number, frame):
        if os.getpid() != self.channel.pid:
            raise KeyboardInterrupt
        if not self.running:
            return
        if self.channel.sending:
            self.channel.interrupted = True
            return
        raise KeyboardInterrupt

    def serve(self):
        self.channel.send({"type": "ready"})
        while True:
            try:
                request = self.channel.receive()
                kind = request.get("type")
                if kind == "setup":
                    self.setup(request)
                elif kind == "run":
                    self.run(request)
            except KeyboardInterrupt:
                pass  # too late

    def setup(self, request):
        try:
            os.chdir(request["cwd"])
        except (OSError, ValueError) as e:
            self.channel.send({"type": "failed", "text": str(e)})
            return
        os.environ["PWD"] = request["cwd"]
        site = sys.modules.get("site")
        try:
            # It may have come into being since this interpreter has started.
            packages = site.getusersitepackages() if site.ENABLE_USER_SITE else ""
            if os.path.isdir(packages) and packages not in sys.path:
                site.addsitedir(packages)
        except Exception:
            pass
        self.channel.send({"type": "ready"})

    def run(self, request):
        signal.signal(signal.SIGINT, self.on_interrupt)
        self.mend()
        self.channel.interrupted = False
        envs = request.get("envs") or {}
        before = {name: os.environ.get(name) for name in envs}
        error = None
        try:
            os.environ.update(envs)
            self.running = True
            try:
                self.evaluate(request["code"])
            except BaseException as e:
                error = self.describe(e)
            self.running = False
        except BaseException as e:
            # An interrupt while the other exception was described, most likely.
            self.running = False
            error = {"name": type(e).__name__, "value": "", "traceback": ""}
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except Exception:
                pass
        if os.getpid() != self.channel.pid:
            # A child that the code has forked and that came to its end.
            if error is not None:
                try:
                    os.write(2, error["traceback"].encode("utf-8", "replace"))
                except OSError:
                    pass
            os._exit(0 if error is None else 1)
        self.channel.send({"type": "done", "id": request["id"], "error": error})

    def mend(self):
        """Gives standard streams back that have been closed."""
        for fd, name in ((1, "stdout"), (2, "stderr")):
            try:
                os.fstat(fd)
            except OSError:
                try:
                    os.dup2(self.kept[fd], fd)
                except OSError:
                    pass
            stream = getattr(sys, name, None)
            if stream is None or getattr(stream, "closed", False):
                stream = open(fd, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
                stream.reconfigure(write_through=True, line_buffering=True)
                setattr(sys, name, stream)
                setattr(sys, "__%s__" % name, stream)

    def evaluate(self, code):
        self.cells += 1
        name = "<cell %d>" % self.cells
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        self.names.append(name)
        if len(self.names) > CELLS:
            linecache.cache.pop(self.names.pop(0), None)
        flags = TOP_LEVEL_AWAIT if sys.version_info >= (3, 8) else 0
        tree = compile(code, name, "exec", flags | 0x400, True)  # ast.PyCF_ONLY_AST
        last = None
        if tree.body and isinstance(tree.body[-1], _ast.Expr):
            last = tree.body.pop()
        if tree.body:
            self.execute(compile(tree, name, "exec", flags, True))
        if last is not None:
            value = self.execute(compile(_ast.Expression(last.value), name, "eval", flags, True))
            if value is not None and not code.rstrip().endswith(";"):
                self.names_of_code["_"] = value
                self.result(value)

    def execute(self, code):
        value = eval(code, self.names_of_code)
        if not code.co_flags & COROUTINE:
            return value
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(value)
        try:
            return self.loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                # Interrupted: what it waits for ends with it.
                task.cancel()
                try:
                    self.loop.run_until_complete(task)
                except BaseException:
                    pass
            raise

    def describe(self, e):
        if isinstance(e, SystemExit) and e.code in (None, 0):
            return None
        trace = e.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == FILE:
            trace = trace.tb_next
        # An interrupt ends in this file.
        last, t = None, trace
        while t is not None:
            if t.tb_frame.f_code.co_filename != FILE:
                last = t
            t = t.tb_next
        if last is not None:
            last.tb_next = None
        try:
            value = str(e.code) if isinstance(e, SystemExit) else str(e)
        except Exception:
            value = "<exception without a text form>"
        try:
            lines = traceback.format_exception(type(e), e, trace)
        except Exception:
            lines = ["%s: %s\n" % (type(e).__name__, value)]
        return {"name": type(e).__name__, "value": clip(value, TRACEBACK_LIMIT), "traceback": clip("".join(lines), TRACEBACK_LIMIT)}

    def result(self, value):
        """Sends a value in the forms that it has."""
        if self.present is not None:
            figure = sys.modules.get("matplotlib.figure")
            if figure is not None and isinstance(value, figure.Figure):
                self.present(value)
                return
        data = bundle(value)
        try:
            self.channel.send({"type": "result", "data": data})
        except ValueError as e:
            print(e, file=sys.stderr)
            self.channel.send({"type": "result", "data": {"text/plain": data["text/plain"]}})

    def display(self, *values):
        """Shows values to whoever runs the code, in the forms that they have."""
        for value in values:
            self.result(value)

    def chart(self, chart):
        try:
            self.channel.send({"type": "chart", "chart": chart})
        except ValueError as e:
            print("a chart is left out: %s" % e, file=sys.stderr)


def clip(text, limit):
    return text if len(text) <= limit else text[:limit] + "…"


def bundle(value):
    """The forms of a value by media type, binary ones as base64."""
    try:
        text = repr(value)
    except Exception as e:
        text = "<%s without a text form: %s>" % (type(value).__name__, type(e).__name__)
    data = {"text/plain": clip(text, TEXT_LIMIT)}
    if isinstance(value, type):
        return data
    for method, media in REPRS:
        # Of its class: objects that have every attribute have these, too.
        if getattr(type(value), method, None) is None:
            continue
        try:
            form = getattr(value, method)()
        except Exception:
            continue
        if isinstance(form, tuple):
            form = form[0]  # the rest is about the form
        if isinstance(form, (bytes, bytearray)):
            import base64

            form = base64.b64encode(form).decode("ascii")
        elif media == "application/json":
            try:
                form = json.dumps(form)
            except (TypeError, ValueError):
                continue
        if isinstance(form, str):
            data[media] = form
    return data


class PyplotFinder:
    """Sets charts up when matplotlib.pyplot is imported, by whomever."""

    def __init__(self, session):
        self.session = session

    def find_spec(self, name, path=None, target=None):
        if name != "matplotlib.pyplot" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        execute, session = spec.loader.exec_module, self.session

        def exec_module(module):
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            space = {"__name__": "daytona_charts"}
            exec(compile(session.charts, FILE, "exec"), space)
            session.present = space["setup"](session.chart)

        spec.loader.exec_module = exec_module
        return spec


def start(fd, charts):
    channel = Channel(high(fd))
    if channel.fd != fd:
        os.close(fd)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=channel.leave)
    Session(channel, charts).serve()
