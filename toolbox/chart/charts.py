# Describes the figures that a program shows with matplotlib: setup(emit) makes
# matplotlib call emit with an object that JSON has for each, and returns what
# does that for one figure. The numbers are finite ones and nothing else:
# clients refuse what is not.
def setup(emit):
    import base64, io, math, os

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

    def has_dates(axis):
        converter = axis.get_converter() if hasattr(axis, "get_converter") else axis.converter
        return isinstance(axis.get_major_formatter(), (dates.DateFormatter, dates.AutoDateFormatter, dates.ConciseDateFormatter)) or (
            converter is not None and type(converter).__module__ == "matplotlib.dates"
        )

    def number(v, axis=None):
        """A finite number, or None. Dates are seconds since 1970."""
        try:
            v = float(v)
            if axis is not None and has_dates(axis):
                v = dates.num2date(v).timestamp()
        except (TypeError, ValueError, OverflowError):
            return None
        if not math.isfinite(v):
            return None
        return int(v) if v == int(v) and abs(v) < 1 << 53 else v

    def numbers(vs, axis=None):
        return [n for n in (number(v, axis) for v in vs) if n is not None]

    def ticks(axis):
        pairs = zip(axis.get_ticklocs(), axis.get_ticklabels())
        pairs = [(number(at, axis), label.get_text()) for at, label in pairs]
        return [at for at, _ in pairs if at is not None], [label for at, label in pairs if at is not None]

    def scale(axis):
        if has_dates(axis):
            return "datetime"
        name = axis.get_scale()
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
            "x_scale": scale(ax.xaxis),
            "y_ticks": y_ticks,
            "y_tick_labels": y_tick_labels,
            "y_scale": scale(ax.yaxis),
        }

    def named(label):
        # What matplotlib calls what nobody has named begins so.
        label = str(label)
        return "" if label.startswith("_") else label

    def points(ax, pairs):
        # A point without a place is a gap.
        pairs = ([number(x, ax.xaxis), number(y, ax.yaxis)] for x, y in pairs)
        return [p for p in pairs if None not in p]

    def line(ax):
        # Not as they were given, which may be names or dates.
        elements = [
            {"label": named(l.get_label()), "points": points(ax, zip(l.get_xdata(orig=False), l.get_ydata(orig=False)))}
            for l in ax.get_lines()
        ]
        return {**head(ax, "line"), **axes2d(ax), "elements": elements}

    def scatter(ax):
        elements = [{"label": named(c.get_label()), "points": points(ax, c.get_offsets().tolist())} for c in ax.collections]
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
                elements.append({"label": label, "group": named(box.get_label()), "value": str(plain(value))})
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
            elements.append({"label": label, "angle": number(angle), "radius": number(w.r)})
        return {**head(ax, "pie"), "elements": elements}

    def box(ax):
        labels = [t.get_text() for t in ax.get_xticklabels()]
        elements = []
        for i, stat in enumerate(ax._daytona_boxes):
            label = stat.get("label")
            elements.append(
                {
                    "label": str(label) if label not in (None, "") else (labels[i] if i < len(labels) else str(i + 1)),
                    "min": number(stat["whislo"]),
                    "first_quartile": number(stat["q1"]),
                    "median": number(stat["med"]),
                    "third_quartile": number(stat["q3"]),
                    "max": number(stat["whishi"]),
                    "outliers": numbers(stat.get("fliers", [])),
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

    def present(figure):
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
        chart["png"] = base64.b64encode(buffer.getvalue()).decode("ascii")
        emit(chart)

    def show(*args, **kwargs):
        for number in plt.get_fignums():
            present(plt.figure(number))
        plt.close("all")

    plt.show = show
    matplotlib.figure.Figure.show = lambda self, *a, **k: present(self)
    return present
