// Has a TypeScript SDK use a language server, through its own class and through
// the generated client, and says what it got.
// node lsp.cjs SDK-DIRECTORY AGENT-URL PROJECT
const path = require('path')
const [sdk, basePath, project] = process.argv.slice(2)
const { LspServer } = require(path.join(sdk, 'cjs', 'LspServer.js'))
const { Configuration, LspApi } = require(require.resolve('@daytona/toolbox-api-client', { paths: [sdk] }))

async function main() {
  const api = new LspApi(new Configuration({ basePath }))
  const server = new LspServer('typescript', project, api)
  const said = {}
  const status = (e) => e.response?.status ?? e.statusCode ?? String(e)
  said.notStarted = await server.completions('main.ts', { line: 0, character: 0 }).catch(status)
  await server.start()
  await server.start()
  await server.didOpen(`${project}/main.ts`)
  said.symbols = await server.documentSymbols('shapes.ts')
  said.sandboxSymbols = await server.sandboxSymbols('Circle')
  said.workspaceSymbols = await server.workspaceSymbols('Circle')
  said.completions = await server.completions('main.ts', { line: 3, character: 7 })
  const triggered = await api.completions({ languageId: 'typescript', pathToProject: project, uri: `file://${project}/main.ts`,
    position: { line: 3, character: 7 }, context: { triggerKind: 2, triggerCharacter: '.' } })
  said.triggered = triggered.data
  await server.didClose('main.ts')
  await server.stop()
  said.stopped = await server.documentSymbols('shapes.ts').catch(status)
  console.log(JSON.stringify(said))
}
main().catch((e) => { console.error(e.response?.data ?? e); process.exit(1) })
