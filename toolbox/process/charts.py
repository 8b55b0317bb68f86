# Runs a program that uses matplotlib. Each figure that it shows is printed as
# one line: a prefix and a JSON object that describes the chart.
import base64 as _b64, sys as _sys


def _daytona_setup():
    import io, json, math, os

    os.environ["MPLBACKEND"] = "Agg"
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        # The program will say so itself.
        return
    from matplotlib import dates, patches
    from matplotlib.container import BarContainer

    def plain(v):
        """A value that JSON has."""
        try:
            if hasattr(v, "item"):
                v = v.item()
        except (ValueError, AttributeError):
            pass
        if isinstance(v, bool) or v is None or isinstance(v, (int, str)):
            return v
        if isinstance(v, float):
            return v if math.isfinite(v) else None
        if hasattr(v, "isoformat"):
            return v.isoformat()
        return str(v)

    def ticks(axis):
        labels = [t.get_text() for t in axis.get_ticklabels()]
        places = axis.get_ticklocs()
        if isinstance(axis.get_major_formatter(), dates.DateFormatter) or isinstance(
            axis.get_converter() if hasattr(axis, "get_converter") else axis.converter,
            dates._SwitchableDateConverter,
        ):
            return [dates.num2date(t).isoformat() for t in places], labels
        return [plain(t) for t in places], labels

    def scale(name):
        return name if name in ("linear", "log", "symlog", "logit", "function", "functionlog", "asinh") else "unknown"

    def head(ax, kind):
        return {"type": kind, "title": ax.get_title() or None}

    def axes2d(ax):
        x_ticks, x_tick_labels = ticks(ax.xaxis)
        y_ticks, y_tick_labels = ticks(ax.yaxis)
        return {
            "x_label": ax.get_xlabel() or None,
            "y_label": ax.get_ylabel() or None,
            "x_ticks": x_ticks,
            "x_tick_labels": x_tick_labels,
            "x_scale": scale(ax.get_xscale()),
            "y_ticks": y_ticks,
            "y_tick_labels": y_tick_labels,
            "y_scale": scale(ax.get_yscale()),
        }

    def points(xs, ys):
        return [[plain(x), plain(y)] for x, y in zip(list(xs), list(ys))]

    def line(ax):
        elements = [{"label": l.get_label(), "points": points(l.get_xdata(), l.get_ydata())} for l in ax.get_lines()]
        return {**head(ax, "line"), **axes2d(ax), "elements": elements}

    def scatter(ax):
        elements = [
            {"label": str(c.get_label()), "points": [[plain(x), plain(y)] for x, y in c.get_offsets().tolist()]}
            for c in ax.collections
        ]
        return {**head(ax, "scatter"), **axes2d(ax), "elements": elements}

    def bar(ax):
        elements = []
        for box in ax.containers:
            if not isinstance(box, BarContainer):
                continue
            horizontal = getattr(box, "orientation", "vertical") == "horizontal"
            axis = ax.yaxis if horizontal else ax.xaxis
            names = {round(float(at), 6): t.get_text() for at, t in zip(axis.get_ticklocs(), axis.get_ticklabels())}
            for r in box.patches:
                centre = r.get_y() + r.get_height() / 2 if horizontal else r.get_x() + r.get_width() / 2
                value = r.get_width() if horizontal else r.get_height()
                label = names.get(round(float(centre), 6)) or str(plain(centre))
                elements.append({"label": label, "group": str(box.get_label()), "value": str(plain(value))})
        return {
            **head(ax, "bar"),
            "x_label": ax.get_xlabel() or None,
            "y_label": ax.get_ylabel() or None,
            "elements": elements,
        }

    def pie(ax):
        elements = []
        texts = [t.get_text() for t in ax.texts if t.get_text()]
        for i, w in enumerate(p for p in ax.patches if isinstance(p, patches.Wedge)):
            angle = abs(w.theta2 - w.theta1)
            label = w.get_label() or ""
            if label.startswith("_"):
                label = texts[i] if i < len(texts) else ""
            elements.append({"label": label, "angle": plain(float(angle)), "radius": plain(float(w.r))})
        return {**head(ax, "pie"), "elements": elements}

    def box(ax):
        labels = [t.get_text() for t in ax.get_xticklabels()]
        elements = []
        for i, stat in enumerate(ax._daytona_boxes):
            label = stat.get("label")
            elements.append(
                {
                    "label": str(label) if label not in (None, "") else (labels[i] if i < len(labels) else str(i + 1)),
                    "min": plain(stat["whislo"]),
                    "first_quartile": plain(stat["q1"]),
                    "median": plain(stat["med"]),
                    "third_quartile": plain(stat["q3"]),
                    "max": plain(stat["whishi"]),
                    "outliers": [plain(f) for f in stat.get("fliers", [])],
                }
            )
        return {
            **head(ax, "box_and_whisker"),
            "x_label": ax.get_xlabel() or None,
            "y_label": ax.get_ylabel() or None,
            "elements": elements,
        }

    def describe(ax):
        if getattr(ax, "_daytona_boxes", None):
            return box(ax)
        if any(isinstance(p, patches.Wedge) for p in ax.patches):
            return pie(ax)
        if any(isinstance(c, BarContainer) for c in ax.containers):
            return bar(ax)
        if any(type(c).__name__ == "PathCollection" for c in ax.collections):
            return scatter(ax)
        if ax.get_lines():
            return line(ax)
        return head(ax, "unknown")

    # What a box plot was made of cannot be told from its lines.
    Axes = matplotlib.axes.Axes
    original_bxp = Axes.bxp

    def bxp(self, bxpstats, *args, **kwargs):
        stats = list(bxpstats)
        self._daytona_boxes = getattr(self, "_daytona_boxes", []) + stats
        return original_bxp(self, stats, *args, **kwargs)

    Axes.bxp = bxp

    def emit(figure):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        charts = []
        for ax in figure.get_axes():
            if not ax.has_data() or ax.get_label() == "<colorbar>":
                continue
            try:
                charts.append(describe(ax))
            except Exception:
                charts.append({"type": "unknown", "title": ax.get_title() or None})
        if len(charts) == 1:
            chart = charts[0]
        elif charts:
            title = figure._suptitle.get_text() if getattr(figure, "_suptitle", None) else None
            chart = {"type": "composite_chart", "title": title, "elements": charts}
        else:
            chart = {"type": "unknown", "title": None}
        chart["png"] = base64_text(buffer.getvalue())
        _sys.stdout.flush()
        text = json.dumps({"type": "chart", "value": chart}, default=str)
        _sys.stdout.write("dtn_artifact_k39fd2:" + text + "\n")
        _sys.stdout.flush()

    def base64_text(b):
        return _b64.b64encode(b).decode("ascii")

    def show(*args, **kwargs):
        for number in plt.get_fignums():
            emit(plt.figure(number))
        plt.close("all")

    plt.show = show
    matplotlib.figure.Figure.show = lambda self, *a, **k: emit(self)


def _daytona_run():
    import linecache, types

    code = _b64.b64decode("__CODE__").decode("utf-8", "surrogateescape")
    _daytona_setup()
    name = "<stdin>"
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    main = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    _sys.modules["__main__"] = main
    try:
        exec(compile(code, name, "exec"), main.__dict__)
    except SystemExit:
        raise
    except BaseException as e:
        # Show the program's frames, not this one's.
        tb = e.__traceback__.tb_next if e.__traceback__ else None
        if isinstance(e, KeyboardInterrupt):
            raise
        _sys.excepthook(type(e), e.with_traceback(tb), tb)
        _sys.stderr.flush()
        _sys.exit(1)


_daytona_run()
