# What the Python SDK makes of an agent at a URL, as JSON.
import json, sys

import httpx
from daytona._sync.code_interpreter import CodeInterpreter
from daytona.common.charts import parse_chart
from daytona.common.errors import DaytonaError
from daytona_toolbox_api_client import ApiClient, CodeRunRequest, Configuration, InterpreterApi, ProcessApi

api = ApiClient(Configuration(host=sys.argv[1]))
ci = CodeInterpreter(InterpreterApi(api), httpx.Client())
said = {}


def run(name, code, **options):
    live = []
    try:
        r = ci.run_code(code, on_stdout=lambda m: live.append(m.output), **options)
        assert "".join(live) == r.stdout, (live, r.stdout)
        error = r.error and [r.error.name, r.error.value, "line" in r.error.traceback]
        said[name] = [r.stdout, r.stderr, error]
    except DaytonaError as e:
        said[name] = [type(e).__name__, "not found" in str(e)]


run("state", "x = 41")
run("output", "import sys\nprint(x + 1); print('e', file=sys.stderr)")
run("value", "x")
run("exception", "1 / 0")
run("env", "import os; print(os.environ['E'])", envs={"E": "v"})
run("timeout", "while True: pass", timeout=1)
c = ci.create_context(cwd="/")
said["context"] = [c.cwd, c.language, c.active, [o.id for o in ci.list_contexts()] == [c.id]]
run("in context", "import os; print(os.getcwd(), 'x' in globals())", context=c)
ci.delete_context(c)
run("deleted", "1", context=c)
said["left"] = len(ci.list_contexts())
if len(sys.argv) > 2:
    r = ProcessApi(api).code_run(CodeRunRequest(code=open(sys.argv[2]).read(), language="python"))
    said["charts"] = [[type(c).__name__, c.title] for c in map(parse_chart, r.artifacts.charts)]
print(json.dumps(said))
