// The emulator makes style elements; the page's policy wants to know them by its nonce.
const nonce = document.querySelector('script[nonce]').nonce;
const createElement = document.createElement.bind(document);
document.createElement = (name, options) => {
  const element = createElement(name, options);
  if (String(name).toLowerCase() === 'style') element.nonce = nonce;
  return element;
};

// A token in the address is for the server, and not for the history.
const query = location.search;
if (query) history.replaceState(null, '', location.pathname);

const { Terminal } = await import('./xterm.mjs');
const { FitAddon } = await import('./addon-fit.mjs');

const safe = (link) => /^(https?|mailto):/i.test(link);
const terminal = new Terminal({
  cursorBlink: true,
  scrollback: 10000,
  linkHandler: {
    activate: (_, link) => {
      if (safe(link) && confirm(`Open ${link}?\n\nA program in the sandbox has put this link here.`)) {
        window.open(link, '_blank', 'noopener,noreferrer');
      }
    },
  },
});
// The server leaves these out already.
const nothing = () => true;
terminal.parser.registerOscHandler(52, nothing);
terminal.parser.registerCsiHandler({ final: 't' }, nothing);
terminal.parser.registerDcsHandler({ intermediates: '$', final: 'q' }, nothing);

const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(document.getElementById('terminal'));

const status = document.getElementById('status');
const url = new URL('ws' + query, location.href);
url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
const socket = new WebSocket(url);
const connected = () => socket.readyState === WebSocket.OPEN;
const resize = () => {
  fit.fit();
  if (connected()) socket.send(JSON.stringify({ rows: terminal.rows, cols: terminal.cols }));
};
// Input goes in binary frames: text could look like a change of size.
terminal.onData((text) => { if (connected()) socket.send(new TextEncoder().encode(text)); });
terminal.onBinary((bytes) => { if (connected()) socket.send(Uint8Array.from(bytes, (c) => c.charCodeAt(0))); });
new ResizeObserver(resize).observe(document.getElementById('terminal'));
socket.onopen = () => { resize(); terminal.focus(); };
socket.onmessage = (event) => terminal.write(event.data);
socket.onclose = (event) => { status.textContent = event.reason || 'The terminal has ended.'; };
