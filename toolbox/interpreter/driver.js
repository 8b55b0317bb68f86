// The program behind a JavaScript or TypeScript context: it runs the code that
// the agent sends over a descriptor of its own, one piece after the other, in
// one global scope.
//
// The code is evaluated through V8's inspector in its mode for consoles: that
// is what lets later pieces declare a name anew and await at top level. Around
// it is a vm script that SIGINT breaks, so that endless loops can be
// interrupted without losing the state.
//
// What is below is the body of a function that the agent has node call with
// the descriptor, a function that imports as code of the working directory
// does, and the require of the main program.
"use strict";
const { Buffer } = require("node:buffer");
const fs = require("node:fs");
const inspector = require("node:inspector");
const net = require("node:net");
const nodeModule = require("node:module");
const path = require("node:path");
const stream = require("node:stream");
const url = require("node:url");
const util = require("node:util");
const vm = require("node:vm");

const frameLimit = 15 << 20; // the agent takes 16 MiB
const textLimit = 1 << 20;
const traceLimit = 256 << 10;

const clip = (text, limit) => (text.length <= limit ? text : text.slice(0, limit) + "…");

// Standard output and error as pipes that are written to at once: what a run
// has printed is with the agent before the run's end is, and is never held in
// memory.
function output(fd) {
  const s = new stream.Writable({
    write(chunk, encoding, done) {
      for (let at = 0; at < chunk.length; ) {
        try {
          at += fs.writeSync(fd, chunk, at);
        } catch (e) {
          // Another program made the pipe it shares with us non-blocking.
          if (e.code !== "EAGAIN") return done();
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
        }
      }
      done();
    },
    destroy(e, done) {
      done(null);
    },
  });
  s.fd = fd;
  return s;
}

const streams = { stdout: output(1), stderr: output(2) };
function mend() {
  for (const [name, fd] of [["stdout", 1], ["stderr", 2]]) {
    if (streams[name].destroyed || streams[name].writableEnded) streams[name] = output(fd);
  }
}
for (const name of ["stdout", "stderr"]) {
  Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => streams[name] });
}
Object.defineProperty(globalThis, "console", {
  configurable: true,
  writable: true,
  // Asks for the streams at each call: they may have been replaced.
  value: new console.Console({
    stdout: new stream.Writable({ decodeStrings: false, write: (c, e, done) => (process.stdout.write(c, e), done()) }),
    stderr: new stream.Writable({ decodeStrings: false, write: (c, e, done) => (process.stderr.write(c, e), done()) }),
  }),
});

const channel = new net.Socket({ fd, readable: true, writable: true });
channel.on("error", () => reallyExit(1));
channel.on("close", () => reallyExit(0));

function send(message) {
  const data = Buffer.from(JSON.stringify(message));
  if (data.length > frameLimit) {
    throw new RangeError(`${data.length} bytes are more than a result may have: write it to a file`);
  }
  const head = Buffer.alloc(4);
  head.writeUInt32BE(data.length);
  channel.write(Buffer.concat([head, data]));
}

// ExitRequest is thrown by process.exit: the context outlives the code.
class ExitRequest extends Error {
  constructor(code) {
    super(String(code));
    this.name = "SystemExit";
    this.code = code;
  }
}
const reallyExit = process.reallyExit.bind(process);
process.exit = (code = process.exitCode ?? 0) => {
  process.exitCode = undefined;
  throw new ExitRequest(Number(code) || 0);
};

const interrupted = () => {
  const e = new Error("the run was interrupted");
  e.name = "KeyboardInterrupt";
  e.stack = "KeyboardInterrupt: the run was interrupted";
  return e;
};

let breakOff = null; // ends the run that waits for something
process.on("SIGINT", () => breakOff?.());
const background = (e) => {
  if (e instanceof ExitRequest) return;
  process.stderr.write(`Uncaught ${util.inspect(e)}\n`);
};
process.on("uncaughtException", background);
process.on("unhandledRejection", background);

const require_ = nodeModule.createRequire(process.cwd() + path.sep);
for (const [name, value] of Object.entries({ require: require_, module: { exports: {} }, exports: {}, display })) {
  Object.defineProperty(globalThis, name, { configurable: true, writable: true, value });
}

