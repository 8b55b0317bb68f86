# Runs a program that uses matplotlib. Each figure that it shows is printed as
# one line: a prefix and a JSON object that describes the chart. What comes
# before defines setup.
def _daytona_emit(chart):
    import json, sys

    sys.stdout.flush()
    sys.stdout.write("dtn_artifact_k39fd2:" + json.dumps({"type": "chart", "value": chart}) + "\n")
    sys.stdout.flush()


def _daytona_run():
    import base64, linecache, sys, types

    code = base64.b64decode("__CODE__").decode("utf-8", "surrogateescape")
    setup(_daytona_emit)
    name = "<stdin>"
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    main = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    sys.modules["__main__"] = main
    try:
        exec(compile(code, name, "exec"), main.__dict__)
    except SystemExit:
        raise
    except BaseException as e:
        # Show the program's frames, not this one's.
        tb = e.__traceback__.tb_next if e.__traceback__ else None
        if isinstance(e, KeyboardInterrupt):
            raise
        sys.excepthook(type(e), e.with_traceback(tb), tb)
        sys.stderr.flush()
        sys.exit(1)


_daytona_run()
