"""Has the Python SDK use a language server, and says what it got.

python lsp.py AGENT-URL PROJECT
"""
import json
import sys

from daytona._sync.lsp_server import LspServer
from daytona_toolbox_api_client import ApiClient, Configuration, LspApi
from daytona_toolbox_api_client.models.completion_context import CompletionContext
from daytona_toolbox_api_client.models.lsp_completion_params import LspCompletionParams
from daytona_toolbox_api_client.models.lsp_position import LspPosition

url, project = sys.argv[1:]
api = LspApi(ApiClient(Configuration(host=url)))
server = LspServer("python", project, api)
said = {}


def status(call):
    try:
        call()
    except Exception as e:
        return getattr(e, "status_code", None) or getattr(e, "status", None) or str(e)


class At:
    line, character = 3, 7


said["notStarted"] = status(lambda: server.completions("main.py", At))
server.start()
server.start()
server.did_open(f"{project}/main.py")
said["symbols"] = [s.to_dict() for s in server.document_symbols("shapes.py")]
said["sandboxSymbols"] = [s.to_dict() for s in server.sandbox_symbols("Circle")]
said["workspaceSymbols"] = [s.to_dict() for s in server.workspace_symbols("Circle")]
said["completions"] = server.completions("main.py", At).to_dict()
said["triggered"] = api.completions(LspCompletionParams(
    language_id="python", path_to_project=project, uri=f"file://{project}/main.py", position=LspPosition(line=3, character=7),
    context=CompletionContext(trigger_kind=2, trigger_character="."))).to_dict()
server.did_close("main.py")
server.stop()
said["stopped"] = status(lambda: server.document_symbols("shapes.py"))
print(json.dumps(said))
