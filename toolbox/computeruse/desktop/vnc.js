// Shows the desktop, and connects again when it has been restarted.
import RFB from './core/rfb.js';

const said = document.getElementById('said');
const params = new URLSearchParams(location.search);

function connect() {
  const url = new URL('websockify', location.href);
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
  url.search = location.search; // a proxy's token may be there
  const rfb = new RFB(document.getElementById('screen'), url.href, { shared: true });
  rfb.scaleViewport = true;
  rfb.viewOnly = params.get('view_only') === 'true' || params.get('view_only') === '1';
  rfb.addEventListener('connect', () => { said.textContent = ''; });
  rfb.addEventListener('disconnect', () => {
    said.textContent = 'the desktop is not there; trying again…';
    setTimeout(connect, 2000);
  });
}

connect();
