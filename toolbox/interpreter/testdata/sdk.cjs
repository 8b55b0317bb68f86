// What a TypeScript SDK makes of an agent at a URL, as JSON. The first argument
// is the directory of the SDK's package.
const path = require("node:path");
const [, , sdk, base] = process.argv;
const { CodeInterpreter } = require(path.join(sdk, "cjs/CodeInterpreter.js"));
const { InterpreterApi, Configuration } = require(require.resolve("@daytona/toolbox-api-client", { paths: [sdk] }));

async function main() {
  const config = new Configuration({ basePath: base });
  const ci = new CodeInterpreter(config, new InterpreterApi(config), async () => "");
  const said = {};
  const run = async (name, code, options = {}) => {
    try {
      let live = "";
      const r = await ci.runCode(code, { ...options, onStdout: (m) => (live += m.output) });
      if (live !== r.stdout) throw new Error(`${live} is not ${r.stdout}`);
      said[name] = [r.stdout, r.stderr, r.error ? [r.error.name, r.error.value, r.error.traceback.includes("line")] : null];
    } catch (e) {
      said[name] = [e.constructor.name, String(e.message).includes("not found")];
    }
  };
  await run("state", "x = 41");
  await run("output", "import sys\nprint(x + 1); print('e', file=sys.stderr)");
  await run("value", "x");
  await run("exception", "1 / 0");
  await run("env", "import os; print(os.environ['E'])", { envs: { E: "v" } });
  await run("timeout", "while True: pass", { timeout: 1 });
  const c = await ci.createContext("/");
  const list = await ci.listContexts();
  said["context"] = [c.cwd, c.language, c.active, list.length === 1 && list[0].id === c.id];
  await run("in context", "import os; print(os.getcwd(), 'x' in globals())", { context: c });
  await ci.deleteContext(c);
  await run("deleted", "1", { context: c });
  said["left"] = (await ci.listContexts()).length;
  console.log(JSON.stringify(said));
  process.exit(0);
}
main().catch((e) => {
  console.error(e);
  process.exit(1);
});
