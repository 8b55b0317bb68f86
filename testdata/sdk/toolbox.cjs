// Calls an SDK's generated toolbox client: node toolbox.cjs SDK-DIRECTORY BASE-URL [TOKEN]. Each line of
// the input is {"api", "method", "args"}, each line of the output what became of it: {"status", "data"},
// or {"error"} if the client itself failed. An argument {"$file": TEXT} is a file, {"$options": {…}}
// the request's options, {"$upgrade": {…}} such with headers for an upgrade, whose answer alone is awaited.
const http = require('http'), readline = require('readline'), { Readable } = require('stream')
const [sdk, base, token] = process.argv.slice(2)
const client = require(require.resolve('@daytona/toolbox-api-client', { paths: [sdk] }))
const headers = token ? { 'X-Daytona-Agent-Token': token } : {}
const configuration = new client.Configuration({ basePath: base, baseOptions: { headers, validateStatus: () => true } })

const upgrade = {
  request(options, answered) {
    return http.request(options, answered).on('upgrade', (answer, socket) => {
      socket.destroy()
      answered(Object.assign(Readable.from([]), { statusCode: answer.statusCode, headers: answer.headers }))
    })
  },
}

const argument = (a) => {
  if (a && typeof a === 'object' && '$upgrade' in a) return { headers: a.$upgrade, transport: upgrade }
  if (a && typeof a === 'object' && '$file' in a) return new File([a.$file], 'file')
  if (a && typeof a === 'object' && '$options' in a) return a.$options
  return a === null ? undefined : a
}

async function call({ api, method, args }) {
  const answer = await new client[api](configuration)[method](...(args || []).map(argument))
  return { status: answer.status, data: answer.data }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const out = await call(JSON.parse(line)).catch((e) => ({ error: String(e.stack || e) }))
    process.stdout.write(JSON.stringify(out) + '\n')
  }
}
main()
