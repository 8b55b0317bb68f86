// Checks a server with the official TypeScript SDKs: main.cjs SDK-DIRECTORY [--list] [--lacks a,b] [--desktop
// SNAPSHOT] [--image IMAGE] [--only REGEXP], with DAYTONA_API_URL and DAYTONA_API_KEY in the environment.
const assert = require('node:assert/strict'), crypto = require('node:crypto'), fs = require('node:fs')
const http = require('node:http'), https = require('node:https'), os = require('node:os'), path = require('node:path')
const { Readable } = require('node:stream')
const { Surface, group, main, lacks, values, sdk } = require('./runner.cjs')

if (!sdk || !(values.list || (process.env.DAYTONA_API_URL && process.env.DAYTONA_API_KEY))) {
  console.error('usage: DAYTONA_API_URL=… DAYTONA_API_KEY=… main.cjs SDK-DIRECTORY, or main.cjs SDK-DIRECTORY --list')
  process.exit(2)
}
const surface = new Surface(path.resolve(sdk))
const lib = require(path.resolve(sdk))
const { Daytona, Image, DaytonaError } = lib
const inner = (file) => require(path.join(path.resolve(sdk), 'cjs', `${file}.js`))
const generation = fs.existsSync(path.join(sdk, 'cjs', 'Secret.js')) ? 'ts' : 'ts190'
const newer = generation === 'ts'

const id = crypto.randomBytes(4).toString('hex')
const unique = (what) => `sdk-${generation}-${id}-${what}`
const mark = { 'sdk-test': id }
const tmp = fs.mkdtempSync(path.join(os.tmpdir(), 'sdk-test-'))
let client
const daytona = () => (client ??= new Daytona())
const made = { snapshots: [], volumes: [], secrets: [], pools: [] }

const sleep = (ms) => new Promise((r) => setTimeout(r, ms))
async function until(what, test, seconds = 60) {
  for (const end = Date.now() + seconds * 1000; ; await sleep(100)) {
    const got = await test()
    if (got) return got
    if (Date.now() > end) throw new Error(`not after ${seconds} s: ${what}`)
  }
}

// refused expects an error of the SDK's, of one of the statuses and a class.
async function refused(statuses, classes, f) {
  try {
    await f()
  } catch (e) {
    assert.ok(e instanceof DaytonaError, `is no DaytonaError: ${e.stack}`)
    if (statuses.length) assert.ok(statuses.includes(e.statusCode), `status ${e.statusCode}, want ${statuses}: ${e.message}`)
    for (const c of [classes].flat()) assert.ok(lib[c] && e instanceof lib[c], `${e.constructor.name} is no ${c}: ${e.message}`)
    assert.ok(e.message.length > 0)
    return e
  }
  assert.fail('was not refused')
}

// can does f where the server has the capability, and otherwise expects it to be refused.
async function can(capability, f) {
  if (!lacks.has(capability)) return f()
  await refused([400, 404, 422, 501, 503, undefined], [], f) // without a status: what failed later on
  return `lacks ${capability}: it was refused`
}

// get asks a URL as a browser or curl would. Names below localhost are this machine.
function get(url, headers = {}) {
  const u = new URL(url)
  const lookup = (name, o, done) => (o.all ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4))
  return new Promise((yes, no) => {
    const o = { headers, ...(u.hostname.endsWith('localhost') ? { lookup } : {}) }
    const r = (u.protocol === 'https:' ? https : http).get(u, o, (answer) => {
      let text = ''
      answer.on('data', (d) => (text += d)).on('end', () => yes({ status: answer.statusCode, text, headers: answer.headers }))
    })
    r.on('error', no).setTimeout(15000, () => r.destroy(new Error('no answer')))
  })
}

// start gives each group a sandbox that is made when it is first asked for.
function start() {
  let shared
  return {
    create: (p = {}, o) => daytona().create({ ...p, labels: { ...mark, ...p.labels } }, o),
    get sandbox() {
      return (shared ??= this.create({ autoStopInterval: 30, envVars: { FROM_CREATE: 'yes' } }))
    },
  }
}

async function end() {
  const errors = []
  const quietly = (p) => p.catch((e) => e.statusCode === 404 || errors.push(e))
  await Promise.all(made.pools.map((p) => quietly(daytona().warmPool.delete(p))))
  const left = []
  for await (const s of daytona().list({ labels: mark })) left.push(s)
  await Promise.all(left.map((s) => quietly(daytona().delete(s))))
  await until('all sandboxes are gone', async () => {
    for await (const s of daytona().list({ labels: mark })) if (!['destroyed', 'destroying'].includes(s.state)) return false
    return true
  })
  for (const s of made.snapshots) await quietly(daytona().snapshot.get(s).then((x) => daytona().snapshot.delete(x)))
  for (const v of made.volumes) await quietly(daytona().volume.get(v).then((x) => daytona().volume.delete(x)))
  for (const s of made.secrets) await quietly(daytona().secret.delete(s))
  await daytona()[Symbol.asyncDispose]()
  fs.rmSync(tmp, { recursive: true })
  if (errors.length) throw errors[0]
}

