// A client of Socket.IO, for the tests: node client.cjs MODULE URL OPTIONS.
// It prints what happens, a line each.
const { io } = require(process.argv[2])
const socket = io(process.argv[3], JSON.parse(process.argv[4]))
const say = (...words) => console.log(words.map((w) => (typeof w === 'string' ? w : JSON.stringify(w))).join(' '))
socket.on('connect', () => {
  say('connect', socket.io.engine.transport.name)
  if (socket.io.engine.transport.name === 'polling') socket.io.engine.once('upgrade', (t) => say('upgrade', t.name))
})
socket.on('connect_error', (e) => {
  say('connect_error', e.message)
  process.exit(1)
})
socket.on('disconnect', (reason) => {
  say('disconnect', reason)
  process.exit(0)
})
socket.onAny((event, ...args) => say('event', event, ...args))
