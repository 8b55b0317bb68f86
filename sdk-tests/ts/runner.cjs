// Runs checks of an SDK, and says which of its public methods none of them has called. A line of output is
// {"name", "ok", "ms", "error"?, "skipped"?}; the program ends with 1 if one is not ok.
const fs = require('node:fs'), path = require('node:path')
const { AsyncLocalStorage } = require('node:async_hooks')
const { parseArgs } = require('node:util')

const inside = new AsyncLocalStorage() // set while the SDK calls itself

// Surface is what an SDK has: every public method and getter of every class that its declarations name.
class Surface {
  constructor(dir) {
    this.called = new Set()
    this.all = new Set()
    for (const file of fs.readdirSync(path.join(dir, 'cjs')).filter((f) => f.endsWith('.d.ts') && f !== 'index.d.ts')) {
      const text = fs.readFileSync(path.join(dir, 'cjs', file), 'utf8').replace(/\/\*[\s\S]*?\*\//g, '')
      const module = require(path.join(dir, 'cjs', file.replace('.d.ts', '.js')))
      for (const [, name, body] of text.matchAll(/^export declare class (\w+)[^{]*\{\n([\s\S]*?)^\}/gm)) {
        if (!module[name]) continue
        for (const [, isStatic, getter, method] of body.matchAll(/^ {4}(static )?(get )?(\w+)\(/gm)) {
          if (method !== 'constructor') this.watch(name, isStatic ? module[name] : module[name].prototype, method, Boolean(getter))
        }
      }
    }
  }

  watch(className, owner, method, getter) {
    const key = `${className}.${method}`
    const found = Object.getOwnPropertyDescriptor(owner, method)
    if (!found) return
    this.all.add(key)
    const called = this.called
    const wrap = (f) =>
      function (...args) {
        if (inside.getStore()) return f.apply(this, args)
        called.add(key)
        return inside.run(true, () => f.apply(this, args))
      }
    if (getter) Object.defineProperty(owner, method, { ...found, get: wrap(found.get) })
    else Object.defineProperty(owner, method, { ...found, value: wrap(found.value) })
  }

  missing(excused) {
    return [...this.all].filter((m) => !this.called.has(m) && !excused.some((e) => fits(e, m))).sort()
  }
}

// fits says whether an exception, a name or the beginning of names, is about a method.
const fits = (exception, method) => (exception.endsWith('*') ? method.startsWith(exception.slice(0, -1)) : method === exception)

const options = parseArgs({
  allowPositionals: true,
  options: {
    list: { type: 'boolean', default: false }, // print the names and do nothing
    lacks: { type: 'string', default: '' }, // capabilities that the server under test does not have
    desktop: { type: 'string', default: '' }, // a snapshot that has a desktop
    image: { type: 'string', default: 'debian:12-slim' }, // of a registry, for what is built
    only: { type: 'string', default: '' }, // a regular expression of names
  },
})
const lacks = new Set(options.values.lacks.split(',').filter(Boolean))
const groups = []

// group declares checks that share a sandbox and run one after the other.
function group(name, declare) {
  const g = { name, checks: [] }
  groups.push(g)
  declare((check, ...rest) => {
    const [o, run] = rest.length > 1 ? rest : [{}, rest[0]]
    g.checks.push({ name: `${name}/${check}`, limit: 120, ...o, run })
  })
}

const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')

async function within(seconds, what) {
  let timer
  try {
    return await Promise.race([
      what,
      new Promise((_, no) => (timer = setTimeout(() => no(new Error(`took longer than ${seconds} s`)), seconds * 1000))),
    ])
  } finally {
    clearTimeout(timer)
  }
}

const describe = (e) => {
  if (!(e instanceof Error)) return String(e)
  const at = (e.stack || '').split('\n').find((l) => l.includes('main.cjs')) || ''
  return `${e.constructor.name}${e.statusCode ? ` ${e.statusCode}` : ''}: ${e.message} ${at.trim()}`.slice(0, 2000)
}

// main runs all. start makes what a group's checks are given; end cleans up after all of them.
async function main({ surface, generation, start, end }) {
  if (options.values.list) {
    for (const g of groups) for (const c of g.checks) console.log(c.name)
    console.log('coverage')
    return
  }
  let failed = 0
  const only = options.values.only && new RegExp(options.values.only)
  const one = async (name, limit, run) => {
    const began = Date.now()
    const line = { name, ok: true }
    try {
      const skipped = await within(limit, run())
      if (typeof skipped === 'string') line.skipped = skipped
    } catch (e) {
      line.ok = false
      line.error = describe(e)
      failed++
    }
    line.ms = Date.now() - began
    say(line)
  }
  const work = groups.map((g) => async () => {
    const wanted = g.checks.filter((c) => !only || only.test(c.name))
    if (!wanted.length) return
    const context = start(g.name)
    for (const c of wanted) {
      await one(c.name, c.limit, () => (c.needs && lacks.has(c.needs) ? Promise.resolve(`lacks ${c.needs}`) : c.run(context)))
    }
  })
  await Promise.all(
    Array.from({ length: 6 }, async () => {
      for (let next; (next = work.shift()); ) await next()
    }),
  )
  await one('cleanup', 120, end)
  if (!only) {
    const reasons = JSON.parse(fs.readFileSync(path.join(__dirname, '..', 'uncovered.json'), 'utf8'))[generation] || {}
    const excused = Object.keys(reasons).filter((m) => reasons[m].why && (!reasons[m].lacks || lacks.has(reasons[m].lacks)))
    await one('coverage', 10, async () => {
      const missing = surface.missing(excused)
      if (missing.length) throw new Error(`${missing.length} of ${surface.all.size} public methods were never called: ${missing.join(', ')}`)
      const about = (e) => [...surface.all].filter((m) => fits(e, m))
      const stale = Object.keys(reasons).filter((e) => !about(e).length || (!reasons[e].lacks && about(e).every((m) => surface.called.has(m))))
      if (stale.length) throw new Error(`uncovered.json excuses what is called, or is not there: ${stale.join(', ')}`)
    })
  }
  process.exitCode = failed ? 1 : 0
}

module.exports = { Surface, group, main, lacks, values: options.values, sdk: options.positionals[0] }