group('sandbox', (check) => {
  check('create', async (t) => {
    const s = await t.sandbox
    assert.equal(s.state, 'started')
    assert.match(s.id, /^[0-9a-f-]{36}$/)
    assert.equal(s.labels['sdk-test'], id)
    assert.equal(s.labels['code-toolbox-language'], 'python')
    assert.equal(s.autoStopInterval, 30)
    assert.ok(s.toolboxProxyUrl && s.organizationId && s.target && s.user && s.cpu > 0 && s.memory > 0 && s.disk > 0)
    const r = await s.process.executeCommand('echo $FROM_CREATE')
    assert.equal(r.result.trim(), 'yes')
  })
  check('get', async (t) => {
    const s = await t.sandbox
    for (const by of [s.id, s.name]) assert.equal((await daytona().get(by)).id, s.id)
    await s.refreshData()
    assert.equal(s.state, 'started')
    assert.equal(s.env.FROM_CREATE, 'yes')
  })
  check('directories', async (t) => {
    const s = await t.sandbox
    const home = await s.getUserHomeDir()
    assert.match(home, /^\//)
    assert.equal(await s.getUserRootDir(), home)
    assert.match(await s.getWorkDir(), /^\//)
  })
  check('labels', async (t) => {
    const s = await t.sandbox
    const labels = { ...s.labels, colour: 'red' }
    assert.deepEqual(await s.setLabels(labels), labels)
    await s.refreshData()
    assert.deepEqual(s.labels, labels)
  })
  check('intervals', async (t) => {
    const s = await t.sandbox
    await s.setAutostopInterval(0)
    await s.setAutostopInterval(60)
    await s.setAutoArchiveInterval(120)
    await s.setAutoDeleteInterval(180)
    await s.refreshData()
    assert.deepEqual([s.autoStopInterval, s.autoArchiveInterval, s.autoDeleteInterval], [60, 120, 180])
    await s.setAutoDeleteInterval(-1)
    await s.refreshData()
    assert.equal(s.autoDeleteInterval, -1)
    for (const set of ['setAutostopInterval', 'setAutoArchiveInterval']) await assert.rejects(s[set](-1), DaytonaError)
    if (newer) {
      await s.setTtl(600)
      await s.refreshData()
      const left = new Date(s.autoDestroyAt) - Date.now()
      assert.ok(left > 500 * 60e3 && left <= 601 * 60e3, `autoDestroyAt is ${s.autoDestroyAt}`)
      await s.setTtl(0)
      const set = s.setAutoPauseInterval(45)
      if (lacks.has('pause')) return set.then(() => {}, (e) => assert.ok(e instanceof DaytonaError))
      await set
      await s.refreshData()
      assert.equal(s.autoPauseInterval, 45)
      await s.setAutoPauseInterval(0)
    }
  })
  check('activity', async (t) => {
    const s = await t.sandbox
    await s.refreshData()
    const before = new Date(s.lastActivityAt)
    await sleep(20)
    await s.refreshActivity()
    await until('the activity is seen', async () => {
      await s.refreshData()
      return new Date(s.lastActivityAt) >= before
    })
  })
  check('network', { limit: 180 }, async (t) => {
    const s = await t.sandbox
    const alone = async (x) => {
      const r = await x.process.executeCommand(`python3 -c "import socket; socket.create_connection(('1.1.1.1', 53), 5)" 2>/dev/null && echo out || echo in`, undefined, undefined, 20)
      assert.equal(r.result.trim(), 'in')
    }
    const blocked = await t.create({ networkBlockAll: true })
    assert.equal(blocked.networkBlockAll, true)
    await alone(blocked)
    await blocked.delete()
    await refused([400], 'DaytonaValidationError', () => s.updateNetworkSettings({ networkAllowList: 'not a network' }))
    return can('network', async () => {
      await s.updateNetworkSettings({ networkBlockAll: true })
      assert.equal(s.networkBlockAll, true)
      await alone(s)
      await s.updateNetworkSettings({ networkAllowList: '10.0.0.0/8,192.0.2.0/24' })
      assert.deepEqual([s.networkBlockAll, s.networkAllowList], [false, '10.0.0.0/8,192.0.2.0/24'])
      await can('domains', async () => {
        await s.updateNetworkSettings({ domainAllowList: 'example.com,*.example.org' })
        assert.equal(s.domainAllowList, 'example.com,*.example.org')
      })
      await s.updateNetworkSettings({ networkBlockAll: false, networkAllowList: '', domainAllowList: '' })
    })
  })
  check('resize', async (t) => {
    const s = await t.sandbox
    return can('resize', async () => {
      const cpu = s.cpu + 1
      await s.resize({ cpu })
      await s.waitForResizeComplete()
      await s.refreshData()
      assert.deepEqual([s.cpu, s.state], [cpu, 'started'])
    })
  })
  check('ssh access', async (t) => {
    const s = await t.sandbox
    const a = await s.createSshAccess(10)
    assert.equal(a.sandboxId, s.id)
    assert.ok(a.sshCommand.startsWith('ssh ') && a.sshCommand.includes(`${a.token}@`), a.sshCommand)
    const left = new Date(a.expiresAt) - Date.now()
    assert.ok(left > 8 * 60e3 && left < 11 * 60e3, `expires ${a.expiresAt}`)
    // To validate is for gateways: a server may refuse it to others.
    const valid = () => s.validateSshAccess(a.token).catch((e) => assert.equal(e.statusCode, 403, e.message))
    const before = await valid()
    if (before) assert.deepEqual(pick(before, 'valid', 'sandboxId'), { valid: true, sandboxId: s.id })
    await s.revokeSshAccess(a.token)
    assert.ok(!(await valid())?.valid)
  })
  check('list', async (t) => {
    const s = await t.sandbox
    const all = async (q) => {
      const found = []
      for await (const x of daytona().list(q)) found.push(x.id)
      return found
    }
    assert.ok((await all({ labels: mark })).includes(s.id))
    for (const q of [
      { id: s.id.slice(0, 13) }, { name: s.name.slice(0, 13) }, { states: ['started'] }, { targets: [s.target] }, { minCpu: s.cpu, maxCpu: s.cpu },
      { minMemoryGib: s.memory, maxMemoryGib: s.memory }, { minDiskGib: s.disk, maxDiskGib: s.disk }, { isPublic: false },
      { createdAtAfter: new Date(0), createdAtBefore: new Date(Date.now() + 1e6) }, { lastActivityAfter: new Date(0) }, { sort: 'createdAt', order: 'asc' },
      ...(s.snapshot ? [{ snapshots: [s.snapshot] }] : []),
    ]) {
      assert.ok((await all({ labels: mark, ...q })).includes(s.id), `not among ${JSON.stringify(q)}`)
    }
    for (const q of [{ states: ['archived'] }, { createdAtBefore: new Date(0) }, { isPublic: true }, { minCpu: 9999 }, { labels: { 'sdk-test': 'none' } }]) {
      assert.ok(!(await all({ labels: mark, ...q })).includes(s.id), `among ${JSON.stringify(q)}`)
    }
  })
  check('metrics', async (t) => {
    if (!newer) return
    const m = await (await t.sandbox).getMetricsLatest()
    assert.ok(m.memTotal > 0 && m.cpuCount > 0 && m.diskTotal > 0 && m.timestamp instanceof Date)
    // Past ones come from a service that a server need not have.
    const past = await (await t.sandbox).getMetrics(new Date(Date.now() - 60e3), new Date()).catch((e) => e)
    assert.ok(Array.isArray(past) || past instanceof Error)
  })
  check('environment', async (t) => {
    if (!newer) return
    const s = await t.sandbox
    await s.updateEnv({ LATER: 'here' }, { unset: ['FROM_CREATE'] })
    const r = await s.process.executeCommand('echo "$LATER,$FROM_CREATE"')
    assert.equal(r.result.trim(), 'here,')
  })
  check('signed file URLs', async (t) => {
    if (!newer) return
    const s = await t.sandbox
    const file = `${await s.getWorkDir()}/signed.txt`
    await s.fs.uploadFile(Buffer.from('signed'), file)
    const down = await s.downloadUrl(file, 60)
    assert.deepEqual(pick(await get(down), 'status', 'text'), { status: 200, text: 'signed' })
    assert.match(await s.uploadUrl(file, 60), /signature=/)
    await s.rotateSigningKey()
    assert.notEqual((await get(down)).status, 200)
  })
  check('archive refuses a started one', async (t) => {
    const s = await t.sandbox
    await refused([400], 'DaytonaValidationError', () => s.archive())
  })
  check('recover refuses a sound one', async (t) => {
    const s = await t.sandbox
    await refused([400], 'DaytonaValidationError', () => s.recover(20))
  })
})

const pick = (o, ...keys) => Object.fromEntries(keys.map((k) => [k, o[k]]))

group('lifecycle', (check) => {
  check('stop and start', { limit: 180 }, async (t) => {
    const s = await t.sandbox
    await s.process.executeCommand('echo kept > kept.txt')
    await s.stop(60)
    assert.equal(s.state, 'stopped')
    await s.waitUntilStopped(10)
    await refused([], [], () => s.process.executeCommand('true'))
    await refused([], 'DaytonaTimeoutError', () => s.waitUntilStarted(1))
    await s.start(60)
    await s.waitUntilStarted(10)
    assert.equal((await s.process.executeCommand('cat kept.txt')).result.trim(), 'kept')
    await s.stop(60, true)
    await daytona().start(s, 60)
    await daytona().stop(s)
    assert.equal(s.state, 'stopped')
    await s.start()
  })
  check('pause', { limit: 180 }, async (t) => {
    const s = await t.sandbox
    return can('pause', async () => {
      await s.pause(60)
      assert.equal(s.state, 'paused')
      await s.start(60)
      assert.equal(s.state, 'started')
    })
  })
  check('fork', { limit: 180 }, async (t) => {
    const s = await t.sandbox
    await s.process.executeCommand('echo shared > shared.txt')
    return can('fork', async () => {
      const forks = [await s._experimental_fork({ name: unique('fork') }), await daytona()._experimental_fork(s, { name: unique('fork-2') })]
      if (newer) forks.push(await s.fork(), await daytona().fork(s, {}))
      for (const f of forks) {
        assert.equal(f.state, 'started')
        assert.notEqual(f.id, s.id)
        assert.equal((await f.process.executeCommand('cat shared.txt')).result.trim(), 'shared')
        await f.delete(60)
      }
    })
  })
  check('snapshot of a sandbox', { limit: 180 }, async (t) => {
    const s = await t.sandbox
    await s.process.executeCommand('echo snapped > snapped.txt')
    return can('sandbox-snapshot', async () => {
      const names = [unique('of-sandbox')]
      made.snapshots.push(...names)
      await s._experimental_createSnapshot(names[0], 90)
      if (newer) {
        names.push(unique('of-sandbox-2'))
        made.snapshots.push(names[1])
        await s.createSnapshot(names[1], 90)
      }
      const snapshot = await until('the snapshot is active', async () => {
        const x = await daytona().snapshot.get(names[0])
        return x.state === 'active' && x
      })
      assert.ok(snapshot.size > 0)
      const child = await t.create({ snapshot: names[0] })
      assert.equal((await child.process.executeCommand('cat snapped.txt')).result.trim(), 'snapped')
      await child.delete()
    })
  })
  check('archive', { limit: 180 }, async (t) => {
    const s = await t.create({})
    await s.process.executeCommand('echo archived > archived.txt')
    await s.stop()
    return can('archive', async () => {
      await s.archive()
      await until('it is archived', async () => (await s.refreshData(), s.state === 'archived'), 60)
      await s.start(90)
      assert.equal((await s.process.executeCommand('cat archived.txt')).result.trim(), 'archived')
    })
  })
  check('ephemeral', async (t) => {
    const s = await t.create({ ephemeral: true })
    assert.equal(s.autoDeleteInterval, 0)
    await s.stop()
    assert.equal(s.state, 'destroyed')
  })
  check('delete', async (t) => {
    const s = await t.create({})
    await s.delete(60)
    await until('it is gone', () => daytona().get(s.id).then(() => false, (e) => e.statusCode === 404))
    const other = await t.create({})
    await daytona().delete(other)
  })
})

// A minute is the least there is: a group of its own, beside all others.
group('timers', (check) => {
  check('auto-stop', { limit: 180, needs: 'timers' }, async (t) => {
    const s = await t.create({ autoStopInterval: 1 })
    await until('it stops by itself', async () => (await sleep(1000), await s.refreshData(), s.state === 'stopped'), 150)
  })
})

async function entrypoint(process) {
  const [session, logs] = await Promise.allSettled([process.getEntrypointSession(), process.getEntrypointLogs()])
  for (const r of [session, logs]) if (r.reason) throw r.reason
  assert.equal(session.value.sessionId, 'entrypoint')
  assert.equal(typeof logs.value.output, 'string')
}

group('exec', (check) => {
  check('command', async (t) => {
    const { process } = await t.sandbox
    assert.deepEqual(pick(await process.executeCommand('echo out; echo err >&2; exit 3'), 'exitCode'), { exitCode: 3 })
    const r = await process.executeCommand('echo "$A"; pwd', '/tmp', { A: "it's" })
    assert.deepEqual([r.exitCode, r.result, r.artifacts.stdout], [0, "it's\n/tmp\n", "it's\n/tmp\n"])
    assert.equal((await process.executeCommand('cat <<X\nlines\nX')).result, 'lines\n')
  })
  check('time limit', async (t) => {
    const { process } = await t.sandbox
    const e = await refused([408], newer ? 'DaytonaTimeoutError' : [], () => process.executeCommand('sleep 30', undefined, undefined, 1))
    assert.match(e.message, /timeout/i)
  })
  check('code', async (t) => {
    const s = await t.sandbox
    const r = await s.process.codeRun('import os, sys\nprint(os.environ["A"], *sys.argv[1:])', { argv: ['x', 'y'], env: { A: 'a' } })
    assert.deepEqual([r.exitCode, r.result.trim()], [0, 'a x y'])
    assert.notEqual((await s.process.codeRun('not python')).exitCode, 0)
    await refused([408], newer ? 'DaytonaTimeoutError' : [], () => s.process.codeRun('import time; time.sleep(30)', undefined, 1))
    assert.ok(new lib.CodeRunParams())
  })
  check('javascript', { needs: 'javascript' }, async (t) => {
    const s = await t.create({ language: 'javascript' })
    assert.equal(s.labels['code-toolbox-language'], 'javascript')
    assert.equal((await s.process.codeRun('console.log(6 * 7)')).result.trim(), '42')
    await s.delete()
  })
  check('charts', { limit: 180, needs: 'charts' }, async (t) => {
    const { process } = await t.sandbox
    const r = await process.codeRun(
      ['import matplotlib.pyplot as plt', 'plt.plot([1, 2, 3], [2, 4, 8])', 'plt.title("growth")', 'plt.xlabel("x")', 'plt.show()',
        'plt.bar(["a", "b"], [1, 2])', 'plt.show()', 'fig, (l, r) = plt.subplots(1, 2)', 'l.plot([1]); r.pie([1, 2])', 'plt.show()', 'print("done")'].join('\n'))
    assert.equal(r.result.trim().split('\n').at(-1), 'done') // a slow machine is told that a cache of fonts is being made
    assert.deepEqual(r.artifacts.charts.map((c) => c.type), ['line', 'bar', 'composite_chart'])
    assert.deepEqual([r.artifacts.charts[0].title, r.artifacts.charts[0].x_label, r.artifacts.charts[0].elements.length], ['growth', 'x', 1])
    assert.ok(Buffer.from(r.artifacts.charts[0].png, 'base64').subarray(1, 4).equals(Buffer.from('PNG')))
  })
  check('sessions', async (t) => {
    const { process } = await t.sandbox
    await process.createSession('one')
    await refused([409], 'DaytonaConflictError', () => process.createSession('one'))
    await process.executeSessionCommand('one', { command: 'export KEPT=yes; cd /tmp' })
    const r = await process.executeSessionCommand('one', { command: 'echo $KEPT; pwd; echo err >&2' })
    assert.deepEqual([r.exitCode, r.stdout, r.stderr], [0, 'yes\n/tmp\n', 'err\n'])
    const logs = await process.getSessionCommandLogs('one', r.cmdId)
    assert.deepEqual([logs.stdout, logs.stderr], ['yes\n/tmp\n', 'err\n'])
    assert.deepEqual(pick(await process.getSessionCommand('one', r.cmdId), 'id', 'exitCode'), { id: r.cmdId, exitCode: 0 })
    assert.equal((await process.getSession('one')).commands.length, 2)
    assert.ok((await process.listSessions()).some((s) => s.sessionId === 'one'))
    await process.deleteSession('one')
    await refused([404], 'DaytonaNotFoundError', () => process.getSession('one'))
  })
  check('streamed logs and input', async (t) => {
    const { process } = await t.sandbox
    await process.createSession('streamed')
    const { cmdId } = await process.executeSessionCommand('streamed', { command: 'for i in 1 2 3; do echo o$i; echo e$i >&2; sleep 0.2; done; read line; echo "got $line"', runAsync: true })
    let out = '', err = '', chunks = 0
    const all = process.getSessionCommandLogs('streamed', cmdId, (c) => ((out += c), chunks++), (c) => (err += c))
    await until('the first line comes', () => out.includes('o1'))
    await process.sendSessionCommandInput('streamed', cmdId, 'hello\n')
    await all
    assert.equal(out.replace(/^hello\n/m, ''), 'o1\no2\no3\ngot hello\n') // the input may be echoed
    assert.equal(err, 'e1\ne2\ne3\n')
    assert.ok(chunks > 1, 'it came at once')
    await process.deleteSession('streamed')
  })
  check('entrypoint', async (t) => {
    await entrypoint((await t.sandbox).process).catch((e) => assert.equal(e.statusCode, 404)) // the default snapshot may have none
    return Promise.race([(await t.sandbox).process.getEntrypointLogs(() => {}, () => {}), sleep(500)]).catch(() => {})
  })
  check('interpreter', async (t) => {
    const { codeInterpreter: ci } = await t.sandbox
    await ci.runCode('x = 41')
    let live = ''
    const r = await ci.runCode('import sys\nprint(x + 1); print("e", file=sys.stderr)', { onStdout: (m) => (live += m.output), onStderr: () => {} })
    assert.deepEqual([r.stdout, r.stderr, live, r.error], ['42\n', 'e\n', '42\n', undefined])
    let name = ''
    const bad = await ci.runCode('1 / 0', { onError: (e) => (name = e.name) })
    assert.deepEqual([bad.error.name, name], ['ZeroDivisionError', 'ZeroDivisionError'])
    await assert.rejects(ci.runCode('while True: pass', { timeout: 1 }), lib.DaytonaTimeoutError)
    const c = await ci.createContext('/tmp')
    assert.equal((await ci.runCode('import os; print(os.getcwd(), "x" in globals(), os.environ["E"])', { context: c, envs: { E: 'v' } })).stdout, '/tmp False v\n')
    assert.deepEqual((await ci.listContexts()).map((x) => x.id), [c.id])
    await ci.deleteContext(c)
    assert.deepEqual(await ci.listContexts(), [])
  })
  check('terminal', async (t) => {
    const { process } = await t.sandbox
    let seen = ''
    const decoder = new TextDecoder()
    const onData = (d) => void (seen += decoder.decode(d, { stream: true }))
    const pty = await process.createPty({ id: 'pty', cols: 100, rows: 30, cwd: '/tmp', envs: { A: 'b' }, onData })
    await pty.waitForConnection()
    assert.ok(pty.isConnected())
    await pty.sendInput('stty size; echo "<$A>"; pwd\n')
    await until('the terminal answers', () => /30 100[\s\S]*<b>[\s\S]*\/tmp/.test(seen))
    assert.deepEqual(pick(await pty.resize(120, 40), 'cols', 'rows'), { cols: 120, rows: 40 })
    await pty.sendInput('stty size\n')
    await until('the terminal has another size', () => /40 120/.test(seen))
    assert.equal((await process.resizePtySession('pty', 90, 25)).cols, 90)
    assert.ok((await process.listPtySessions()).some((p) => p.id === 'pty'))
    assert.equal((await process.getPtySessionInfo('pty')).active, true)
    await pty.disconnect()
    const again = await process.connectPty('pty', { onData })
    await again.waitForConnection()
    await again.sendInput(new TextEncoder().encode('exit 7\n'))
    const ended = await again.wait()
    assert.deepEqual([ended.exitCode, again.exitCode], [7, 7])
    void again.error
    const second = await process.createPty({ id: 'pty-2', onData })
    await second.waitForConnection()
    await second.kill()
    const third = await process.createPty({ id: 'pty-3', onData })
    await third.waitForConnection()
    await process.killPtySession('pty-3')
    await until('no terminal is left', async () => (await process.listPtySessions()).length === 0)
  })
})

group('files', (check) => {
  check('up and down', async (t) => {
    const { fs: f } = await t.sandbox
    await f.uploadFile(Buffer.from('text ü'), 'a/b/c.txt')
    assert.equal((await f.downloadFile('a/b/c.txt')).toString(), 'text ü')
    const local = path.join(tmp, 'local.txt')
    fs.writeFileSync(local, 'local')
    await f.uploadFile(local, '/tmp/local.txt')
    await f.downloadFile('/tmp/local.txt', local + '.back')
    assert.equal(fs.readFileSync(local + '.back', 'utf8'), 'local')
    await f.uploadFiles([{ source: Buffer.from('1'), destination: 'many/1' }, { source: local, destination: 'many/2 ü' }])
    const got = await f.downloadFiles([{ source: 'many/1' }, { source: 'many/2 ü', destination: path.join(tmp, 'two') }, { source: 'many/none' }])
    assert.equal(got[0].result.toString(), '1')
    assert.equal(fs.readFileSync(path.join(tmp, 'two'), 'utf8'), 'local')
    assert.ok(got[2].error)
    assert.equal(got[2].errorDetails.statusCode, 404)
    await refused([404], 'DaytonaNotFoundError', () => f.downloadFile('many/none'))
  })
  check('100 MiB streamed', { limit: 180 }, async (t) => {
    const { fs: f } = await t.sandbox
    const block = crypto.randomBytes(1 << 20), blocks = 100
    const sum = crypto.createHash('sha256')
    for (let i = 0; i < blocks; i++) sum.update(block)
    const want = sum.digest('hex')
    let sent = 0, received = 0, total
    await f.uploadFileStream(Readable.from((function* () { for (let i = 0; i < blocks; i++) yield block })()), 'large.bin', { onProgress: (p) => (sent = p.bytesSent) })
    assert.equal(sent, blocks << 20)
    const back = crypto.createHash('sha256')
    for await (const chunk of await f.downloadFileStream('large.bin', { onProgress: (p) => ([received, total] = [p.bytesReceived, p.totalBytes]) })) back.update(chunk)
    assert.deepEqual([back.digest('hex'), received, total], [want, blocks << 20, blocks << 20])
    await f.deleteFile('large.bin')
  })
  check('cancelled stream', async (t) => {
    const { fs: f } = await t.sandbox
    const abort = new AbortController()
    const endless = Readable.from((function* () { for (;;) yield Buffer.alloc(64 << 10) })())
    await assert.rejects(f.uploadFileStream(endless, 'endless', { signal: abort.signal, onProgress: (p) => p.bytesSent > 1 << 20 && abort.abort() }))
  })
  check('tree', async (t) => {
    const { fs: f } = await t.sandbox
    await f.createFolder('dir/deep', '755')
    await f.uploadFile(Buffer.from('needle\nhay\n'), 'dir/deep/one.txt')
    await f.uploadFile(Buffer.from('hay\n'), 'dir/two.md')
    assert.deepEqual((await f.listFiles('dir')).map((x) => [x.name, x.isDir]).sort(), [['deep', true], ['two.md', false]])
    await f.setFilePermissions('dir/two.md', { mode: '600' })
    const info = await f.getFileDetails('dir/two.md')
    assert.deepEqual([info.name, info.size, info.permissions, info.isDir], ['two.md', 4, '0600', false])
    const found = await f.findFiles('dir', 'needle')
    assert.deepEqual(found.map((m) => [path.basename(m.file), m.line, m.content]), [['one.txt', 1, 'needle']])
    assert.deepEqual((await f.searchFiles('dir', '*.md')).files.map((x) => path.basename(x)), ['two.md'])
    const replaced = await f.replaceInFiles(['dir/deep/one.txt', 'dir/none'], 'needle', 'pin')
    assert.deepEqual(replaced.map((r) => Boolean(r.success)), [true, false])
    await f.moveFiles('dir/two.md', 'dir/three.md')
    await refused([404], 'DaytonaNotFoundError', () => f.getFileDetails('dir/two.md'))
    await refused([400], 'DaytonaValidationError', () => f.deleteFile('dir'))
    await f.deleteFile('dir', true)
    await refused([404], 'DaytonaNotFoundError', () => f.listFiles('dir'))
  })
})

// gitServer serves origin.git by HTTP inside of the sandbox, for everybody to push to.
async function gitServer(process) {
  const cgi = 'GIT_PROJECT_ROOT=$(cd .. && pwd) GIT_HTTP_EXPORT_ALL=1; export GIT_PROJECT_ROOT GIT_HTTP_EXPORT_ALL; exec git http-backend'
  await process.executeCommand(`git init -q --bare -b main origin.git && git -C origin.git config http.receivepack true && mkdir -p git-web/cgi-bin && echo '#!/bin/sh\n${cgi}' > git-web/cgi-bin/git && chmod +x git-web/cgi-bin/git && cd origin.git && export GIT_AUTHOR_NAME=O GIT_AUTHOR_EMAIL=o@example.com GIT_COMMITTER_NAME=O GIT_COMMITTER_EMAIL=o@example.com && git update-ref refs/heads/main $(git commit-tree -m origin $(git mktree </dev/null))`)
  await process.createSession('git-web')
  await process.executeSessionCommand('git-web', { command: 'cd git-web && exec python3 -m http.server --cgi 8418 2>/dev/null', runAsync: true })
  const origin = 'http://localhost:8418/cgi-bin/git/origin.git'
  await until('the server of repositories answers', async () => (await process.executeCommand(`git ls-remote ${origin}`)).exitCode === 0)
  return origin
}

group('git', (check) => {
  check('repository', { needs: 'git' }, async (t) => {
    const s = await t.sandbox
    const { git, process } = s
    const origin = await gitServer(process)
    await git.clone(origin, 'r')
    await s.fs.uploadFile(Buffer.from('one\n'), 'r/a.txt')
    let status = await git.status('r')
    assert.deepEqual([status.currentBranch, status.fileStatus.map((f) => [f.name, f.staging, f.worktree])], ['main', [['a.txt', 'Untracked', 'Untracked']]])
    await git.add('r', ['a.txt'])
    assert.equal((await git.status('r')).fileStatus[0].staging, 'Added')
    const { sha } = await git.commit('r', 'first', 'Ada', 'ada@example.com')
    assert.match(sha, /^[0-9a-f]{40}$/)
    await git.push('r')
    await git.createBranch('r', 'side')
    await refused([409], 'DaytonaConflictError', () => git.createBranch('r', 'side'))
    await git.checkoutBranch('r', 'main')
    assert.deepEqual((await git.branches('r')).branches.sort(), ['main', 'side'])
    await git.deleteBranch('r', 'side')
    await process.executeCommand('git clone -q origin.git other && cd other && git config user.name B && git config user.email b@example.com && git commit -q --allow-empty -m second && git push -q')
    await git.pull('r')
    status = await git.status('r')
    assert.deepEqual([status.fileStatus, status.ahead, status.behind], [[], 0, 0])
    await refused([404], 'DaytonaNotFoundError', () => git.clone('nothing.git', 'none'))
  })
  check('the newer half', { needs: 'git' }, async (t) => {
    if (!newer) return
    const s = await t.sandbox
    const { git } = s
    await git.init('n', false, 'trunk')
    await git.configureUser('Ada', 'ada@example.com')
    await git.setConfig('core.abbrev', '12', 'local', 'n')
    assert.equal(await git.getConfig('core.abbrev', 'local', 'n'), '12')
    await s.fs.uploadFile(Buffer.from('1'), 'n/f')
    await git.add('n', ['f'])
    await git.commit('n', 'one', 'Ada', 'ada@example.com')
    await s.fs.uploadFile(Buffer.from('2'), 'n/f')
    await git.restore('n', ['f'])
    assert.equal((await s.fs.downloadFile('n/f')).toString(), '1')
    await s.fs.uploadFile(Buffer.from('3'), 'n/f')
    await git.reset('n', 'hard')
    assert.equal((await s.fs.downloadFile('n/f')).toString(), '1')
    await git.remoteAdd('n', 'up', 'https://example.com/x.git')
    assert.equal(await git.remoteGet('n', 'up'), 'https://example.com/x.git')
    assert.deepEqual((await git.remotes('n')).remotes.map((r) => r.name), ['up'])
    await git.dangerouslyAuthenticate('someone', 'secret', 'example.com')
  })
  check('language server', { limit: 180 }, async (t) => {
    const s = await t.sandbox
    const dir = `${await s.getWorkDir()}/lsp`
    await s.fs.createFolder('lsp', '755')
    await s.fs.uploadFile(Buffer.from('class Greeter:\n    def hello(self):\n        return 1\n\n\nGreeter().\n'), 'lsp/a.py')
    const lsp = await s.createLspServer('python', dir)
    const file = `${dir}/a.py`
    if (lacks.has('lsp')) {
      for (const f of [() => lsp.start(), () => lsp.didOpen(file), () => lsp.documentSymbols(file), () => lsp.sandboxSymbols('G'), () => lsp.workspaceSymbols('G'),
        () => lsp.completions(file, { line: 5, character: 10 }), () => lsp.didClose(file), () => lsp.stop()]) await f().catch((e) => assert.ok(e instanceof DaytonaError))
      return 'lacks lsp'
    }
    await lsp.start()
    await lsp.didOpen(file)
    assert.ok((await until('symbols', async () => { const l = await lsp.documentSymbols(file); return l.length && l })).some((x) => x.name === 'Greeter'))
    const list = await lsp.completions(file, { line: 5, character: 10 })
    assert.ok(list.items.some((i) => i.label.startsWith('hello')), JSON.stringify(list).slice(0, 300))
    for (const symbols of ['sandboxSymbols', 'workspaceSymbols']) await lsp[symbols]('Greeter').catch((e) => assert.ok(e instanceof DaytonaError))
    await lsp.didClose(file)
    await lsp.stop()
  })
})

group('previews', (check) => {
  check('plain, signed and expired', { limit: 180 }, async (t) => {
    const s = await t.sandbox
    await s.process.createSession('web')
    await s.process.executeSessionCommand('web', { command: 'mkdir -p /tmp/web && cd /tmp/web && echo "it works" > index.html && exec python3 -m http.server 8123', runAsync: true })
    const link = await s.getPreviewLink(8123)
    assert.equal(link.sandboxId, s.id)
    const headers = { 'x-daytona-preview-token': link.token, 'x-daytona-skip-preview-warning': 'true' }
    await until('the server answers', async () => (await get(link.url, headers)).text.trim() === 'it works')
    assert.notEqual((await get(link.url)).status, 200)
    assert.notEqual((await get(link.url, { 'x-daytona-preview-token': 'wrong' })).status, 200)
    const signed = await s.getSignedPreviewUrl(8123, 600)
    assert.deepEqual(pick(signed, 'sandboxId', 'port'), { sandboxId: s.id, port: 8123 })
    assert.equal((await get(signed.url)).text.trim(), 'it works')
    await s.expireSignedPreviewUrl(8123, signed.token)
    await until('it has expired', async () => (await get(signed.url)).status !== 200)
    const short = await s.getSignedPreviewUrl(8123, 1)
    await sleep(1500)
    await until('it expires by itself', async () => (await get(short.url)).status !== 200)
    await refused([400], 'DaytonaValidationError', () => s.getPreviewLink(70000))
  })
})

group('volumes', (check) => {
  check('shared by two sandboxes', { limit: 180 }, async (t) => {
    return can('volumes', async () => {
      const { volume } = daytona()
      const name = unique('volume')
      made.volumes.push(name)
      await refused([404], 'DaytonaNotFoundError', () => volume.get(name))
      await volume.get(name, true)
      const v = await until('it is ready', async () => { const x = await volume.get(name); return x.state === 'ready' && x })
      assert.ok((await volume.list()).some((x) => x.id === v.id))
      await refused([400], 'DaytonaValidationError', () => volume.create(name))
      const a = await t.create({ volumes: [{ volumeId: v.id, mountPath: '/mnt/v' }] })
      await a.process.executeCommand('mkdir -p /mnt/v/sub && echo shared > /mnt/v/sub/f && sync')
      const b = await t.create({ volumes: [{ volumeId: v.id, mountPath: '/mnt/w', subpath: 'sub' }] })
      assert.equal((await until('the file is seen', async () => { const r = await b.process.executeCommand('cat /mnt/w/f'); return r.exitCode === 0 && r.result })).trim(), 'shared')
      await refused([409], 'DaytonaConflictError', () => volume.delete(v))
      await Promise.all([a.delete(), b.delete()])
      await until('it can be deleted', () => volume.delete(v).then(() => true, (e) => { if (e.statusCode !== 409) throw e }))
      await refused([400], 'DaytonaValidationError', () => t.create({ volumes: [{ volumeId: v.id, mountPath: '/etc/x' }] }))
    })
  })
  check('secrets', async () => {
    if (!newer) return
    const { secret } = daytona()
    return can('secrets', async () => {
      const name = `SDK_${id.toUpperCase()}`
      const s = await secret.create({ name, value: 'hidden', description: 'of a test' })
      made.secrets.push(s.id)
      assert.ok(!JSON.stringify(s).includes('hidden'))
      assert.equal((await secret.get(s.id)).name, name)
      assert.ok((await secret.list({ name })).items.some((x) => x.id === s.id))
      assert.equal((await secret.update(s.id, { description: 'changed' })).description, 'changed')
      const box = await daytona().create({ labels: mark })
      await can('sandbox-secrets', () => box.updateSecrets({ TOKEN: name }))
      await box.delete()
      await secret.delete(s.id)
      await refused([404], 'DaytonaNotFoundError', () => secret.get(s.id))
    })
  })
})

group('snapshots', (check) => {
  check('from an image', { limit: 300 }, async (t) => {
    const { snapshot } = daytona()
    return can('images', async () => {
      const name = unique('image')
      made.snapshots.push(name)
      const s = await snapshot.create({ name, image: values.image, resources: { cpu: 1, memory: 1, disk: 3 }, entrypoint: ['sleep', 'infinity'] }, { timeout: 120 })
      assert.deepEqual([s.state, s.name, s.cpu, s.mem, s.disk], ['active', name, 1, 1, 3])
      assert.equal((await snapshot.get(name)).id, s.id)
      const page = await snapshot.list(1, 100)
      assert.ok(page.items.some((x) => x.id === s.id) && page.total >= 1 && page.page === 1 && page.totalPages >= 1)
      await refused([409], 'DaytonaConflictError', () => snapshot.create({ name, image: values.image }))
      const e = await refused([400], 'DaytonaValidationError', () => snapshot.activate(s))
      assert.match(e.message, /active/i)
      const box = await t.create({ snapshot: name })
      assert.equal((await box.process.executeCommand('echo up')).result.trim(), 'up')
      await box.delete()
      await snapshot.delete(s)
      await until('it is gone', () => snapshot.get(name).then(() => false, (e) => e.statusCode === 404))
    })
  })
  check('refusals', async (t) => {
    await refused([400], 'DaytonaValidationError', () => t.create({ snapshot: unique('none') }))
    await refused([404], 'DaytonaNotFoundError', () => daytona().snapshot.get(unique('none')))
    await refused([400], 'DaytonaValidationError', () => daytona().snapshot.create({ name: unique('latest'), image: 'debian:latest' }))
  })
  check('declarative build', { limit: 300 }, async (t) => {
    fs.mkdirSync(path.join(tmp, 'context', 'deep'), { recursive: true })
    fs.writeFileSync(path.join(tmp, 'context', 'deep', 'file'), id)
    fs.writeFileSync(path.join(tmp, 'one.txt'), `one ${id}`)
    const image = Image.base(values.image).addLocalFile(path.join(tmp, 'one.txt'), '/opt/one.txt').addLocalDir(path.join(tmp, 'context'), '/opt/context')
      .runCommands(`echo built ${id} && cat /opt/one.txt`).env({ BUILT: 'yes' }).workdir('/opt').entrypoint(['sleep', 'infinity'])
    return can('build', async () => {
      let logs = ''
      const s = await t.create({ image, resources: { cpu: 1, memory: 1, disk: 3 } }, { timeout: 250, onSnapshotCreateLogs: (l) => (logs += l) })
      assert.equal((await s.process.executeCommand('cat /opt/one.txt /opt/context/deep/file; echo " $BUILT"')).result.trim(), `one ${id}${id} yes`)
      assert.ok(logs.trim().length > 0, 'there is no log')
      assert.ok(s.buildInfo && s.buildInfo.dockerfileContent.includes('FROM'))
      await entrypoint(s.process)
      await s.delete()
      const name = unique('built')
      made.snapshots.push(name)
      logs = ''
      const built = await daytona().snapshot.create({ name, image: Image.base(values.image).runCommands(`echo of ${name}`) }, { timeout: 250, onLogs: (l) => (logs += l) })
      assert.equal(built.state, 'active')
      assert.ok(logs.trim().length > 0, 'there is no log of the snapshot')
      const failed = await refused([], [], () => t.create({ image: Image.base(values.image).runCommands('exit 3') }, { timeout: 60 }))
      assert.ok(failed.message)
    })
  })
  check('contexts in object storage', { needs: 'build' }, async () => {
    fs.mkdirSync(path.join(tmp, 'upload'), { recursive: true })
    fs.writeFileSync(path.join(tmp, 'upload', 'x'), crypto.randomBytes(100))
    const image = Image.base(values.image).addLocalDir(path.join(tmp, 'upload'), '/x')
    const hashes = await inner('Snapshot').SnapshotService.processImageContext(daytona().objectStorageApi, image)
    assert.match(hashes[0], /^[0-9a-f]{32}$/)
    assert.deepEqual(await inner('Snapshot').SnapshotService.processImageContext(daytona().objectStorageApi, image), hashes)
    const a = (await daytona().objectStorageApi.getPushAccess()).data
    const { ObjectStorage } = inner('ObjectStorage')
    const storage = new ObjectStorage({ endpointUrl: a.storageUrl, accessKeyId: a.accessKey, secretAccessKey: a.secret, sessionToken: a.sessionToken, bucketName: a.bucket, region: a.region })
    assert.equal(await storage.upload(path.join(tmp, 'upload'), a.organizationId, 'upload'), await storage.upload(path.join(tmp, 'upload'), a.organizationId, 'upload'))
  })
  check('warm pools', { limit: 180 }, async () => {
    if (!newer) return
    const { warmPool } = daytona()
    return can('warm-pools', async () => {
      const { items } = await daytona().snapshot.list(1, 100)
      const base = items.find((s) => s.state === 'active')
      assert.ok(base, 'no snapshot is active')
      const p = await warmPool.create({ snapshot: base.name, pool: 1 })
      made.pools.push(p.id)
      assert.ok((await warmPool.list()).some((x) => x.id === p.id))
      assert.equal((await warmPool.update(p.id, { pool: 0 })).pool, 0)
      await warmPool.delete(p.id)
    })
  })
  check('images', async () => {
    fs.writeFileSync(path.join(tmp, 'requirements.txt'), 'requests\n')
    fs.writeFileSync(path.join(tmp, 'pyproject.toml'), '[project]\nname = "x"\nversion = "1"\ndependencies = ["flask"]\n')
    fs.writeFileSync(path.join(tmp, 'Dockerfile'), 'FROM debian:12\nRUN true\n')
    const i = Image.debianSlim('3.12').pipInstall(['b', 'a']).pipInstallFromRequirements(path.join(tmp, 'requirements.txt')).pipInstallFromPyproject(path.join(tmp, 'pyproject.toml'))
      .cmd(['python']).dockerfileCommands(['LABEL a=b'])
    for (const part of ['FROM python:3.12', 'pip install a b', 'flask', 'CMD ["python"]', 'LABEL a=b']) assert.ok(i.dockerfile.includes(part), `no ${part} in ${i.dockerfile}`)
    assert.equal(i.contextList.length, 1)
    assert.ok(Image.fromDockerfile(path.join(tmp, 'Dockerfile')).dockerfile.includes('RUN true'))
  })
})

// The desktop's methods are called in any sandbox, where they may be refused; that they do what they say takes
// a snapshot with a desktop.
group('desktop', (check) => {
  // The SDK has the numbers of a region in another order than the client that it is made with: so they are all the same.
  const square = { x: 20, y: 20, width: 20, height: 20 }
  const calls = (cu) => [
    () => cu.getStatus(), () => cu.getProcessStatus('xvfb'), () => cu.getProcessLogs('xvfb'), () => cu.getProcessErrors('xvfb'), () => cu.restartProcess('novnc'),
    () => cu.mouse.move(50, 60), () => cu.mouse.getPosition(), () => cu.mouse.click(50, 60), () => cu.mouse.drag(10, 10, 40, 40), () => cu.mouse.scroll(50, 50, 'down', 1),
    () => cu.keyboard.type('hi', 1), () => cu.keyboard.press('a', ['ctrl']), () => cu.keyboard.hotkey('ctrl+a'),
    () => cu.screenshot.takeFullScreen(true), () => cu.screenshot.takeRegion(square), () => cu.screenshot.takeCompressed({ format: 'jpeg', quality: 40, scale: 0.5 }),
    () => cu.screenshot.takeCompressedRegion(square, { format: 'png' }),
    () => cu.display.getInfo(), () => cu.display.getWindows(), () => cu.recording.list(),
  ]
  check('every method', { limit: 180 }, async (t) => {
    const { computerUse: cu } = await t.sandbox
    const there = await cu.start().then(() => true, () => false)
    const a11y = [() => cu.accessibility.getTree({ scope: 'all', maxDepth: 1 }), () => cu.accessibility.findNodes({ scope: 'all', role: 'window' }), () => cu.accessibility.focusNode('none'),
      () => cu.accessibility.invokeNode('none'), () => cu.accessibility.setNodeValue('none', 'x')]
    const films = [() => cu.recording.get('none'), () => cu.recording.stop('none'), () => cu.recording.delete('none'), () => cu.recording.download('none', path.join(tmp, 'none.mp4')),
      async () => { const r = await cu.recording.start('film'); await cu.recording.stop(r.id); await cu.recording.delete(r.id) }]
    for (const f of [...calls(cu), ...a11y, ...films]) {
      await f().catch((e) => assert.ok(e instanceof DaytonaError && e.statusCode !== 401 && e.statusCode !== 403, `${f}: ${e.stack}`))
    }
    await cu.stop().catch((e) => assert.ok(e instanceof DaytonaError))
    return there ? undefined : 'has no desktop; all was refused in the SDK\'s words'
  })
  check('with a desktop', { limit: 300 }, async (t) => {
    if (!values.desktop) return 'no --desktop snapshot'
    const { computerUse: cu } = await t.create({ snapshot: values.desktop })
    assert.ok((await cu.start()).status)
    await until('it is active', async () => (await cu.getStatus()).status === 'active', 60)
    for (const f of calls(cu)) await f()
    assert.deepEqual(pick(await cu.mouse.move(5, 6), 'x', 'y'), { x: 5, y: 6 })
    const shot = Buffer.from((await cu.screenshot.takeFullScreen()).screenshot, 'base64')
    assert.ok(shot.subarray(1, 4).equals(Buffer.from('PNG')))
    assert.ok((await cu.display.getInfo()).displays[0].width > 0)
    const film = await cu.recording.start('film')
    await sleep(1500)
    assert.equal((await cu.recording.stop(film.id)).status, 'completed')
    const file = path.join(tmp, 'film.mp4')
    await cu.recording.download(film.id, file)
    assert.ok(fs.statSync(file).size > 0)
    await cu.recording.delete(film.id)
    assert.ok((await cu.accessibility.getTree({ scope: 'all', maxDepth: 1 })).root)
    await cu.stop()
  })
})

group('errors', (check) => {
  check('401', async () => {
    const bad = new Daytona({ apiKey: `dtn_${'0'.repeat(64)}`, apiUrl: process.env.DAYTONA_API_URL })
    await refused([401], 'DaytonaAuthenticationError', () => bad.get('x'))
    await bad[Symbol.asyncDispose]()
  })
  check('403', async () => {
    const key = process.env.DAYTONA_TEST_RESTRICTED_KEY // one without permissions; only who signs in can make it
    if (!key) return 'no DAYTONA_TEST_RESTRICTED_KEY'
    const poor = new Daytona({ apiKey: key, apiUrl: process.env.DAYTONA_API_URL })
    await refused([403], 'DaytonaAuthorizationError', () => poor.create({ labels: mark }))
    await poor[Symbol.asyncDispose]()
  })
  check('404', async () => {
    await refused([404], 'DaytonaNotFoundError', () => daytona().get(unique('nobody')))
    await refused([404], 'DaytonaNotFoundError', () => daytona().get(crypto.randomUUID()))
  })
  check('409', async (t) => {
    const name = unique('twice')
    const s = await t.create({ name })
    assert.equal(s.name, name)
    const e = await refused([409], 'DaytonaConflictError', () => t.create({ name }))
    assert.match(e.message, /already exists/)
    await s.delete()
  })
  check('400', async (t) => {
    await refused([400], 'DaytonaValidationError', () => t.create({ networkAllowList: '300.0.0.0/8' }))
    await refused([400], 'DaytonaValidationError', () => t.create({ name: '<b>x</b>' }))
  })
  check('429', async () => {
    const apiUrl = process.env.DAYTONA_TEST_LIMITED_API_URL // a server that is asked too much by this
    if (!apiUrl) return 'no DAYTONA_TEST_LIMITED_API_URL'
    const limited = new Daytona({ apiKey: process.env.DAYTONA_TEST_LIMITED_API_KEY, apiUrl })
    const { limit } = JSON.parse((await get(`${apiUrl}/config`)).text).rateLimit.authenticated
    let last
    for (let i = 0; i <= limit; i++) await limited.get(unique('nobody')).catch((e) => (last = e))
    await refused([429], 'DaytonaRateLimitError', () => Promise.reject(last))
    assert.ok(Number(last.headers['retry-after-authenticated']) > 0, JSON.stringify(last.headers))
    assert.equal(last.headers['x-ratelimit-remaining-authenticated'], '0')
    await limited[Symbol.asyncDispose]()
  })
  check('bad arguments', async (t) => {
    await assert.rejects(() => t.create({}, { timeout: -1 }), DaytonaError)
  })
  check('axios', async () => {
    assert.ok(Daytona.createAxiosInstance().get)
  })
})

main({ surface, generation, start, end }).then(() => process.exit(process.exitCode), (e) => {
  console.error(e)
  process.exit(1)
})
