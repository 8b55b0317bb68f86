// Says what the TypeScript SDK makes of the definitions in cases.json.
// node describe.cjs SDK-DIRECTORY CASES-FILE, in the directory of the files.
const fs = require('fs'), path = require('path')
const [sdk, cases] = process.argv.slice(2)
const { Image } = require(path.join(sdk, 'cjs', 'Image.js'))
const { ObjectStorage } = require(path.join(sdk, 'cjs', 'ObjectStorage.js'))
const tar = require(require.resolve('tar', { paths: [sdk] }))
const storage = new ObjectStorage({ endpointUrl: 'http://127.0.0.1:1', region: 'us-east-1', accessKeyId: 'a', secretAccessKey: 'b', sessionToken: 'c' })

const here = (s) => s.replace('$DIR', process.cwd())
const steps = {
  base: (_, ref) => Image.base(ref),
  debianSlim: (_, v) => Image.debianSlim(v || undefined),
  fromDockerfile: (_, p) => Image.fromDockerfile(p),
  pipInstall: (i, pkgs, o) => i.pipInstall(pkgs, o),
  requirements: (i, f, o) => i.pipInstallFromRequirements(f, o),
  pyproject: (i, f, o, groups) => i.pipInstallFromPyproject(f, { ...o, optionalDependencies: groups }),
  addLocalFile: (i, a, b) => i.addLocalFile(here(a), b),
  addLocalDir: (i, a, b) => i.addLocalDir(here(a), b),
  run: (i, ...c) => i.runCommands(...c),
  runWords: (i, ...w) => i.runCommands(w),
  env: (i, e) => i.env(e),
  workdir: (i, d) => i.workdir(d),
  entrypoint: (i, ...w) => i.entrypoint(w),
  cmd: (i, ...w) => i.cmd(w),
  commands: (i, lines, dir) => i.dockerfileCommands(lines, here(dir) || undefined),
}

// archive lists what the SDK uploads: it is caught on its way to the storage.
async function archive(source, at) {
  let body = Buffer.alloc(0)
  storage.s3Client.send = async (cmd) => {
    if (cmd.input.Body) body = Buffer.from(cmd.input.Body)
    return {}
  }
  await storage.uploadAsTar('key', source, at)
  const list = []
  await new Promise((done, fail) => {
    const t = tar.list({ onentry: (e) => list.push(`${e.type} ${e.path.replace(/^\.\/(?=.)/, '')}${e.linkpath ? ' ' + e.linkpath : ''} ${e.size}`) })
    t.on('end', done).on('error', fail)
    t.end(body)
  })
  return list.sort()
}

async function main() {
  const out = {}
  for (const c of JSON.parse(fs.readFileSync(cases)).cases) {
    try {
      let image
      for (const [name, ...args] of c.ops) image = steps[name](image, ...args)
      const contexts = []
      for (const x of image.contextList) {
        const one = { archivePath: x.archivePath, hash: await storage.computeHashForPathMd5(x.sourcePath, x.archivePath) }
        one.tar = await archive(x.sourcePath, x.archivePath)
        contexts.push(one)
      }
      out[c.name] = { dockerfile: image.dockerfile, contexts }
    } catch (e) {
      out[c.name] = { error: String(e.message).replaceAll(process.cwd(), '$DIR') }
    }
  }
  console.log(JSON.stringify(out))
}
main()