const session = new inspector.Session();
session.connect();
const inner = { post: null, load: null, kept: null, keep: (v) => (inner.kept = v) };
Object.defineProperty(globalThis, "__daytona", { value: inner });
inner.load = (name) =>
  importer(/^\.{0,2}\//.test(name) ? url.pathToFileURL(path.resolve(process.cwd(), name)).href : String(name));
const begin = new vm.Script("__daytona.post()", { filename: "daytona" });

// valueOf returns what the inspector describes.
function valueOf(remote) {
  if (remote.unserializableValue !== undefined) {
    return remote.type === "bigint" ? BigInt(remote.unserializableValue.slice(0, -1)) : Number(remote.unserializableValue);
  }
  if (remote.objectId === undefined) return remote.value;
  inner.kept = undefined;
  session.post("Runtime.callFunctionOn", {
    functionDeclaration: "function (v) { __daytona.keep(v) }",
    objectId: remote.objectId,
    arguments: [{ objectId: remote.objectId }],
  });
  const v = inner.kept;
  inner.kept = undefined;
  return v;
}

// once evaluates code; it is rejected with what the code throws.
function once(code, cell) {
  return new Promise((resolve, reject) => {
    let over = false;
    const settle = (f) => (v) => {
      if (over) return;
      over = true;
      breakOff = null;
      f(v);
    };
    breakOff = () => settle(reject)(interrupted());
    inner.post = () =>
      session.post(
        "Runtime.evaluate",
        { expression: `${code}\n//# sourceURL=<cell-${cell}>`, replMode: true, awaitPromise: true, objectGroup: "run" },
        (err, answer) => {
          if (over) return;
          if (err) return settle(reject)(new Error(err.message));
          if (answer.exceptionDetails) {
            const d = answer.exceptionDetails;
            return settle(reject)(d.exception ? { thrown: valueOf(d.exception) } : new Error(d.text));
          }
          settle(resolve)(valueOf(answer.result));
        },
      );
    try {
      begin.runInThisContext({ breakOnSigint: true });
    } catch (e) {
      settle(reject)(e.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED" ? interrupted() : e);
    }
  });
}

const staticImport = /^[ \t]*import\s+(?:([\w$*\s{},]+?)\s+from\s*)?(["'])([^"'\n]+)\2(?:\s+(?:with|assert)\s*\{[^}]*\})?[ \t]*;?/gm;

// asScript turns the static imports of a module into what a console takes,
// without moving lines.
function asScript(code) {
  return code.replace(staticImport, (whole, clause, quote, name) => {
    const load = `await __daytona.load(${JSON.stringify(name)})`;
    const lines = "\n".repeat(whole.split("\n").length - 1);
    if (!clause) return `${load};${lines}`;
    const names = [];
    const rest = clause
      .replace(/\{([^}]*)\}/, (_, list) => {
        for (const item of list.split(",").map((s) => s.trim()).filter(Boolean)) {
          if (!/^type\s/.test(item)) names.push(item.replace(/\s+as\s+/, ": "));
        }
        return "";
      })
      .split(",")
      .map((s) => s.trim())
      .filter(Boolean);
    let script = "";
    for (const item of rest) {
      const all = item.match(/^\*\s*as\s+([\w$]+)$/);
      if (all) script += `const ${all[1]} = ${load};`;
      else names.unshift(`default: ${item}`);
    }
    if (names.length > 0) script += `const { ${names.join(", ")} } = ${load};`;
    return (script || `${load};`) + lines;
  });
}

const isModule = (e) => {
  const t = e?.thrown;
  return t instanceof SyntaxError && /import statement outside a module|Unexpected (token|identifier)/.test(t.message);
};

async function evaluate(code, cell) {
  // Evaluated code has no loader of its own in older versions of node.
  code = code.replace(/^#!.*/, "").replace(/(?<![\w$.'"`])import(?=\s*\()/g, "__daytona.load");
  try {
    return await once(code, cell);
  } catch (e) {
    // A syntax error: nothing of it has run.
    const script = isModule(e) ? asScript(code) : code;
    if (script === code) throw e;
    return once(script, cell);
  }
}

let compile = null;
// compiler finds what makes JavaScript of TypeScript in the sandbox.
function compiler() {
  if (compile) return compile;
  const places = [process.cwd(), path.join(path.dirname(process.execPath), "../lib/node_modules")];
  for (const dir of (process.env.PATH ?? "").split(":").filter(Boolean)) {
    for (const name of ["tsc", "ts-node", "tsx", "esbuild", "typescript-language-server"]) {
      try {
        places.push(path.dirname(fs.realpathSync(path.join(dir, name))));
      } catch {
        // Not there.
      }
    }
  }
  const load = (name) => {
    try {
      return require_(require_.resolve(name, { paths: places }));
    } catch {
      return null;
    }
  };
  const ts = load("typescript");
  if (ts?.transpileModule) {
    const options = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022, isolatedModules: true };
    if (parseInt(ts.version) >= 5) options.verbatimModuleSyntax = true;
    else Object.assign(options, { preserveValueImports: true, importsNotUsedAsValues: 1 });
    return (compile = (code) => {
      const out = ts.transpileModule(code, { compilerOptions: options, reportDiagnostics: true });
      const d = out.diagnostics?.find((d) => d.category === ts.DiagnosticCategory.Error && d.code < 2000);
      if (d) {
        const at = d.file && d.start !== undefined ? `line ${d.file.getLineAndCharacterOfPosition(d.start).line + 1}: ` : "";
        throw new SyntaxError(at + ts.flattenDiagnosticMessageText(d.messageText, "\n"));
      }
      return out.outputText;
    });
  }
  const esbuild = load("esbuild");
  if (esbuild?.transformSync) {
    const options = { loader: "ts", target: "es2022", logLevel: "silent", tsconfigRaw: { compilerOptions: { verbatimModuleSyntax: true } } };
    return (compile = (code) => {
      try {
        return esbuild.transformSync(code, options).code;
      } catch (e) {
        throw e.errors?.length ? new SyntaxError(`line ${e.errors[0].location?.line}: ${e.errors[0].text}`) : e;
      }
    });
  }
  if (nodeModule.stripTypeScriptTypes) {
    return (compile = (code) => {
      const warn = process.emitWarning;
      process.emitWarning = () => {}; // that it is experimental
      try {
        return nodeModule.stripTypeScriptTypes(code, { mode: "transform" });
      } finally {
        process.emitWarning = warn;
      }
    });
  }
  throw new Error("no compiler for TypeScript in the sandbox: install typescript (npm install -g typescript), esbuild, or Node.js 22.13 or later");
}

// describe makes what the API knows of a thrown value; null if it is no fault.
function describe(e) {
  if (e !== null && typeof e === "object" && "thrown" in e) e = e.thrown;
  if (e instanceof ExitRequest && e.code === 0) return null;
  let name = "Error";
  let value = "";
  let trace = "";
  try {
    if (util.types.isNativeError(e) || e instanceof Error) {
      name = String(e.name || "Error");
      value = String(e.message);
      // Not the frames of this file.
      trace = String(e.stack ?? `${name}: ${value}`)
        .split("\n    at Session.post (node:inspector")[0]
        .split("\n    at __daytona")[0];
      if (e.cause !== undefined) trace += `\ncaused by: ${util.inspect(e.cause)}`;
    } else {
      value = typeof e === "string" ? e : util.inspect(e);
      trace = `Uncaught ${util.inspect(e)}`;
    }
  } catch {
    value = "<exception without a text form>";
  }
  return { name: clip(name, 1000), value: clip(value, traceLimit), traceback: clip(trace, traceLimit) };
}

// bundle is the forms of a value by media type, binary ones as base64.
function bundle(value) {
  let text;
  try {
    text = util.inspect(value, { depth: 4 });
  } catch (e) {
    text = "<value without a text form>";
  }
  const data = { "text/plain": clip(text, textLimit) };
  try {
    if (value instanceof Uint8Array) {
      const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
      if (bytes.subarray(0, 8).equals(Buffer.from("89504e470d0a1a0a", "hex"))) data["image/png"] = bytes.toString("base64");
    }
    // The convention of Deno for notebooks.
    const forms = value?.[Symbol.for("Jupyter.display")]?.();
    for (const [media, form] of Object.entries(forms ?? {})) {
      data[media] = typeof form === "string" ? form : JSON.stringify(form);
    }
  } catch {
    // It has no other forms.
  }
  return data;
}

function result(value) {
  const data = bundle(value);
  try {
    send({ type: "result", data });
  } catch (e) {
    process.stderr.write(e.message + "\n");
    send({ type: "result", data: { "text/plain": data["text/plain"] } });
  }
}

function display(...values) {
  values.forEach(result);
}

let cells = 0;
async function run(request) {
  mend();
  const before = {};
  for (const [name, value] of Object.entries(request.envs ?? {})) {
    before[name] = process.env[name];
    process.env[name] = value;
  }
  let error = null;
  try {
    const cell = ++cells;
    let code = request.code;
    if (request.language === "typescript") {
      code = compiler()(code).replace(/^export \{\s*\};?$/gm, "");
    }
    const value = await evaluate(code, cell);
    if (value !== undefined) result(value);
  } catch (e) {
    error = describe(e);
  }
  session.post("Runtime.releaseObjectGroup", { objectGroup: "run" });
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
  send({ type: "done", id: request.id, error });
}

function setup(request) {
  try {
    process.chdir(request.cwd);
    process.env.PWD = request.cwd;
    send({ type: "ready" });
  } catch (e) {
    send({ type: "failed", text: e.message });
  }
}

let chunks = [];
let received = 0;
channel.on("data", (data) => {
  chunks.push(data);
  received += data.length;
  for (;;) {
    if (received < 4) return;
    if (chunks[0].length < 4) chunks = [Buffer.concat(chunks)];
    const n = 4 + chunks[0].readUInt32BE();
    if (received < n) return;
    const all = Buffer.concat(chunks);
    chunks = [all.subarray(n)];
    received -= n;
    const request = JSON.parse(all.toString("utf8", 4, n));
    if (request.type === "run") run(request);
    else if (request.type === "setup") setup(request);
  }
});
send({ type: "ready" });
